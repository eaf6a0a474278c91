//! Commands at Discord: written when they differ, left alone otherwise.

use consumers::{Context, Definition, HandlerError, Interaction, Response, Router, commands};
use serde_json::json;

use crate::world::World;

async fn answer(_: Context, _: Interaction) -> Result<Response, HandlerError> {
    Ok(Response::text("ok"))
}

#[tokio::test]
async fn commands_are_registered_once_and_only_what_differs_is_written_later() {
    let world = World::start().await;
    world.discord.add_command(json!({
        "id": "1", "type": 1, "name": "other", "description": "Of another worker", "version": "1",
    }));
    drop(world.worker(commands::router()).await);
    assert_eq!(
        world.discord.command_writes(),
        ["find", "info", "ping", "shards", "stats"]
    );
    drop(world.worker(commands::router()).await);
    assert_eq!(
        world.discord.command_writes().len(),
        5,
        "nothing differs, nothing is written"
    );
    let changed = Definition::chat_input("ping", "Another description");
    drop(world.worker(Router::new().command(changed, answer)).await);
    assert_eq!(
        world.discord.command_writes(),
        ["find", "info", "ping", "shards", "stats", "ping"]
    );
    let names: Vec<_> = world
        .discord
        .commands()
        .iter()
        .map(|command| command["name"].clone())
        .collect();
    assert_eq!(names, ["other", "find", "info", "ping", "shards", "stats"]);
}

#[tokio::test]
async fn workers_that_start_together_do_not_fight() {
    let world = World::start().await;
    let (first, second) = tokio::join!(
        world.worker(commands::router()),
        world.worker(commands::router())
    );
    drop((first, second));
    assert_eq!(world.discord.commands().len(), 5);
    let writes = world.discord.command_writes().len();
    assert!(
        writes <= 10,
        "each worker writes each command at most once: {writes}"
    );
    drop(world.worker(commands::router()).await);
    assert_eq!(world.discord.command_writes().len(), writes);
}

#[tokio::test]
async fn a_refused_token_ends_the_start() {
    let world = World::start().await;
    world.discord.refuse_token();
    let fatal = world
        .try_worker(commands::router(), world.options())
        .await
        .err()
        .unwrap();
    assert_eq!(fatal.code(), 77, "{fatal}");
}
