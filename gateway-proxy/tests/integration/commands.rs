//! Users' gateway commands: what reaches Discord, and what the asker is told.

mod faults;

use async_nats::Client;
use schemas::{CommandReply, CommandStatus, GuildId, Prefix, Subject};
use serde_json::{Value, json};
use testkit::simulator::Config;

use crate::harness::{Proxy, eventually};
use crate::rig::Rig;

/// Bots with all intents: GUILD_MEMBERS lets all members be asked for.
const ALL_INTENTS: &str = "53608447";

struct Scene {
    rig: Rig,
    client: Client,
    // Ends with the test.
    proxy: Proxy,
}

impl Scene {
    async fn start(shards: &[&str]) -> Self {
        let config = Config {
            guilds: 12,
            shards: 2,
            max_concurrency: 2,
            ..Config::default()
        };
        let rig = Rig::start(config).await;
        let run = rig.proxy().args(&["--intents", ALL_INTENTS]).args(shards);
        let proxy = run.spawn();
        let http = proxy.http().await;
        eventually(http, "/ready", |status, _| status == 200).await;
        let client = rig.client().await;
        Self { rig, client, proxy }
    }

    /// A guild of this shard.
    fn guild(&self, shard: u32) -> GuildId {
        let guilds = self.rig.simulator.guild_ids();
        let mut guilds = guilds.into_iter().filter_map(GuildId::new);
        guilds.find(|guild| guild.shard(2) == shard).unwrap()
    }

    async fn ask(&self, subject: Subject<'_>, request: &Value) -> CommandReply {
        let subject = subject.with_prefix(&Prefix::default());
        let answer = self
            .client
            .request(subject, request.to_string().into())
            .await;
        serde_json::from_slice(&answer.unwrap().payload).unwrap()
    }

    async fn on_shard(&self, shard: u32, request: &Value) -> CommandReply {
        self.ask(Subject::ShardCommands { shard }, request).await
    }

    async fn in_guild(&self, guild: GuildId, request: &Value) -> CommandReply {
        self.ask(Subject::GuildCommands { guild }, request).await
    }

    /// Waits until the proxy has counted so many commands of this opcode with this outcome.
    async fn counted(&self, op: &str, outcome: &str, count: u64) {
        let name = "gateway_proxy_gateway_commands_total";
        let line = format!("{name}{{op=\"{op}\",outcome=\"{outcome}\"}} {count}");
        let is_there = |_, body: &str| body.lines().any(|found| found == line);
        eventually(self.proxy.http().await, "/metrics", is_there).await;
    }

    fn expect_no_violation(&self) {
        let violations = self.rig.simulator.ledger().violations;
        assert!(violations.is_empty(), "{violations:?}");
    }
}

