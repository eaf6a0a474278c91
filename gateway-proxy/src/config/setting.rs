//! Every setting once: its key, environment names, default and help. The flag, the file key and the
//! output of `check-config` all follow from this table, so that they cannot differ.

/// Where a setting may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `--key <VALUE>`, environment, file.
    Value(&'static str),
    /// `--key`, environment `true` or `false`, file boolean.
    Switch,
    /// Environment and file only: a flag's value is visible to every user of the machine.
    Secret,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The flag without `--`, and the key in the file.
    pub(crate) key: &'static str,
    /// Environment variables; the first is its name, the others are aliases.
    pub(crate) env: &'static [&'static str],
    /// How it is given.
    pub(crate) kind: Kind,
    /// The value when nobody sets it, as it would be written.
    pub(crate) default: Option<&'static str>,
    /// Group in the help.
    pub(crate) heading: &'static str,
    /// One sentence for the help.
    pub(crate) help: &'static str,
}

const DISCORD: &str = "Discord";
const SHARDS: &str = "Shards";
const NATS: &str = "NATS";
const STREAM: &str = "Event stream";
const PROCESS: &str = "Process";

macro_rules! settings {
    ($($name:ident = $key:literal, $env:expr, $kind:expr, $default:expr, $heading:expr, $help:literal;)*) => {
        $(pub(crate) const $name: &Setting = &Setting {
            key: $key, env: &$env, kind: $kind, default: $default, heading: $heading, help: $help,
        };)*
        /// All settings, in the order of the help and of `check-config`.
        pub(crate) const ALL: &[&Setting] = &[$($name),*];
    };
}

use Kind::{Secret, Switch, Value};

