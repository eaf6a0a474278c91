//! Ordered mode: each guild in order, each shard with one worker, nothing lost when they move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::{consumer, kv};
use consumers::{Context, Events, Gap, HandlerError, Running, Start};
use schemas::message::{DEAD_MESSAGE_ID, DEAD_REASON};
use schemas::{ShardId, ShardRecord};
use tokio::sync::Notify;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::{Seen, Stored, quick};
use crate::world::{Stalls, World, hand_over_max, http_get, metric, not_ready, ready, until};

/// How long the server waits for a sign of life about an event of a shard.
const SHARD_ACK_WAIT: Duration = Duration::from_secs(1);

/// One event as a handler saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    worker: String,
    shard: u32,
    guild: u64,
    seq: u64,
}

#[derive(Clone, Debug, Default)]
struct Sights(Arc<Mutex<Vec<Sight>>>);

impl Sights {
    fn handler(
        &self,
    ) -> impl Fn(Context, MessageDelete) -> std::future::Ready<Result<(), HandlerError>> + use<>
    {
        let all = self.0.clone();
        move |context, event| {
            all.lock().unwrap().push(Sight {
                worker: context.worker().id.to_string(),
                shard: context.shard().id,
                guild: context.event().guild.map_or(0, schemas::GuildId::get),
                seq: event.id.get(),
            });
            std::future::ready(Ok(()))
        }
    }

    fn all(&self) -> Vec<Sight> {
        self.0.lock().unwrap().clone()
    }

    /// Which workers saw each shard's events after the first so many.
    fn workers_after(&self, skip: usize) -> BTreeMap<u32, BTreeSet<String>> {
        let mut workers: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for sight in self.all().split_off(skip) {
            workers.entry(sight.shard).or_default().insert(sight.worker);
        }
        workers
    }

    /// Repetitions come before any later event of the guild.
    fn assert_in_order(&self) {
        let mut last = BTreeMap::new();
        for sight in self.all() {
            let before = last.insert((sight.shard, sight.guild), sight.seq);
            assert!(before <= Some(sight.seq), "{sight:?} after {before:?}");
        }
    }

    /// How many events were seen, each counted once.
    fn distinct(&self) -> usize {
        let all = self.all().into_iter();
        let events: BTreeSet<_> = all.map(|s| (s.shard, s.guild, s.seq)).collect();
        events.len()
    }
}

/// Events of these shards. Where nobody dies the lease is long: a machine that is busy with other
/// tests must not look like a dead worker.
fn cache(shards: impl IntoIterator<Item = u32>) -> Events {
    let lease = Duration::from_secs(10);
    Events::ordered("cache").shards(shards).lease(lease)
}

fn ordered(sights: &Sights) -> Events {
    let events = cache(0..8);
    events.on::<MessageDelete>(sights.handler())
}

async fn worker(world: &World, name: &str, events: Events) -> Running {
    let router = consumers::Router::new().events(events);
    world.worker_named(name, router).await
}

/// How many shards a worker holds, as it says itself.
async fn held(worker: &Running) -> Option<u32> {
    let (_, body) = http_get(worker.http_address(), "/metrics").await;
    let prefix = "consumers_shards_held{consumer=\"cache\"} ";
    let line = body.lines().find_map(|line| line.strip_prefix(prefix));
    line.map_or(Some(0), |count| count.parse().ok())
}

async fn balanced(workers: &[&Running], least: u32, most: u32) {
    until("the shards to be spread", async || {
        let mut sum = 0;
        for worker in workers {
            let held = held(worker).await?;
            if !(least..=most).contains(&held) {
                return None;
            }
            sum += held;
        }
        (sum == 8).then_some(())
    })
    .await;
}

async fn store_round(world: &World, seq: u64) {
    for shard in 0..8 {
        for guild in 1..=3 {
            world.store_delete_as(shard, guild, seq).await;
        }
    }
}

