//! A worker: connects, registers its commands, opens its durable consumers, answers interactions and
//! handles events until it is stopped. Several workers share the consumers; each interaction and
//! each event goes to one of them.

mod attempt;
mod delivery;
mod event_pool;
mod events;
mod outcome;
mod pool;
mod pull;
mod settle;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use attempt::attempt;
use event_pool::EventPool;
pub(crate) use outcome::Outcome;
use pool::Pool;
pub(crate) use settle::{Settled, settle, tell};
pub(crate) use shared::Shared;
use shared::Warnings;

use crate::admin::{self, Admin};
use crate::commands::register;
use crate::config::Config;
use crate::context::WorkerInfo;
use crate::durable::{Durable, OpenError, Opened};
use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::nats::{self, Link};
use crate::rest::Rest;
use crate::router::Router;
use crate::shards::Shards;
use crate::status::{Phase, Status, Step};

/// Pause before a missing stream is looked for again.
const STREAM_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for the last acknowledgements to leave the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker before its start.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    router: Router,
}

impl Worker {
    /// A worker that answers the router's commands.
    #[must_use]
    pub const fn new(config: Config, router: Router) -> Self {
        Self { config, router }
    }

    /// Starts: serves the HTTP endpoints, connects to NATS, registers the commands with Discord and
    /// opens the consumers. Afterwards interactions are answered in the background.
    ///
    /// NATS, Discord and the event stream may be missing for `--startup-timeout` in all.
    ///
    /// # Errors
    /// [`Fatal`] says what is wrong and which exit code belongs to it.
    pub async fn start(self) -> Result<Running, Fatal> {
        let Self { config, router } = self;
        event_pool::check(&router.events, &config)?;
        let started = Instant::now();
        let deadline = started + config.startup_timeout;
        let worker = WorkerInfo::new(config.worker_id.as_str().into(), started.into_std());
        let (status, metrics) = (Arc::new(Status::new()), Arc::new(Metrics::new()));
        let (listener, http_address) = admin::bind(config.http).await?;
        tracing::info!(worker = %worker.id, http = %http_address, "starting");
        if config.api.exposes_token() {
            tracing::warn!(api_url = %config.api, "the bot's token goes unencrypted to --api-url");
        }
        let closed = CancellationToken::new();
        let endpoints = Admin::new(&worker, &status, &metrics);
        let admin = spawn(admin::serve(listener, endpoints, closed.clone()));

        let link = nats::connect(&config, deadline).await?;
        let watching = spawn(watch_link(link.clone(), status.clone(), metrics.clone()));
        status.set_connected(true);
        status.advance(Phase::Starting(Step::Commands));
        let rest = Rest::new(&config.api, &config.token);
        // Without commands of its own it would take interactions from those who have some.
        let interactions = router.has_commands() || router.events.is_empty();
        if interactions {
            let registered = register(&rest, router.definitions(), deadline).await?;
            let (written, unchanged) = (registered.written, registered.unchanged);
            tracing::info!(written, unchanged, "commands are registered");
        }
        status.advance(Phase::Starting(Step::Consumer));
        let opened = match interactions {
            true => open_all(&config, &link, deadline).await?,
            false => Vec::new(),
        };
        let events = event_pool::open_all(&router.events, &config, &link, deadline).await?;
        let event_streams = config.event_streams;

        let shards = Shards::default();
        let prefix = config.prefix.clone();
        let following = spawn(shards.clone().follow(link.clone(), prefix.clone()));
        let shared = Arc::new(Shared {
            router,
            rest,
            shards,
            metrics,
            status,
            worker,
            prefix,
            link,
            warnings: Warnings::default(),
        });
        let pool = Pool::start(&shared, opened, config.concurrency);
        let events = EventPool::start(&shared, events, event_streams);
        shared.status.advance(Phase::Running);
        tracing::info!(took = ?started.elapsed(), interactions, "running");
        Ok(Running {
            http_address,
            shared,
            grace_period: config.grace_period,
            pool,
            events,
            closed,
            admin,
            background: [watching, following],
        })
    }
}

