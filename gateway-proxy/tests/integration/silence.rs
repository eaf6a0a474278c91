//! Shards whose heartbeats are acknowledged and which stop delivering: found, resumed, and if that
//! does not help given a new session, once.

use std::time::Duration;

use testkit::audit::AuditReport;
use testkit::simulator::{Config, Fault, Load, Target, Until};

use crate::harness::{Proxy, eventually, patience};
use crate::rig::Rig;

const SHARDS: u32 = 4;

/// Four busy shards whose usual rate the proxy knows.
async fn learnt() -> (Rig, Proxy) {
    let rig = Rig::start(Config {
        guilds: 40,
        shards: SHARDS,
        max_concurrency: SHARDS,
        heartbeat_interval: Duration::from_secs(1),
        heartbeat_tolerance: 10.0,
        load: Load::rate(400.0),
        ..Config::default()
    })
    .await;
    // A machine that stands still for seconds makes silences of its own: it says so by its patience.
    let silent_after = format!("{}ms", patience().as_millis() / 40);
    let proxy = rig.proxy().args(&["--silent-after", &silent_after]).spawn();
    eventually(proxy.http().await, "/metrics", |_, body| {
        body.matches("\ngateway_proxy_shard_patience_seconds{")
            .count()
            == SHARDS as usize
    })
    .await;
    (rig, proxy)
}

fn steps(metrics: &str, step: &str) -> u64 {
    let series = format!("gateway_proxy_shard_silences_total{{step=\"{step}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |count| count.parse().unwrap())
}

/// Waits until a step was taken so often; all that was counted then.
async fn taken(proxy: &Proxy, step: &str, times: u64) -> String {
    eventually(proxy.http().await, "/metrics", |_, body| {
        steps(body, step) >= times
    })
    .await
}

async fn end(rig: &Rig, proxy: &Proxy) -> AuditReport {
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    rig.expect_clean(&[proxy]).await
}

fn withhold(rig: &Rig, target: Target, until: Until) {
    assert!(rig.simulator.inject(target, Fault::Withhold { until }) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_shard_that_a_resume_mends_is_resumed_and_loses_nothing() {
    let (rig, proxy) = learnt().await;
    withhold(&rig, Target::Shard(2), Until::Resume);
    let metrics = taken(&proxy, "recovered", 1).await;
    assert_eq!(
        (steps(&metrics, "suspected"), steps(&metrics, "resumed")),
        (1, 1),
        "{metrics}"
    );
    let report = end(&rig, &proxy).await;
    assert_eq!((report.identifies, report.gaps.len()), (4, 0), "{report}");
    assert!(report.is_complete(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_shard_that_a_resume_does_not_mend_gets_a_new_session_and_a_gap() {
    let (rig, proxy) = learnt().await;
    withhold(&rig, Target::Shard(2), Until::NewSession);
    let metrics = taken(&proxy, "recovered", 1).await;
    assert_eq!(
        (steps(&metrics, "resumed"), steps(&metrics, "reidentified")),
        (1, 1),
        "{metrics}"
    );
    let report = end(&rig, &proxy).await;
    assert_eq!((report.identifies, report.gaps.len()), (5, 1), "{report}");
    assert_eq!(report.gaps[0].reason, "forced", "{report}");
    let withheld: u64 = rig
        .simulator
        .progress()
        .iter()
        .map(|one| one.withheld)
        .sum();
    assert!(withheld > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_stays_silent_costs_one_session_and_is_left_alone() {
    let (rig, proxy) = learnt().await;
    withhold(&rig, Target::Shard(2), Until::Never);
    let metrics = taken(&proxy, "quiet", 1).await;
    for step in ["suspected", "resumed", "reidentified"] {
        assert_eq!(steps(&metrics, step), 1, "{step}: {metrics}");
    }
    let report = end(&rig, &proxy).await;
    assert_eq!((report.identifies, report.gaps.len()), (5, 1), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_are_all_silent_at_once_are_left_alone() {
    let (rig, proxy) = learnt().await;
    withhold(&rig, Target::All, Until::Resume);
    let metrics = taken(&proxy, "outage", u64::from(SHARDS)).await;
    assert_eq!(steps(&metrics, "suspected"), 4, "{metrics}");
    let http = proxy.http().await;
    let health =
        |silent: usize| move |_: u16, body: &str| body.matches("\"silent\":true").count() == silent;
    eventually(http, "/health", health(4)).await;
    assert_eq!(rig.simulator.inject(Target::All, Fault::Heal), 4);
    let metrics = eventually(http, "/health", health(0)).await;
    assert_eq!(steps(&metrics, "resumed"), 0);
    let report = end(&rig, &proxy).await;
    assert_eq!((report.identifies, report.gaps.len()), (4, 0), "{report}");
}