#[tokio::test]
async fn guilds_are_handled_beside_each_other_and_each_in_order() {
    let world = World::start().await;
    let (seen, gate) = (Seen::default(), Arc::new(Notify::new()));
    let (note, open) = (seen.clone(), gate.clone());
    let handler = move |context: Context, _: MessageDelete| {
        let (note, open) = (note.clone(), open.clone());
        async move {
            let guild = context.event().guild.unwrap().get();
            if guild == 1 {
                open.notified().await;
            }
            note.add(format!("{guild} {}", context.message_id()));
            Ok::<(), HandlerError>(())
        }
    };
    let events = cache([0]);
    let worker = world
        .event_worker(events.on::<MessageDelete>(handler))
        .await;
    balanced_alone(&worker).await;
    for seq in 1..=6 {
        world.store_delete(0, 1 + seq % 2, seq).await;
    }
    // Guild 1 waits for its gate, guild 2 does not.
    let first = seen.reaches(3).await;
    assert_eq!(first, ["2 s0:1", "2 s0:3", "2 s0:5"]);
    for count in 4..=6 {
        gate.notify_one();
        seen.reaches(count).await;
    }
    assert_eq!(seen.all()[3..], ["1 s0:2", "1 s0:4", "1 s0:6"]);
    world.drained("cache-0").await;
    worker.stop().await;
}

/// Waits until everything of the shard is with its worker, and so much of it not acknowledged.
async fn in_hand(world: &World, unacknowledged: usize) {
    until("the events to be in the worker's hands", async || {
        let info = consumer_of_shard_0(world).await?;
        (info.num_pending == 0 && info.num_ack_pending == unacknowledged).then_some(())
    })
    .await;
}

async fn consumer_of_shard_0(world: &World) -> Option<consumer::Info> {
    let stream = world.jetstream.get_stream_no_info("DISCORD_EVENTS").await;
    stream.ok()?.consumer_info("cache-0").await.ok()
}

async fn balanced_alone(worker: &Running) {
    metric(worker, "consumers_shards_held{consumer=\"cache\"} 1").await;
}

#[tokio::test]
async fn a_gap_is_handled_between_the_events_around_it() {
    let world = World::start().await;
    let (seen, gate) = (Seen::default(), Arc::new(Notify::new()));
    let (note, tell, open) = (seen.clone(), seen.clone(), gate.clone());
    let handler = move |context: Context, _: MessageDelete| {
        let (note, open) = (note.clone(), open.clone());
        async move {
            if context.event().seq == Some(1) {
                open.notified().await;
            }
            note.add(context.message_id());
            Ok::<(), HandlerError>(())
        }
    };
    let on_gap = move |_: Context, gap: Gap| {
        tell.add(format!("gap after {}", gap.last_seq));
        async { Ok::<(), HandlerError>(()) }
    };
    let events = cache([0]);
    let events = events.on::<MessageDelete>(handler).on_gap(on_gap);
    let worker = world.event_worker(events).await;
    balanced_alone(&worker).await;
    world.store_delete(0, 1, 1).await;
    world.store_delete(0, 2, 2).await;
    let gap = r#"{"shard":[0,1],"old_session_id":"s0","last_seq":2,"new_session_id":"n",
        "lost":null,"reason":"forced","from":"1970-01-01T00:00:00.000Z",
        "to":"1970-01-01T00:00:01.000Z"}"#;
    let stored = Stored {
        shard: 0,
        guild: 0,
        event: "PROXY_GAP",
        seq: 900,
    };
    world.store_event(stored, gap).await;
    world.store_delete(0, 3, 3).await;
    seen.reaches(1).await;
    in_hand(&world, 3).await;
    assert_eq!(seen.all(), ["s0:2"], "the gap waits for guild 1");
    gate.notify_one();
    let all = seen.reaches(4).await;
    assert_eq!(all, ["s0:2", "s0:1", "gap after 2", "s0:3"]);
    world.drained("cache-0").await;
}

