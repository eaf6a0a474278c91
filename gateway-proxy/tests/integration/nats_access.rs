//! How the proxy gets at NATS: credentials, TLS, and a server of its own. Ready means that both of its
//! connections are through, the one for events and the one for the rest.

use std::path::{Path, PathBuf};

use nats_server::{Options, Server};
use nix::sys::signal::Signal;
use nkeys::KeyPair;
use testkit::simulator::{Config, Simulator};

use crate::harness::{Run, TempFile, eventually};

/// A server with these lines in its configuration.
async fn server(extra_config: String) -> Server {
    testkit::nats::start(Options {
        extra_config,
        ..Options::default()
    })
    .await
    .unwrap()
}

/// The proxy comes up, and ends cleanly.
async fn comes_up(run: Run) {
    let proxy = run.spawn();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    proxy.signal(Signal::SIGTERM);
    let finished = proxy.finish().await;
    assert_eq!(finished.code, Some(0));
    // The connection for commands is no part of being ready.
    let log = finished.stderr;
    assert!(!log.contains("commands are not received"), "{log}");
}

async fn simulator() -> Simulator {
    Simulator::start(Config::default()).await.unwrap()
}

#[tokio::test]
async fn a_user_with_a_password_gets_in() {
    let nats = server("authorization { user: alice, password: \"p w\" }".to_owned()).await;
    let discord = simulator().await;
    let password = TempFile::new("p w\n");
    let run = Run::proxy(&nats.url(), discord.api_url())
        .env("NATS_USER", "alice")
        .args(&["--nats-password-file", password.path().to_str().unwrap()]);
    comes_up(run).await;
    let in_url = nats.url().replace("nats://", "nats://alice:p%20w@");
    comes_up(Run::proxy(&in_url, discord.api_url())).await;
}

#[tokio::test]
async fn a_token_gets_in() {
    let nats = server("authorization { token: \"t-1\" }".to_owned()).await;
    let discord = simulator().await;
    comes_up(Run::proxy(&nats.url(), discord.api_url()).env("NATS_TOKEN", "t-1")).await;
}

#[tokio::test]
async fn an_nkey_gets_in() {
    let key = KeyPair::new_user();
    let nats = server(format!(
        "authorization {{ users: [{{nkey: {}}}] }}",
        key.public_key()
    ))
    .await;
    let discord = simulator().await;
    let seed = TempFile::new(&key.seed().unwrap());
    let run = Run::proxy(&nats.url(), discord.api_url());
    comes_up(run.args(&["--nats-nkey", seed.path().to_str().unwrap()])).await;
}

/// Certificates for 127.0.0.1, signed by a CA whose key is gone.
fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/integration/tls")
        .join(name)
}

#[tokio::test]
async fn tls_with_a_private_ca_and_a_client_certificate_gets_in() {
    let path = |name: &str| certificate(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
    // The probe that waits for the server speaks no TLS, so TLS is offered, not demanded.
    let nats = server(format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n\
         allow_non_tls: true"
    ))
    .await;
    let discord = simulator().await;
    let encrypted = nats.url().replace("nats://", "tls://");
    let run = Run::proxy(&encrypted, discord.api_url());
    let identity = ["--nats-ca", &ca, "--nats-cert", &cert, "--nats-key", &key];
    comes_up(run.clone().args(&identity)).await;
    let stranger = run.with("--startup-timeout", "2s").finish().await;
    stranger.expect(69, &["NATS", "certificate"]);
}

/// A directory that goes with the test.
struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test]
async fn an_embedded_server_keeps_its_store_to_itself_and_goes_with_the_proxy() {
    let dir = std::env::temp_dir().join(format!("gateway-proxy-{:016x}", fastrand::u64(..)));
    let dir = TempDir(dir);
    let store = dir.0.to_str().unwrap();
    let discord = simulator().await;
    let run = Run::proxy("embedded", discord.api_url()).args(&["--nats-store", store]);
    let proxy = run.spawn();
    let started = proxy.logged("started an embedded nats-server").await;
    let url = started["url"].as_str().unwrap().to_owned();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    let client = testkit::nats::connect(&url).await.unwrap();
    drop(client);
    run.finish()
        .await
        .expect(78, &["--nats-store", "in use by another proxy"]);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    assert!(
        testkit::nats::connect(&url).await.is_err(),
        "the server is still there"
    );
    comes_up(run).await;
}

#[tokio::test]
async fn a_user_who_may_not_publish_events_ends_the_start_before_an_identify_is_spent() {
    let nats = server(
        "authorization { users: [{user: bob, password: pw, permissions: {
            publish: [\"$JS.API.>\", \"$KV.>\", \"_INBOX.>\", \"discord.fleet.>\"],
            subscribe: [\"_INBOX.>\", \"discord.>\"] }}] }"
            .to_owned(),
    )
    .await;
    let discord = simulator().await;
    let url = nats.url().replace("nats://", "nats://bob:pw@");
    let finished = Run::proxy(&url, discord.api_url()).finish().await;
    finished.expect(78, &["discord.shard"]);
    assert!(discord.ledger().identifies.is_empty());
}
