//! Messages between workers: to all of them, and to the one that holds a shard.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::Client;
use consumers::{
    Broadcast, Events, HandlerError, Message, MessageError, Router, Running, ShardMessages,
    WorkerContext,
};
use schemas::Prefix;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::Seen;
use crate::world::{Stalls, World, hand_over_max, metric, until};

async fn client(world: &World) -> Client {
    async_nats::connect(world.nats.url()).await.unwrap()
}

async fn broadcast(world: &World) -> Broadcast {
    Broadcast::new(client(world).await, Prefix::default())
}

async fn who(context: WorkerContext, message: Message) -> Result<String, HandlerError> {
    match &*message.payload {
        b"fail" => Err("no luck".into()),
        b"panic" => panic!("a handler's own fault"),
        b"long" => Ok("x".repeat(LONG)),
        _ => Ok(context.worker().id.to_string()),
    }
}

async fn worker(world: &World, name: &str, router: Router) -> Running {
    world
        .worker_named(name, router.on_broadcast("who", who))
        .await
}

/// More than any server of these tests takes.
const LONG: usize = 65 << 20;
const SOON: Duration = Duration::from_millis(300);
const WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_broadcast_is_heard_by_every_worker_of_every_kind() {
    let world = World::start().await;
    let seen = Seen::default();
    let shared = Events::shared("log").on::<MessageDelete>(seen.notes());
    let ordered = Events::ordered("cache").shards([0]);
    let ordered = ordered.on::<MessageDelete>(seen.notes());
    let (commands, nothing) = (consumers::commands::router(), Router::new());
    let one = worker(&world, "commands", commands).await;
    let two = worker(&world, "shared", Router::new().events(shared)).await;
    let three = worker(&world, "ordered", Router::new().events(ordered)).await;
    let four = worker(&world, "nothing", nothing).await;

    let broadcast = broadcast(&world).await;
    let answers = broadcast.gather("who", "", WITHIN, 4).await.unwrap();
    let names: BTreeSet<&str> = answers.iter().map(|answer| &*answer.worker).collect();
    assert_eq!(names, ["commands", "nothing", "ordered", "shared"].into());
    for answer in &answers {
        let text = answer.result.as_ref().unwrap();
        assert_eq!(text, answer.worker.as_bytes(), "each speaks for itself");
    }
    let two_of_four = broadcast.gather("who", "", WITHIN, 2).await.unwrap();
    assert_eq!(two_of_four.len(), 2);
    let line = "consumers_messages_total{to=\"who\",outcome=\"handled\"} 2";
    metric(&one, line).await;
    // One that has stopped is not waited for.
    for worker in [one, two, three] {
        worker.stop().await;
    }
    let left = broadcast.gather("who", "", SOON, 4).await.unwrap();
    assert_eq!(left.len(), 1);
    four.stop().await;
    let began = Instant::now();
    assert!(
        broadcast
            .gather("who", "", WITHIN, 4)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(began.elapsed() < WITHIN, "nobody listens, and NATS says so");
}

#[tokio::test]
async fn a_handler_that_fails_panics_or_says_too_much_is_answered_as_an_error() {
    let world = World::start().await;
    let worker = worker(&world, "w", Router::new()).await;
    let broadcast = broadcast(&world).await;
    for (payload, code, words) in [
        ("fail", 500, "no luck"),
        ("panic", 500, "a handler's own fault"),
        ("long", 413, "68157440 bytes"),
    ] {
        let answers = broadcast.gather("who", payload, WITHIN, 1).await.unwrap();
        assert_eq!(answers[0].worker, "w");
        let refusal = answers[0].result.as_ref().unwrap_err();
        assert_eq!(refusal.code, code);
        assert!(refusal.text.contains(words), "{refusal}");
    }
    let line = "consumers_messages_total{to=\"who\",outcome=\"too_large\"} 1";
    metric(&worker, line).await;
    // And the worker is as well as before.
    assert!(
        broadcast.gather("who", "", WITHIN, 1).await.unwrap()[0]
            .result
            .is_ok()
    );
}

#[tokio::test]
async fn a_question_without_an_end_does_not_panic_and_ends_with_the_last_answer() {
    let world = World::start().await;
    let worker = worker(&world, "w", Router::new()).await;
    let broadcast = broadcast(&world).await;
    let answers = broadcast.gather("who", "", Duration::MAX, 1).await.unwrap();
    assert_eq!(answers[0].worker, "w");
    worker.stop().await;
}

#[tokio::test]
async fn a_message_that_nats_does_not_take_is_refused_before_it_is_sent() {
    let world = World::start().await;
    let broadcast = broadcast(&world).await;
    let payload = vec![0; LONG];
    let refused = broadcast.publish("who", payload.clone()).await;
    let most = client(&world).await.server_info().max_payload;
    assert!(
        matches!(refused, Err(MessageError::TooLarge { bytes, most: have })
            if bytes == payload.len() && have == most),
        "{refused:?}"
    );
    let messages = ShardMessages::new(client(&world).await, Prefix::default());
    let refused = messages.request(0, payload, WITHIN).await;
    assert!(
        matches!(refused, Err(MessageError::TooLarge { .. })),
        "{refused:?}"
    );
    for topic in ["", "a..b", "a.*", ">", "a b"] {
        let refused = broadcast.publish(topic, "").await;
        assert!(matches!(refused, Err(MessageError::Topic(_))), "{topic:?}");
    }
    let wrong = Router::new().on_broadcast("a.*", who);
    let refused = world
        .try_worker(wrong, world.options())
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), 64);
    assert!(refused.to_string().contains("a.*"), "{refused}");
}

