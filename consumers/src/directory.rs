//! The directory: what is known of all guilds over all shards, kept in NATS KV from the event stream
//! and asked over NATS. Several instances share the shards; each can answer everything.
//!
//! A RESUME brings no GUILD_CREATE, so nothing that was read once may be needed again: entries carry
//! the stream sequence of their last event and are written before the position they were read up to.

mod admin;
mod batch;
mod event;
mod follower;
mod listing;
mod metrics;
mod options;
mod pace;
mod refresh;
mod service;
mod shares;
mod source;
mod store;
mod users;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use schemas::{DirectoryInstance, Prefix};
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use options::{DirectoryConfig, DirectoryOptions};

use crate::exit::Fatal;
use crate::nats::{self, Link};
use crate::registry::unix_ms;
use crate::rest::{Membership, Rest};
use crate::shards::Shards;
use crate::throttle::Throttle;
use crate::worker::open_registry;
use follower::Follower;
use listing::Listings;
use metrics::Metrics;
use refresh::Refresh;
use service::Answers;
use store::Store;
use users::Users;
use view::View;

/// How often instances give a sign of life, and how often each looks at who should read what.
const BEAT_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// An instance that was silent for so long has lost its shards: three signs of life.
pub(crate) const INSTANCE_DEAD_AFTER: Duration = Duration::from_millis(1500);
/// When NATS forgets an instance that is gone.
const INSTANCE_TTL: Duration = Duration::from_secs(10);
/// Pause before the bucket or its surroundings are looked for again at the start.
const OPEN_PAUSE: Duration = Duration::from_millis(500);

/// What the parts share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) prefix: Prefix,
    pub(crate) event_streams: u32,
    pub(crate) name: String,
    pub(crate) store: Store,
    pub(crate) view: View,
    pub(crate) shards: Shards,
    pub(crate) users: Option<Users>,
    pub(crate) metrics: Metrics,
    pub(crate) misplaced: Throttle,
    pub(crate) listings: Listings,
    /// How long guilds wait for their own events before Discord is asked.
    pub(crate) refresh_after: Duration,
    pub(crate) started: Instant,
    answering: AtomicBool,
}

impl Shared {
    pub(crate) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Shards anybody speaks of.
    fn known_shards(&self) -> BTreeSet<u32> {
        let mut shards = self.view.shards();
        let records = self.shards.records();
        shards.extend(records.iter().map(|record| record.shard.id()));
        shards
    }
}

/// One instance of the directory before its start.
#[derive(Debug)]
pub struct DirectoryService {
    config: DirectoryConfig,
}

impl DirectoryService {
    /// An instance with this configuration.
    #[must_use]
    pub const fn new(config: DirectoryConfig) -> Self {
        Self { config }
    }

    /// Starts: connects to NATS, opens the bucket, loads what is known and answers; the shards are
    /// read in the background.
    ///
    /// NATS and the event stream may be missing for `--startup-timeout` in all.
    ///
    /// # Errors
    /// [`Fatal`] says what is wrong and which exit code belongs to it.
    pub async fn start(self) -> Result<RunningDirectory, Fatal> {
        let DirectoryConfig {
            worker: config,
            users,
            refresh_after,
        } = self.config;
        let started = Instant::now();
        let deadline = tokio::time::Instant::from_std(started) + config.startup_timeout;
        let (listener, http_address) = crate::admin::bind(config.http).await?;
        tracing::info!(instance = config.worker_id, http = %http_address, "starting");
        let link = nats::connect(&config, deadline).await?;
        let (store, users) = open(&config, users, &link, deadline).await?;
        let registry = open_registry(&config, &link, deadline).await?;
        let metrics = Metrics::new();
        let (budget, counts) = (config.rest_budget, metrics.rest.clone());
        let rest = Rest::new(&config.api, &config.token, budget, counts);
        let membership = rest.join(&link, &registry, &config.worker_id);
        let shared = Arc::new(Shared {
            prefix: config.prefix.clone(),
            event_streams: config.event_streams,
            name: config.worker_id.clone(),
            store,
            view: View::new(),
            shards: Shards::default(),
            users,
            metrics,
            misplaced: Throttle::default(),
            listings: Listings::new(),
            refresh_after,
            started,
            answering: AtomicBool::new(false),
            link,
        });
        let closed = CancellationToken::new();
        let admin = spawn(admin::serve(listener, Arc::clone(&shared), closed.clone()));
        let following = load(&shared, deadline).await?;
        let shards = shared.shards.clone();
        let fleet = spawn(shards.follow(shared.link.clone(), shared.prefix.clone()));
        let answers = Answers::start(&shared).await.map_err(|error| {
            Fatal::unfit(
                format!("the query service cannot be registered: {error}"),
                "check the permissions of the NATS user",
            )
        })?;
        shared.answering.store(true, Ordering::Relaxed);
        let guilds = shared.view.stats().guilds;
        tracing::info!(guilds, took = ?started.elapsed(), "answering queries");
        let stopping = CancellationToken::new();
        let reading = tokio::spawn(read_shares(Arc::clone(&shared), stopping.clone()));
        let refresh = Refresh {
            shared: Arc::clone(&shared),
            rest: rest.clone(),
        };
        let listing = {
            let shared = Arc::clone(&shared);
            spawn(async move { shared.listings.run(&rest).await })
        };
        Ok(RunningDirectory {
            http_address,
            grace_period: config.grace_period,
            answers,
            membership,
            stopping,
            reading: AbortOnDropHandle::new(reading),
            closed,
            background: [following, fleet, admin, listing, spawn(refresh.run())],
            shared,
        })
    }
}

