//! NATS that is slow, or stores nothing for a while: every shard gets its turn, and closed ones come back.

use std::time::Duration;

use nats_server::{Options, SyncInterval};
use serde_json::json;
use testkit::simulator::{Action, Config, Load};

use super::{OVERLOADED, expect_no_harm, four_shards, metric, ready, value};
use crate::harness::{eventually, get};
use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_slow_and_stops_now_and_then_loses_nothing() {
    const FULL: &str = "gateway_proxy_publish_window_full_total";
    let options = Options {
        sync_interval: Some(SyncInterval::Always),
        ..Options::default()
    };
    let config = Config {
        guilds: 80,
        shards: 8,
        max_concurrency: 8,
        // A disk that other programs use too may stand still for so long that shards are closed.
        replay_events: 1_000_000,
        backlog_events: 1_000_000,
        load: Load::flood(Some(200)),
        ..Config::default()
    };
    let mut rig = Rig::start_with(config, options).await;
    // All shards: those without a session would miss what is sent while NATS stands still.
    let proxy = ready(&rig.proxy().with("--buffer-bytes", "8MiB")).await;
    let http = proxy.http().await;
    let mut before = 0;
    // The last stop is longer than the publisher waits for an answer.
    for stop in [500, 1_000, 7_000].map(Duration::from_millis) {
        let goes_on = |text: &str| acknowledged(text) > before + 200;
        let text = eventually(http, "/metrics", |_, text| goes_on(text)).await;
        before = acknowledged(&text);
        rig.nats.pause().unwrap();
        let over = tokio::time::Instant::now() + stop;
        // However quick the disk is, there is something to store after each stop, and the last one
        // fills the buffer.
        rig.simulator.set_load(Load::flood(Some(100)));
        if stop > Duration::from_secs(5) {
            large_messages(&rig);
            eventually(http, "/metrics", |_, text| value(text, FULL) > 0).await;
        }
        tokio::time::sleep_until(over).await;
        rig.nats.resume().unwrap();
    }
    // In steps, because each may take long; and read only then, so that the server has to do one thing.
    let waiting = "gateway_proxy_publish_window_messages";
    loop {
        let before = acknowledged(&get(http, "/metrics").await.1);
        let moves = |text: &str| value(text, waiting) == 0 || acknowledged(text) > before + 500;
        let text = eventually(http, "/metrics", |_, text| moves(text)).await;
        if value(&text, waiting) == 0 {
            break;
        }
    }
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 8, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_waited_for_room_are_not_closed_when_all_is_read_and_stored() {
    const SHARDS: u32 = 8;
    // Longer than shards wait while nothing is stored.
    const QUIET: Duration = Duration::from_secs(25);
    let config = Config {
        guilds: 80,
        shards: SHARDS,
        max_concurrency: SHARDS,
        replay_events: 1_000_000,
        backlog_events: 1_000_000,
        load: Load::rate(4_000.0),
        ..Config::default()
    };
    let mut rig = Rig::start(config).await;
    let proxy = ready(&rig.proxy().with("--buffer-bytes", "8MiB")).await;
    let http = proxy.http().await;
    rig.nats.pause().unwrap();
    let full = "gateway_proxy_publish_window_full_total";
    let all_wait = |text: &str| value(text, full) >= u64::from(SHARDS);
    eventually(http, "/metrics", |_, text| all_wait(text)).await;
    rig.nats.resume().unwrap();
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    tokio::time::sleep(QUIET).await;
    expect_no_harm(&proxy).await;
    assert_eq!(rig.audit().await.identifies, SHARDS as usize, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_closed_because_nothing_is_stored_resume_when_nats_is_back() {
    let config = Config {
        replay_events: 1_000_000,
        backlog_events: 1_000_000,
        // Fills the buffer before the shards give up, and leaves little to replay.
        ..four_shards(Load::rate(1_200.0))
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

/// More bytes than the buffer holds, in few events: each may cost the disk some milliseconds.
fn large_messages(rig: &Rig) {
    let content = "x".repeat(60_000);
    for guild in rig.simulator.guild_ids() {
        for _ in 0..3 {
            rig.simulator.apply(Action::Dispatch {
                t: "MESSAGE_CREATE".to_owned(),
                d: json!({"guild_id": guild.to_string(), "content": content}),
            });
        }
    }
}

/// Acknowledged events of all kinds.
fn acknowledged(metrics: &str) -> u64 {
    let of_kind = |line: &str| {
        let line = line.strip_prefix("gateway_proxy_events_acknowledged_total")?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    metrics.lines().filter_map(of_kind).sum()
}
