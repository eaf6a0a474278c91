//! Identify concurrency, the session budget, and limits that do not close.

use std::time::Duration;

use serde_json::json;
use testkit::simulator::{Action, Config, Rule, SessionStarts, Simulator};

use crate::client::{Client, eventually, heartbeat, identify, resume};

/// A client that identifies a shard; `None` when op 9 came back.
async fn try_identify(sim: &Simulator, shard: [u32; 2]) -> Option<Client> {
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&identify(sim, shard)).await;
    let answer = client.json().await;
    match answer["op"].as_u64() {
        Some(0) => Some(client),
        Some(9) => {
            assert_eq!(answer["d"], false);
            None
        }
        _ => panic!("{answer}"),
    }
}

#[tokio::test]
async fn one_identify_per_bucket_and_window() {
    let config = Config {
        max_concurrency: 2,
        identify_window: Duration::from_millis(400),
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let first = try_identify(&sim, [0, 4]).await;
    let other_bucket = try_identify(&sim, [1, 4]).await;
    assert!(first.is_some() && other_bucket.is_some());
    assert!(
        try_identify(&sim, [2, 4]).await.is_none(),
        "the bucket of shard 0, too early"
    );
    assert_eq!(sim.ledger().broken(Rule::IdentifyTooFast), 1);

    let begun = std::time::Instant::now();
    while try_identify(&sim, [2, 4]).await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ledger = sim.ledger();
    let of_bucket_0: Vec<_> = ledger
        .identifies
        .iter()
        .filter(|record| record.bucket == 0 && record.accepted)
        .collect();
    assert!(of_bucket_0[1].at_us - of_bucket_0[0].at_us >= 400_000);
}

#[tokio::test]
async fn after_op_9_the_same_connection_may_identify_again() {
    let config = Config {
        identify_window: Duration::from_millis(100),
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let _first = try_identify(&sim, [0, 2]).await.unwrap();
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    loop {
        client.send(&identify(&sim, [1, 2])).await;
        let answer = client.json().await;
        if answer["t"] == "READY" {
            break;
        }
        assert_eq!(answer["op"], 9);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn more_session_starts_than_allowed_end_everything() {
    let config = Config {
        max_concurrency: 16,
        session_starts: SessionStarts {
            total: 1000,
            remaining: 2,
            ..SessionStarts::default()
        },
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let mut first = try_identify(&sim, [0, 4]).await.unwrap();
    let mut second = try_identify(&sim, [1, 4]).await.unwrap();
    assert_eq!(sim.stats().starts_left, 0);
    let mut third = Client::open(sim.gateway_url(), None).await;
    third.expect_op(10).await;
    third.send(&identify(&sim, [2, 4])).await;
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(client.expect_close().await, Some(4004));
    }
    assert_eq!(sim.ledger().broken(Rule::SessionBudget), 1);
    assert!(sim.stats().shards.is_empty());

    sim.apply(Action::SetRemaining { remaining: 5 });
    assert!(try_identify(&sim, [3, 4]).await.is_some());
}

#[tokio::test]
async fn the_session_budget_begins_anew_after_its_period() {
    let config = Config {
        session_starts: SessionStarts {
            total: 7,
            remaining: 0,
            reset_after: Duration::from_millis(100),
        },
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(try_identify(&sim, [0, 1]).await.is_some());
    assert_eq!(sim.stats().starts_left, 6);
}

#[tokio::test]
async fn the_sixth_presence_update_in_20_s_is_noted_but_not_punished() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let presence = json!({"op": 3, "d": {
        "since": null, "activities": [], "status": "online", "afk": false,
    }});
    for _ in 0..6 {
        client.send(&presence).await;
    }
    eventually("it is noted", || {
        sim.ledger().broken(Rule::PresenceRate) == 1
    })
    .await;
    client.send(&json!({"op": 1, "d": 1})).await;
    client.expect_op(11).await;
}

#[tokio::test]
async fn a_heartbeat_naming_what_was_never_sent_is_noted() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.send(&json!({"op": 1, "d": 777_777})).await;
    client.expect_op(11).await;
    assert_eq!(sim.ledger().broken(Rule::HeartbeatSeq), 1);
}

#[tokio::test]
async fn a_heartbeat_may_name_what_came_before_the_resume() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(21).await;
    drop(client);
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 3)).await;
    client.send(&heartbeat(Some(21))).await;
    client.expect_op(11).await;
    assert_eq!(sim.ledger().violations, []);
}