settings! {
    TOKEN = "token", ["DISCORD_TOKEN", "DISCORD_BOT_TOKEN"], Secret, None, DISCORD,
        "The bot's token; required, here or as a file";
    TOKEN_FILE = "token-file", ["DISCORD_TOKEN_FILE"], Value("PATH"), None, DISCORD,
        "File that holds the bot's token";
    API_URL = "api-url", ["DISCORD_API_URL"], Value("URL"),
        Some("https://discord.com/api/v10"), DISCORD,
        "Discord's REST API, to find the gateway and the number of shards";
    INTENTS = "intents", ["DISCORD_INTENTS"], Value("INTENTS"), Some("unprivileged"), DISCORD,
        "Events to ask for: a number, names separated by commas, `unprivileged` or `all`";
    COMPRESSION = "compression", ["DISCORD_COMPRESSION"], Value("zstd|zlib|none"), Some("zstd"),
        DISCORD, "Transport compression of the gateway connection";
    PRESENCE = "presence", ["DISCORD_PRESENCE"], Value("PRESENCE"), None, DISCORD,
        "Presence at the start of a session: `online|idle|dnd|invisible[:activity]` or Discord's JSON object";
    LARGE_THRESHOLD = "large-threshold", ["DISCORD_LARGE_THRESHOLD"], Value("MEMBERS"), None,
        DISCORD, "Members above which a guild comes without its offline members: 50 to 250";
    HEARTBEAT_TIMEOUT = "heartbeat-timeout", ["DISCORD_HEARTBEAT_TIMEOUT"], Value("DURATION"), None,
        DISCORD, "Time without any inbound frame until a connection counts as dead; by default two heartbeats";
    SILENT_AFTER = "silent-after", ["DISCORD_SILENT_AFTER"], Value("DURATION|off"), Some("2m"),
        DISCORD, "Shortest time without events after which a busy shard is resumed and, if that does not help, gets a new session";
    IDENTIFY_RESERVE = "identify-reserve", ["IDENTIFY_RESERVE"], Value("PERCENT"), Some("20"),
        DISCORD, "Part of the day's session starts kept back; below it only RESUMEs go out";

    SHARDS_COUNT = "shards", ["DISCORD_SHARD_COUNT", "SHARD_COUNT"], Value("auto|N"), Some("auto"),
        SHARDS, "Number of shards of the bot; `auto` asks Discord (also DISCORD_AUTO_SHARD=true)";
    SHARD_IDS = "shard-ids", ["DISCORD_SHARD_IDS"], Value("LIST"), None, SHARDS,
        "Shards this process holds, as in `0,2,4-7`; by default all";
    SHARD_ID = "shard-id", ["DISCORD_SHARD_ID"], Value("N"), None, SHARDS,
        "The one shard this process holds";
    FRESH = "fresh", ["FRESH"], Switch, Some("false"), SHARDS,
        "Start new sessions instead of resuming the earlier ones; announced as gaps";
    FLEET = "fleet", ["FLEET"], Switch, Some("false"), SHARDS,
        "Share the shards with the other proxies on the same NATS";
    MAX_SHARDS = "max-shards", ["MAX_SHARDS"], Value("N"), None, SHARDS,
        "In a fleet: most shards this process takes";
    ZONE = "zone", ["ZONE"], Value("NAME"), None, SHARDS,
        "In a fleet: failure zone this process runs in";
    COORDINATOR_PRIORITY = "coordinator-priority", ["COORDINATOR_PRIORITY"], Value("N"), Some("0"),
        SHARDS, "In a fleet: who coordinates; the highest wins";
    LEASE_TTL = "lease-ttl", ["LEASE_TTL"], Value("DURATION"), Some("2s"), SHARDS,
        "In a fleet: how long a proxy that is not heard of keeps its shards, in whole seconds";
    PROXY_ID = "proxy-id", ["PROXY_ID"], Value("NAME"), None, SHARDS,
        "Name of this process; by default made from the host's name";

    NATS_URL = "nats-url", ["NATS_URL"], Value("URLS"), Some("nats://127.0.0.1:4222"), NATS,
        "NATS servers separated by commas; `embedded` starts a local one";
    NATS_STORE = "nats-store", ["NATS_STORE"], Value("DIR"), Some("nats-data"), NATS,
        "Where the embedded server keeps its streams";
    NATS_CREDS = "nats-creds", ["NATS_CREDS"], Value("PATH"), None, NATS,
        "Credentials file with user JWT and seed";
    NATS_NKEY = "nats-nkey", ["NATS_NKEY"], Value("PATH"), None, NATS,
        "File with the seed of a user nkey";
    NATS_USER = "nats-user", ["NATS_USER"], Value("NAME"), None, NATS, "User name";
    NATS_PASSWORD = "nats-password", ["NATS_PASSWORD"], Secret, None, NATS, "Password of the user";
    NATS_PASSWORD_FILE = "nats-password-file", ["NATS_PASSWORD_FILE"], Value("PATH"), None, NATS,
        "File that holds the password";
    NATS_TOKEN = "nats-token", ["NATS_TOKEN"], Secret, None, NATS, "Authentication token";
    NATS_TOKEN_FILE = "nats-token-file", ["NATS_TOKEN_FILE"], Value("PATH"), None, NATS,
        "File that holds the authentication token";
    NATS_CA = "nats-ca", ["NATS_CA"], Value("PATH"), None, NATS,
        "Certificates (PEM) trusted in place of the public ones";
    NATS_CERT = "nats-cert", ["NATS_CERT"], Value("PATH"), None, NATS, "Client certificate (PEM)";
    NATS_KEY = "nats-key", ["NATS_KEY"], Value("PATH"), None, NATS,
        "Private key (PEM) of the client certificate";
    BUFFER_BYTES = "buffer-bytes", ["BUFFER_BYTES"], Value("SIZE"), Some("64MiB"), NATS,
        "Most memory for events that NATS has not acknowledged; when full, sockets are not read";

    SUBJECT_PREFIX = "subject-prefix", ["SUBJECT_PREFIX"], Value("PREFIX"), Some("discord"), STREAM,
        "First token of every subject; streams and buckets are named after it";
    EVENT_STREAMS = "event-streams", ["EVENT_STREAMS"], Value("K"), Some("1"), STREAM,
        "Streams the shards are spread over";
    REPLICAS = "replicas", ["REPLICAS"], Value("1|3|5"), Some("1"), STREAM,
        "Copies NATS keeps of streams and buckets";
    STREAM_MAX_AGE = "stream-max-age", ["STREAM_MAX_AGE"], Value("DURATION"), Some("24h"), STREAM,
        "How long events are kept";
    STREAM_MAX_BYTES = "stream-max-bytes", ["STREAM_MAX_BYTES"], Value("SIZE|none"), Some("none"),
        STREAM, "Size from which a stream drops its oldest events";
    LIVE_FEED = "live-feed", ["LIVE_FEED"], Value("on|off"), Some("on"), STREAM,
        "Whether stored events are also sent to core subscribers of <prefix>.shard.*.events";
    PUBLISH_EVENTS = "publish-events", ["PUBLISH_EVENTS"], Value("NAMES"), None, STREAM,
        "Publish only these events; by default all";
    DROP_EVENTS = "drop-events", ["DROP_EVENTS"], Value("NAMES"), None, STREAM,
        "Do not publish these events";

    HTTP = "http", ["HTTP_LISTEN"], Value("ADDR"), Some("127.0.0.1:9100"), PROCESS,
        "Address of /live, /ready, /health and /metrics; `0` picks a free port and logs it";
    STARTUP_TIMEOUT = "startup-timeout", ["STARTUP_TIMEOUT"], Value("DURATION"), Some("30s"),
        PROCESS, "How long NATS and Discord may be unreachable at the start";
    // Ten seconds: what Docker grants before it kills, less than Kubernetes (30 s) and systemd (90 s).
    // A drain needs milliseconds unless NATS is slow, and what is unacknowledged then comes again with
    // the RESUME of whoever holds the shard next, so a longer wait would gain nothing.
    GRACE_PERIOD = "grace-period", ["GRACE_PERIOD"], Value("DURATION"), Some("10s"), PROCESS,
        "How long a stop waits for what is in flight";
    LOG = "log", ["LOG_FORMAT"], Value("text|json"), Some("text"), PROCESS,
        "Format of the log on standard error";
    LOG_FILTER = "log-filter", ["RUST_LOG"], Value("FILTER"), Some("info,async_nats=warn"), PROCESS,
        "What is logged: a level, or directives such as `info,gateway_proxy=debug`";
    OTLP_ENDPOINT = "otlp-endpoint", ["OTEL_EXPORTER_OTLP_ENDPOINT"], Value("URL"), None, PROCESS,
        "OpenTelemetry collector (OTLP over HTTP) that gets the traces";
}

