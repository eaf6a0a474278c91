//! What the commands say about shards, with and without a fleet's records.

use std::time::Duration;

use consumers::commands;
use schemas::{FleetKey, ShardId, ShardRecord, ShardState};

use crate::world::{World, until};

#[tokio::test]
async fn without_a_fleet_the_commands_answer_that_they_do_not_know() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let (ping, info) = (
        world.type_command("ping").await,
        world.type_command("info").await,
    );
    let text = world.answer(ping).await;
    let parts = text.strip_prefix("Pong! Discord to worker: ").unwrap();
    let (age, rest) = parts.split_once(" ms").unwrap();
    assert!(age.parse::<u64>().unwrap() < 3000, "{text}");
    assert_eq!(rest, " · gateway heartbeat: unknown");
    let text = world.answer(info).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "**Shard:** 0",
            "**Total shards:** unknown",
            "**Latency:** unknown"
        ]
    );
    assert_eq!(lines[3], format!("**Worker:** {}", worker.worker_id()));
    assert!(lines[4].starts_with("**Uptime:** "), "{text}");
}

#[tokio::test]
async fn a_fleet_that_appears_later_is_followed() {
    let world = World::start().await;
    let _worker = world.worker(commands::router()).await;
    let shard = ShardId::new(3, 16).unwrap();
    let record = ShardRecord {
        state: ShardState::Ready,
        latency_ms: Some(87.4),
        ..ShardRecord::new(shard)
    };
    let bucket = world.fleet([record]).await;
    // Nonsense beside it does no harm.
    bucket.put("shard.16.4", "rubbish".into()).await.unwrap();
    bucket.put("leader", "rubbish".into()).await.unwrap();
    let info = async || {
        let id = world.typed(3, "info", Duration::ZERO).await;
        world.answer(id).await
    };
    until("the record to be known", async || {
        let text = info().await;
        (text.contains("**Total shards:** 16") && text.contains("**Latency:** 87 ms")).then_some(())
    })
    .await;
    bucket
        .delete(FleetKey::Shard(shard).to_string())
        .await
        .unwrap();
    until("the record to be forgotten", async || {
        info()
            .await
            .contains("**Total shards:** unknown")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_fleet_is_followed_across_a_restart_of_nats() {
    let mut world = World::start().await;
    let _worker = world.worker(commands::router()).await;
    let bucket = world.fleet([]).await;
    for count in [4, 8] {
        let shard = ShardId::new(1, count).unwrap();
        let record = ShardRecord {
            state: ShardState::Ready,
            ..ShardRecord::new(shard)
        };
        let value = serde_json::to_vec(&record).unwrap();
        let key = FleetKey::Shard(shard).to_string();
        until("the record to be stored", async || {
            bucket.put(&key, value.clone().into()).await.ok()
        })
        .await;
        until("the record to be known", async || {
            let id = world.typed(1, "info", Duration::ZERO).await;
            let answer = tokio::time::timeout(Duration::from_secs(3), world.answer(id));
            answer
                .await
                .ok()?
                .contains(&format!("**Total shards:** {count}"))
                .then_some(())
        })
        .await;
        bucket.delete(&key).await.unwrap();
        if count == 4 {
            world.nats.kill9().unwrap();
            world.nats.start_again().unwrap();
        }
    }
}