#[tokio::test]
async fn the_broadcasts_of_a_topic_are_heard_in_their_order() {
    let world = World::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let hear = move |_: WorkerContext, message: Message| {
        let note = note.clone();
        async move {
            let number: u32 = message.json()?;
            // The later ones would overtake, if they could.
            tokio::time::sleep(Duration::from_millis(u64::from(number % 3))).await;
            note.add(number.to_string());
            Ok::<(), HandlerError>(())
        }
    };
    let router = Router::new().on_broadcast("settings.changed", hear);
    let worker = world.worker(router).await;
    let broadcast = broadcast(&world).await;
    for number in 0..200 {
        let payload = number.to_string();
        broadcast
            .publish("settings.changed", payload)
            .await
            .unwrap();
    }
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    assert_eq!(seen.reaches(200).await, expected);
    worker.stop().await;
}

/// Says which worker answers, and for which shard.
async fn name(context: WorkerContext, message: Message) -> Result<String, HandlerError> {
    assert!(message.wants_answer);
    Ok(format!("{} for {}", context.worker().id, message.to))
}

#[tokio::test]
async fn a_command_to_a_shard_that_no_proxy_holds_is_counted() {
    async fn send(context: WorkerContext, _: Message) -> Result<String, HandlerError> {
        let presence = serde_json::Map::new();
        let sent = context.commands().set_presence([7], presence).await;
        Ok(format!("{:?}", sent[0].1))
    }
    let world = World::start().await;
    let router = Router::new().on_broadcast("presence", send);
    let worker = worker(&world, "w", router).await;
    let broadcast = broadcast(&world).await;
    let answers = broadcast.gather("presence", "", WITHIN, 1).await.unwrap();
    assert_eq!(answers[0].result.as_ref().unwrap(), "Err(NobodyHolds)");
    metric(
        &worker,
        "consumers_commands_total{outcome=\"nobody_holds\"} 1",
    )
    .await;
}

async fn holder(world: &World, id: &str, seen: &Seen) -> Running {
    let events = Events::ordered("cache").shards(0..4);
    let events = events.on::<MessageDelete>(seen.notes()).on_message(name);
    worker(world, id, Router::new().events(events)).await
}

/// Which worker answers for each shard, once one does for all.
async fn holders(messages: &ShardMessages) -> Vec<String> {
    until("every shard to have a holder", async || {
        let mut names = Vec::new();
        for shard in 0..4 {
            // One that dies right now never answers.
            let answer = messages.request(shard, "", SOON).await.ok()?;
            let text = String::from_utf8(answer.to_vec()).unwrap();
            let (name, rest) = text.split_once(' ').unwrap();
            assert_eq!(rest, format!("for shard {shard}"));
            names.push(name.to_owned());
        }
        Some(names)
    })
    .await
}

#[tokio::test]
async fn a_message_reaches_the_worker_that_holds_the_shard_wherever_it_moves() {
    let world = World::start().await;
    let seen = Seen::default();
    let messages = ShardMessages::new(client(&world).await, Prefix::default());
    let began = Instant::now();
    let nobody = messages.request(2, "", WITHIN).await;
    assert!(
        matches!(nobody, Err(MessageError::NobodyHolds(2))),
        "{nobody:?}"
    );
    assert!(began.elapsed() < WITHIN, "at once");

    let first = holder(&world, "first", &seen).await;
    assert_eq!(holders(&messages).await, ["first"; 4]);
    let second = holder(&world, "second", &seen).await;
    until("half of the shards to move", async || {
        let moved = holders(&messages).await;
        let moved = moved.iter().filter(|name| *name == "second").count();
        (moved == 2).then_some(())
    })
    .await;
    // One that leaves in order, and one that dies.
    first.stop().await;
    assert_eq!(holders(&messages).await, ["second"; 4]);
    let third = holder(&world, "third", &seen).await;
    until("shards of the third", async || {
        let names = holders(&messages).await;
        names.contains(&"third".to_owned()).then_some(())
    })
    .await;
    let stalls = Stalls::watch(&world.nats.url()).await;
    drop(second);
    let (died, lost) = (Instant::now(), stalls.lost());
    assert_eq!(holders(&messages).await, ["third"; 4]);
    // One question was for the dead one.
    stalls.assert_within(hand_over_max() + SOON, died, lost);
    third.stop().await;
    let nobody = messages.request(2, "", WITHIN).await;
    assert!(
        matches!(nobody, Err(MessageError::NobodyHolds(2))),
        "{nobody:?}"
    );
}

#[tokio::test]
#[should_panic(expected = "shared events hold no shards")]
async fn a_message_to_a_shard_that_nobody_can_hold_is_a_mistake_of_the_program() {
    drop(Events::shared("log").on_message(name));
}
