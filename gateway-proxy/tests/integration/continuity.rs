//! Sessions outlive connections, proxies and NATS: what Discord does and what operators do, one at a
//! time, and the stream stays exactly what Discord sent.

use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::simulator::{Action, Config, ConnectFault, Fault, Load, Target};

use crate::harness::{Proxy, eventually};
use crate::rig::Rig;

fn four_shards() -> Config {
    Config {
        guilds: 40,
        shards: 4,
        max_concurrency: 4,
        heartbeat_interval: Duration::from_secs(1),
        load: Load::rate(400.0),
        ..Config::default()
    }
}

async fn ready(rig: &Rig) -> Proxy {
    let proxy = rig.proxy().spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    proxy
}

/// Does something to every connection while events flow; no session may be lost by it.
async fn survives(fault: Fault) {
    let rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    let before = resumes(&proxy).await;
    rig.simulator.inject(Target::All, fault);
    let http = proxy.http().await;
    eventually(http, "/metrics", |_, body| resumed(body) >= before + 4).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 4, "{report}");
    assert!(report.gaps.is_empty(), "{report}");
}

async fn resumes(proxy: &Proxy) -> u64 {
    resumed(&crate::harness::get(proxy.http().await, "/metrics").await.1)
}

fn resumed(metrics: &str) -> u64 {
    let line = metrics.lines().find(|line| {
        line.starts_with("gateway_proxy_resumes_total") && line.contains("outcome=\"resumed\"")
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn op_7_resumes() {
    survives(Fault::Reconnect).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn op_9_true_resumes() {
    survives(Fault::InvalidSession { resumable: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_connection_resumes() {
    survives(Fault::DropTcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_and_resumed() {
    survives(Fault::HalfOpen {
        read: true,
        write: true,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_compression_stream_resumes() {
    survives(Fault::CorruptCompression).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_codes_that_allow_it_resume() {
    for code in [1000, 1001, 4000, 4009] {
        survives(Fault::Close { code }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn op_7_instead_of_hello_resumes() {
    let rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    rig.simulator.apply(Action::Connects {
        fault: ConnectFault::ReconnectInsteadOfHello,
        count: 4,
    });
    rig.simulator.inject(Target::All, Fault::DropTcp);
    let http = proxy.http().await;
    eventually(http, "/metrics", |_, body| resumed(body) >= 4).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn op_9_false_announces_the_gap_directly_before_the_new_ready() {
    let rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    rig.simulator
        .inject(Target::Shard(2), Fault::InvalidSession { resumable: false });
    let http = proxy.http().await;
    eventually(http, "/metrics", |_, body| {
        body.contains("gateway_proxy_gaps_total{reason=\"invalid_session\"} 1")
    })
    .await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 5, "{report}");
    assert_eq!(report.gaps.len(), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_proxy_is_followed_by_one_that_resumes_every_session() {
    let rig = Rig::start(four_shards()).await;
    for _ in 0..3 {
        let proxy = ready(&rig).await;
        rig.caught_up(&[&proxy]).await;
        proxy.signal(Signal::SIGKILL);
        proxy.exit_code().await;
    }
    let proxy = ready(&rig).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_proxy_leaves_sessions_that_resume() {
    let rig = Rig::start(four_shards()).await;
    for _ in 0..2 {
        let proxy = ready(&rig).await;
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code().await, Some(0));
    }
    let proxy = ready(&rig).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 4, "{report}");
    assert!(report.gaps.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_nats_lose_nothing() {
    let mut rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    let http = proxy.http().await;
    for _ in 0..3 {
        rig.nats.kill9().unwrap();
        eventually(http, "/ready", |status, _| status == 503).await;
        rig.nats.start_again().unwrap();
        eventually(http, "/ready", |status, _| status == 200).await;
    }
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 4, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_proxy_for_the_same_shards_takes_them_and_the_first_lets_go() {
    let rig = Rig::start(four_shards()).await;
    let first = ready(&rig).await;
    rig.caught_up(&[&first]).await;
    let second = rig.proxy().args(&["--proxy-id", "second"]).spawn();
    eventually(second.http().await, "/ready", |status, _| status == 200).await;
    first.logged("another process took the shard").await;
    assert_eq!(first.exit_code().await, Some(78));
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&second]).await;
    assert_eq!(report.identifies, 4, "{report}");
    assert!(report.gaps.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_not_ready_says_why() {
    let rig = Rig::start(four_shards()).await;
    let first = ready(&rig).await;
    let second = ["--proxy-id", "second", "--shard-ids", "0"];
    let second = rig.proxy().args(&second).spawn();
    eventually(second.http().await, "/ready", |status, _| status == 200).await;
    let http = first.http().await;
    let why = "shard 0: failed, taken over by second";
    eventually(http, "/ready", |status, body| {
        status == 503 && body.contains(why)
    })
    .await;
    eventually(http, "/health", |_, body| {
        let health: schemas::health::Health = serde_json::from_str(body).unwrap();
        let reason = |id: usize| health.shards[id].reason.as_deref();
        // Who is ready needs no reason.
        reason(0) == Some("taken over by second") && reason(1).is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stood_still_lets_go_of_what_its_successor_holds() {
    let rig = Rig::start(four_shards()).await;
    let first = ready(&rig).await;
    // Before READY is stored nobody could resume the sessions.
    rig.caught_up(&[&first]).await;
    first.signal(Signal::SIGSTOP);
    let second = rig.proxy().args(&["--proxy-id", "second"]).spawn();
    eventually(second.http().await, "/ready", |status, _| status == 200).await;
    // Longer than the wait by which a process knows that it stood still.
    tokio::time::sleep(Duration::from_secs(12)).await;
    first.signal(Signal::SIGCONT);
    assert_eq!(first.exit_code().await, Some(78));
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&second]).await;
    assert_eq!(report.identifies, 4, "{report}");
    assert!(report.gaps.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_start_announces_what_it_does_not_resume() {
    let rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let proxy = rig.proxy().args(&["--fresh"]).spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    // The old sessions are nobody's; Discord would forget them in some minutes.
    rig.simulator.apply(Action::ExpireSessions);
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!((report.identifies, report.gaps.len()), (8, 4), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_close_of_every_shard_ends_the_process_without_waiting_for_the_grace_period() {
    let rig = Rig::start(four_shards()).await;
    let proxy = rig.proxy().args(&["--grace-period", "60s"]).spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    rig.simulator
        .inject(Target::All, Fault::Close { code: 4014 });
    let began = std::time::Instant::now();
    assert_eq!(proxy.exit_code().await, Some(77));
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_begins_where_the_session_was_last_followed() {
    let rig = Rig::start(four_shards()).await;
    let proxy = ready(&rig).await;
    rig.caught_up(&[&proxy]).await;
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let ended = std::time::SystemTime::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let proxy = rig.proxy().args(&["--fresh"]).spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    rig.simulator.apply(Action::ExpireSessions);
    rig.caught_up(&[&proxy]).await;
    let jetstream = async_nats::jetstream::new(rig.client().await);
    let stream = jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let subject = "discord.shard.0.events.none.PROXY_GAP";
    let message = stream
        .get_last_raw_message_by_subject(subject)
        .await
        .unwrap();
    let event = schemas::ProxyEvent::from_frame(&message.payload).unwrap();
    let schemas::ProxyEvent::Gap(gap) = event else {
        panic!("{event:?}")
    };
    let ended = ended
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64;
    assert!(
        gap.from.unix_ms() <= ended,
        "{gap:?} does not cover the time without a process"
    );
    assert!(gap.to.unix_ms() >= ended + 2_000, "{gap:?}");
}