/// What an operator's verb needs to reach the fleet.
pub(crate) const OPERATOR: [&Setting; 12] = [
    NATS_URL,
    NATS_CREDS,
    NATS_NKEY,
    NATS_USER,
    NATS_PASSWORD,
    NATS_PASSWORD_FILE,
    NATS_TOKEN,
    NATS_TOKEN_FILE,
    NATS_CA,
    NATS_CERT,
    NATS_KEY,
    SUBJECT_PREFIX,
];

/// `DISCORD_AUTO_SHARD=true` is another way to say `--shards auto`.
pub(crate) const AUTO_SHARD_ENV: &str = "DISCORD_AUTO_SHARD";

/// Names the configuration file itself.
pub(crate) const CONFIG_ENV: &str = "GATEWAY_PROXY_CONFIG";

impl Setting {
    /// The setting of a file key.
    pub(crate) fn of_key(key: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|setting| setting.key == key)
    }

    /// All ways to give it, for messages: `--nats-url, NATS_URL`.
    pub(crate) fn names(&self) -> String {
        let flag = match self.kind {
            Value(_) | Switch => format!("--{}, ", self.key),
            Secret => String::new(),
        };
        format!("{flag}{}", self.env.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_settings_share_a_key_or_an_environment_name() {
        let keys: BTreeSet<_> = ALL.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), ALL.len());
        let names: Vec<_> = ALL.iter().flat_map(|setting| setting.env).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(ALL.iter().all(|setting| !setting.env.is_empty()));
    }

    #[test]
    fn the_environment_names_of_the_contract_are_kept() {
        let env = |key: &str| Setting::of_key(key).unwrap().env[0];
        for (key, name) in [
            ("token-file", "DISCORD_TOKEN_FILE"),
            ("nats-url", "NATS_URL"),
            ("api-url", "DISCORD_API_URL"),
            ("shards", "DISCORD_SHARD_COUNT"),
            ("shard-ids", "DISCORD_SHARD_IDS"),
            ("shard-id", "DISCORD_SHARD_ID"),
            ("fleet", "FLEET"),
            ("max-shards", "MAX_SHARDS"),
            ("zone", "ZONE"),
            ("coordinator-priority", "COORDINATOR_PRIORITY"),
            ("proxy-id", "PROXY_ID"),
            ("intents", "DISCORD_INTENTS"),
            ("compression", "DISCORD_COMPRESSION"),
            ("publish-events", "PUBLISH_EVENTS"),
            ("drop-events", "DROP_EVENTS"),
            ("presence", "DISCORD_PRESENCE"),
            ("large-threshold", "DISCORD_LARGE_THRESHOLD"),
            ("heartbeat-timeout", "DISCORD_HEARTBEAT_TIMEOUT"),
            ("http", "HTTP_LISTEN"),
            ("log-filter", "RUST_LOG"),
            ("otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ] {
            assert_eq!(env(key), name);
        }
    }
}
