//! Each close code of the gateway, provoked.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::simulator::{ALL_INTENTS, Config, PRIVILEGED, Rule, Simulator};

use crate::client::{Client, heartbeat, identify, resume};

async fn simulator() -> Simulator {
    Simulator::start(Config::default()).await.unwrap()
}

/// Sends to a fresh connection after HELLO and expects the close code and the rule in the ledger.
async fn check_first(sim: &Simulator, send: Value, code: u16, rule: Rule) {
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&send).await;
    assert_eq!(client.expect_close().await, Some(code), "{send}");
    assert!(sim.ledger().broken(rule) > 0, "{send}: {rule:?}");
}

/// The same on an identified connection.
async fn check_identified(send: String, code: u16, rule: Rule) {
    let sim = simulator().await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.send_text(send.clone()).await;
    assert_eq!(client.expect_close().await, Some(code), "{send}");
    assert_eq!(sim.ledger().broken(rule), 1, "{send}: {rule:?}");
}

fn with(sim: &Simulator, field: &str, value: Value) -> Value {
    let mut identify = identify(sim, [0, 1]);
    identify["d"][field] = value;
    identify
}

#[tokio::test]
async fn another_version_is_4012_and_another_encoding_4002() {
    let sim = simulator().await;
    for (query, code, rule) in [
        ("?v=9&encoding=json", 4012, Rule::BadVersion),
        ("", 4012, Rule::BadVersion),
        ("?v=10&encoding=etf", 4002, Rule::BadEncoding),
        ("?v=10&encoding=json&compress=lzma", 4002, Rule::BadEncoding),
    ] {
        let url = format!("{}/{query}", sim.gateway_url());
        let mut client = Client::open_query(&url, None).await;
        assert_eq!(client.expect_close().await, Some(code), "{query}");
        assert!(sim.ledger().broken(rule) > 0, "{query}");
    }
}

#[tokio::test]
async fn anything_before_identify_is_4003() {
    let sim = simulator().await;
    for op in [3, 4, 8, 31, 43] {
        check_first(
            &sim,
            json!({"op": op, "d": {}}),
            4003,
            Rule::NotAuthenticated,
        )
        .await;
    }
}

#[tokio::test]
async fn what_is_no_payload_is_4002() {
    for text in [
        "{",
        "",
        "[]",
        "7",
        "{\"d\":1}",
        "{\"op\":\"1\"}",
        "{\"op\":-1}",
    ] {
        check_identified(text.to_owned(), 4002, Rule::Undecodable).await;
    }
    let sim = simulator().await;
    for d in [
        json!({}),
        json!({"token": 5, "properties": {}}),
        json!(null),
    ] {
        check_first(&sim, json!({"op": 2, "d": d}), 4002, Rule::Undecodable).await;
    }
    check_first(
        &sim,
        json!({"op": 6, "d": {"token": "x"}}),
        4002,
        Rule::Undecodable,
    )
    .await;
}

#[tokio::test]
async fn more_than_4096_bytes_are_4002() {
    let padded = |length: usize| format!("{:<length$}", heartbeat(None).to_string());
    let sim = simulator().await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.send_text(padded(4096)).await;
    client.expect_op(11).await;
    check_identified(padded(4097), 4002, Rule::PayloadTooLarge).await;
}

#[tokio::test]
async fn an_unknown_opcode_or_a_wrong_payload_for_it_is_4001() {
    for op in [0, 5, 7, 9, 10, 11, 12, 30, 99] {
        check_identified(
            json!({"op": op, "d": {}}).to_string(),
            4001,
            Rule::UnknownOpcode,
        )
        .await;
    }
    for op in [3, 4, 8, 31, 43] {
        check_identified(
            json!({"op": op, "d": 1}).to_string(),
            4001,
            Rule::Undecodable,
        )
        .await;
    }
    check_identified(
        json!({"op": 1, "d": "x"}).to_string(),
        4001,
        Rule::Undecodable,
    )
    .await;
}

