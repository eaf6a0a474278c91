//! Commands while NATS dies, freezes or refuses, in a flood, and for shards that nobody holds.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, RequestErrorKind};
use futures_util::StreamExt as _;
use nats_server::Options;
use nix::sys::signal::Signal;
use schemas::{CommandReply, CommandStatus, Prefix, Subject};
use serde_json::json;
use testkit::simulator::Config;

use super::{ALL_INTENTS, Scene, presence};
use crate::harness::{eventually, get, patience};
use crate::rig::Rig;

const LOST: &str = "commands are not received";
const BACK: &str = "commands are received again";
/// A look at a condition that is waited for.
const POLL: Duration = Duration::from_millis(20);

fn subject(shard: u32) -> String {
    Subject::ShardCommands { shard }.with_prefix(&Prefix::default())
}

impl Scene {
    /// Waits until a request on this shard is answered; the client may be connecting itself.
    async fn is_answered(&self, shard: u32) {
        let ask = async {
            loop {
                let request = self.client.request(subject(shard), "nonsense".into());
                if let Ok(answer) = request.await {
                    let reply: CommandReply = serde_json::from_slice(&answer.payload).unwrap();
                    assert!(reply.error.unwrap().contains("request is not"));
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let answered = tokio::time::timeout(patience(), ask).await;
        assert!(answered.is_ok(), "no answer: {:#?}", self.proxy.log());
    }

    /// NATS says at once that nobody listens.
    async fn expect_nobody(&self, shard: u32) {
        let request = self.client.request(subject(shard), "{}".into());
        let kind = request.await.unwrap_err().kind();
        assert_eq!(kind, RequestErrorKind::NoResponders);
    }

    fn logged(&self, text: &str) -> usize {
        let log = self.proxy.log();
        log.iter().filter(|line| line.contains(text)).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_again_after_nats_was_killed() {
    let mut scene = Scene::start(&[]).await;
    scene.is_answered(0).await;
    scene.rig.nats.kill9().unwrap();
    let lost = scene.proxy.logged(LOST).await;
    assert!(lost["reason"].as_str().unwrap().contains("NATS"), "{lost}");
    // Some attempts fail meanwhile.
    scene.rig.nats.start_again().unwrap();
    scene.proxy.logged(BACK).await;
    for shard in 0..2 {
        scene.is_answered(shard).await;
    }
    let guild = scene.guild(1);
    let request = json!({"op": 31, "d": {"guild_ids": [guild.to_string()]}});
    assert_eq!(scene.in_guild(guild, &request).await, CommandReply::sent());
    assert_eq!((scene.logged(LOST), scene.logged(BACK)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_noticed_and_commands_are_answered_when_it_goes_on() {
    let mut scene = Scene::start(&[]).await;
    scene.is_answered(0).await;
    scene.rig.nats.pause().unwrap();
    let lost = scene.proxy.logged(LOST).await;
    assert_eq!(lost["reason"], "NATS did not answer a PING");
    scene.rig.nats.resume().unwrap();
    for shard in 0..2 {
        scene.is_answered(shard).await;
    }
    assert_eq!(scene.logged(LOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers_for_shards_that_nobody_holds() {
    let scene = Scene::start(&["--shard-ids", "0"]).await;
    scene.is_answered(0).await;
    scene.expect_nobody(1).await;
    // With headers, too.
    let mut headers = HeaderMap::new();
    headers.insert("Traceparent", "00-1-2-01");
    let request = presence().to_string().into();
    let answer = scene
        .client
        .request_with_headers(subject(0), headers, request)
        .await
        .unwrap();
    let reply: CommandReply = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(reply, CommandReply::sent());
    scene.proxy.signal(Signal::SIGTERM);
    eventually_nobody(&scene).await;
}

/// The process may still be on its way out when its log ends.
async fn eventually_nobody(scene: &Scene) {
    let gone = async {
        while scene.client.request(subject(0), "{}".into()).await.is_ok() {
            tokio::time::sleep(POLL).await;
        }
    };
    let gone = tokio::time::timeout(patience(), gone).await;
    assert!(gone.is_ok(), "{:#?}", scene.proxy.log());
    scene.expect_nobody(0).await;
}

async fn memory(scene: &Scene) -> u64 {
    let (_, text) = get(scene.proxy.http().await, "/metrics").await;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        name.ends_with("process_resident_memory_bytes")
            .then(|| value.parse::<f64>().ok())?
    });
    value.unwrap() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_a_flood_of_commands_is_answered_once_in_bounded_memory() {
    const COMMANDS: usize = 1_000;
    const LARGE: usize = 50;
    const LARGE_BYTES: usize = 1 << 20;
    let scene = Scene::start(&[]).await;
    scene.is_answered(0).await;
    let before = memory(&scene).await;
    let mut inbox = scene.client.subscribe("answers.*").await.unwrap();
    let padding = "x".repeat(3_000);
    let d = json!({"guild_id": scene.guild(0).to_string(), "fields": ["status"], "x": padding});
    let request = json!({"op": 43, "d": d}).to_string();
    let large = vec![b'x'; LARGE_BYTES];
    for number in 0..COMMANDS + LARGE {
        let payload = if number % 21 == 20 && number / 21 < LARGE {
            large.clone()
        } else {
            request.clone().into_bytes()
        };
        let reply = format!("answers.{number}");
        let sent = scene
            .client
            .publish_with_reply(subject(0), reply, payload.into());
        sent.await.unwrap();
    }
    let mut answers = BTreeMap::new();
    while answers.len() < COMMANDS + LARGE {
        let next = tokio::time::timeout(patience(), inbox.next()).await;
        let answer = next
            .unwrap_or_else(|_| panic!("{} answers", answers.len()))
            .unwrap();
        let reply: CommandReply = serde_json::from_slice(&answer.payload).unwrap();
        let twice = answers.insert(answer.subject.to_string(), reply);
        assert_eq!(twice, None, "{}", answer.subject);
    }
    let mut large = 0;
    for reply in answers.values() {
        let text = reply.error.as_deref().unwrap_or_default();
        match reply.status {
            CommandStatus::Sent | CommandStatus::Queued => {}
            CommandStatus::Rejected if text.contains("above Discord's limit") => large += 1,
            CommandStatus::Rejected => assert!(
                reply.retry_after_ms.is_some()
                    && (text.contains("too many") || text.contains("wait for this shard")),
                "{reply:?}"
            ),
            CommandStatus::Unknown => panic!("{reply:?}"),
        }
    }
    assert_eq!(large, LARGE);
    let grown = memory(&scene).await.saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for 50 MB of requests");
    scene.is_answered(0).await;
    scene.expect_no_violation();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_commands_nats_does_not_permit_is_named_and_the_others_are_answered() {
    let user = "{ user: bot, password: pw, permissions: \
                { publish: \">\", subscribe: { allow: \">\", deny: \"discord.shard.1.commands\" } } }";
    let options = Options {
        extra_config: format!(
            "accounts {{ BOT {{ jetstream: enabled, users: [{user}] }} }}\nno_auth_user: bot"
        ),
        ..Options::default()
    };
    let config = Config {
        guilds: 12,
        shards: 2,
        max_concurrency: 2,
        ..Config::default()
    };
    let rig = Rig::start_with(config, options).await;
    let proxy = rig.proxy().args(&["--intents", ALL_INTENTS]).spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    let client = rig.client().await;
    let scene = Scene { rig, client, proxy };
    let refused = scene.proxy.logged("NATS does not let commands").await;
    assert_eq!(refused["subject"], subject(1));
    scene.is_answered(0).await;
    scene.expect_nobody(1).await;
    assert_eq!(scene.logged(LOST), 0);
}