#[tokio::test]
async fn an_event_that_fails_holds_up_its_guild_alone_and_not_for_ever() {
    let world = World::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |context: Context, event: MessageDelete| {
        let note = note.clone();
        async move {
            match event.id.get() {
                1 => Err::<(), HandlerError>("no luck".into()),
                2 => panic!("a handler's own fault"),
                _ => {
                    note.add(context.message_id());
                    Ok(())
                }
            }
        }
    };
    let events = quick(cache([0])).max_deliver(4);
    let events = events.on::<MessageDelete>(handler);
    let worker = world.event_worker(events).await;
    for (guild, seq) in [(1, 1), (2, 3), (1, 2), (1, 4)] {
        world.store_delete(0, guild, seq).await;
    }
    assert_eq!(seen.reaches(2).await, ["s0:3", "s0:4"]);
    let dead = world.dead(2).await;
    let headers = dead[0].headers.as_ref().unwrap();
    assert_eq!(headers.get(DEAD_MESSAGE_ID).unwrap().as_str(), "s0:1");
    let reason = headers.get(DEAD_REASON).unwrap().as_str();
    assert_eq!(reason, "tried 4 times: the handler failed: no luck");
    world.drained("cache-0").await;
    let line = "consumers_events_total{consumer=\"cache\",outcome=\"retried\"} 6";
    metric(&worker, line).await;
}

#[tokio::test]
async fn shards_move_when_workers_come_and_leave_and_nothing_is_handled_twice() {
    let world = World::start().await;
    let sights = Sights::default();
    let stalls = Stalls::watch(&world.nats.url()).await;
    let first = worker(&world, "first", ordered(&sights)).await;
    balanced(&[&first], 8, 8).await;
    let mut seq = 0;
    let mut store = async || {
        for _ in 0..5 {
            seq += 1;
            store_round(&world, seq).await;
        }
        seq
    };
    store().await;
    // While events flow, three more come and one leaves in order.
    let (second, third, fourth, _) = tokio::join!(
        worker(&world, "second", ordered(&sights)),
        worker(&world, "third", ordered(&sights)),
        worker(&world, "fourth", ordered(&sights)),
        store(),
    );
    balanced(&[&first, &second, &third, &fourth], 2, 2).await;
    store().await;
    tokio::join!(first.stop(), async {
        store().await;
    });
    balanced(&[&second, &third, &fourth], 2, 3).await;
    let rounds = store().await;
    let expect = usize::try_from(rounds).unwrap() * 24;
    until("every event to be handled", async || {
        (sights.distinct() >= expect).then_some(())
    })
    .await;
    // A server that stands still for longer than it waits for acknowledgements delivers again.
    if stalls.lost() < SHARD_ACK_WAIT / 2 {
        assert_eq!(sights.all().len(), expect, "nothing is handled twice");
    }
    assert_eq!(sights.distinct(), expect);
    sights.assert_in_order();
    for worker in [second, third, fourth] {
        worker.stop().await;
    }
}

#[tokio::test]
async fn the_shards_of_a_dead_worker_are_taken_over_within_two_seconds() {
    let world = World::start().await;
    let sights = Sights::default();
    let stuck = |_: Context, _: MessageDelete| std::future::pending::<Result<(), HandlerError>>();
    let short = Duration::from_secs(1);
    let doomed = cache(0..8).lease(short).on::<MessageDelete>(stuck);
    let doomed = worker(&world, "doomed", doomed).await;
    balanced(&[&doomed], 8, 8).await;
    let heir = worker(&world, "heir", ordered(&sights).lease(short)).await;
    balanced(&[&doomed, &heir], 4, 4).await;
    for seq in 1..=5 {
        store_round(&world, seq).await;
    }
    until("the living one to handle its own", async || {
        (sights.all().len() == 60).then_some(())
    })
    .await;
    let stalls = Stalls::watch(&world.nats.url()).await;
    let (died, lost) = (Instant::now(), stalls.lost());
    drop(doomed);
    until("the dead one's events to be handled", async || {
        (sights.workers_after(60).len() == 4).then_some(())
    })
    .await;
    stalls.assert_within(hand_over_max(), died, lost);
    until("every event to be handled", async || {
        (sights.all().len() == 120).then_some(())
    })
    .await;
    sights.assert_in_order();
}

