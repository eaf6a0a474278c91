//! The HTTP endpoints of a running proxy.

use nats_server::Options;
use nix::sys::signal::Signal;
use schemas::{Health, Readiness};

use crate::harness::{FakeDiscord, Run, dead_address, eventually, get};

#[tokio::test]
async fn live_answers_and_ready_says_why_not_while_nats_is_away() {
    let discord = FakeDiscord::with_shards(1).await;
    let nobody = format!("nats://{}", dead_address().await);
    let proxy = Run::proxy(&nobody, &discord.api_url()).spawn();
    let http = proxy.http().await;
    assert_ne!(http.port(), 0, "the real port is logged");
    assert_eq!(get(http, "/live").await, (200, "live\n".to_owned()));
    let (status, body) = get(http, "/ready").await;
    let readiness: Readiness = serde_json::from_str(&body).unwrap();
    assert_eq!((status, readiness.ready), (503, false));
    assert!(
        readiness
            .reasons
            .iter()
            .any(|reason| reason.contains("NATS")),
        "{readiness:?}"
    );
    let (status, body) = get(http, "/health").await;
    let health: Health = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert!(!health.nats.connected && health.shards.is_empty());
    assert_eq!(health.total_shards, None);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(
        proxy.exit_code().await,
        Some(0),
        "a signal during the start is a clean stop"
    );
}

#[tokio::test]
async fn health_and_metrics_show_nats_memory_and_budget() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(2).await;
    let proxy = Run::proxy(&nats.url(), &discord.api_url())
        .args(&["--proxy-id", "me-1"])
        .spawn();
    let http = proxy.http().await;
    let sampled = |_, body: &str| {
        let health: Health = serde_json::from_str(body).unwrap();
        health.total_shards == Some(2) && health.memory_bytes > 0 && health.nats.connected
    };
    let body = eventually(http, "/health", sampled).await;
    let health: Health = serde_json::from_str(&body).unwrap();
    assert_eq!(health.proxy.as_str(), "me-1");
    assert!(health.nats.server_version.is_some());
    let (status, metrics) = get(http, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "gateway_proxy_session_starts_remaining 1000",
        "gateway_proxy_nats_connected 1",
        "# TYPE gateway_proxy_events_received counter",
        "# UNIT gateway_proxy_process_resident_memory_bytes bytes",
    ] {
        assert!(metrics.contains(line), "{line:?} is missing in:\n{metrics}");
    }
    let (status, index) = get(http, "/").await;
    assert!(status == 200 && index.contains("/metrics"), "{index}");
    assert_eq!(get(http, "/nowhere").await.0, 404);
}

#[tokio::test]
async fn ready_turns_503_while_nats_is_away_and_recovers() {
    let mut nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let proxy = Run::proxy(&nats.url(), &discord.api_url()).spawn();
    let http = proxy.http().await;
    let away = |_, body: &str| body.contains("not connected to NATS");
    let back = |_, body: &str| !body.contains("not connected to NATS");
    eventually(http, "/ready", back).await;
    let mut nats = tokio::task::spawn_blocking(move || {
        nats.kill9().unwrap();
        nats
    })
    .await
    .unwrap();
    eventually(http, "/ready", away).await;
    let _nats = tokio::task::spawn_blocking(move || {
        nats.start_again().unwrap();
        nats
    })
    .await
    .unwrap();
    eventually(http, "/ready", back).await;
    // The client may connect more than once while the server is still starting.
    let counted = |_, body: &str| {
        let mut lines = body.lines();
        let count =
            lines.find_map(|line| line.strip_prefix("gateway_proxy_nats_reconnects_total "));
        count.is_some_and(|count| count.parse::<u64>().unwrap() >= 1)
    };
    eventually(http, "/metrics", counted).await;
}

#[tokio::test]
async fn the_log_is_json_and_never_holds_the_token() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let run = Run::proxy(&nats.url(), &discord.api_url()).args(&["--log-filter", "trace"]);
    let proxy = run.spawn();
    let http = proxy.http().await;
    eventually(http, "/health", |_, body| {
        body.contains("\"total_shards\":1")
    })
    .await;
    let line = proxy.logged("connected to NATS").await;
    assert_eq!(line["level"], "INFO");
    assert!(line["version"].is_string(), "{line}");
    let log = proxy.log().join("\n");
    assert!(
        !log.contains("simulated.bot.token"),
        "the token is in the log"
    );
}
