//! The agent's own thread, runtime and connection: whatever the shards have to do, the lease is renewed.

use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::agent::Agent;
use super::bucket::Bucket;
use crate::config::NatsSettings;
use crate::exit::Fatal;
use crate::nats;

/// Between two attempts to open the bucket, which exists since the start.
const OPEN_PAUSE: Duration = Duration::from_millis(250);
/// How long one attempt may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// How the agent reaches the bucket.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) settings: NatsSettings,
    /// The connection's name.
    pub(crate) name: String,
    pub(crate) prefix: schemas::Prefix,
    /// Where a reason to give up goes.
    pub(crate) fatal: mpsc::Sender<Fatal>,
}

/// Runs an agent until `stop`; the answer comes when it has left. Without an agent there is no answer.
///
/// # Errors
/// [`Fatal::Bug`] when the machine has no thread to give.
pub(crate) fn run(
    apart: Apart,
    stop: CancellationToken,
    agent: impl FnOnce(Bucket) -> Agent + Send + 'static,
) -> Result<oneshot::Receiver<()>, Fatal> {
    let refused = |error: std::io::Error| Fatal::bug(format!("no thread for the lease: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(refused)?;
    let (left, over) = oneshot::channel();
    let thread = std::thread::Builder::new().name("lease".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(live(apart, stop, agent));
        // Whoever waits may have given up.
        left.send(()).unwrap_or_default();
    });
    // It ends with `stop`, or with the process.
    drop(thread.map_err(refused)?);
    Ok(over)
}

async fn live(apart: Apart, stop: CancellationToken, agent: impl FnOnce(Bucket) -> Agent) {
    let fatal = apart.fatal.clone();
    let bucket = tokio::select! {
        () = stop.cancelled() => return,
        bucket = open(apart) => bucket,
    };
    let bucket = match bucket {
        Ok(bucket) => bucket,
        Err(error) => {
            // Somebody else's reason came first.
            drop(fatal.try_send(error));
            return;
        }
    };
    let mut agent = agent(bucket);
    tokio::select! {
        () = stop.cancelled() => {}
        () = agent.run() => {}
    }
    agent.leave().await;
}

async fn open(apart: Apart) -> Result<Bucket, Fatal> {
    let client = nats::connect_beside(&apart.settings, apart.name).await?;
    let jetstream = jetstream::new(client.clone());
    let mut said = false;
    loop {
        let store = jetstream.get_key_value(apart.prefix.fleet_bucket());
        let error = match tokio::time::timeout(OPEN_TIMEOUT, store).await {
            Ok(Ok(store)) => return Ok(Bucket::new(client, jetstream, store, apart.prefix)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if !said {
            said = true;
            warn!(error, "the fleet's bucket cannot be opened, trying again");
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}