#[tokio::test]
async fn a_wrong_token_is_4004_and_the_prefix_is_optional() {
    let sim = simulator().await;
    check_first(
        &sim,
        with(&sim, "token", json!("wrong")),
        4004,
        Rule::BadToken,
    )
    .await;
    let stolen = json!({"op": 6, "d": {"token": "wrong", "session_id": "x", "seq": 1}});
    check_first(&sim, stolen, 4004, Rule::BadToken).await;

    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client
        .send(&with(&sim, "token", json!(format!("Bot {}", sim.token()))))
        .await;
    client.ready().await;
}

#[tokio::test]
async fn a_second_identify_is_4005() {
    let sim = simulator().await;
    let again = identify(&sim, [0, 1]).to_string();
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.send_text(again).await;
    assert_eq!(client.expect_close().await, Some(4005));
    assert_eq!(sim.ledger().broken(Rule::AlreadyAuthenticated), 1);
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    client.expect_event("RESUMED").await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    assert_eq!(client.expect_close().await, Some(4005));
}

#[tokio::test]
async fn a_sequence_ahead_of_the_session_is_4007() {
    let sim = simulator().await;
    let (client, ready) = Client::identified(&sim, [0, 1]).await;
    drop(client);
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 9999)).await;
    assert_eq!(client.expect_close().await, Some(4007));
    assert_eq!(sim.ledger().broken(Rule::InvalidSeq), 1);
}

#[tokio::test]
async fn the_121st_payload_in_a_minute_is_4008() {
    let sim = simulator().await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    // IDENTIFY counts, and so does each heartbeat.
    for _ in 0..119 {
        client.send(&heartbeat(Some(1))).await;
    }
    for _ in 0..119 {
        client.expect_op(11).await;
    }
    assert_eq!(sim.ledger().broken(Rule::SendRate), 0);
    client.send(&heartbeat(Some(1))).await;
    assert_eq!(client.expect_close().await, Some(4008));
    assert_eq!(sim.ledger().broken(Rule::SendRate), 1);
}

#[tokio::test]
async fn a_missing_heartbeat_is_4009_and_the_session_stays() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(500),
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    assert_eq!(client.expect_close().await, Some(4009));
    assert_eq!(sim.ledger().broken(Rule::MissedHeartbeat), 1);
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    client.expect_event("RESUMED").await;
}

#[tokio::test]
async fn shards_out_of_range_or_of_the_wrong_count_are_4010() {
    let config = Config {
        shard_multiple: Some(4),
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    for shard in [
        json!([4, 4]),
        json!([0, 0]),
        json!([0, 6]),
        json!([1]),
        json!("0"),
        json!([-1, 4]),
    ] {
        check_first(&sim, with(&sim, "shard", shard), 4010, Rule::BadShard).await;
    }
}

#[tokio::test]
async fn too_many_guilds_on_a_shard_are_4011() {
    let config = Config {
        guilds: 50,
        guilds_per_shard_max: 40,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    check_first(
        &sim,
        with(&sim, "shard", Value::Null),
        4011,
        Rule::ShardingRequired,
    )
    .await;
    Client::identified(&sim, [0, 4]).await;
}

#[tokio::test]
async fn unknown_intents_are_4013_and_disallowed_ones_4014() {
    let config = Config {
        privileged_intents: 1 << 1,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    for intents in [json!(1_u64 << 40), json!(-1), json!("1"), Value::Null] {
        check_first(&sim, with(&sim, "intents", intents), 4013, Rule::BadIntents).await;
    }
    let all = with(&sim, "intents", json!(ALL_INTENTS));
    check_first(&sim, all, 4014, Rule::DisallowedIntents).await;

    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    let allowed = ALL_INTENTS & !PRIVILEGED | 1 << 1;
    client.send(&with(&sim, "intents", json!(allowed))).await;
    client.ready().await;
}

#[tokio::test]
async fn broken_framing_is_1002() {
    use tokio::io::AsyncWriteExt as _;
    let sim = simulator().await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let tokio_tungstenite::MaybeTlsStream::Plain(stream) = client.socket.get_mut() else {
        panic!("no TLS on loopback");
    };
    // A text frame without a mask.
    stream.write_all(&[0x81, 0x01, b'x']).await.unwrap();
    assert_eq!(client.expect_close().await, Some(1002));
    assert_eq!(sim.ledger().broken(Rule::WebSocket), 1);
}
