//! `/stats`, `/find` and `/shards`, with and without a directory.

use consumers::commands;
use serde_json::{Value, json};
use testkit::simulator::{Config, Simulator};

use crate::directory::{Scene, on_shard_1};
use crate::proxy::Process;
use crate::world::{World, frame, until};

/// Types `/find <what> <option>:<text>`; the answer's text.
async fn find(world: &World, what: &str, text: &str) -> String {
    let id = world.snowflake(std::time::Duration::ZERO);
    let option = if what == "guild" { "query" } else { "id" };
    let mut frame: Value = frame(id, "find");
    frame["d"]["data"]["options"] = json!([{
        "type": 1, "name": what,
        "options": [{"type": 3, "name": option, "value": text}],
    }]);
    world.store(0, frame.to_string().into()).await;
    world.answer(id).await
}

#[tokio::test]
async fn without_a_directory_the_commands_say_so() {
    let world = World::start().await;
    let _worker = world.worker(commands::router()).await;
    for command in ["stats", "shards"] {
        let id = world.type_command(command).await;
        let text = world.answer(id).await;
        assert_eq!(text, "The directory does not answer at the moment.");
    }
    let text = find(&world, "guild", "7").await;
    assert_eq!(text, "The directory does not answer at the moment.");
}

#[tokio::test]
async fn servers_are_found_by_id_and_by_a_part_of_their_name() {
    let scene = Scene::start().await;
    let (first, second) = (on_shard_1(1), on_shard_1(2));
    scene.guild(1, first, "Gardening *Friends*").await;
    scene.guild(1, second, "Gardens").await;
    let _directory = scene.serve().await;
    scene.known(second, |_| true).await;
    let _worker = scene.world.worker(commands::router()).await;
    let world = &scene.world;

    let text = find(world, "guild", &first.to_string()).await;
    assert!(
        text.starts_with("**Server:** Gardening \\*Friends\\*\n"),
        "{text}"
    );
    assert!(
        text.contains("**Members:** 10") && text.contains("**Channels:** 2"),
        "{text}"
    );
    assert!(
        text.ends_with("**Shard:** 1\n**State:** available"),
        "{text}"
    );
    let text = find(world, "guild", " FRIENDS ").await;
    assert!(text.contains(&first.to_string()), "{text}");
    let text = find(world, "guild", "garden").await;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(find(world, "guild", "nowhere").await, "No such server.");
    assert_eq!(find(world, "user", "ann").await, "That is no user's id.");
    assert_eq!(find(world, "user", "42").await, "This bot keeps no users.");
}

#[tokio::test]
async fn a_typed_command_is_answered_with_what_the_directory_read() {
    let world = World::without_stream().await;
    let nats = world.nats.url();
    let simulator = Simulator::start(Config {
        guilds: 12,
        shards: 2,
        max_concurrency: 2,
        ..Config::default()
    })
    .await
    .unwrap();
    let proxy = Process::proxy(&nats, &simulator, &["--shards", "2"]);
    proxy.logs("shard is ready").await;
    let directory = Process::directory(&nats, &simulator, &[]);
    directory.logs("answering queries").await;
    let worker = Process::consumers("commands", &nats, &simulator, &[]);
    worker.logs("consumer open").await;
    let typed = async |command: &'static str| {
        let id = simulator.type_command(Some(0), command)?;
        let answered = until("an answer", async || {
            let last = simulator.stats().interactions.last;
            last.into_iter().find(|record| record.id == id)
        });
        answered.await.content
    };
    until("the sums to be complete", async || {
        let text = typed("stats").await?;
        (text.starts_with("**Servers:** 12\n") && text.contains("2 of 2 ready")).then_some(())
    })
    .await;
    let text = typed("shards").await.unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("**0** · ready · "), "{text}");
    for command in ["ping", "info"] {
        assert!(typed(command).await.is_some(), "{command}");
    }
}
