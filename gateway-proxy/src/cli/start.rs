//! What has to stand before the first shard: endpoints, NATS, streams, and what Discord says.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use async_nats::jetstream::kv;
use schemas::{FleetKey, Plan, ShardId};

use crate::admin::Admin;
use crate::config::{Config, NatsSettings, NatsTarget, ShardCount};
use crate::discord_api::{DiscordApi, GatewayBot};
use crate::embedded::EmbeddedNats;
use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::nats::{self, Nats};
use crate::shutdown::Shutdown;
use crate::status::{Hold, ProcessStatus, unix_ms};
use crate::stream;

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
        tracing::warn!("{warning}");
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
    let planned = planned_count(&config, &nats).await;
    let (shard_count, shards) = placed(&config, planned, &gateway)?;
    process.set_total_shards(shard_count.get());
    let limit = gateway.session_start_limit;
    metrics.session_starts_total.set(u64::from(limit.total));
    metrics
        .session_starts_remaining
        .set(u64::from(limit.remaining));

    starting.set_reason("checking the streams");
    stream::ensure_event_streams(&nats, config.stream(), shard_count, timeout).await?;
    let fleet_bucket = stream::ensure_fleet_bucket(&nats, config.stream(), timeout).await?;
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
        shards,
        http,
        starting: Some(starting),
        embedded,
    })
}

/// The shard count of a fleet that runs already: sessions belong to it, whatever Discord recommends.
async fn planned_count(config: &Config, nats: &Nats) -> Option<NonZeroU32> {
    config.fleet()?;
    let bucket = config.prefix().fleet_bucket();
    // Without a bucket there is no plan; without an answer the coordinator knows better in a moment.
    let bucket = nats.jetstream.get_key_value(bucket).await.ok()?;
    let value = bucket.get(FleetKey::Plan.to_string()).await.ok()??;
    let plan: Plan = serde_json::from_slice(&value).ok()?;
    NonZeroU32::new(plan.shard_count)
}

/// How many shards there are, and which are ours.
fn placed(
    config: &Config,
    planned: Option<NonZeroU32>,
    gateway: &GatewayBot,
) -> Result<(NonZeroU32, Vec<ShardId>), Fatal> {
    let count = match (config.shards(), planned) {
        (ShardCount::Fixed(count), _) => count,
        (ShardCount::Auto, Some(planned)) => planned,
        // GatewayBot has at least one.
        (ShardCount::Auto, None) => NonZeroU32::new(gateway.shards).unwrap_or(NonZeroU32::MIN),
    };
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
