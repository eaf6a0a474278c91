//! NATS that is slow, or stores nothing for a while: every shard gets its turn, and closed ones come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nats_server::{Options, SyncInterval};
use testkit::simulator::{Config, Load};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{OVERLOADED, expect_no_harm, four_shards, metric, ready, value};
use crate::harness::{Proxy, Run, eventually, get};
use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_slow_and_stops_now_and_then_loses_nothing() {
    const EVENTS_PER_SHARD: u64 = 2_000;
    let options = Options {
        sync_interval: Some(SyncInterval::Always),
        ..Options::default()
    };
    let config = Config {
        guilds: 80,
        shards: 8,
        max_concurrency: 8,
        load: Load::flood(Some(EVENTS_PER_SHARD)),
        ..Config::default()
    };
    let mut rig = Rig::start_with(config, options).await;
    let proxy = rig.proxy().with("--buffer-bytes", "8MiB").spawn();
    let http = proxy.http().await;
    // The last stop is longer than the publisher waits for an answer.
    for stop in [500, 1_000, 7_000].map(Duration::from_millis) {
        let before = acknowledged(&get(http, "/metrics").await.1);
        let goes_on = |text: &str| acknowledged(text) > before + 500;
        eventually(http, "/metrics", |_, text| goes_on(text)).await;
        rig.nats.pause().unwrap();
        tokio::time::sleep(stop).await;
        rig.nats.resume().unwrap();
    }
    // In steps, because each may take long; and read only then, so that the server has to do one thing.
    for step in 1..=8 {
        let enough = |text: &str| acknowledged(text) >= step * EVENTS_PER_SHARD;
        eventually(http, "/metrics", |_, text| enough(text)).await;
    }
    let waiting = "gateway_proxy_publish_window_messages";
    eventually(http, "/metrics", |_, text| value(text, waiting) == 0).await;
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.events >= 8 * EVENTS_PER_SHARD, "{report}");
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 8, "{report}");
    let full = metric(&proxy, "gateway_proxy_publish_window_full_total").await;
    assert!(full > 0, "the buffer was never full");
}

/// Lets so many bytes a second through to the port, on each connection.
async fn slow_way(port: u16, bytes_per_second: Arc<AtomicU64>) -> String {
    const CHUNK: usize = 8 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let rate = Arc::clone(&bytes_per_second);
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut chunk = vec![0; CHUNK];
                while let Ok(count @ 1..) = from_client.read(&mut chunk).await {
                    let rate = rate.load(Ordering::Relaxed) as f64;
                    tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate)).await;
                    if to_server.write_all(&chunk[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

/// The last sequence that every shard has read.
async fn last_read(proxy: &Proxy) -> Vec<u64> {
    let health = get(proxy.http().await, "/health").await.1;
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    let shards = health["shards"].as_array().unwrap().iter();
    shards
        .map(|shard| shard["last_seq"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_way_to_nats_slows_every_shard_and_closes_none() {
    const SHARDS: u32 = 8;
    const SLOW: u64 = 400_000;
    // Longer than shards wait while nothing is stored.
    const LASTS: Duration = Duration::from_secs(25);
    let config = Config {
        guilds: 80,
        shards: SHARDS,
        max_concurrency: SHARDS,
        replay_events: 1_000_000,
        backlog_events: 1_000_000,
        load: Load::rate(3_000.0),
        ..Config::default()
    };
    let rig = Rig::start(config).await;
    let rate = Arc::new(AtomicU64::new(u64::MAX));
    let url = slow_way(rig.nats.port(), Arc::clone(&rate)).await;
    let run = Run::proxy(&url, rig.simulator.api_url()).with("--buffer-bytes", "8MiB");
    let proxy = ready(&run).await;
    let http = proxy.http().await;
    rate.store(SLOW, Ordering::Relaxed);
    let full = "gateway_proxy_publish_window_full_total";
    eventually(http, "/metrics", |_, text| {
        value(text, full) >= u64::from(SHARDS)
    })
    .await;
    let before = last_read(&proxy).await;
    tokio::time::sleep(LASTS).await;
    let after = last_read(&proxy).await;
    assert_eq!(before.len(), SHARDS as usize);
    for (shard, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(after > before, "shard {shard} stands still at {before}");
    }
    expect_no_harm(&proxy).await;
    rate.store(u64::MAX, Ordering::Relaxed);
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, SHARDS as usize, "{report}");
    expect_no_harm(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_closed_because_nothing_is_stored_resume_when_nats_is_back() {
    let config = Config {
        replay_events: 1_000_000,
        backlog_events: 1_000_000,
        ..four_shards(Load::rate(4_000.0))
    };
    let mut rig = Rig::start_with(config, Options::default()).await;
    let proxy = ready(&rig.proxy().with("--buffer-bytes", "8MiB")).await;
    let http = proxy.http().await;
    rig.nats.kill9().unwrap();
    eventually(http, "/metrics", |_, text| value(text, OVERLOADED) >= 4).await;
    // Nobody is dialled while nothing could be read.
    assert_eq!(rig.simulator.stats().connections, 0);
    let kept = metric(&proxy, "gateway_proxy_publish_window_bytes").await;
    assert!(kept < 12 << 20, "{kept} bytes are kept");
    rig.simulator.set_load(Load::rate(400.0));
    tokio::task::block_in_place(|| rig.nats.start_again().unwrap());
    eventually(http, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 4, "{report}");
}

/// Acknowledged events of all kinds.
fn acknowledged(metrics: &str) -> u64 {
    let of_kind = |line: &str| {
        let line = line.strip_prefix("gateway_proxy_events_acknowledged_total")?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    metrics.lines().filter_map(of_kind).sum()
}
