//! What happens to NATS: leaders change, disks are slow, there is no room, messages are too large,
//! permissions are taken away. The proxy holds what it has, says why, and goes on; the stream ends up
//! exactly what Discord sent.

mod cluster;
mod slow;

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, Info};
use nats_server::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::audit::audit;
use testkit::simulator::{Config, Entry, GuildBytes, Load};

use crate::harness::{Proxy, Run, eventually, get};
use crate::rig::Rig;

const STREAM: &str = "DISCORD_EVENTS";
/// A look at a condition that is waited for.
const POLL: Duration = Duration::from_millis(20);

fn four_shards(load: Load) -> Config {
    Config {
        guilds: 40,
        shards: 4,
        max_concurrency: 4,
        load,
        ..Config::default()
    }
}

async fn ready(run: &Run) -> Proxy {
    let proxy = run.spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    proxy
}

/// A value of the metrics; 0 when it was never counted.
async fn metric(proxy: &Proxy, name: &str) -> u64 {
    value(&get(proxy.http().await, "/metrics").await.1, name)
}

fn value(metrics: &str, name: &str) -> u64 {
    let of_name = |line: &str| {
        let (found, value) = line.rsplit_once(' ')?;
        // Gauges are written with a fraction.
        (found == name).then(|| value.parse::<f64>().ok())?
    };
    metrics.lines().find_map(of_name).unwrap_or(0.0) as u64
}

const OVERLOADED: &str = "gateway_proxy_reconnects_total{reason=\"overloaded\"}";

/// No shard was closed because nothing was stored.
async fn expect_no_harm(proxy: &Proxy) {
    let closed = metric(proxy, OVERLOADED).await;
    assert_eq!(closed, 0, "{}", proxy.log().join("\n"));
}

// --- no room

