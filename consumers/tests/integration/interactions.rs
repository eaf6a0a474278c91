//! Every kind of interaction, and responses that take longer than three seconds.

use std::sync::Arc;
use std::time::Duration;

use consumers::{Context, Definition, HandlerError, Interaction, Response, Router};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{World, metric, until};

const COMPONENT: &str = include_str!("../fixtures/INTERACTION_CREATE.component.json");
const MODAL: &str = include_str!("../fixtures/INTERACTION_CREATE.modal.json");
const AUTOCOMPLETE: &str = include_str!("../fixtures/INTERACTION_CREATE.autocomplete.json");

fn hello() -> Definition {
    Definition::chat_input("hello", "Says hello")
}

/// Stores a fixture as an interaction made right now; its id.
async fn ask(world: &World, fixture: &str) -> u64 {
    let id = world.snowflake(Duration::ZERO);
    let mut frame: Value = serde_json::from_str(fixture).unwrap();
    frame["d"]["id"] = json!(id.to_string());
    frame["d"]["token"] = json!(format!("token-{id}"));
    world.store(0, frame.to_string().into()).await;
    id
}

#[tokio::test]
async fn components_forms_and_suggestions_reach_their_handlers() {
    async fn turn(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::update("the next page"))
    }
    async fn take(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::text("thank you"))
    }
    async fn suggest(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Err("nothing comes to mind".into())
    }
    let world = World::start().await;
    let router = Router::new()
        .component("page", turn)
        .modal("modal", take)
        .autocomplete("elidro", suggest);
    let worker = world.worker(router).await;
    let (page, form) = (ask(&world, COMPONENT).await, ask(&world, MODAL).await);
    assert_eq!(world.answer(page).await, "the next page");
    assert_eq!(world.discord.answer_to(page).unwrap().body["type"], 7);
    assert_eq!(world.answer(form).await, "thank you");
    // A failure is no message: Discord takes nothing but suggestions.
    let typing = ask(&world, AUTOCOMPLETE).await;
    world.answer(typing).await;
    let body = world.discord.answer_to(typing).unwrap().body;
    assert_eq!(
        (&body["type"], &body["data"]["choices"]),
        (&json!(8), &json!([]))
    );
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"failed\"} 1",
    )
    .await;
    world.settled("DISCORD_EVENTS").await;
}

#[tokio::test]
async fn a_deferred_response_is_finished_when_its_work_is_done() {
    let world = World::start().await;
    let gate = Arc::new(Notify::new());
    let open = gate.clone();
    let slow = move |_: Context, _: Interaction| {
        let open = open.clone();
        async move {
            let work = async move {
                open.notified().await;
                Ok(Response::text("42"))
            };
            Ok::<_, HandlerError>(Response::deferred(work).ephemeral())
        }
    };
    let worker = world.worker(Router::new().command(hello(), slow)).await;
    let id = world.type_command("hello").await;
    world.answer(id).await;
    let body = world.discord.answer_to(id).unwrap().body;
    assert_eq!(
        (&body["type"], &body["data"]["flags"]),
        (&json!(5), &json!(64))
    );
    assert!(world.discord.edits().is_empty());
    // Discord has a bad moment, and the worker is told to stop.
    world.discord.script_edits([500]);
    let stopping = tokio::spawn(worker.stop());
    gate.notify_one();
    stopping.await.unwrap();
    let edits = world.discord.edits();
    assert_eq!(edits.len(), 1);
    assert_eq!(edits[0].0, format!("token-{id}"));
    assert_eq!(edits[0].1["content"], "42");
    assert_eq!(
        world.discord.requests(id),
        1,
        "the first response is posted once"
    );
    world.settled("DISCORD_EVENTS").await;
}

#[tokio::test]
async fn deferred_work_keeps_nobody_from_being_answered() {
    async fn slow(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::deferred(std::future::pending()))
    }
    async fn quick(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::text("quick"))
    }
    let world = World::start().await;
    let quick_command = Definition::chat_input("quick", "Answers at once");
    let router = Router::new()
        .command(hello(), slow)
        .command(quick_command, quick);
    let mut options = world.options();
    options.concurrency = Some("2".to_owned());
    options.grace_period = Some("1s".to_owned());
    let worker = world.try_worker(router, options).await.unwrap();
    for _ in 0..5 {
        let id = world.type_command("hello").await;
        world.answer(id).await;
    }
    let id = world.type_command("quick").await;
    assert_eq!(world.answer(id).await, "quick");
    worker.stop().await;
}

#[tokio::test]
async fn deferred_work_that_fails_or_panics_is_apologised_for() {
    async fn broken(_: Context, interaction: Interaction) -> Result<Response, HandlerError> {
        let panics = interaction.id.get().is_multiple_of(2);
        Ok(Response::deferred(async move {
            assert!(!panics, "a handler's own fault");
            Err("no luck".into())
        }))
    }
    let world = World::start().await;
    let worker = world.worker(Router::new().command(hello(), broken)).await;
    for count in 1..=4 {
        world.type_command("hello").await;
        let edit = until("the apology", async || {
            let edits = world.discord.edits();
            (edits.len() == count)
                .then(|| edits.last().cloned())
                .flatten()
        })
        .await;
        let text = edit.1["content"].as_str().unwrap();
        assert!(text.starts_with("Something went wrong"), "{text}");
    }
    metric(&worker, "consumers_deferred_total{finished=\"false\"} 4").await;
}

#[tokio::test]
async fn a_newer_worker_answers_the_commands_an_older_one_does_not_know() {
    async fn answer(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::text("hello"))
    }
    let world = World::start().await;
    let other = Definition::chat_input("other", "Something else");
    let old = Router::new().command(other.clone(), answer);
    let old = world.worker(old).await;
    let new = Router::new()
        .command(other, answer)
        .command(hello(), answer);
    let new = world.worker(new).await;
    for _ in 0..20 {
        let id = world.type_command("hello").await;
        assert_eq!(world.answer(id).await, "hello");
    }
    metric(
        &new,
        "consumers_interactions_total{outcome=\"answered\"} 20",
    )
    .await;
    old.stop().await;
    new.stop().await;
}
