//! A worker outlives what happens to NATS, its stream and its consumer.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use consumers::commands;
use futures_util::StreamExt as _;

use crate::world::{World, http_get, metric, not_ready, ready, until};

/// Types commands until one is answered: right after a fault some may be too late.
async fn answers_again(world: &World) {
    until("an answer after the fault", async || {
        let id = world.type_command("ping").await;
        let within = tokio::time::timeout(Duration::from_secs(3), world.answer(id));
        within.await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_worker_survives_the_restart_of_nats() {
    let mut world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let address = worker.http_address();
    let before = world.type_command("ping").await;
    world.answer(before).await;
    assert_eq!(http_get(address, "/ready").await.0, 200);
    world.nats.kill9().unwrap();
    not_ready(address, "NATS is away").await;
    assert_eq!(http_get(address, "/live").await.0, 200);
    world.nats.start_again().unwrap();
    ready(address).await;
    answers_again(&world).await;
    let (_, metrics) = http_get(address, "/metrics").await;
    let connections = metrics
        .lines()
        .find_map(|line| line.strip_prefix("consumers_nats_connections_total "));
    assert!(
        connections.unwrap().parse::<u32>().unwrap() >= 2,
        "{metrics}"
    );
    worker.stop().await;
}

#[tokio::test]
async fn a_consumer_that_is_deleted_is_made_again_and_misses_nothing() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    metric(&worker, "consumers_nats_connections_total 1").await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    stream.delete_consumer("commands").await.unwrap();
    let id = world.type_command("ping").await;
    world.answer(id).await;
    metric(&worker, "consumers_consumer_recreated_total 1").await;
    worker.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_again_is_used_again() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let address = worker.http_address();
    world
        .jetstream
        .delete_stream("DISCORD_EVENTS")
        .await
        .unwrap();
    not_ready(address, "DISCORD_EVENTS").await;
    world.create_stream(None).await;
    answers_again(&world).await;
    assert_eq!(http_get(address, "/ready").await.0, 200);
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_waits_for_its_stream() {
    let world = World::without_stream().await;
    let mut asking = world.asked_for_the_consumer().await;
    let (worker, ()) = tokio::join!(world.worker(commands::router()), async {
        asking.next().await.unwrap();
        world.create_stream(None).await;
    });
    let id = world.type_command("ping").await;
    world.answer(id).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_stream_that_never_comes_ends_the_start() {
    let world = World::without_stream().await;
    let mut options = world.options();
    options.startup_timeout = Some("1s".to_owned());
    let fatal = world
        .try_worker(commands::router(), options)
        .await
        .err()
        .unwrap();
    assert_eq!(fatal.code(), 78);
    assert!(fatal.to_string().contains("DISCORD_EVENTS"), "{fatal}");
}

#[tokio::test]
async fn an_existing_consumer_with_other_limits_is_used_as_it_is() {
    let world = World::start().await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let tuned = pull::Config {
        durable_name: Some("commands".to_owned()),
        filter_subject: world.prefix.event_of_all_shards("INTERACTION_CREATE"),
        max_ack_pending: 7,
        ..pull::Config::default()
    };
    stream.create_consumer(tuned).await.unwrap();
    let worker = world.worker(commands::router()).await;
    let id = world.type_command("ping").await;
    world.answer(id).await;
    let info = stream.consumer_info("commands").await.unwrap();
    assert_eq!(
        info.config.max_ack_pending, 7,
        "an operator's setting is kept"
    );
    worker.stop().await;
}

#[tokio::test]
async fn an_existing_consumer_that_cannot_work_ends_the_start_with_the_difference() {
    let world = World::start().await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let wrong = pull::Config {
        durable_name: Some("commands".to_owned()),
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    stream.create_consumer(wrong).await.unwrap();
    let fatal = world
        .try_worker(commands::router(), world.options())
        .await
        .err()
        .unwrap();
    assert_eq!(fatal.code(), 78);
    let text = fatal.to_string();
    assert!(
        text.contains("ack_policy is None") && text.contains("filter_subject"),
        "{text}"
    );
    let info = stream.consumer_info("commands").await.unwrap();
    assert_eq!(
        info.config.ack_policy,
        AckPolicy::None,
        "it is reported, not changed"
    );
}
