//! What clients may ask for on the gateway: ops 4, 8, 31 and 43.

use serde_json::{Value, json};
use testkit::simulator::{Config, GuildBytes, Simulator};

use crate::client::{Client, identify};

/// A loaded session of one guild of 200 kB, so that it has some 2000 members.
async fn loaded() -> (Simulator, Client, String) {
    let bytes = GuildBytes {
        forced_max: 1,
        max: 200_000,
        ..GuildBytes::default()
    };
    let config = Config {
        guilds: 1,
        guild_bytes: bytes,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(2).await;
    (sim, client, ready.guilds[0].clone())
}

#[tokio::test]
async fn all_members_come_in_chunks_once_in_30_s() {
    let (_sim, mut client, guild) = loaded().await;
    let ask = json!({"op": 8, "d": {"guild_id": guild, "query": "", "limit": 0, "nonce": "n1"}});
    client.send(&ask).await;
    let mut members = 0;
    let mut index = 0;
    loop {
        let chunk = client.expect_event("GUILD_MEMBERS_CHUNK").await;
        let d = &chunk["d"];
        assert_eq!((&d["guild_id"], &d["nonce"]), (&json!(guild), &json!("n1")));
        assert_eq!(d["chunk_index"], index);
        let listed = d["members"].as_array().unwrap().len();
        assert!(listed <= 1000);
        members += listed;
        index += 1;
        if d["chunk_count"] == index {
            break;
        }
    }
    assert!(members > 1000, "{members}");

    client.send(&ask).await;
    let limited = client.expect_event("RATE_LIMITED").await;
    assert_eq!(
        (&limited["d"]["opcode"], &limited["d"]["meta"]["nonce"]),
        (&json!(8), &json!("n1"))
    );
    assert!(limited["d"]["retry_after"].as_f64().unwrap() > 20.0);
}

#[tokio::test]
async fn members_can_be_asked_for_by_id_and_by_name() {
    let (_sim, mut client, guild) = loaded().await;
    client
        .send(&json!({"op": 8, "d": {"guild_id": guild, "query": "ka", "limit": 3}}))
        .await;
    let chunk = client.expect_event("GUILD_MEMBERS_CHUNK").await;
    let members = chunk["d"]["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(chunk["d"]["nonce"], Value::Null);
    let known = members[1]["user"]["id"].clone();
    let ask =
        json!({"op": 8, "d": {"guild_id": guild, "user_ids": [known, 5], "nonce": "x".repeat(33)}});
    client.send(&ask).await;
    let chunk = client.expect_event("GUILD_MEMBERS_CHUNK").await;
    assert_eq!(chunk["d"]["members"][0]["user"]["id"], known);
    assert_eq!(chunk["d"]["not_found"], json!(["5"]));
    assert_eq!(
        chunk["d"]["nonce"],
        Value::Null,
        "too long a nonce is dropped"
    );
}

#[tokio::test]
async fn sounds_channel_info_and_voice_are_answered() {
    let (_sim, mut client, guild) = loaded().await;
    client
        .send(&json!({"op": 31, "d": {"guild_ids": [guild, "7"]}}))
        .await;
    assert_eq!(
        client.expect_event("SOUNDBOARD_SOUNDS").await["d"]["guild_id"],
        guild
    );
    let fields = json!(["status", "voice_start_time"]);
    client
        .send(&json!({"op": 43, "d": {"guild_id": guild, "fields": fields}}))
        .await;
    let info = client.expect_event("CHANNEL_INFO").await;
    assert!(info["d"]["channels"][0]["voice_start_time"].is_u64());
    let voice = json!({"op": 4, "d": {
        "guild_id": guild, "channel_id": "9", "self_mute": true, "self_deaf": false,
    }});
    client.send(&voice).await;
    let state = client.expect_event("VOICE_STATE_UPDATE").await;
    assert_eq!(
        (&state["d"]["channel_id"], &state["d"]["self_mute"]),
        (&json!("9"), &json!(true))
    );
    assert_eq!(
        client.expect_event("VOICE_SERVER_UPDATE").await["d"]["guild_id"],
        guild
    );
}

#[tokio::test]
async fn guilds_of_other_shards_are_not_answered() {
    let config = Config {
        guilds: 20,
        max_concurrency: 2,
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let (_other, elsewhere) = Client::identified(&sim, [1, 2]).await;
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&identify(&sim, [0, 2])).await;
    let mine = client.ready().await;
    for guild in [&elsewhere.guilds[0], &mine.guilds[0]] {
        client
            .send(&json!({"op": 8, "d": {"guild_id": guild, "query": "a", "limit": 1}}))
            .await;
    }
    let chunk = client.expect_event("GUILD_MEMBERS_CHUNK").await;
    assert_eq!(chunk["d"]["guild_id"], mine.guilds[0]);
}
