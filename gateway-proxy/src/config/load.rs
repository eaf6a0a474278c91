//! The third stage: every key's meaning and bounds, and which of them contradict each other.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::ArgMatches;
use gateway_proxy_core::fleet::{TTL, TTL_MAX};
use schemas::{Intents, ProxyId};
use secrecy::SecretString;
use url::Url;

use super::events::{EventFilter, EventNames};
use super::raw::{self, Environment, Merged};
use super::resolve::Resolver;
use super::shards::{SHARDS_MAX, ShardCount, ShardSet};
use super::shown::Shown;
use super::{
    Compression, Config, ConfigError, Fleet, LogFormat, NatsTarget, Presence, StreamSettings, nats,
    secret, setting, value,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// JetStream refuses a duplicate window longer than the age of a stream's messages, and the window
/// is two minutes by contract.
const STREAM_MAX_AGE_MIN: Duration = Duration::from_secs(120);

/// Room for one large GUILD_CREATE; below it a single frame would close the window.
const BUFFER_BYTES_MIN: u64 = 8 << 20;

/// Anything above is a slip of the pen, not memory of one process.
const BUFFER_BYTES_MAX: u64 = 1 << 40;

/// Shorter than a TLS handshake over a slow line helps nobody.
const STARTUP_TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Below it the noise of a busy machine is silence; only tests want so little.
const SILENT_AFTER_MIN: Duration = Duration::from_millis(500);

/// A stream smaller than a few large events would drop them at once.
const STREAM_MAX_BYTES_MIN: u64 = 16 << 20;

/// More of the budget than this kept back would leave nothing to start with.
const IDENTIFY_RESERVE_MAX: u8 = 90;

/// Streams above this number gain nothing: one NATS server saturates long before.
const EVENT_STREAMS_MAX: u32 = 256;

impl Config {
    /// Reads flags, environment and the file they name.
    ///
    /// # Errors
    /// [`ConfigError`] names the first key that cannot be used.
    pub(crate) fn load(flags: &ArgMatches, env: Environment<'_>) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(Merged::read(flags, setting::ALL, env)?);
        let mut config = Self::resolve(&mut resolver, env)?;
        config.effective = resolver.into_toml();
        Ok(config)
    }

    fn resolve(resolver: &mut Resolver, env: Environment<'_>) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let token = token(resolver)?;
        let api_url = api_url(resolver, &mut warnings)?;
        let shards = resolver.required(setting::SHARDS_COUNT, ShardCount::parse)?;
        let shard_ids = shard_ids(resolver, shards)?;
        let (fleet_mode, fleet) = fleet(resolver, &mut warnings)?;
        let heartbeat = |text: &str| value::duration(text, SECOND, 10 * MINUTE);
        let reserve = |text: &str| value::percent(text, IDENTIFY_RESERVE_MAX);
        let threshold = |text: &str| value::number(text, 50, 250);
        let buffer = |text: &str| {
            let bytes = value::size(text, BUFFER_BYTES_MIN, BUFFER_BYTES_MAX)?;
            Bytes::new(bytes).ok_or_else(|| "a size this machine can address".to_owned())
        };
        let startup = |text: &str| value::duration(text, STARTUP_TIMEOUT_MIN, HOUR);
        let grace = |text: &str| value::duration(text, Duration::ZERO, 10 * MINUTE);
        Ok(Self {
            token,
            api_url,
            intents: resolver.required(setting::INTENTS, intents)?,
            compression: resolver.required(setting::COMPRESSION, Compression::parse)?,
            presence: resolver.optional(setting::PRESENCE, Presence::parse)?,
            large_threshold: resolver.optional(setting::LARGE_THRESHOLD, threshold)?,
            heartbeat_timeout: resolver.optional(setting::HEARTBEAT_TIMEOUT, heartbeat)?,
            silent_after: resolver
                .required(setting::SILENT_AFTER, SilentAfter::parse)?
                .0,
            identify_reserve_percent: resolver.required(setting::IDENTIFY_RESERVE, reserve)?,
            shards,
            shard_ids,
            fresh: switch(resolver, setting::FRESH)?,
            fleet_mode,
            fleet,
            proxy_id: proxy_id(resolver, env)?,
            nats: nats_target(resolver)?,
            buffer_bytes: resolver.required(setting::BUFFER_BYTES, buffer)?.0,
            stream: stream(resolver, shards)?,
            events: event_filter(resolver, &mut warnings)?,
            http: resolver.required(setting::HTTP, value::http_listen)?,
            startup_timeout: resolver.required(setting::STARTUP_TIMEOUT, startup)?,
            grace_period: resolver.required(setting::GRACE_PERIOD, grace)?,
            log_format: resolver.required(setting::LOG, LogFormat::parse)?,
            log_filter: resolver.required(setting::LOG_FILTER, log_filter)?,
            otlp_endpoint: resolver.optional(setting::OTLP_ENDPOINT, value::http_url)?,
            warnings,
            effective: String::new(),
        })
    }
}

fn token(resolver: &mut Resolver) -> Result<SecretString, ConfigError> {
    let found = resolver.secret(setting::TOKEN, setting::TOKEN_FILE, secret::bot_token)?;
    let (_, token) = found.ok_or_else(|| ConfigError::Missing {
        key: "the bot's token",
        allowed: "give --token-file, DISCORD_TOKEN_FILE or DISCORD_TOKEN".to_owned(),
    })?;
    Ok(token)
}

fn api_url(resolver: &mut Resolver, warnings: &mut Vec<String>) -> Result<Url, ConfigError> {
    let url = resolver.required(setting::API_URL, value::http_url)?;
    if url.scheme() == "http" && !value::is_loopback(&url) {
        warnings.push("--api-url is plain http: the token goes unencrypted".to_owned());
    }
    Ok(url)
}

fn intents(text: &str) -> Result<Intents, String> {
    text.parse()
        .map_err(|error| format!("a number, or names such as GUILDS,GUILD_MESSAGES ({error})"))
}

/// `--shard-ids` and `--shard-id` are one setting: the stronger source wins, equal ones conflict.
fn shard_ids(resolver: &mut Resolver, count: ShardCount) -> Result<Option<ShardSet>, ConfigError> {
    let rank = |given: Option<&raw::Given>| given.map(|given| given.source.rank());
    let many = resolver.given(setting::SHARD_IDS);
    let one = resolver.given(setting::SHARD_ID);
    if let (Some(many), Some(one)) = (many, one)
        && many.source.rank() == one.source.rank()
    {
        let reason = "give one of the two";
        return Err(ConfigError::conflict(&many.source, &one.source, reason));
    }
    let use_one = rank(one) > rank(many);
    let setting = if use_one {
        setting::SHARD_ID
    } else {
        setting::SHARD_IDS
    };
    let source = resolver.given(setting).map(|given| given.source.clone());
    let ids = if use_one {
        let last = SHARDS_MAX - 1;
        let single = |text: &str| value::number(text, 0, last).map(ShardSet::single);
        resolver.optional(setting, single)?
    } else {
        resolver.optional(setting, ShardSet::parse)?
    };
    if let (Some(ids), ShardCount::Fixed(count), Some(source)) = (&ids, count, source)
        && ids.max() >= count.get()
    {
        let allowed = format!("numbers below {count}, the value of --shards");
        return Err(ConfigError::invalid(
            &source,
            &ids.max().to_string(),
            allowed,
        ));
    }
    Ok(ids)
}

fn switch(
    resolver: &mut Resolver,
    setting: &'static setting::Setting,
) -> Result<bool, ConfigError> {
    resolver.required(setting, |text| {
        raw::boolean(text).ok_or_else(|| "`true` or `false`".to_owned())
    })
}

/// NATS counts TTLs in seconds.
fn lease_ttl(text: &str) -> Result<Duration, String> {
    let expected = || {
        let (min, max) = (TTL.as_secs(), TTL_MAX.as_secs());
        format!("whole seconds from {min} to {max}, such as `10s`")
    };
    let ttl = value::duration(text, TTL, TTL_MAX).map_err(|_| expected())?;
    if ttl.subsec_nanos() > 0 {
        return Err(expected());
    }
    Ok(ttl)
}

fn fleet(
    resolver: &mut Resolver,
    warnings: &mut Vec<String>,
) -> Result<(bool, Fleet), ConfigError> {
    let mode = switch(resolver, setting::FLEET)?;
    let positive = |text: &str| {
        let count = value::number(text, 1, SHARDS_MAX)?;
        NonZeroU32::new(count).ok_or_else(String::new)
    };
    let any = |text: &str| value::number(text, i32::MIN, i32::MAX);
    let fleet = Fleet {
        max_shards: resolver.optional(setting::MAX_SHARDS, positive)?,
        zone: resolver.optional(setting::ZONE, value::zone)?,
        coordinator_priority: resolver.required(setting::COORDINATOR_PRIORITY, any)?,
        lease_ttl: resolver.required(setting::LEASE_TTL, lease_ttl)?,
    };
    if mode && switch(resolver, setting::FRESH)? {
        let restart = "`gateway-proxy restart <SHARD> --fresh` does it for one shard";
        warnings.push(format!("--fresh has no effect with --fleet: {restart}"));
    }
    let flagged = |setting| {
        let given = resolver.given(setting)?;
        matches!(given.source, raw::Source::Flag(_)).then(|| given.source.origin())
    };
    let companions = [
        setting::MAX_SHARDS,
        setting::ZONE,
        setting::COORDINATOR_PRIORITY,
        setting::LEASE_TTL,
    ];
    if !mode {
        let unused = companions.into_iter().filter_map(flagged);
        warnings.extend(unused.map(|origin| format!("{origin} has no effect without --fleet")));
    }
    Ok((mode, fleet))
}

fn stream(resolver: &mut Resolver, shards: ShardCount) -> Result<StreamSettings, ConfigError> {
    let event_streams = resolver.required(setting::EVENT_STREAMS, |text| {
        let count = value::number(text, 1, EVENT_STREAMS_MAX)?;
        match shards {
            // A stream without a single shard would have no subject.
            ShardCount::Fixed(shards) if count > shards.get() => Err(format!(
                "at most one stream per shard, and --shards is {shards}"
            )),
            ShardCount::Auto | ShardCount::Fixed(_) => {
                NonZeroU32::new(count).ok_or_else(String::new)
            }
        }
    })?;
    let replicas = resolver.required(setting::REPLICAS, |text| match text.trim() {
        "1" => Ok(1_u8),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("1, 3 or 5".to_owned()),
    })?;
    let age = |text: &str| value::duration(text, STREAM_MAX_AGE_MIN, 3_650 * DAY);
    Ok(StreamSettings {
        prefix: resolver.required(setting::SUBJECT_PREFIX, value::prefix)?,
        event_streams,
        replicas,
        max_age: resolver.required(setting::STREAM_MAX_AGE, age)?,
        max_bytes: resolver
            .required(setting::STREAM_MAX_BYTES, SizeLimit::parse)?
            .0,
        live_feed: resolver.required(setting::LIVE_FEED, value::on_off)?,
    })
}

fn event_filter(
    resolver: &mut Resolver,
    warnings: &mut Vec<String>,
) -> Result<EventFilter, ConfigError> {
    let publish = resolver.optional(setting::PUBLISH_EVENTS, EventNames::parse)?;
    let drop = resolver.optional(setting::DROP_EVENTS, EventNames::parse)?;
    if let (Some(publish), Some(drop)) = (&publish, &drop)
        && let Some(name) = publish.overlap(drop)
        && let Some(first) = resolver.given(setting::PUBLISH_EVENTS)
        && let Some(second) = resolver.given(setting::DROP_EVENTS)
    {
        let reason = format!("{name} is in both");
        return Err(ConfigError::conflict(&first.source, &second.source, reason));
    }
    for name in [&publish, &drop]
        .into_iter()
        .flatten()
        .flat_map(EventNames::undocumented)
    {
        warnings.push(format!(
            "{name} is not an event Discord documents: check its spelling"
        ));
    }
    Ok(EventFilter::new(publish.as_ref(), drop.as_ref()))
}

pub(super) fn nats_target(resolver: &mut Resolver) -> Result<NatsTarget, ConfigError> {
    let store = resolver.required(setting::NATS_STORE, |text| {
        if text.trim().is_empty() {
            Err("a directory".to_owned())
        } else {
            Ok(text.to_owned())
        }
    })?;
    let embedded = resolver
        .given(setting::NATS_URL)
        .filter(|url| nats::is_embedded(&url.text));
    let Some(source) = embedded.map(|given| given.source.clone()) else {
        return Ok(NatsTarget::Servers(nats::resolve(resolver)?));
    };
    for other in nats::SERVER_ONLY {
        if let Some(given) = resolver.given(other) {
            let reason = "the embedded server asks for no credentials";
            return Err(ConfigError::conflict(&source, &given.source, reason));
        }
    }
    resolver.required(setting::NATS_URL, |text| Ok(text.trim().to_owned()))?;
    Ok(NatsTarget::Embedded {
        store: store.into(),
    })
}

/// The host's name and a random tail: two processes of one host must differ.
fn proxy_id(resolver: &mut Resolver, env: Environment<'_>) -> Result<ProxyId, ConfigError> {
    let parse = |text: &str| text.trim().parse::<ProxyId>();
    let given = resolver.optional(setting::PROXY_ID, |text| {
        parse(text).map_err(|_| "1 to 64 characters of A-Z, a-z, 0-9, `_` and `-`".to_owned())
    })?;
    if let Some(id) = given {
        return Ok(id);
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || env("HOSTNAME").and_then(|name| name.into_string().ok());
    let host = kernel.or_else(variable).unwrap_or_default();
    let id = generated_id(&host, fastrand::u32(..));
    resolver.note_default(setting::PROXY_ID, id.shown());
    Ok(id)
}

/// `<host>-<8 hex digits>`, whatever the host is called.
fn generated_id(host: &str, random: u32) -> ProxyId {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut host: String = host
        .trim()
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .take(ProxyId::MAX_LEN - 9)
        .collect();
    if host.is_empty() {
        host.push_str("proxy");
    }
    format!("{host}-{random:08x}")
        .parse()
        .expect("only plain characters, at most 64 of them")
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "a level such as `info` or directives such as `info,gateway_proxy=debug` ({error})"
        )),
    }
}

