//! A worker: connects, registers its commands, opens its durable consumers, answers interactions and
//! handles events until it is stopped. Several workers share the consumers; each interaction and
//! each event goes to one of them.

mod ahead;
mod attempt;
mod begun;
mod delivery;
mod event_pool;
mod events;
mod in_hand;
mod listener;
mod opening;
mod outcome;
mod pool;
mod pull;
mod settle;
mod shared;
mod shared_event;
mod singletons;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use attempt::attempt;
pub(crate) use begun::{Begun, Item, Together, Waiting, begin};
use event_pool::EventPool;
pub(crate) use listener::{Listener, Listening};
pub(crate) use opening::open_registry;
pub(crate) use outcome::Outcome;
use pool::Pool;
pub(crate) use settle::{Settled, settle, tell};
pub(crate) use shared::Shared;
use shared::{DEFERRED_MAX, Warnings};
use singletons::Singletons;

use crate::admin::{self, Admin};
use crate::commands::register;
use crate::config::Config;
use crate::context::{WorkerContext, WorkerInfo};
use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::nats::{self, Link};
use crate::rest::{Membership, Rest};
use crate::router::Router;
use crate::shards::Shards;
use crate::status::{Phase, Status, Step};

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
        let front = Front::open(&config, started).await?;
        let link = nats::connect(&config, deadline).await?;
        let (status, metrics) = (&front.status, &front.metrics);
        let watching = spawn(watch_link(link.clone(), status.clone(), metrics.clone()));
        status.set_connected(true);
        status.advance(Phase::Starting(Step::Consumer));
        let opened = opening::Opened::open(&router, &config, &link, deadline).await?;
        status.advance(Phase::Starting(Step::Commands));
        let (budget, counts) = (config.rest_budget, metrics.rest().clone());
        let rest = Rest::new(&config.api, &config.token, budget, counts);
        let membership = rest.join(&link, &opened.registry, &front.worker.id);
        let shared = share(&config, router, &front, link, rest);
        let following = {
            let (link, prefix) = (shared.link.clone(), shared.prefix.clone());
            spawn(shared.shards.clone().follow(link, prefix))
        };
        let answers = opened.interactions.is_some();
        // Before the commands are registered: that may have to wait until those who share the rate
        // limit give something of it up, and interactions wait for nobody.
        let interactions = opened.interactions.unwrap_or_default();
        let pool = Pool::start(&shared, interactions, config.concurrency);
        if answers {
            let definitions = shared.router.definitions();
            let registered = register(&shared.rest, definitions, deadline).await?;
            let (written, unchanged) = (registered.written, registered.unchanged);
            tracing::info!(written, unchanged, "commands are registered");
        }
        let events = EventPool::start(&shared, opened.events, config.event_streams);
        let listening = opening::listen_to_broadcasts(&shared).await?;
        let singletons = Singletons::start(&shared, &opened.registry);
        shared.status.advance(Phase::Running);
        tracing::info!(took = ?started.elapsed(), answers, "running");
        Ok(Running {
            http_address: front.http_address,
            shared,
            grace_period: config.grace_period,
            pool,
            events,
            listening,
            singletons,
            membership,
            closed: front.closed,
            admin: front.admin,
            background: [watching, following],
        })
    }
}

/// What a worker shows of itself before it can do anything.
struct Front {
    worker: WorkerInfo,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    http_address: SocketAddr,
    admin: AbortOnDropHandle<()>,
    closed: CancellationToken,
}

impl Front {
    async fn open(config: &Config, started: Instant) -> Result<Self, Fatal> {
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
        Ok(Self {
            worker,
            status,
            metrics,
            http_address,
            admin,
            closed,
        })
    }
}

/// What all that a worker does has in common.
fn share(config: &Config, router: Router, front: &Front, link: Link, rest: Rest) -> Arc<Shared> {
    let (worker, prefix) = (front.worker.clone(), config.prefix.clone());
    let shards = Shards::default();
    let tools = WorkerContext::new(
        worker.clone(),
        rest.clone(),
        shards.clone(),
        &link,
        &prefix,
        config.event_streams,
        front.metrics.among().commands(),
    );
    Arc::new(Shared {
        tools,
        router,
        rest,
        shards,
        metrics: Arc::clone(&front.metrics),
        status: Arc::clone(&front.status),
        worker,
        prefix,
        link,
        warnings: Warnings::default(),
        deferred: Semaphore::new(DEFERRED_MAX),
    })
}

/// A worker at work. Dropping it ends it at once; [`Running::stop`] lets it finish.
#[derive(Debug)]
pub struct Running {
    http_address: SocketAddr,
    shared: Arc<Shared>,
    grace_period: Duration,
    pool: Pool,
    events: EventPool,
    listening: Vec<Listening>,
    singletons: Singletons,
    membership: Option<Membership>,
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
        let listening = join_all(self.listening.into_iter().map(|one| one.stop(limit)));
        let singletons = self.singletons.stop(limit);
        tokio::join!(
            self.pool.stop(limit),
            self.events.stop(limit),
            listening,
            singletons
        );
        // Nobody sends requests any more.
        if let Some(membership) = self.membership {
            membership.stop().await;
        }
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
