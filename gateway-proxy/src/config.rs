//! The configuration: flags, environment and a TOML file, in that order of strength.
//!
//! Three stages: raw text (`raw`), merged by strength, then [`Config`] (`load`), whose fields cannot
//! hold an invalid value. Nothing is global; whoever needs a setting is handed it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use schemas::intents::Intents;
use schemas::{Prefix, ProxyId};
use secrecy::SecretString;
use url::Url;

mod error;
mod events;
mod load;
mod nats;
mod operator;
mod presence;
mod raw;
mod resolve;
mod secret;
mod setting;
mod shards;
mod shown;
#[cfg(test)]
mod tests;
mod value;

pub use error::ConfigError;
pub use events::EventFilter;
pub use nats::{NatsAuth, NatsServer, NatsSettings, NatsTarget};
pub(crate) use operator::OperatorConfig;
pub use presence::Presence;
pub(crate) use raw::{with_operator_settings, with_settings};
pub(crate) use resolve::Resolver;
pub use shards::{SHARDS_MAX, ShardCount, ShardSet};
pub use value::{Compression, LogFormat};

/// The settings of `--fleet` mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Most shards this process takes; `None`: as many as it is given.
    pub max_shards: Option<NonZeroU32>,
    /// Failure zone of this process.
    pub zone: Option<String>,
    /// Who coordinates: the highest wins.
    pub coordinator_priority: i32,
    /// How long a proxy that is not heard of keeps its shards; whole seconds.
    pub lease_ttl: Duration,
}

/// Names and limits of the event streams and the fleet's bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSettings {
    /// First token of every subject.
    pub prefix: Prefix,
    /// How many streams the shards are spread over.
    pub event_streams: NonZeroU32,
    /// Copies NATS keeps.
    pub replicas: u8,
    /// How long events are kept.
    pub max_age: Duration,
    /// Size of one stream from which its oldest events go; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Whether stored events are republished to core subscribers.
    pub live_feed: bool,
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    token: SecretString,
    api_url: Url,
    intents: Intents,
    compression: Compression,
    presence: Option<Presence>,
    large_threshold: Option<u8>,
    heartbeat_timeout: Option<Duration>,
    silent_after: Option<Duration>,
    identify_reserve_percent: u8,
    shards: ShardCount,
    shard_ids: Option<ShardSet>,
    fresh: bool,
    fleet_mode: bool,
    fleet: Fleet,
    proxy_id: ProxyId,
    nats: NatsTarget,
    buffer_bytes: usize,
    stream: StreamSettings,
    events: EventFilter,
    http: SocketAddr,
    startup_timeout: Duration,
    grace_period: Duration,
    log_format: LogFormat,
    log_filter: String,
    otlp_endpoint: Option<Url>,
    warnings: Vec<String>,
    effective: String,
}

/// Getters. Nothing can be changed after loading.
impl Config {
    /// The bot's token, bare: without `Bot `.
    #[must_use]
    pub const fn token(&self) -> &SecretString {
        &self.token
    }

    /// Discord's REST API, without a trailing slash in its path.
    #[must_use]
    pub const fn api_url(&self) -> &Url {
        &self.api_url
    }

    /// What IDENTIFY asks for.
    #[must_use]
    pub const fn intents(&self) -> Intents {
        self.intents
    }

    /// Transport compression.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.compression
    }

    /// The presence of a new session.
    #[must_use]
    pub const fn presence(&self) -> Option<&Presence> {
        self.presence.as_ref()
    }

    /// IDENTIFY's `large_threshold`, 50 to 250; Discord's own default is 50.
    #[must_use]
    pub const fn large_threshold(&self) -> Option<u8> {
        self.large_threshold
    }

    /// Time without any inbound frame until a connection counts as dead; `None`: from the
    /// heartbeat interval.
    #[must_use]
    pub const fn heartbeat_timeout(&self) -> Option<Duration> {
        self.heartbeat_timeout
    }

    /// Shortest silence of a shard that is suspected; `None`: never.
    #[must_use]
    pub const fn silent_after(&self) -> Option<Duration> {
        self.silent_after
    }

    /// Percentage of the day's session starts kept back, 0 to 90.
    #[must_use]
    pub const fn identify_reserve_percent(&self) -> u8 {
        self.identify_reserve_percent
    }

    /// How many shards the bot has.
    #[must_use]
    pub const fn shards(&self) -> ShardCount {
        self.shards
    }

    /// The shards this process holds; `None`: all. Within the count when that is fixed.
    #[must_use]
    pub const fn shard_ids(&self) -> Option<&ShardSet> {
        self.shard_ids.as_ref()
    }

    /// Whether new sessions are started although earlier ones could be resumed.
    #[must_use]
    pub const fn fresh(&self) -> bool {
        self.fresh
    }

    /// The fleet's settings, in fleet mode.
    #[must_use]
    pub const fn fleet(&self) -> Option<&Fleet> {
        if self.fleet_mode {
            Some(&self.fleet)
        } else {
            None
        }
    }

    /// How long a process that is not heard of counts as alive, in every mode.
    #[must_use]
    pub const fn lease_ttl(&self) -> Duration {
        self.fleet.lease_ttl
    }

    /// Who coordinates: the highest wins, in every mode.
    #[must_use]
    pub const fn coordinator_priority(&self) -> i32 {
        self.fleet.coordinator_priority
    }

    /// Name of this process.
    #[must_use]
    pub const fn proxy_id(&self) -> &ProxyId {
        &self.proxy_id
    }

    /// Which NATS.
    #[must_use]
    pub const fn nats(&self) -> &NatsTarget {
        &self.nats
    }

    /// Most bytes of events that wait for JetStream's acknowledgement, over all shards.
    #[must_use]
    pub const fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Streams and the bucket.
    #[must_use]
    pub const fn stream(&self) -> &StreamSettings {
        &self.stream
    }

    /// First token of every subject.
    #[must_use]
    pub const fn prefix(&self) -> &Prefix {
        &self.stream.prefix
    }

    /// Which events are published.
    #[must_use]
    pub const fn events(&self) -> &EventFilter {
        &self.events
    }

    /// Where the HTTP endpoints listen.
    #[must_use]
    pub const fn http(&self) -> SocketAddr {
        self.http
    }

    /// How long NATS and Discord may be unreachable at the start.
    #[must_use]
    pub const fn startup_timeout(&self) -> Duration {
        self.startup_timeout
    }

    /// How long a stop waits for what is in flight.
    #[must_use]
    pub const fn grace_period(&self) -> Duration {
        self.grace_period
    }

    /// Format of the log.
    #[must_use]
    pub const fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// Directives of the log filter; they parse.
    #[must_use]
    pub fn log_filter(&self) -> &str {
        &self.log_filter
    }

    /// Where traces go.
    #[must_use]
    pub const fn otlp_endpoint(&self) -> Option<&Url> {
        self.otlp_endpoint.as_ref()
    }

    /// What is allowed but probably not meant; to be logged at the start.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The effective configuration as TOML, secrets redacted, each key with its source.
    #[must_use]
    pub fn to_toml(&self) -> &str {
        &self.effective
    }
}