#[tokio::test]
async fn the_fleets_shards_are_found_and_a_group_begins_with_its_first_worker() {
    let world = World::start().await;
    let put = async |id, count| {
        let record = ShardRecord::new(ShardId::new(id, count).unwrap());
        world.fleet([record]).await;
    };
    put(0, 1).await;
    world.store_delete(0, 1, 1).await;
    let sights = Sights::default();
    let events = cache([]).on::<MessageDelete>(sights.handler());
    let one = worker(&world, "one", events.clone()).await;
    balanced_alone(&one).await;
    world.store_delete(0, 1, 2).await;
    // A shard that appears later has nothing from before the group, and everything since.
    world.store_delete(5, 1, 3).await;
    put(5, 8).await;
    until("both to be handled", async || {
        (sights.all().len() == 2).then_some(())
    })
    .await;
    let seqs: Vec<u64> = sights.all().iter().map(|sight| sight.seq).collect();
    assert_eq!(seqs, [2, 3]);
    one.stop().await;
    // The next worker of the group goes on where this one ended.
    world.store_delete(0, 1, 4).await;
    let two = worker(&world, "two", events.start(Start::Oldest)).await;
    until("the group to go on", async || {
        (sights.all().len() == 3).then_some(())
    })
    .await;
    assert_eq!(sights.all()[2].seq, 4);
    two.stop().await;
}

#[tokio::test]
async fn a_shard_whose_consumer_is_deleted_goes_on_where_it_was() {
    let world = World::start().await;
    let sights = Sights::default();
    let events = cache([0]);
    let events = events.on::<MessageDelete>(sights.handler());
    let worker = worker(&world, "one", events).await;
    balanced_alone(&worker).await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    for seq in 1..=200 {
        world.store_delete(0, seq % 3 + 1, seq).await;
        if seq == 100 {
            stream.delete_consumer("cache-0").await.unwrap();
        }
    }
    until("every event to be handled", async || {
        (sights.all().len() >= 200).then_some(())
    })
    .await;
    world.drained("cache-0").await;
    assert_eq!(sights.all().len(), 200, "nothing is handled twice");
    sights.assert_in_order();
    metric(&worker, "consumers_consumer_recreated_total 1").await;
}

#[tokio::test]
async fn a_stream_that_is_purged_under_a_worker_is_read_on() {
    let world = World::start().await;
    let sights = Sights::default();
    let events = cache([0]).on::<MessageDelete>(sights.handler());
    let worker = worker(&world, "one", events).await;
    balanced_alone(&worker).await;
    world.store_delete(0, 1, 1).await;
    world.drained("cache-0").await;
    worker.pause();
    for seq in 2..=5 {
        world.store_delete(0, 1, seq).await;
    }
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    stream.purge().await.unwrap();
    for seq in 6..=8 {
        world.store_delete(0, 1, seq).await;
    }
    worker.resume();
    until("what is there to be handled", async || {
        (sights.all().last()?.seq == 8).then_some(())
    })
    .await;
    sights.assert_in_order();
    world.drained("cache-0").await;
}

