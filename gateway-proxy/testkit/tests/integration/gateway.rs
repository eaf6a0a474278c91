//! Connecting, loading guilds, resuming, and the compressions.

use testkit::simulator::{
    Action, Compression, Config, Entry, GuildBytes, LedgerSnapshot, Load, SessionState, Simulator,
    Step, content_hash,
};

use crate::client::{Client, Event, eventually, heartbeat, identify, resume};

async fn simulator(config: Config) -> Simulator {
    Simulator::start(config).await.unwrap()
}

fn entry<'a>(ledger: &'a LedgerSnapshot, session: &str, seq: u64) -> &'a Entry {
    &ledger.session(session).unwrap().entries[seq as usize - 1]
}

#[tokio::test]
async fn ready_lists_the_shards_guilds_and_each_of_them_follows() {
    let sim = simulator(Config {
        guilds: 40,
        ..Config::default()
    })
    .await;
    let (mut client, ready) = Client::identified(&sim, [1, 4]).await;
    assert!(!ready.guilds.is_empty());
    let mut created = Vec::new();
    for (seq, text) in client.dispatches_to(1 + ready.guilds.len() as u64).await {
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(seq, created.len() as u64 + 2);
        assert_eq!(frame["t"], "GUILD_CREATE");
        let id: u64 = frame["d"]["id"].as_str().unwrap().parse().unwrap();
        assert_eq!((id >> 22) % 4, 1);
        created.push(frame["d"]["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(created, ready.guilds);
}

#[tokio::test]
async fn every_compression_carries_the_bytes_of_the_ledger() {
    let odd = Compression {
        zlib_split: Some(100),
        zlib_inner_suffix: false,
        ..Compression::default()
    };
    for (compress, settings) in [
        (None, Compression::default()),
        (Some("zlib-stream"), Compression::default()),
        (Some("zlib-stream"), odd),
        (Some("zstd-stream"), Compression::default()),
    ] {
        let sim = simulator(Config {
            guilds: 10,
            guild_bytes: GuildBytes {
                forced_max: 1,
                max: 700_000,
                ..GuildBytes::default()
            },
            compression: settings,
            load: Load::flood(Some(500)),
            ..Config::default()
        })
        .await;
        let mut client = Client::open(sim.gateway_url(), compress).await;
        client.expect_op(10).await;
        client.send(&identify(&sim, [0, 1])).await;
        let ready = client.ready().await;
        let frames = client.dispatches_to(511).await;
        assert_eq!(frames.len(), 510);
        let ledger = sim.ledger();
        for (seq, text) in frames {
            let entry = entry(&ledger, &ready.session, seq);
            assert_eq!(entry.len as usize, text.len(), "{compress:?} s {seq}");
            assert_eq!(
                entry.hash,
                content_hash(text.as_bytes()),
                "{compress:?} s {seq}"
            );
            assert!(entry.is_written() && entry.queued_us <= entry.written_us);
        }
    }
}

#[tokio::test]
async fn a_resume_replays_what_was_missed_byte_for_byte() {
    let sim = simulator(Config {
        guilds: 5,
        ..Config::default()
    })
    .await;
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    let first = client.dispatches_to(6).await;
    drop(client);
    eventually("the session is disconnected", || {
        sim.progress()[0].state == SessionState::Disconnected
    })
    .await;
    sim.apply(Action::Burst {
        event: "MESSAGE_CREATE".to_owned(),
        per_guild: 2,
    });

    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 3)).await;
    let replayed = client.dispatches_to(17).await;
    assert_eq!(replayed.len(), 14);
    assert_eq!(replayed[..3], first[2..], "the same bytes again");
    assert!(
        replayed[13].1.contains("\"t\":\"RESUMED\""),
        "{}",
        replayed[13].1
    );

    sim.apply(Action::Burst {
        event: "TYPING_START".to_owned(),
        per_guild: 1,
    });
    let next = client.json().await;
    assert_eq!(
        (next["s"].as_u64(), next["t"].as_str()),
        (Some(18), Some("TYPING_START"))
    );
    let ledger = sim.ledger();
    assert_eq!(ledger.violations, []);
    let resumed = Step::Resumed {
        from: 3,
        replayed: 13,
    };
    assert!(ledger.lifecycle.iter().any(|record| record.step == resumed));
}

#[tokio::test]
async fn heartbeats_are_acknowledged_before_and_after_identify() {
    let sim = simulator(Config::default()).await;
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&heartbeat(None)).await;
    client.expect_op(11).await;
    client.send(&identify(&sim, [0, 1])).await;
    client.ready().await;
    client.send(&heartbeat(Some(1))).await;
    client.expect_op(11).await;
    assert_eq!(sim.ledger().sessions[0].heartbeat_seq, 1);
}

#[tokio::test]
async fn payload_compression_is_asked_for_in_identify() {
    let sim = simulator(Config {
        guilds: 3,
        ..Config::default()
    })
    .await;
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    let mut hello = identify(&sim, [0, 1]);
    hello["d"]["compress"] = true.into();
    client.send(&hello).await;
    let ready = client.ready().await;
    let wire = sim.stats().wire_bytes;
    let frames = client.dispatches_to(4).await;
    let ledger = sim.ledger();
    for (seq, text) in &frames {
        assert_eq!(
            entry(&ledger, &ready.session, *seq).hash,
            content_hash(text.as_bytes())
        );
    }
    let json: usize = frames.iter().map(|(_, text)| text.len()).sum();
    assert!(sim.stats().wire_bytes - wire < json as u64);
}

#[tokio::test]
async fn messages_may_share_a_websocket_message() {
    // A reader that waits for the suffix gets several documents at once.
    let compression = Compression {
        zlib_coalesce: 2,
        ..Compression::default()
    };
    let sim = simulator(Config {
        guilds: 3,
        compression,
        ..Config::default()
    })
    .await;
    let mut client = Client::open(sim.gateway_url(), Some("zlib-stream")).await;
    client.expect_op(10).await;
    client.send(&identify(&sim, [0, 1])).await;
    let Event::Text(text) = client.next().await else {
        panic!("closed")
    };
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let names: Vec<_> = documents
        .map(|d| d.unwrap()["t"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["READY", "GUILD_CREATE"]);
}
