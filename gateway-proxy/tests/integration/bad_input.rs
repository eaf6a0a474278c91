//! What Discord should never send: counted and logged, never stored, and no good event is lost by it.

use std::time::Duration;

use testkit::simulator::{Config, Fault, Load, Target};

use crate::harness::{Proxy, eventually};
use crate::rig::Rig;

fn two_shards() -> Config {
    Config {
        guilds: 20,
        shards: 2,
        max_concurrency: 2,
        heartbeat_interval: Duration::from_secs(1),
        load: Load::rate(200.0),
        ..Config::default()
    }
}

async fn start() -> (Rig, Proxy) {
    let rig = Rig::start(two_shards()).await;
    let proxy = rig.proxy().spawn();
    eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    (rig, proxy)
}

/// Injects the fault and waits for its counter, then compares stream and ledger.
async fn counts(fault: Fault, kind: &str) {
    let (rig, proxy) = start().await;
    rig.simulator.inject(Target::All, fault);
    let line = format!("gateway_proxy_frames_malformed_total{{kind=\"{kind}\"}}");
    let http = proxy.http().await;
    eventually(http, "/metrics", |_, body| value(body, &line) >= 2).await;
    eventually(http, "/ready", |status, _| status == 200).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 2, "{report}");
    assert_eq!(report.injected_stored, 0, "{report}");
    assert!(report.gaps.is_empty(), "{report}");
}

fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_counted_and_skipped() {
    counts(Fault::MalformedJson, "json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_dispatch_is_counted_and_skipped() {
    counts(Fault::TruncatedJson, "json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_counted_and_skipped() {
    counts(Fault::NonUtf8, "utf8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decompression_bomb_ends_the_connection_before_the_memory_is_spent() {
    counts(Fault::DecompressionBomb { bytes: 200 << 20 }, "too_large").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_opcode_is_counted_and_ignored() {
    counts(Fault::UnknownOpcode, "unknown_opcode").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_without_sequence_is_counted_and_skipped() {
    counts(Fault::MissingFields, "missing_field").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_going_backwards_is_not_stored_again() {
    let (rig, proxy) = start().await;
    rig.simulator
        .inject(Target::All, Fault::SeqBackwards { by: 5 });
    let http = proxy.http().await;
    eventually(http, "/metrics", |_, body| {
        body.lines()
            .filter(|line| line.starts_with("gateway_proxy_events_duplicate_total"))
            .any(|line| !line.ends_with(" 0"))
    })
    .await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(
        (report.identifies, report.injected_stored),
        (2, 0),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_a_name_nobody_knows_is_stored_like_any_other() {
    let (rig, proxy) = start().await;
    rig.simulator.inject(Target::All, Fault::UnknownEvent);
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert!(report.is_complete(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_ends_in_its_middle_is_resumed() {
    let (rig, proxy) = start().await;
    rig.simulator.inject(Target::All, Fault::TruncatedFrame);
    let http = proxy.http().await;
    let resumed = "gateway_proxy_resumes_total{outcome=\"resumed\"}";
    eventually(http, "/metrics", |_, body| value(body, resumed) >= 2).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(report.identifies, 2, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_above_max_payload_is_announced_and_the_rest_goes_on() {
    let (rig, proxy) = start().await;
    rig.simulator
        .inject(Target::Shard(1), Fault::OversizedEvent { bytes: 9 << 20 });
    let http = proxy.http().await;
    let gap = "gateway_proxy_gaps_total{reason=\"oversized_frame\"}";
    eventually(http, "/metrics", |_, body| value(body, gap) >= 1).await;
    rig.simulator.set_load(Load::quiet());
    let report = rig.expect_clean(&[&proxy]).await;
    assert_eq!(
        (report.gaps.len(), report.declared_lost),
        (1, 1),
        "{report}"
    );
}