#[tokio::test]
async fn an_older_worker_lets_pass_what_only_a_newer_one_handles() {
    let world = World::start().await;
    let (sights, seen) = (Sights::default(), Seen::default());
    let old = cache(0..2).on::<MessageDelete>(sights.handler());
    let old = worker(&world, "old", old).await;
    metric(&old, "consumers_shards_held{consumer=\"cache\"} 2").await;
    let new = cache(0..2).on::<MessageDelete>(sights.handler());
    let new = new.on_raw("TYPING_START", seen.notes());
    let new = worker(&world, "new", new).await;
    metric(&old, "consumers_shards_held{consumer=\"cache\"} 1").await;
    metric(&new, "consumers_shards_held{consumer=\"cache\"} 1").await;
    for seq in 1..=3 {
        for shard in 0..2 {
            let stored = Stored {
                shard,
                guild: 1,
                event: "TYPING_START",
                seq: 100 + seq,
            };
            world.store_event(stored, "{}").await;
            world.store_delete(shard, 1, seq).await;
        }
    }
    until("every known event to be handled", async || {
        (sights.distinct() == 6).then_some(())
    })
    .await;
    // The shard of the newer worker only; the older one holds up nothing.
    assert_eq!(seen.reaches(3).await.len(), 3);
    sights.assert_in_order();
    for shard in 0..2 {
        world.drained(&format!("cache-{shard}")).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_made_again_is_read_from_its_beginning() {
    let world = World::start().await;
    let sights = Sights::default();
    let events = cache([0]);
    let events = events.on::<MessageDelete>(sights.handler());
    let worker = worker(&world, "one", events).await;
    for seq in 1..=3 {
        world.store_delete(0, 1, seq).await;
    }
    until("the first events", async || {
        (sights.all().len() == 3).then_some(())
    })
    .await;
    world
        .jetstream
        .delete_stream("DISCORD_EVENTS")
        .await
        .unwrap();
    not_ready(worker.http_address(), "cache-0 of DISCORD_EVENTS").await;
    world.create_stream(None).await;
    world.store_delete(0, 1, 4).await;
    until("the event of the new stream", async || {
        (sights.all().len() == 4).then_some(())
    })
    .await;
    sights.assert_in_order();
    ready(worker.http_address()).await;
}

#[tokio::test]
async fn ordered_events_stay_in_order_across_a_restart_of_nats() {
    let mut world = World::start().await;
    let sights = Sights::default();
    let one = worker(&world, "one", ordered(&sights)).await;
    let two = worker(&world, "two", ordered(&sights)).await;
    balanced(&[&one, &two], 4, 4).await;
    for seq in 1..=10 {
        store_round(&world, seq).await;
    }
    world.nats.kill9().unwrap();
    world.nats.start_again().unwrap();
    until("an event to be stored again", async || {
        let storing = world.store_delete_as(0, 1, 11);
        tokio::time::timeout(Duration::from_secs(2), storing)
            .await
            .ok()
    })
    .await;
    for seq in 12..=20 {
        store_round(&world, seq).await;
    }
    until("every event to be handled", async || {
        (sights.distinct() > 19 * 24).then_some(())
    })
    .await;
    // Acknowledgements in flight were lost with the server: those events may come again, each before
    // any later one of its guild.
    sights.assert_in_order();
    balanced(&[&one, &two], 4, 4).await;
}

#[tokio::test]
async fn a_paused_worker_keeps_its_shards_and_handles_nothing() {
    let world = World::start().await;
    let sights = Sights::default();
    let events = cache([0]);
    let events = events.on::<MessageDelete>(sights.handler());
    let worker = worker(&world, "one", events).await;
    world.store_delete(0, 1, 1).await;
    until("the first event", async || {
        (sights.all().len() == 1).then_some(())
    })
    .await;
    worker.pause();
    for seq in 2..=4 {
        world.store_delete(0, 1, seq).await;
    }
    // What had been asked for arrives and waits; a request that was over by then brings nothing.
    until("the events to wait", async || {
        let info = consumer_of_shard_0(&world).await?;
        let unhandled = info.num_pending + info.num_ack_pending as u64;
        let asked = info.num_pending > 0 && info.num_waiting > 0;
        (unhandled == 3 && !asked).then_some(())
    })
    .await;
    balanced_alone(&worker).await;
    assert_eq!(sights.all().len(), 1);
    worker.resume();
    until("the others", async || {
        (sights.all().len() == 4).then_some(())
    })
    .await;
    sights.assert_in_order();
    world.drained("cache-0").await;
}

#[tokio::test]
async fn a_bucket_of_workers_that_does_not_fit_ends_the_start() {
    let world = World::start().await;
    let bucket = kv::Config {
        bucket: world.prefix.workers_bucket(),
        ..kv::Config::default()
    };
    world.jetstream.create_key_value(bucket).await.unwrap();
    let router = consumers::Router::new().events(ordered(&Sights::default()));
    let fatal = world.try_worker(router, world.options()).await.err();
    let fatal = fatal.unwrap();
    assert_eq!(fatal.code(), 78);
    assert!(fatal.to_string().contains("discord_workers"), "{fatal}");
}
