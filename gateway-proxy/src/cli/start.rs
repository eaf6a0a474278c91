//! What has to stand before the first shard: endpoints, NATS, streams, and what Discord says.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use gateway_proxy_core::fleet::count;
use schemas::{Plan, ShardId};
use tracing::warn;

use crate::admin::Admin;
use crate::config::{Config, NatsSettings, NatsTarget};
use crate::discord_api::{DiscordApi, GatewayBot};
use crate::embedded::EmbeddedNats;
use crate::exit::Fatal;
use crate::fleet::bucket::Bucket;
use crate::fleet::states::States;
use crate::metrics::Metrics;
use crate::nats::{self, Nats};
use crate::shutdown::Shutdown;
use crate::status::{Hold, ProcessStatus, unix_ms};
use crate::stream;

/// Between two attempts to read what NATS knows of the shards.
const READ_PAUSE: Duration = Duration::from_millis(250);

/// Everything the shards need; all checks of the start have passed.
#[derive(Debug)]
pub struct Started {
    /// The configuration.
    pub config: Arc<Config>,
    /// Phases and the grace period.
    pub shutdown: Shutdown,
    /// Live state, without shards as yet.
    pub process: Arc<ProcessStatus>,
    /// All instruments.
    pub metrics: Metrics,
    /// The connection for everything but events.
    pub nats: Nats,
    /// How to make another connection to the same NATS.
    pub nats_settings: NatsSettings,
    /// The bucket `discord_fleet`.
    pub fleet_bucket: kv::Store,
    /// Discord's REST API, to ask again.
    pub api: DiscordApi,
    /// What Discord said at the start.
    pub gateway: GatewayBot,
    /// Unix ms of that answer; its `reset_after` counts from here.
    pub gateway_asked_unix_ms: u64,
    /// How many shards the bot has.
    pub shard_count: NonZeroU32,
    /// Epoch of the fleet's plan, if it has another count and nothing of it is left.
    pub void_plan: Option<u64>,
    /// Those this process holds, ascending.
    pub shards: Vec<ShardId>,
    /// Where the HTTP endpoints listen.
    pub http: SocketAddr,
    /// Keeps `/ready` at 503 until it is dropped: once every shard is added to `process`.
    pub starting: Option<Hold>,
    /// The server of our own, if there is one. Must outlive every connection.
    pub embedded: Option<EmbeddedNats>,
}

/// Starts everything around the shards.
///
/// # Errors
/// The first reason not to go on.
pub async fn start(config: Arc<Config>, shutdown: Shutdown) -> Result<Started, Fatal> {
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let process = ProcessStatus::new(config.proxy_id().clone());
    let metrics = Metrics::new(Arc::clone(&process));
    let starting = process.hold("starting");
    let admin = Admin::bind(config.http()).await?;
    let http = admin.address();
    // It ends with the phase Stopped or with the runtime; nothing waits for it.
    drop(admin.spawn(Arc::clone(&process), metrics.clone(), shutdown.clone()));

    let (embedded, nats_settings) = match config.nats() {
        NatsTarget::Servers(settings) => (None, settings.clone()),
        NatsTarget::Embedded { store } => {
            starting.set_reason("starting the embedded nats-server");
            let server = EmbeddedNats::start(store).await?;
            let settings = server.settings()?;
            (Some(server), settings)
        }
    };
    starting.set_reason("connecting to NATS and asking Discord for the gateway");
    let timeout = config.startup_timeout();
    let api = DiscordApi::new(config.api_url(), config.token())?;
    let (nats, gateway) = tokio::try_join!(
        nats::connect(&nats_settings, timeout, &process, &metrics),
        api.gateway_bot_within(timeout),
    )?;
    let gateway_asked_unix_ms = unix_ms();
    starting.set_reason("checking the streams");
    let fleet_bucket = stream::ensure_fleet_bucket(&nats, config.stream(), timeout).await?;
    let earlier = earlier(&config, &nats, &fleet_bucket, &gateway).await?;
    let (shard_count, shards) = placed(&config, earlier.count, &gateway)?;
    process.set_total_shards(shard_count.get());
    let limit = gateway.session_start_limit;
    metrics.session_starts_total.set(u64::from(limit.total));
    metrics
        .session_starts_remaining
        .set(u64::from(limit.remaining));

    metrics.shards_recommended.set(u64::from(gateway.shards));
    stream::ensure_event_streams(&nats, config.stream(), shard_count, timeout).await?;
    starting.set_reason("starting shards");
    Ok(Started {
        config,
        shutdown,
        process,
        metrics,
        nats,
        nats_settings,
        fleet_bucket,
        api,
        gateway,
        gateway_asked_unix_ms,
        shard_count,
        void_plan: earlier.void_plan,
        shards,
        http,
        starting: Some(starting),
        embedded,
    })
}

/// What NATS tells of the number of shards at the start.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    count: u32,
    // Epoch of a plan with another count, of which nothing is left.
    void_plan: Option<u64>,
}

/// Reads the sharding that sessions belong to: with `auto` it stays, whatever Discord recommends meanwhile.
async fn earlier(
    config: &Config,
    nats: &Nats,
    bucket: &kv::Store,
    gateway: &GatewayBot,
) -> Result<Earlier, Fatal> {
    let states = States::new(Bucket::new(
        nats.client.clone(),
        nats.jetstream.clone(),
        bucket.clone(),
        config.prefix().clone(),
    ));
    let deadline = Instant::now() + config.startup_timeout();
    let snapshot = loop {
        match states.snapshot().await {
            Ok(snapshot) => break snapshot,
            Err(reason) if Instant::now() >= deadline => {
                return Err(nats.unanswered("reading the fleet's bucket", &reason));
            }
            Err(reason) => warn!(reason, "the fleet's bucket is not read, trying again"),
        }
        tokio::time::sleep(READ_PAUSE).await;
    };
    let found = snapshot.shardings(unix_ms());
    let fixed = config.shards().fixed();
    let count = fixed.unwrap_or_else(|| count::at_start(found, gateway.shards));
    if let Some(was) = found.resumable.filter(|was| *was != count) {
        warn!(
            was,
            shards = count,
            "sessions of another number of shards are not resumed: they begin anew"
        );
    }
    let void = |plan: &&Plan| found.followed.is_none() && plan.shard_count != count;
    Ok(Earlier {
        count,
        void_plan: snapshot.plan.as_ref().filter(void).map(|plan| plan.epoch),
    })
}

/// How many shards there are, and which are ours.
fn placed(
    config: &Config,
    count: u32,
    gateway: &GatewayBot,
) -> Result<(NonZeroU32, Vec<ShardId>), Fatal> {
    // Neither GatewayBot nor the configuration has none.
    let count = NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    let unit = gateway.session_start_limit.max_concurrency;
    if count::may_be_refused(count.get(), unit) {
        warn!(
            shards = count,
            multiple_of = unit,
            "Discord gives very large bots a number that the shard count must be a multiple of; it may refuse this one (4010)"
        );
    }
    let out_of_range = |error: schemas::IdError| {
        Fatal::usage(
            format!("--shard-ids: {error} (--shards auto: Discord recommends {count})"),
            "fix the number of shards with --shards, or list smaller numbers",
        )
    };
    let shards = match config.shard_ids() {
        Some(ids) => ids.of(count),
        None => (0..count.get())
            .map(|id| ShardId::new(id, count.get()))
            .collect(),
    };
    Ok((count, shards.map_err(out_of_range)?))
}
