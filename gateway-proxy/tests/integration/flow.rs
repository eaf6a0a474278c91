//! The main job: every frame that Discord sends is in the stream exactly once, byte for byte, in
//! order, on the right subject.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use testkit::simulator::{Config, GuildBytes, Load};

use crate::harness::{Run, eventually};
use crate::rig::Rig;

/// Sixteen shards, a start with GUILD_CREATEs of up to two MB, then a mixed load.
fn sixteen_shards(seed: u64) -> Config {
    Config {
        guilds: 160,
        shards: 16,
        max_concurrency: 16,
        seed,
        guild_bytes: GuildBytes {
            max: 2_500_000,
            forced_max: 2,
            ..GuildBytes::default()
        },
        load: Load::flood(Some(400)),
        ..Config::default()
    }
}

async fn every_frame_is_stored(compression: &str, seed: u64) {
    let rig = Rig::start(sixteen_shards(seed)).await;
    let run = rig
        .proxy()
        .args(&["--shards", "auto", "--compression", compression]);
    let proxy = run.spawn();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.events >= 16 * 400, "{report}");
    assert_eq!(report.identifies, 16, "{report}");
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_is_stored_once_with_zstd() {
    every_frame_is_stored("zstd", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_is_stored_once_with_zlib() {
    every_frame_is_stored("zlib", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_is_stored_once_without_compression() {
    every_frame_is_stored("none", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_with_half_of_the_shards_each_store_everything() {
    let rig = Rig::start(sixteen_shards(4)).await;
    let with_shards =
        |ids: &str| -> Run { rig.proxy().args(&["--shards", "16", "--shard-ids", ids]) };
    let first = with_shards("0-7").spawn();
    let second = with_shards("8-15").spawn();
    for proxy in [&first, &second] {
        eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    }
    rig.expect_clean(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_subscriber_of_the_live_feed_gets_as_many_events_as_are_stored() {
    let config = Config {
        guilds: 8,
        shards: 2,
        max_concurrency: 2,
        load: Load::flood(Some(300)),
        ..Config::default()
    };
    let rig = Rig::start(config).await;
    let client = rig.client().await;
    let mut feed = client.subscribe("discord.shard.*.events").await.unwrap();
    client.flush().await.unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    tokio::spawn(async move {
        while feed.next().await.is_some() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let proxy = rig.proxy().spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    rig.expect_clean(&[&proxy]).await;
    // Ends the writing, so that both can be counted.
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let stored = stream.cached_info().state.messages;
    assert!(stored > 600, "{stored}");
    crate::rig::until("the feed of every stored event", || {
        received.load(Ordering::Relaxed) == stored
    })
    .await;
}