/// Opens the buckets as durable as the stream of events, waiting for that until `deadline`.
async fn open(
    config: &crate::config::Config,
    users: bool,
    link: &Link,
    deadline: tokio::time::Instant,
) -> Result<(Store, Option<Users>), Fatal> {
    let prefix = &config.prefix;
    let stream = prefix.event_stream((config.event_streams > 1).then_some(0));
    loop {
        let attempt = async {
            let opened = link.jetstream.get_stream(&stream).await;
            let opened = opened.map_err(|error| format!("stream {stream}: {error}"))?;
            let replicas = opened.cached_info().config.num_replicas.max(1);
            let store = Store::open(link, prefix, replicas).await?;
            let users = match users {
                true => Some(Users::open(link, prefix, replicas).await?),
                false => None,
            };
            Ok((store, users))
        };
        let problem = match timeout_at(deadline, attempt).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(problem)) => problem,
            Err(_) => "JetStream does not answer".to_owned(),
        };
        let next = tokio::time::Instant::now() + OPEN_PAUSE;
        if next >= deadline {
            return Err(Fatal::unfit(
                problem,
                "start a gateway-proxy, which makes the stream; check --subject-prefix, \
                 --event-streams and the permissions of the NATS user",
            ));
        }
        tracing::warn!(problem, "waiting for the stream and the directory's bucket");
        sleep_until(next).await;
    }
}

/// Follows the bucket, and waits until everything in it is known.
async fn load(
    shared: &Arc<Shared>,
    deadline: tokio::time::Instant,
) -> Result<AbortOnDropHandle<()>, Fatal> {
    let loaded = CancellationToken::new();
    let (tell, following) = (loaded.clone(), Arc::clone(shared));
    let following = spawn(async move {
        let Shared {
            store, link, view, ..
        } = &*following;
        store.follow(link, view, || tell.cancel()).await;
    });
    match timeout_at(deadline, loaded.cancelled()).await {
        Ok(()) => Ok(following),
        Err(_) => Err(Fatal::unreachable(
            "what the directory knows could not be loaded within --startup-timeout",
            "check that JetStream is up and that the NATS user may use its API",
        )),
    }
}

/// A directory at work. Dropping it ends it at once; [`RunningDirectory::stop`] hands its shards
/// over.
#[derive(Debug)]
pub struct RunningDirectory {
    http_address: SocketAddr,
    shared: Arc<Shared>,
    grace_period: Duration,
    answers: Answers,
    membership: Option<Membership>,
    stopping: CancellationToken,
    reading: AbortOnDropHandle<()>,
    closed: CancellationToken,
    background: [AbortOnDropHandle<()>; 5],
}

impl RunningDirectory {
    /// Where the HTTP endpoints listen.
    #[must_use]
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Name of this instance.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.name
    }

    /// Leaves questions and shards to other instances, with every position written.
    pub async fn stop(self) {
        self.shared.answering.store(false, Ordering::Relaxed);
        self.answers.stop().await;
        self.stopping.cancel();
        if timeout(self.grace_period, self.reading).await.is_err() {
            tracing::warn!("shards outlived the grace period; their events are read again");
        }
        drop(self.background);
        if let Some(membership) = self.membership {
            membership.stop().await;
        }
        self.closed.cancel();
        tracing::info!("stopped");
    }
}

/// A shard being read.
struct Reading {
    stopping: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Gives signs of life, and reads the shards that are this instance's share.
async fn read_shares(shared: Arc<Shared>, stopping: CancellationToken) {
    let beating = AbortOnDropHandle::new(tokio::spawn(beat(Arc::clone(&shared))));
    let mut reading: BTreeMap<u32, Reading> = BTreeMap::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            _ = looks.tick() => {}
        }
        let mut instances = shared.view.instances(INSTANCE_DEAD_AFTER, Instant::now());
        if !instances.contains(&shared.name) {
            instances.push(shared.name.clone());
        }
        reading.retain(|_, one| !one.task.is_finished());
        let known = shared.known_shards();
        let ours = |shard: &u32| shares::reader(*shard, &instances) == Some(&shared.name);
        for (shard, one) in &reading {
            if !ours(shard) {
                one.stopping.cancel();
            }
        }
        for shard in known.iter().filter(|shard| ours(shard)) {
            reading.entry(*shard).or_insert_with(|| {
                let stopping = CancellationToken::new();
                let follower = Follower {
                    shared: Arc::clone(&shared),
                    shard: *shard,
                    stopping: stopping.clone(),
                };
                let task = spawn(follower.run());
                Reading { stopping, task }
            });
        }
    }
    for one in reading.values() {
        one.stopping.cancel();
    }
    for one in reading.into_values() {
        if one.task.await.is_err() {
            tracing::error!("a shard's reader panicked");
        }
    }
    drop(beating);
    if let Err(error) = shared.store.leave(&shared.name).await {
        tracing::debug!(%error, "others learn only by silence that this instance left");
    }
}

async fn beat(shared: Arc<Shared>) {
    let instance = DirectoryInstance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_unix_ms: unix_ms(),
    };
    let mut beats = tokio::time::interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if shared.link.connected().await.is_none() {
            return;
        }
        let beat = shared.store.beat(&shared.name, &instance, INSTANCE_TTL);
        match timeout(INSTANCE_DEAD_AFTER, beat).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a sign of life was not stored"),
            Err(_) => tracing::debug!("a sign of life was not stored in time"),
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
