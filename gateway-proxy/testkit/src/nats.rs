//! A real nats-server for tests, and connections to it.
//!
//! The server itself is the crate `nats-server`, re-exported here; it blocks while it starts, so
//! async code uses [`start`] and [`start_cluster`].

use std::time::Duration;

use async_nats::jetstream;
pub use nats_server::*;
use tokio::task::spawn_blocking;

/// A local server accepts at once; more means it is stuck, and a test should say so.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Starts a server without blocking the runtime.
///
/// # Errors
/// Those of [`Server::start`].
///
/// # Panics
/// When starting it panicked.
pub async fn start(options: Options) -> Result<Server, StartError> {
    let started = spawn_blocking(move || Server::start(options)).await;
    started.expect("starting a server does not panic")
}

/// Starts a cluster without blocking the runtime.
///
/// # Errors
/// Those of [`Cluster::start`].
///
/// # Panics
/// When starting it panicked.
pub async fn start_cluster(size: usize) -> Result<Cluster, StartError> {
    let started = spawn_blocking(move || Cluster::start(size)).await;
    started.expect("starting a cluster does not panic")
}

/// A connection of its own to the server or cluster at `url`.
///
/// # Errors
/// [`async_nats::ConnectError`] when it does not answer within ten seconds.
pub async fn connect(url: &str) -> Result<async_nats::Client, async_nats::ConnectError> {
    let options = async_nats::ConnectOptions::new().connection_timeout(CONNECT_WITHIN);
    let addresses: Vec<&str> = url.split(',').collect();
    options.connect(addresses).await
}

/// JetStream over a connection of its own.
///
/// # Errors
/// Those of [`connect`].
pub async fn jetstream(url: &str) -> Result<jetstream::Context, async_nats::ConnectError> {
    connect(url).await.map(jetstream::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_started_server_takes_a_stream_and_a_message() {
        let server = start(Options::default()).await.unwrap();
        let jetstream = jetstream(&server.url()).await.unwrap();
        let config = jetstream::stream::Config {
            name: "S".into(),
            subjects: vec!["s".into()],
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let ack = jetstream
            .publish("s", "hello".into())
            .await
            .unwrap()
            .await
            .unwrap();
        assert_eq!(ack.sequence, 1);
    }
}
