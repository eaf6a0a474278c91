//! The hub against a real server; the shard's task is played by the test.

use std::collections::BTreeSet;

use async_nats::{Client, RequestErrorKind, Subscriber};
use futures_util::StreamExt as _;
use gateway_proxy_core::session::{Session, Settings};
use schemas::{CommandStatus, ProxyId};
use testkit::nats::{Options, Server};

use super::*;
use crate::status::ProcessStatus;

const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    server: Server,
    settings: NatsSettings,
    client: Client,
}

impl Scene {
    async fn start() -> Self {
        let server = testkit::nats::start(Options::default()).await.unwrap();
        let url = server.url();
        Self {
            server,
            settings: NatsSettings::local(&url).unwrap(),
            client: testkit::nats::connect(&url).await.unwrap(),
        }
    }

    /// A process, connected.
    fn hub(&self) -> Arc<Commands> {
        let process = ProcessStatus::new(ProxyId::try_from("test".to_owned()).unwrap());
        let hub = Commands::new(Prefix::default(), Metrics::new(process));
        let settings = self.settings.clone();
        tokio::spawn(Arc::clone(&hub).run(settings, "test".to_owned()));
        hub
    }

    /// Waits until somebody listens for this shard.
    async fn listened_to(&self, subject: &str) {
        let heard = async {
            loop {
                let root = format!("probe{}", fastrand::u64(..));
                let mut inbox = self.client.subscribe(format!("{root}.*")).await.unwrap();
                let (probe, own) = (format!("{root}.probe"), format!("{root}.own"));
                let subject = subject.to_owned();
                let probed = self.client.publish_with_reply(subject, probe, "".into());
                probed.await.unwrap();
                self.client.publish(own, "".into()).await.unwrap();
                let first = inbox.next().await.unwrap();
                // That nobody listens is said before our own message comes back.
                if !first.subject.ends_with("probe") || !first.payload.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap();
    }

    /// Waits until the server has handled everything that was sent before.
    async fn round_trip(&self) {
        let subject = format!("trip{}", fastrand::u64(..));
        let mut back = self.client.subscribe(subject.clone()).await.unwrap();
        self.client.publish(subject, "".into()).await.unwrap();
        tokio::time::timeout(PATIENCE, back.next()).await.unwrap();
    }

    /// Sends requests and gives the subscription for their answers, one subject each.
    async fn ask(&self, subject: &str, count: usize) -> Subscriber {
        let root = format!("answers{}", fastrand::u64(..));
        let answers = self.client.subscribe(format!("{root}.*")).await.unwrap();
        for number in 0..count {
            let reply = format!("{root}.{number}");
            let asked = self
                .client
                .publish_with_reply(subject.to_owned(), reply, "{}".into());
            asked.await.unwrap();
        }
        self.round_trip().await;
        answers
    }
}

fn shard() -> ShardId {
    ShardId::new(7, 8).unwrap()
}

const SUBJECT: &str = "discord.shard.7.commands";

/// Answers what comes to a port as a shard without a connection does, for ever.
async fn answer(mut port: Port) {
    let settings = Settings {
        shard: shard(),
        heartbeat_timeout: None,
    };
    let mut session = Session::new(settings, None, Instant::now());
    loop {
        port.due(false).await;
        assert_eq!(port.next(&mut session), None);
    }
}

async fn next(answers: &mut Subscriber) -> (String, CommandReply) {
    let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
    let answer = answer.unwrap().unwrap();
    let reply = serde_json::from_slice(&answer.payload).unwrap();
    (answer.subject.to_string(), reply)
}

/// Exactly one answer to each.
async fn expect_once(scene: &Scene, answers: &mut Subscriber, count: usize) {
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let (subject, reply) = next(answers).await;
        assert_eq!(reply.status, CommandStatus::Rejected);
        assert!(seen.insert(subject), "answered twice");
    }
    // A second answer would have been on its way before the answer to this.
    let mut later = scene.ask(SUBJECT, 1).await;
    next(&mut later).await;
    assert!(futures_util::FutureExt::now_or_never(answers.next()).is_none());
}

#[tokio::test]
async fn what_a_port_has_not_read_is_answered_when_it_is_dropped() {
    let scene = Scene::start().await;
    let hub = scene.hub();
    let port = hub.open(shard());
    scene.listened_to(SUBJECT).await;
    let mut answers = scene.ask(SUBJECT, 3).await;
    // Of them at least the first is with the port; to the others the hub answers itself.
    drop(port);
    for _ in 0..3 {
        let (_, reply) = next(&mut answers).await;
        assert_eq!(reply.error.as_deref(), Some(LET_GO));
        assert_eq!(reply.retry_after_ms, Some(RETRY_MS));
    }
    hub.flushed(PATIENCE).await;
    let error = scene.client.request(SUBJECT, "{}".into()).await;
    assert_eq!(error.unwrap_err().kind(), RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn a_port_opened_again_before_the_old_one_is_dropped_answers_alone() {
    let scene = Scene::start().await;
    let hub = scene.hub();
    let old = hub.open(shard());
    scene.listened_to(SUBJECT).await;
    let serving = tokio::spawn(answer(hub.open(shard())));
    let mut answers = scene.ask(SUBJECT, 20).await;
    expect_once(&scene, &mut answers, 20).await;
    drop(old);
    hub.flushed(PATIENCE).await;
    let mut answers = scene.ask(SUBJECT, 20).await;
    expect_once(&scene, &mut answers, 20).await;
    serving.abort();
}

#[tokio::test]
async fn subscribing_again_to_what_is_subscribed_makes_no_second_answer() {
    let scene = Scene::start().await;
    let hub = scene.hub();
    let serving = tokio::spawn(answer(hub.open(shard())));
    scene.listened_to(SUBJECT).await;
    for _ in 0..3 {
        hub.state().table.subscribe_all();
        hub.work.notify_one();
        hub.flushed(PATIENCE).await;
    }
    let mut answers = scene.ask(SUBJECT, 20).await;
    expect_once(&scene, &mut answers, 20).await;
    let guild = "discord.guild.29360128.commands";
    let answer = scene.client.request(guild, "{}".into()).await.unwrap();
    assert!(answer.payload.starts_with(b"{"));
    serving.abort();
}

#[tokio::test]
async fn a_shard_that_moves_is_answered_by_one_process_at_a_time() {
    let scene = Scene::start().await;
    let (from, to) = (scene.hub(), scene.hub());
    let old = from.open(shard());
    scene.listened_to(SUBJECT).await;
    drop(old);
    from.flushed(PATIENCE).await;
    let serving = tokio::spawn(answer(to.open(shard())));
    scene.listened_to(SUBJECT).await;
    let mut answers = scene.ask(SUBJECT, 20).await;
    for _ in 0..20 {
        let (_, reply) = next(&mut answers).await;
        assert_ne!(reply.error.as_deref(), Some(LET_GO));
    }
    expect_once(&scene, &mut answers, 0).await;
    serving.abort();
}

#[tokio::test]
async fn a_connection_refused_at_the_start_is_made_later() {
    let server = testkit::nats::start(Options {
        extra_config: "max_connections: 1".to_owned(),
        ..Options::default()
    });
    let server = server.await.unwrap();
    // The whole of what the server lets in, once it has forgotten who looked whether it is there.
    let client = async {
        loop {
            if let Ok(client) = testkit::nats::connect(&server.url()).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let client = tokio::time::timeout(PATIENCE, client).await.unwrap();
    let scene = Scene {
        settings: NatsSettings::local(&server.url()).unwrap(),
        server,
        client,
    };
    let hub = scene.hub();
    let port = hub.open(shard());
    let refused = || scene.server.log().contains("maximum connections exceeded");
    until(refused).await;
    assert!(!hub.state().linked);
    // With the client gone there is room.
    scene.client.drain().await.unwrap();
    until(|| hub.state().linked).await;
    drop(port);
}

/// Waits for a condition that nothing reports.
async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, met).await.unwrap();
}

#[test]
fn answers_that_nats_does_not_take_are_bounded() {
    let mut state = State::default();
    let answer: Answer = vec![b'x'; 1000].into();
    for _ in 0..2 * ANSWERS_MAX / answer.len() {
        state.push_answer(answer.clone());
    }
    assert!(state.answers_bytes <= ANSWERS_MAX);
    let first = state.pop_answer().unwrap();
    state.unlink(vec![first]);
    let kept: usize = state.answers.iter().map(|answer| answer.len()).sum();
    assert_eq!(state.answers_bytes, kept);
    while state.pop_answer().is_some() {}
    assert!(state.is_written());
    assert_eq!(state.answers_bytes, 0);
}

#[test]
fn a_shard_without_commands_costs_some_tens_of_bytes() {
    assert!(size_of::<Port>() <= 32, "{}", size_of::<Port>());
}
