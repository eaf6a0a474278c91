//! The audit finds what it should, with a real nats-server and a proxy made of one loop.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use schemas::message::NATS_MSG_ID;
use schemas::subject::{event_root, push_event_subject};
use schemas::{GuildId, Prefix};
use serde_json::{Value, json};
use testkit::audit::{AuditError, AuditReport, audit, wait_caught_up};
use testkit::nats::{self, Options, Server};
use testkit::simulator::{Action, Config, Load, Simulator};

use crate::client::{Client, identify};

const GUILD_KEYS: [&str; 3] = ["GUILD_CREATE", "GUILD_UPDATE", "GUILD_DELETE"];

struct Rig {
    _server: Server,
    client: async_nats::Client,
    jetstream: jetstream::Context,
    prefix: Prefix,
}

impl Rig {
    async fn new() -> Self {
        let server = nats::start(Options::default()).await.unwrap();
        let client = nats::connect(&server.url()).await.unwrap();
        let jetstream = jetstream::new(client.clone());
        let prefix = Prefix::default();
        let config = stream::Config {
            name: prefix.event_stream(None),
            subjects: vec![prefix.all_events()],
            allow_direct: true,
            ..stream::Config::default()
        };
        jetstream.create_stream(config).await.unwrap();
        Self {
            _server: server,
            client,
            jetstream,
            prefix,
        }
    }

    async fn publish(&self, shard: u32, id: &str, t: &str, guild: u64, frame: String) {
        let mut subject = Vec::new();
        push_event_subject(
            &mut subject,
            &event_root(&self.prefix, shard),
            GuildId::new(guild),
            t,
        );
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MSG_ID, id);
        let subject = String::from_utf8(subject).unwrap();
        let sent = self
            .jetstream
            .publish_with_headers(subject, headers, Bytes::from(frame))
            .await;
        sent.unwrap().await.unwrap();
    }

    /// Stores a frame as the contract says.
    async fn store(&self, session: &str, frame: &str) {
        let value: Value = serde_json::from_str(frame).unwrap();
        let t = value["t"].as_str().unwrap();
        let key = if GUILD_KEYS.contains(&t) {
            "id"
        } else {
            "guild_id"
        };
        let guild = value["d"][key]
            .as_str()
            .and_then(|id| id.parse().ok())
            .unwrap_or(0);
        let id = format!("{session}:{}", value["s"]);
        self.publish(0, &id, t, guild, frame.to_owned()).await;
    }

    async fn gap(&self, old: &str, last_seq: u64, new: &str) {
        let d = json!({
            "shard": [0, 1], "old_session_id": old, "last_seq": last_seq, "new_session_id": new,
            "lost": null, "reason": "invalid_session", "from": "", "to": "",
        });
        let frame = json!({"t": "PROXY_GAP", "s": null, "op": 0, "d": d}).to_string();
        self.publish(
            0,
            &format!("{old}:{last_seq}:PROXY_GAP:1"),
            "PROXY_GAP",
            0,
            frame,
        )
        .await;
    }

    async fn audit(&self, sim: &Simulator) -> AuditReport {
        audit(&self.client, &self.prefix, &sim.ledger())
            .await
            .unwrap()
    }
}

/// A simulator whose only session got 50 events, and those.
async fn fifty_events() -> (Simulator, Client, String, Vec<String>) {
    let load = Load::flood(Some(44));
    let config = Config {
        guilds: 5,
        load,
        max_concurrency: 2,
        identify_window: Duration::ZERO,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&identify(&sim, [0, 1])).await;
    let frames: Vec<String> = client
        .dispatches_to(50)
        .await
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    let ready: Value = serde_json::from_str(&frames[0]).unwrap();
    let session = ready["d"]["session_id"].as_str().unwrap().to_owned();
    (sim, client, session, frames)
}

#[tokio::test]
async fn a_stream_that_holds_everything_once_is_clean() {
    let rig = Rig::new().await;
    let (sim, _client, session, frames) = fifty_events().await;
    for frame in &frames[..49] {
        rig.store(&session, frame).await;
    }
    let within = Duration::from_millis(200);
    let behind = wait_caught_up(&rig.client, &rig.prefix, &sim, within)
        .await
        .unwrap_err();
    assert!(
        matches!(
            behind,
            AuditError::Behind {
                expected: 50,
                stored: 49,
                ..
            }
        ),
        "{behind}"
    );
    rig.store(&session, &frames[49]).await;
    wait_caught_up(&rig.client, &rig.prefix, &sim, Duration::from_secs(10))
        .await
        .unwrap();
    let report = rig.audit(&sim).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(
        (report.events, report.stored, report.identifies),
        (50, 50, 1)
    );
    assert!(
        report.to_string().starts_with("audit: clean, 50 of 50"),
        "{report}"
    );
}