/// A size in memory.
struct Bytes(usize);

impl Bytes {
    fn new(bytes: u64) -> Option<Self> {
        usize::try_from(bytes).ok().map(Self)
    }
}

impl Shown for Bytes {
    fn shown(&self) -> toml::Value {
        toml::Value::String(value::SizeText(self.0 as u64).to_string())
    }
}

/// A duration, or never.
struct SilentAfter(Option<Duration>);

impl SilentAfter {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "off" {
            return Ok(Self(None));
        }
        let duration = value::duration(text, SILENT_AFTER_MIN, HOUR);
        duration
            .map(|duration| Self(Some(duration)))
            .map_err(|expected| format!("`off` or {expected}"))
    }
}

impl Shown for SilentAfter {
    fn shown(&self) -> toml::Value {
        let text = self.0.map_or_else(
            || "off".to_owned(),
            |duration| value::DurationText(duration).to_string(),
        );
        toml::Value::String(text)
    }
}

/// A size limit that may be absent.
struct SizeLimit(Option<u64>);

impl SizeLimit {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "none" {
            return Ok(Self(None));
        }
        let size = value::size(text, STREAM_MAX_BYTES_MIN, i64::MAX as u64);
        size.map(|size| Self(Some(size)))
            .map_err(|expected| format!("`none` or {expected}"))
    }
}

impl Shown for SizeLimit {
    fn shown(&self) -> toml::Value {
        let text = self.0.map_or_else(
            || "none".to_owned(),
            |size| value::SizeText(size).to_string(),
        );
        toml::Value::String(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_is_valid_whatever_the_host_is_called() {
        for host in ["", "host", "a.b.example", "ünï", &"x".repeat(300)] {
            let id = generated_id(host, 0xabcd);
            assert!(id.as_str().ends_with("-0000abcd"), "{id}");
        }
        assert_eq!(generated_id(" a.b\n", 1).as_str(), "a-b-00000001");
    }
}