fn presence() -> Value {
    let d = json!({"since": null, "activities": [], "status": "idle", "afk": false});
    json!({"op": 3, "d": d})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_sent_on_its_shard() {
    let scene = Scene::start(&[]).await;
    for shard in 0..2 {
        let guild = scene.guild(shard);
        let id = guild.to_string();
        assert_eq!(
            scene.on_shard(shard, &presence()).await,
            CommandReply::sent()
        );
        for (op, d) in [
            (
                4,
                json!({"guild_id": id, "channel_id": null, "self_mute": false, "self_deaf": false}),
            ),
            (
                8,
                json!({"guild_id": id, "query": "", "limit": 0, "nonce": "abc"}),
            ),
            (31, json!({"guild_ids": [id]})),
            (43, json!({"guild_id": id, "fields": ["status"]})),
        ] {
            let reply = scene.in_guild(guild, &json!({"op": op, "d": d})).await;
            assert_eq!(reply, CommandReply::sent(), "op {op}");
        }
    }
    let report = scene.rig.expect_clean(&[]).await;
    for event in ["GUILD_MEMBERS_CHUNK", "SOUNDBOARD_SOUNDS", "CHANNEL_INFO"] {
        let ledger = scene.rig.simulator.ledger();
        let named = |number: u16| &*ledger.names[usize::from(number)] == event;
        let entries = ledger.sessions.iter().flat_map(|session| &session.entries);
        assert!(
            entries.filter(|entry| named(entry.name)).count() >= 2,
            "{event} {report}"
        );
    }
    scene.expect_no_violation();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_sent_is_rejected_with_the_reason() {
    let scene = Scene::start(&[]).await;
    let other = scene.guild(1).to_string();
    for (request, reason) in [
        (json!({"op": 2, "d": {}}), "op 2 is not one of"),
        (json!({"op": 3, "d": {"status": "idle"}}), "d.activities"),
        (
            json!({"op": 4, "d": {"guild_id": other, "channel_id": null}}),
            "lies on shard 1",
        ),
        (json!({"op": 3, "d": {"x": "a".repeat(5000)}}), "4096"),
        (json!("nonsense"), "request is not"),
    ] {
        let reply = scene.on_shard(0, &request).await;
        assert_eq!(reply.status, CommandStatus::Rejected);
        let error = reply.error.unwrap();
        assert!(error.contains(reason), "{error}");
    }
    for (op, count) in [("3", 1), ("4", 1), ("other", 3)] {
        scene.counted(op, "rejected", count).await;
    }
    scene.expect_no_violation();
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_for_members_go_out_once() {
    let scene = Scene::start(&[]).await;
    let guild = scene.guild(0);
    let request = |nonce: &str| {
        let d = json!({"guild_id": guild.to_string(), "query": "", "limit": 0, "nonce": nonce});
        json!({"op": 8, "d": d})
    };
    assert_eq!(
        scene.in_guild(guild, &request("first")).await,
        CommandReply::sent()
    );
    let merged = scene.in_guild(guild, &request("second")).await;
    assert_eq!(merged.status, CommandStatus::Sent);
    assert_eq!(merged.merged_with_nonce.as_deref(), Some("first"));
    assert!(merged.sent_ms_ago.is_some());
    let mut other = request("third");
    other["d"]["presences"] = true.into();
    let queued = scene.in_guild(guild, &other).await;
    assert_eq!(queued.status, CommandStatus::Queued);
    let wait = queued.retry_after_ms.unwrap();
    assert!((1..=30_000).contains(&wait), "{wait}");
    for outcome in ["sent", "merged", "queued"] {
        scene.counted("8", outcome, 1).await;
    }
    scene.expect_no_violation();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_commands_keeps_discords_limit_and_hears_how_long_it_waits() {
    let scene = Scene::start(&[]).await;
    let guild = scene.guild(0);
    let d = json!({"guild_id": guild.to_string(), "fields": ["status"]});
    let request = json!({"op": 43, "d": d});
    let (mut sent, mut queued) = (0, 0);
    for _ in 0..140 {
        let reply = scene.in_guild(guild, &request).await;
        match reply.status {
            CommandStatus::Sent => sent += 1,
            CommandStatus::Queued => {
                queued += 1;
                assert!(
                    (1..=120_000).contains(&reply.retry_after_ms.unwrap()),
                    "{reply:?}"
                );
            }
            CommandStatus::Rejected | CommandStatus::Unknown => panic!("{reply:?}"),
        }
    }
    assert!((100..120).contains(&sent), "{sent} sent, {queued} queued");
    assert_eq!(sent + queued, 140);
    scene.expect_no_violation();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_silent_about_guilds_of_others() {
    let scene = Scene::start(&["--shard-ids", "0"]).await;
    let guild = scene.guild(1);
    let subject = Subject::GuildCommands { guild }.with_prefix(&Prefix::default());
    let mut inbox = scene.client.subscribe("answers").await.unwrap();
    let request = json!({"op": 43, "d": {"guild_id": guild.to_string(), "fields": []}});
    let request = request.to_string();
    let asked = scene
        .client
        .publish_with_reply(subject, "answers", request.into());
    asked.await.unwrap();
    // Answered after it, on the same subscription of the proxy: had there been an answer to the
    // first question, it would have come first.
    let held = scene.guild(0);
    let subject = Subject::GuildCommands { guild: held }.with_prefix(&Prefix::default());
    let asked = scene
        .client
        .publish_with_reply(subject, "answers", "nonsense".into());
    asked.await.unwrap();
    let answer = futures_util::StreamExt::next(&mut inbox).await.unwrap();
    let reply: CommandReply = serde_json::from_slice(&answer.payload).unwrap();
    assert!(reply.error.unwrap().contains("request is not"));
    let other = scene
        .client
        .request("discord.shard.1.commands", "{}".into())
        .await;
    assert!(other.is_err(), "nobody listens for a shard nobody holds");
}
