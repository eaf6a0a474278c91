//! Shared mode: each event to one worker, at least once, and to the dead-letter stream in the end.

use std::sync::Arc;
use std::time::Duration;

use consumers::{Context, Events, Gap, HandlerError, RawEvent, Start, Verdict};
use schemas::message::{DEAD_MESSAGE_ID, DEAD_PLACE, DEAD_REASON, DEAD_SUBJECT};
use schemas::{ShardId, ShardRecord, ShardState};
use tokio::sync::Notify;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::{Seen, Stored, quick};
use crate::world::room::Room;
use crate::world::{World, http_get, metric, not_ready, ready, until};

fn ids(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|seq| format!("s0:{seq}")).collect()
}

#[tokio::test]
async fn a_typed_event_comes_with_everything_that_is_known_about_it() {
    let world = World::start().await;
    let shard = ShardId::new(3, 4).unwrap();
    let record = ShardRecord {
        state: ShardState::Ready,
        latency_ms: Some(40.0),
        guilds: Some(12),
        ..ShardRecord::new(shard)
    };
    world.fleet([record]).await;
    let (seen, told) = (Seen::default(), Seen::default());
    let (note, tell) = (seen.clone(), told.clone());
    let handler = move |context: Context, event: MessageDelete| {
        let (shard, stored) = (context.shard().clone(), context.event().clone());
        tell.add(format!("{:?} {:?}", shard.guilds, shard.total));
        note.add(format!(
            "{} of {} in {:?}: {} {:?} {} #{} via {}",
            event.id,
            event.channel_id,
            stored.guild.map(schemas::GuildId::get),
            stored.name,
            stored.seq,
            context.message_id(),
            stored.deliveries,
            shard.id,
        ));
        async { Ok::<(), HandlerError>(()) }
    };
    let worker = world
        .event_worker(Events::shared("all").on::<MessageDelete>(handler))
        .await;
    world.store_delete(3, 7, 41).await;
    let expect = "41 of 1 in Some(7): MESSAGE_DELETE Some(41) s3:41 #1 via 3";
    assert_eq!(seen.reaches(1).await, [expect]);
    let mut seq = 41;
    until("the shard's record to be known", async || {
        seq += 1;
        world.store_delete(3, 7, seq).await;
        told.all()
            .contains(&"Some(12) Some(4)".to_owned())
            .then_some(())
    })
    .await;
    world.drained("all").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_of_events_alone_takes_no_interactions() {
    let world = World::start().await;
    let seen = Seen::default();
    let worker = world
        .event_worker(Events::shared("all").on::<MessageDelete>(seen.notes()))
        .await;
    world.store_delete(0, 7, 1).await;
    seen.reaches(1).await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    assert!(stream.consumer_info("commands").await.is_err());
    worker.stop().await;
}

#[tokio::test]
async fn a_frame_that_is_not_its_typed_event_is_delivered_raw_and_counted() {
    let world = World::start().await;
    let (typed, raw) = (Seen::default(), Seen::default());
    let events = Events::shared("all")
        .on::<MessageDelete>(typed.notes())
        .on_raw("MESSAGE_DELETE", raw.notes::<RawEvent>());
    let worker = world.event_worker(events).await;
    let mut stored = Stored {
        shard: 0,
        guild: 7,
        event: "MESSAGE_DELETE",
        seq: 1,
    };
    world.store_event(stored, r#"{"id":{"new":"shape"}}"#).await;
    stored.seq = 2;
    world.store_event(stored, "truncated").await;
    world.store_delete(0, 7, 3).await;
    typed.reaches(1).await;
    raw.reaches(2).await;
    metric(
        &worker,
        "consumers_events_undecodable_total{consumer=\"all\"} 2",
    )
    .await;
    assert_eq!((typed.all(), raw.distinct()), (ids(3..=3), ids(1..=2)));
    world.drained("all").await;
}

#[tokio::test]
async fn a_frame_nobody_can_read_is_kept_with_the_reason() {
    let world = World::start().await;
    let seen = Seen::default();
    let events = Events::shared("all").on::<MessageDelete>(seen.notes());
    let _worker = world.event_worker(events).await;
    let stored = Stored {
        shard: 0,
        guild: 7,
        event: "MESSAGE_DELETE",
        seq: 1,
    };
    world.store_event(stored, "[]").await;
    let dead = world.dead(1).await;
    let headers = dead[0].headers.as_ref().unwrap();
    let reason = headers.get(DEAD_REASON).unwrap().as_str();
    assert!(reason.contains("MESSAGE_DELETE"), "{reason}");
    let subject = headers.get(DEAD_SUBJECT).unwrap().as_str();
    assert_eq!(subject, "discord.shard.0.events.7.MESSAGE_DELETE");
    assert_eq!(headers.get(DEAD_MESSAGE_ID).unwrap().as_str(), "s0:1");
    assert_eq!(
        headers.get(DEAD_PLACE).unwrap().as_str(),
        "DISCORD_EVENTS@1"
    );
    assert_eq!(dead[0].subject.as_str(), "discord.dead.all");
    assert_eq!(
        dead[0].payload,
        r#"{"t":"MESSAGE_DELETE","s":1,"op":0,"d":[]}"#
    );
    world.drained("all").await;
}

#[tokio::test]
async fn a_handler_that_fails_panics_or_hangs_is_tried_again_and_then_given_up() {
    let world = World::start().await;
    let tried = Seen::default();
    let note = tried.clone();
    let handler = move |context: Context, event: MessageDelete| {
        note.add(context.message_id());
        async move {
            match event.id.get() {
                1 => Err("no luck".into()),
                2 => panic!("a handler's own fault"),
                3 => std::future::pending::<Result<Verdict, HandlerError>>().await,
                4 => Ok(Verdict::Dead("poison".to_owned())),
                5 => Ok(Verdict::Discard),
                _ => Ok(Verdict::Done),
            }
        }
    };
    let events = quick(Events::shared("all").timeout(Duration::from_millis(100)));
    let worker = world
        .event_worker(events.on::<MessageDelete>(handler))
        .await;
    for seq in 1..=6 {
        world.store_delete(0, 7, seq).await;
    }
    let dead = world.dead(4).await;
    world.drained("all").await;
    let reasons: Vec<(String, String)> = dead
        .iter()
        .map(|dead| {
            let headers = dead.headers.as_ref().unwrap();
            let get = |name| headers.get(name).unwrap().to_string();
            (get(DEAD_MESSAGE_ID), get(DEAD_REASON))
        })
        .collect();
    for (seq, text) in [
        (1, "tried 3 times: the handler failed: no luck"),
        (
            2,
            "tried 3 times: the handler panicked: a handler's own fault",
        ),
        (3, "tried 3 times: the handler took longer than 100ms"),
        (4, "poison"),
    ] {
        let expect = (format!("s0:{seq}"), text.to_owned());
        assert!(reasons.contains(&expect), "{expect:?} in {reasons:?}");
    }
    let times = |seq: u64| {
        let id = format!("s0:{seq}");
        tried.all().iter().filter(|tried| **tried == id).count()
    };
    assert_eq!([1, 2, 3, 4, 5, 6].map(times), [3, 3, 3, 1, 1, 1]);
    let line = "consumers_events_total{consumer=\"all\",outcome=\"dead\"} 4";
    metric(&worker, line).await;
    metric(&worker, "consumers_events_in_flight 0").await;
}

#[tokio::test]
async fn no_more_events_than_configured_are_handled_at_once() {
    const AT_ONCE: usize = 3;
    const EVENTS: usize = 20;
    let world = World::start().await;
    let (room, seen) = (Room::new(), Seen::default());
    let (visited, note) = (room.clone(), seen.clone());
    let gated = move |context: Context, _: MessageDelete| {
        let (room, note) = (visited.clone(), note.clone());
        async move {
            room.visit().await;
            note.add(context.message_id());
            Ok::<(), HandlerError>(())
        }
    };
    for seq in 1..=EVENTS as u64 {
        world.store_delete(0, 7, seq).await;
    }
    let events = Events::shared("all").concurrency(AT_ONCE);
    let events = events.start(Start::Oldest).on::<MessageDelete>(gated);
    let _worker = world.event_worker(events).await;
    for handled in 1..=EVENTS {
        room.holds(AT_ONCE.min(EVENTS + 1 - handled)).await;
        room.let_one_out();
        seen.reaches(handled).await;
    }
    assert_eq!(room.most(), AT_ONCE);
}

#[tokio::test]
async fn workers_share_the_events_and_one_that_dies_loses_none() {
    let world = World::start().await;
    let (seen, entered) = (Seen::default(), Arc::new(Notify::new()));
    let (gate, started) = (entered.clone(), seen.clone());
    let stuck = move |_: Context, _: MessageDelete| {
        gate.notify_one();
        std::future::pending::<Result<(), HandlerError>>()
    };
    let stuck = Events::shared("all")
        .concurrency(5)
        .on::<MessageDelete>(stuck);
    let doomed = world.event_worker(stuck).await;
    for seq in 1..=20 {
        world.store_delete(0, 7, seq).await;
    }
    entered.notified().await;
    let events = Events::shared("all").on::<MessageDelete>(started.notes());
    let worker = world.event_worker(events).await;
    drop(doomed);
    seen.reaches(20).await;
    world.drained("all").await;
    let mut all = ids(1..=20);
    all.sort();
    assert_eq!(seen.distinct(), all);
    worker.stop().await;
}

#[tokio::test]
async fn a_stop_finishes_the_events_in_flight_and_leaves_the_rest() {
    let world = World::start().await;
    let (entered, leave, seen) = (
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
        Seen::default(),
    );
    let (gate, open, note) = (entered.clone(), leave.clone(), seen.clone());
    let gated = move |context: Context, _: MessageDelete| {
        let (gate, open, note) = (gate.clone(), open.clone(), note.clone());
        async move {
            gate.notify_one();
            open.notified().await;
            note.add(context.message_id());
            Ok::<(), HandlerError>(())
        }
    };
    let events = Events::shared("all")
        .concurrency(1)
        .on::<MessageDelete>(gated);
    let worker = world.event_worker(events).await;
    let address = worker.http_address();
    for seq in 1..=2 {
        world.store_delete(0, 7, seq).await;
    }
    entered.notified().await;
    let stopping = tokio::spawn(worker.stop());
    not_ready(address, "stopping").await;
    leave.notify_one();
    stopping.await.unwrap();
    assert_eq!(seen.all(), ids(1..=1));
    let next = Seen::default();
    let events = Events::shared("all").on::<MessageDelete>(next.notes());
    let _next = world.event_worker(events).await;
    assert_eq!(next.reaches(1).await, ids(2..=2));
    world.drained("all").await;
}

#[tokio::test]
async fn a_new_consumer_begins_where_it_is_told() {
    let world = World::start().await;
    for seq in 1..=3 {
        world.store_delete(0, 7, seq).await;
    }
    let between = time::OffsetDateTime::now_utc();
    for seq in 4..=5 {
        world.store_delete(0, 7, seq).await;
    }
    for (name, start, first) in [
        ("oldest", Start::Oldest, 1),
        ("sequence", Start::Sequence(2), 2),
        ("time", Start::Time(between), 4),
    ] {
        let seen = Seen::default();
        let events = Events::shared(name).start(start).concurrency(1);
        let worker = world
            .event_worker(events.on::<MessageDelete>(seen.notes()))
            .await;
        let count = 6 - first;
        assert_eq!(seen.reaches(count).await, ids(first as u64..=5), "{name}");
        worker.stop().await;
    }
    let seen = Seen::default();
    let events = Events::shared("new").on::<MessageDelete>(seen.notes());
    let _worker = world.event_worker(events).await;
    world.store_delete(0, 7, 6).await;
    assert_eq!(seen.reaches(1).await, ids(6..=6));
}

#[tokio::test]
async fn a_paused_worker_takes_no_events_until_it_goes_on() {
    let world = World::start().await;
    let (first, second) = (Seen::default(), Seen::default());
    let events = Events::shared("all").on::<MessageDelete>(first.notes());
    let worker = world.event_worker(events).await;
    world.store_delete(0, 7, 1).await;
    first.reaches(1).await;
    worker.pause();
    // Its request has left the server once the interest in its inbox has.
    until("the worker to let go", async || {
        let stream = world.jetstream.get_stream_no_info("DISCORD_EVENTS").await;
        let info = stream.ok()?.consumer_info("all").await.ok()?;
        (info.num_waiting == 0).then_some(())
    })
    .await;
    let other = Events::shared("all").on::<MessageDelete>(second.notes());
    let other = world.event_worker(other).await;
    for seq in 2..=5 {
        world.store_delete(0, 7, seq).await;
    }
    second.reaches(4).await;
    assert_eq!(first.all(), ids(1..=1));
    other.stop().await;
    world.store_delete(0, 7, 6).await;
    worker.resume();
    first.reaches(2).await;
    assert_eq!(first.all(), ["s0:1", "s0:6"]);
    world.drained("all").await;
}

#[tokio::test]
async fn a_consumer_that_is_deleted_under_load_is_made_again_where_it_was() {
    let world = World::start().await;
    let seen = Seen::default();
    let events = Events::shared("all").on::<MessageDelete>(seen.notes());
    let worker = world.event_worker(events).await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    for seq in 1..=200 {
        world.store_delete(0, 7, seq).await;
        if seq == 100 {
            stream.delete_consumer("all").await.unwrap();
        }
    }
    until("every event to be handled", async || {
        (seen.distinct().len() == 200).then_some(())
    })
    .await;
    metric(&worker, "consumers_consumer_recreated_total 1").await;
    world.drained("all").await;
}

#[tokio::test]
async fn a_stream_that_is_purged_or_made_again_is_followed() {
    let world = World::start().await;
    let seen = Seen::default();
    let events = Events::shared("all").on::<MessageDelete>(seen.notes());
    let worker = world.event_worker(events).await;
    world.store_delete(0, 7, 1).await;
    seen.reaches(1).await;
    worker.pause();
    world.store_delete(0, 7, 2).await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    stream.purge().await.unwrap();
    world.store_delete(0, 7, 3).await;
    worker.resume();
    until("what is left to be handled", async || {
        (seen.all().last()? == "s0:3").then_some(())
    })
    .await;
    let address = worker.http_address();
    world
        .jetstream
        .delete_stream("DISCORD_EVENTS")
        .await
        .unwrap();
    not_ready(address, "all of DISCORD_EVENTS").await;
    world.create_stream(None).await;
    // Sequences count from 1 again, below the place the worker remembers.
    world.store_delete(0, 7, 4).await;
    until("the new stream's event", async || {
        (seen.all().last()? == "s0:4").then_some(())
    })
    .await;
    assert_eq!(http_get(address, "/ready").await.0, 200);
}

#[tokio::test]
async fn a_newer_worker_gets_the_events_an_older_one_does_not_handle() {
    let world = World::start().await;
    let (old, new, gaps) = (Seen::default(), Seen::default(), Seen::default());
    let events = Events::shared("all").on::<MessageDelete>(old.notes());
    let old_worker = world.event_worker(events).await;
    let events = Events::shared("all")
        .on::<MessageDelete>(new.notes())
        .on_raw("TYPING_START", new.notes::<RawEvent>())
        .on_gap(gaps.notes::<Gap>());
    let new_worker = world.event_worker(events).await;
    for seq in 1..=30 {
        let stored = Stored {
            shard: 0,
            guild: 7,
            event: "TYPING_START",
            seq,
        };
        world.store_event(stored, "{}").await;
    }
    until("the newer worker to see them all", async || {
        (new.distinct().len() == 30).then_some(())
    })
    .await;
    assert_eq!(old.all().len(), 0);
    world.drained("all").await;
    // The older one alone: what nobody handles does not stay for ever, and is not lost.
    new_worker.stop().await;
    let stored = Stored {
        shard: 0,
        guild: 7,
        event: "TYPING_START",
        seq: 31,
    };
    world.store_event(stored, "{}").await;
    let dead = world.dead(1).await;
    let reason = dead[0].headers.as_ref().unwrap().get(DEAD_REASON).unwrap();
    assert!(reason.as_str().contains("TYPING_START"), "{reason}");
    world.drained("all").await;
    old_worker.stop().await;
}

#[tokio::test]
async fn events_go_on_after_a_restart_of_nats() {
    let mut world = World::start().await;
    let seen = Seen::default();
    let events = Events::shared("all").on::<MessageDelete>(seen.notes());
    let worker = world.event_worker(events).await;
    world.store_delete(0, 7, 1).await;
    seen.reaches(1).await;
    world.nats.kill9().unwrap();
    world.nats.start_again().unwrap();
    ready(worker.http_address()).await;
    until("an event to be stored", async || {
        let storing = tokio::time::timeout(Duration::from_secs(2), world.store_delete(0, 7, 2));
        storing.await.ok()
    })
    .await;
    until("the event to be handled", async || {
        seen.all().contains(&"s0:2".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_stream_that_does_not_fit_ends_the_start() {
    let world = World::start().await;
    let config = async_nats::jetstream::stream::Config {
        name: "DISCORD_DEAD".to_owned(),
        subjects: vec!["elsewhere.*".to_owned()],
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.unwrap();
    let events = Events::shared("all").on::<MessageDelete>(Seen::default().notes());
    let router = consumers::Router::new().events(events);
    let fatal = world.try_worker(router, world.options()).await.err();
    let fatal = fatal.unwrap();
    assert_eq!(fatal.code(), 78);
    assert!(fatal.to_string().contains("discord.dead.*"), "{fatal}");
}

#[tokio::test]
async fn events_that_no_worker_could_handle_are_refused_by_name() {
    let world = World::start().await;
    for (events, word) in [
        (Events::shared("a.b"), "a.b"),
        (Events::shared("empty"), "no handler"),
        (
            Events::shared("commands").on::<MessageDelete>(Seen::default().notes()),
            "interactions",
        ),
    ] {
        let router = consumers::Router::new().events(events);
        let fatal = world.try_worker(router, world.options()).await.err();
        let fatal = fatal.unwrap();
        assert_eq!(fatal.code(), 64);
        assert!(fatal.to_string().contains(word), "{fatal}");
    }
}