#[tokio::test]
async fn every_kind_of_fault_in_a_stream_is_found() {
    let rig = Rig::new().await;
    let (sim, _client, session, frames) = fifty_events().await;
    for (index, frame) in frames.iter().enumerate() {
        match index {
            // s 11 is missing; s 21 comes behind s 22.
            10 | 20 => {}
            21 => {
                rig.store(&session, frame).await;
                rig.store(&session, &frames[20]).await;
            }
            30 => {
                rig.store(&session, &frame.replace("\"op\":0", "\"op\": 0"))
                    .await
            }
            40 => {
                rig.publish(0, &format!("{session}:41"), "ELSEWHERE", 0, frame.clone())
                    .await
            }
            _ => rig.store(&session, frame).await,
        }
    }
    // Outside the duplicate window, or from a proxy with another id.
    let again = rig
        .jetstream
        .publish("discord.shard.0.events.none.READY", "{}".into())
        .await;
    again.unwrap().await.unwrap();
    rig.publish(0, "stranger:5", "READY", 0, "{}".to_owned())
        .await;
    let report = rig.audit(&sim).await;
    assert!(!report.is_clean());
    let counts = [
        report.missing.count,
        report.out_of_order.count,
        report.altered.count,
        report.wrong_subject.count,
        report.unexpected.count,
        report.duplicated.count,
    ];
    assert_eq!(counts, [1, 1, 1, 1, 2, 0], "{report}");
    assert!(report.missing.examples[0].contains("s 11 "), "{report}");
}

#[tokio::test]
async fn a_duplicate_is_found() {
    let rig = Rig::new().await;
    let (sim, _client, session, frames) = fifty_events().await;
    for frame in &frames {
        rig.store(&session, frame).await;
    }
    let stream = rig
        .jetstream
        .get_stream(rig.prefix.event_stream(None))
        .await
        .unwrap();
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    rig.jetstream.update_stream(config).await.unwrap();
    let mut report = rig.audit(&sim).await;
    assert!(report.is_clean(), "{report}");
    // Once the window is over, the server stores the same id again.
    let begun = std::time::Instant::now();
    while report.duplicated.count == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{report}");
        rig.store(&session, &frames[49]).await;
        report = rig.audit(&sim).await;
    }
    assert!(!report.is_clean());
}

#[tokio::test]
async fn losses_must_be_declared() {
    let rig = Rig::new().await;
    let (sim, client, session, frames) = fifty_events().await;
    for frame in &frames[..40] {
        rig.store(&session, frame).await;
    }
    client.close(1000).await;
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    for (_, frame) in client.dispatches_to(6).await {
        rig.store(&ready.session, &frame).await;
    }
    let report = rig.audit(&sim).await;
    assert_eq!(
        report.missing.count, 11,
        "10 events and the new READY: {report}"
    );

    rig.gap(&session, 40, &ready.session).await;
    let report = rig.audit(&sim).await;
    assert_eq!(
        (report.declared_lost, report.missing.count),
        (10, 1),
        "{report}"
    );
    assert_eq!(report.gaps.len(), 1);
}

#[tokio::test]
async fn a_gap_is_owed_before_the_next_ready() {
    let rig = Rig::new().await;
    for declared in [false, true] {
        let (sim, client, session, frames) = fifty_events().await;
        rig.jetstream
            .get_stream(rig.prefix.event_stream(None))
            .await
            .unwrap()
            .purge()
            .await
            .unwrap();
        for frame in &frames {
            rig.store(&session, frame).await;
        }
        client.close(1000).await;
        let mut client = Client::open(sim.gateway_url(), None).await;
        client.expect_op(10).await;
        client.send(&identify(&sim, [0, 1])).await;
        let next: Vec<String> = client
            .dispatches_to(6)
            .await
            .into_iter()
            .map(|(_, frame)| frame)
            .collect();
        let ready: Value = serde_json::from_str(&next[0]).unwrap();
        let new = ready["d"]["session_id"].as_str().unwrap();
        if declared {
            rig.gap(&session, 50, new).await;
        }
        for frame in &next {
            rig.store(new, frame).await;
        }
        let report = rig.audit(&sim).await;
        assert_eq!(report.gaps_owed.count, u64::from(!declared), "{report}");
        assert_eq!(report.is_clean(), declared, "{report}");
    }
}

#[tokio::test]
async fn what_nobody_ever_received_is_not_missing() {
    let rig = Rig::new().await;
    let (sim, client, session, frames) = fifty_events().await;
    for frame in &frames {
        rig.store(&session, frame).await;
    }
    client.close(4000).await;
    sim.apply(Action::Burst {
        event: "MESSAGE_CREATE".to_owned(),
        per_guild: 1,
    });
    let report = rig.audit(&sim).await;
    assert_eq!(
        report.missing.count, 5,
        "the session can still be resumed: {report}"
    );
    sim.apply(Action::ExpireSessions);
    let report = rig.audit(&sim).await;
    assert_eq!(
        (report.missing.count, report.undelivered),
        (0, 5),
        "{report}"
    );
    assert!(report.is_clean() && !report.is_complete());
}
