//! What a worker does when Discord's REST API misbehaves inside the 3 seconds.

use std::time::Duration;

use consumers::commands;

use crate::fake_discord::Fault;
use crate::world::{World, metric};

/// One `/ping` against scripted faults: answered, counted under `outcome`, posted `requests` times.
async fn check(faults: impl IntoIterator<Item = Fault>, outcome: &str, requests: usize) -> World {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    world.discord.script(faults);
    let id = world.type_command("ping").await;
    let line = format!("consumers_interactions_total{{outcome=\"{outcome}\"}} 1");
    metric(&worker, &line).await;
    world.settled("DISCORD_EVENTS").await;
    assert_eq!(world.discord.requests(id), requests);
    world
}

#[tokio::test]
async fn server_errors_are_tried_again() {
    let world = check([Fault::Status(503), Fault::Status(500)], "answered", 3).await;
    assert_eq!(world.discord.answers().len(), 1);
}

#[tokio::test]
async fn a_rate_limit_is_waited_for() {
    let world = check([Fault::RateLimited { retry_after: 0.8 }], "answered", 2).await;
    let answers = world.discord.answers();
    assert_eq!(answers.len(), 1);
    let posts = world.discord.posts(answers[0].interaction);
    let waited = posts[1] - posts[0];
    assert!(waited >= Duration::from_millis(800), "{waited:?}");
}

#[tokio::test]
async fn rate_limits_that_do_not_say_how_long_are_not_hammered() {
    // Left to itself the client would repeat at once for 3 seconds: thousands of requests.
    hopeless(Fault::BareRateLimit).await;
}

#[tokio::test]
async fn an_answer_that_was_taken_without_a_response_counts_as_done() {
    let world = check([Fault::TakenThenSilent], "already_answered", 2).await;
    assert_eq!(world.discord.answers().len(), 1);
}

#[tokio::test]
async fn an_interaction_that_is_acknowledged_counts_as_done() {
    check([Fault::AlreadyAcknowledged], "already_answered", 1).await;
}

#[tokio::test]
async fn an_interaction_that_discord_forgot_is_terminated() {
    check([Fault::Unknown], "expired", 1).await;
}

#[tokio::test]
async fn an_answer_that_discord_refuses_is_terminated() {
    check([Fault::Status(400)], "refused", 1).await;
}

#[tokio::test]
async fn a_worker_that_cannot_post_gives_the_interaction_back_and_it_is_answered() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    world
        .discord
        .script(std::iter::repeat_n(Fault::Status(502), 4));
    let id = world.type_command("ping").await;
    world.answer(id).await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"given_back\"} 1",
    )
    .await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"answered\"} 1",
    )
    .await;
    assert_eq!(world.discord.requests(id), 5);
}

#[tokio::test]
async fn an_interaction_that_nobody_can_post_ends_with_its_three_seconds() {
    hopeless(Fault::Status(502)).await;
}

/// One `/ping` that no try gets through: given up, after a bounded number of requests.
async fn hopeless(fault: Fault) {
    // 5 deliveries of 4 tries.
    const REQUESTS_MAX: usize = 20;
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    world.discord.script(std::iter::repeat_n(fault, 10_000));
    let id = world.type_command("ping").await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"unreachable\"} 1",
    )
    .await;
    world.settled("DISCORD_EVENTS").await;
    assert!(world.discord.answers().is_empty());
    assert!(
        world.discord.requests(id) <= REQUESTS_MAX,
        "{}",
        world.discord.requests(id)
    );
}