/// Takes all the room there is in the account, or the server, until NATS refuses more.
async fn fill(jetstream: &jetstream::Context) {
    const CHUNK: usize = 256 * 1024;
    const CHUNKS_MAX: usize = 1_000;
    let config = StreamConfig {
        name: "FILLER".to_owned(),
        subjects: vec!["filler".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    for size in [CHUNK, 100] {
        for _ in 0..CHUNKS_MAX {
            let sent = jetstream.publish("filler", vec![b'x'; size].into()).await;
            if sent.unwrap().await.is_err() {
                break;
            }
        }
    }
}

/// The proxy holds while there is no room, says so, and goes on when there is.
async fn holds_until_there_is_room(options: Options) {
    let rig = Rig::start_with(four_shards(Load::rate(400.0)), options).await;
    let proxy = ready(&rig.proxy()).await;
    let http = proxy.http().await;
    let jetstream = jetstream::new(rig.client().await);
    fill(&jetstream).await;
    let says =
        |body: &str| body.contains("events are not being stored") && body.contains("resource");
    eventually(http, "/ready", |status, body| status == 503 && says(body)).await;
    let stored = stream_info(&jetstream).await.state.messages;
    let waiting = "gateway_proxy_publish_window_messages";
    let since = metric(&proxy, waiting).await;
    eventually(http, "/metrics", |_, text| {
        value(text, waiting) > since + 200
    })
    .await;
    let status = get(http, "/ready").await;
    assert!(status.0 == 503 && says(&status.1), "{status:?}");
    assert_eq!(stream_info(&jetstream).await.state.messages, stored);
    jetstream.delete_stream("FILLER").await.unwrap();
    eventually(http, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 4, "{report}");
}

async fn stream_info(jetstream: &jetstream::Context) -> Info {
    let stream = jetstream.get_stream(STREAM).await.unwrap();
    stream.cached_info().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_room_is_waited_for() {
    holds_until_there_is_room(Options {
        extra_config: "accounts { BOT { jetstream: { max_file: 24MB, max_mem: 1MB }, \
                       users: [{user: bot, password: pw}] } }\nno_auth_user: bot"
            .to_owned(),
        ..Options::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_is_waited_for() {
    let store = TempDir::new();
    let path = store.0.to_str().unwrap().to_owned();
    holds_until_there_is_room(Options {
        // The last of two counts.
        extra_config: format!("jetstream {{ store_dir: {path:?}, max_file_store: 24MB }}"),
        store_dir: Some(store.0.clone()),
        ..Options::default()
    })
    .await;
}

/// A directory that goes with the test.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("gateway-proxy-{:016x}", fastrand::u64(..))))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_that_somebody_made_discard_the_new_is_waited_for() {
    let rig = Rig::start(four_shards(Load::rate(400.0))).await;
    let proxy = ready(&rig.proxy()).await;
    let http = proxy.http().await;
    let jetstream = jetstream::new(rig.client().await);
    let info = stream_info(&jetstream).await;
    let full = StreamConfig {
        discard: DiscardPolicy::New,
        max_bytes: i64::try_from(info.state.bytes).unwrap() + 50_000,
        ..info.config.clone()
    };
    jetstream.update_stream(&full).await.unwrap();
    let says =
        |body: &str| body.contains("events are not being stored") && body.contains("maximum bytes");
    eventually(http, "/ready", |status, body| status == 503 && says(body)).await;
    jetstream.update_stream(&info.config).await.unwrap();
    eventually(http, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 4, "{report}");
}

// --- permissions

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_taken_away_is_waited_for() {
    let users = |publish: &str| {
        let permissions = format!("{{ publish: {publish}, subscribe: \">\" }}");
        let user = format!("{{ user: bot, password: pw, permissions: {permissions} }}");
        format!("authorization {{ users: [{user}] }}")
    };
    let (all, no_events) = (users("\">\""), users("{deny: \"discord.shard.>\"}"));
    let options = Options {
        extra_config: format!("{all}\nno_auth_user: bot"),
        ..Options::default()
    };
    let rig = Rig::start_with(four_shards(Load::rate(400.0)), options).await;
    let proxy = ready(&rig.proxy()).await;
    let http = proxy.http().await;
    let reload = |from: &str, to: &str| {
        let path = rig.nats.store_dir().with_file_name("nats-server.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let pid = i32::try_from(rig.nats.pid().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    };
    reload(&all, &no_events);
    let says = |body: &str| {
        body.contains("events are not being stored") && body.contains("Permissions Violation")
    };
    eventually(http, "/ready", |status, body| status == 503 && says(body)).await;
    reload(&no_events, &all);
    eventually(http, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.identifies, 4, "{report}");
}

// --- slow traffic

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_of_events_is_acknowledged_at_once() {
    const EVENTS: u64 = 24;
    // The bound of the histogram's bucket.
    const WITHIN: &str = "gateway_proxy_ack_latency_seconds_bucket{le=\"0.1\"}";
    const ALL: &str = "gateway_proxy_ack_latency_seconds_count";
    let rig = Rig::start(four_shards(Load::quiet())).await;
    let proxy = ready(&rig.proxy()).await;
    let http = proxy.http().await;
    rig.caught_up(&[&proxy]).await;
    let text = get(http, "/metrics").await.1;
    let (within, all) = (value(&text, WITHIN), value(&text, ALL));
    // One event a second on each shard.
    rig.simulator.set_load(Load::rate(4.0));
    let text = eventually(http, "/metrics", |_, text| value(text, ALL) >= all + EVENTS).await;
    let (within, all) = (value(&text, WITHIN) - within, value(&text, ALL) - all);
    // A busy machine delays some; waiting for a flow acknowledgement, or a timeout, would delay most.
    assert!(within * 10 >= all * 9, "{within} of {all} within 100 ms");
    rig.simulator.set_load(Load::quiet());
    rig.expect_clean(&[&proxy]).await;
    assert_eq!(
        metric(&proxy, "gateway_proxy_publish_restarts_total").await,
        0
    );
}

// --- messages above max_payload

#[tokio::test(flavor = "multi_thread")]
async fn guilds_above_max_payload_are_announced_in_their_places_and_warned_of_at_start() {
    const MAX_PAYLOAD: u32 = 1 << 20;
    const LARGE: usize = 3;
    let options = Options {
        max_payload: MAX_PAYLOAD,
        ..Options::default()
    };
    let config = Config {
        guild_bytes: GuildBytes {
            max: 2_000_000,
            forced_max: LARGE,
            ..GuildBytes::default()
        },
        ..four_shards(Load::rate(200.0))
    };
    let rig = Rig::start_with(config, options).await;
    let proxy = ready(&rig.proxy()).await;
    let warning = proxy.logged("a large guild's GUILD_CREATE").await;
    assert_eq!(warning["max_payload"], MAX_PAYLOAD, "{warning}");
    assert!(
        warning.to_string().contains("max_payload: 8MB"),
        "{warning}"
    );
    rig.simulator.set_load(Load::quiet());
    rig.caught_up(&[&proxy]).await;
    let mut ledger = rig.simulator.ledger();
    for session in &mut ledger.sessions {
        for entry in &mut session.entries {
            if entry.len > MAX_PAYLOAD {
                entry.flags |= Entry::OVERSIZED;
            }
        }
    }
    let client = rig.client().await;
    let report = audit(&client, &schemas::Prefix::default(), &ledger)
        .await
        .unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.declared_lost, report.gaps.len() as u64, "{report}");
    assert!(report.gaps.len() >= LARGE, "{report}");
    let oversized = report
        .gaps
        .iter()
        .all(|gap| gap.reason == "oversized_frame");
    assert!(oversized, "{report}");
}