async fn open_all(
    config: &Config,
    link: &Link,
    deadline: Instant,
) -> Result<Vec<(Durable, PullConsumer)>, Fatal> {
    let durables = Durable::all(&config.prefix, config.event_streams, &config.consumer);
    let mut opened = Vec::with_capacity(durables.len());
    for durable in durables {
        let consumer = open(&durable, link, deadline, DeliverPolicy::New).await?;
        opened.push((durable, consumer));
    }
    Ok(opened)
}

/// A worker at work. Dropping it ends it at once; [`Running::stop`] lets it finish.
#[derive(Debug)]
pub struct Running {
    http_address: SocketAddr,
    shared: Arc<Shared>,
    grace_period: Duration,
    pool: Pool,
    events: EventPool,
    closed: CancellationToken,
    admin: AbortOnDropHandle<()>,
    background: [AbortOnDropHandle<()>; 2],
}

impl Running {
    /// Where the HTTP endpoints listen.
    #[must_use]
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Name of this worker.
    #[must_use]
    pub fn worker_id(&self) -> &str {
        &self.shared.worker.id
    }

    /// Takes no more events until [`Running::resume`]; those in flight are finished, and other
    /// workers go on. Interactions are still answered: nobody could answer them later.
    pub fn pause(&self) {
        self.events.set_paused(true);
    }

    /// Goes on taking events after [`Running::pause`].
    pub fn resume(&self) {
        self.events.set_paused(false);
    }

    /// Stops pulling, finishes and acknowledges what is in flight within the grace period, ends.
    pub async fn stop(self) {
        let limit = Instant::now() + self.grace_period;
        self.shared.status.advance(Phase::Stopping);
        tokio::join!(self.pool.stop(limit), self.events.stop(limit));
        match timeout(FLUSH_TIMEOUT, self.shared.link.client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last acknowledgements may be lost"),
            Err(_) => tracing::warn!("NATS does not take the last acknowledgements"),
        }
        drop(self.background);
        self.closed.cancel();
        if self.admin.await.is_err() {
            tracing::warn!("the HTTP endpoints panicked");
        }
        tracing::info!("stopped");
    }
}

/// Opens a durable at the start, waiting for its stream until `deadline`.
async fn open(
    durable: &Durable,
    link: &Link,
    deadline: Instant,
    start: DeliverPolicy,
) -> Result<PullConsumer, Fatal> {
    loop {
        let opening = durable.open(&link.jetstream, start);
        let error = match timeout_at(deadline, opening).await {
            Ok(Ok((consumer, how))) => {
                let made = how == Opened::Created;
                tracing::info!(
                    stream = durable.stream,
                    consumer = durable.name,
                    made,
                    "consumer open"
                );
                return Ok(consumer);
            }
            Ok(Err(error)) => error,
            Err(_) => OpenError::NoAnswer("no response".to_owned()),
        };
        let next = Instant::now() + STREAM_PAUSE;
        if matches!(error, OpenError::Differs { .. }) || next >= deadline {
            return Err(open_failed(&error));
        }
        tracing::warn!(%error, "waiting for the consumer");
        sleep_until(next).await;
    }
}

fn open_failed(error: &OpenError) -> Fatal {
    let problem = error.to_string();
    match error {
        OpenError::NoStream(_) => Fatal::unfit(
            problem,
            "start a gateway-proxy, which makes it; check --subject-prefix and --event-streams",
        ),
        OpenError::Differs { .. } => Fatal::unfit(
            problem,
            "delete the consumer, or use another name with --consumer",
        ),
        OpenError::Refused { .. } => Fatal::unfit(
            problem,
            "check the permissions and limits of the NATS account",
        ),
        OpenError::NoAnswer(_) => Fatal::unreachable(
            problem,
            "check that JetStream is up and that the NATS user may use its API",
        ),
    }
}

/// Tells status and metrics what the connection does.
async fn watch_link(link: Link, status: Arc<Status>, metrics: Arc<Metrics>) {
    let mut state = link.state;
    let mut counted = 0;
    loop {
        let now = *state.borrow_and_update();
        status.set_connected(now.connected);
        while counted < now.connections {
            counted += 1;
            metrics.nats_connected();
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
