//! Events that begin together: none is held up by what another one waits for, and few by one that
//! keeps its thread.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use consumers::{Context, Events, HandlerError, Start};
use tokio::sync::watch;
use tokio::task::block_in_place;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::Seen;
use crate::world::{World, not_ready, patience, until};

/// Enough for as many events to begin together as ever do.
const WARM: u64 = 200;

#[tokio::test]
async fn what_waits_goes_on_by_itself_and_holds_up_nothing() {
    const EVENTS: u64 = 40;
    let world = World::start().await;
    let (open, gate) = watch::channel(false);
    let seen = Seen::default();
    let note = seen.clone();
    let handler = move |context: Context, _: MessageDelete| {
        let (mut gate, note) = (gate.clone(), note.clone());
        async move {
            if context.event().seq.is_some_and(|seq| seq % 2 == 1) {
                gate.wait_for(|open| *open).await?;
            }
            note.add(context.message_id());
            Ok::<(), HandlerError>(())
        }
    };
    for seq in 1..=EVENTS {
        world.store_delete(0, 7, seq).await;
    }
    let events = Events::shared("all").start(Start::Oldest);
    let worker = world
        .event_worker(events.on::<MessageDelete>(handler))
        .await;
    until("those that need not wait to be acknowledged", async || {
        let stream = world.jetstream.get_stream_no_info("DISCORD_EVENTS").await;
        let info = stream.ok()?.consumer_info("all").await.ok()?;
        let waiting = info.num_ack_pending as u64;
        (info.num_pending == 0 && waiting == EVENTS / 2).then_some(())
    })
    .await;
    assert_eq!(seen.all().len() as u64, EVENTS / 2);
    open.send_replace(true);
    world.drained("all").await;
    let all = seen.all();
    assert_eq!(
        (all.len() as u64, seen.distinct().len() as u64),
        (EVENTS, EVENTS)
    );
    worker.stop().await;
}

/// Blocks its thread with the first event after the warm ones until any other one is handled.
async fn one_that_blocks_holds_up_few(events: Events) {
    const EVENTS: u64 = 64;
    let world = World::start().await;
    let (pass, passed) = mpsc::channel();
    let (passed, seen) = (Arc::new(Mutex::new(Some(passed))), Seen::default());
    let note = seen.clone();
    let handler = move |context: Context, _: MessageDelete| {
        if context.event().seq.is_some_and(|seq| seq % 1000 > WARM) {
            let first = passed.lock().unwrap().take();
            match first {
                Some(passed) => {
                    // In place: a thread that is kept otherwise may be the one that tokio needs for
                    // its connections, and nothing at all would go on.
                    if block_in_place(|| passed.recv_timeout(patience())).is_ok() {
                        note.add("others went on");
                    }
                }
                // Nobody listens any more after the first word.
                None => drop(pass.send(())),
            }
        }
        note.add(context.message_id());
        async { Ok::<(), HandlerError>(()) }
    };
    for seq in 1..=WARM + EVENTS {
        // Many guilds: in ordered mode they do not wait for each other.
        world.store_delete(0, 1 + seq, seq).await;
    }
    let events = events.start(Start::Oldest).on::<MessageDelete>(handler);
    let worker = world.event_worker(events).await;
    let all = seen
        .reaches(usize::try_from(WARM + EVENTS + 1).unwrap())
        .await;
    assert!(all.contains(&"others went on".to_owned()));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_keeps_its_thread_holds_up_few_shared_events() {
    one_that_blocks_holds_up_few(Events::shared("all")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_keeps_its_thread_holds_up_few_events_of_a_shard() {
    one_that_blocks_holds_up_few(Events::ordered("all").shards([0])).await;
}

/// A handler waits for something right when the stream goes away.
async fn what_waits_goes_on_without_the_stream(events: Events) {
    let world = World::start().await;
    let (pass, passed) = mpsc::channel();
    let (passed, seen) = (Arc::new(Mutex::new(passed)), Seen::default());
    let note = seen.clone();
    let handler = move |_: Context, _: MessageDelete| {
        note.add("began");
        // Keeps its thread until the worker knows that the stream is gone, and only then waits.
        // In place, as above.
        let passed = block_in_place(|| passed.lock().unwrap().recv_timeout(patience()));
        let note = note.clone();
        async move {
            tokio::task::yield_now().await;
            passed?;
            note.add("ended");
            Ok::<(), HandlerError>(())
        }
    };
    let events = events.start(Start::Oldest).on::<MessageDelete>(handler);
    let worker = world.event_worker(events).await;
    world.store_delete(0, 7, 1).await;
    seen.reaches(1).await;
    let deleted = world.jetstream.delete_stream("DISCORD_EVENTS").await;
    deleted.unwrap();
    not_ready(worker.http_address(), "of DISCORD_EVENTS").await;
    pass.send(()).unwrap();
    assert_eq!(seen.reaches(2).await, ["began", "ended"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_waits_does_not_stand_still_because_the_stream_is_gone() {
    what_waits_goes_on_without_the_stream(Events::shared("all")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_of_a_shard_does_not_stand_still_because_the_stream_is_gone() {
    what_waits_goes_on_without_the_stream(Events::ordered("all").shards([0])).await;
}
