//! What a simulated Discord looks like: its bot, guilds, limits, load and strictness.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::ScriptStep;

/// Discord's documented total of session starts per day for a small bot.
const SESSION_STARTS_PER_DAY: u32 = 1000;
/// What real gateways put into HELLO.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(41_250);
/// Staff figure of 2016: `max(100, min(3500, guilds × 75))`.
const REPLAY_EVENTS: usize = 3500;
/// "A few minutes"; unpublished.
const REPLAY_TTL: Duration = Duration::from_secs(180);
/// One IDENTIFY per bucket and 5 s (Discord, Gateway, Rate limits).
const IDENTIFY_WINDOW: Duration = Duration::from_secs(5);
/// Above this a shard is refused with 4011.
const GUILDS_PER_SHARD_MAX: usize = 2500;
/// Unsent events after which the server gives up on a client that does not read.
const BACKLOG_EVENTS: usize = 20_000;

/// Everything that can be chosen about a simulated Discord. `Config::default()` is a small healthy
/// bot on free loopback ports.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address all ports listen on.
    pub listen: IpAddr,
    /// Host written into the URLs handed out; the listen address when absent.
    pub public_host: Option<String>,
    /// Port of the gateway; 0 picks a free one.
    pub gateway_port: u16,
    /// Port behind `resume_gateway_url`; 0 picks a free one.
    pub resume_port: u16,
    /// Port of REST and of the control endpoints; 0 picks a free one.
    pub rest_port: u16,
    /// Accepted bot tokens, without the `Bot ` prefix.
    pub tokens: Vec<String>,
    /// The application's and bot user's id.
    pub application_id: u64,
    /// How many guilds the bot is in.
    pub guilds: usize,
    /// Sizes of the guilds' GUILD_CREATE.
    pub guild_bytes: GuildBytes,
    /// `shards` of `/gateway/bot`.
    pub shards: u32,
    /// `max_concurrency` of `/gateway/bot`.
    pub max_concurrency: u32,
    /// The session budget of `/gateway/bot`.
    pub session_starts: SessionStarts,
    /// `heartbeat_interval` of HELLO.
    pub heartbeat_interval: Duration,
    /// Intervals without a heartbeat after which the server closes the socket.
    pub heartbeat_tolerance: f64,
    /// Most events a session's replay buffer holds.
    pub replay_events: usize,
    /// How long a disconnected session lives, and how long an event stays in the replay buffer.
    pub replay_ttl: Duration,
    /// Privileged intents switched on in the portal; others are refused with 4014.
    pub privileged_intents: u64,
    /// Window of `max_concurrency`.
    pub identify_window: Duration,
    /// Most guilds on one shard before 4011.
    pub guilds_per_shard_max: usize,
    /// For bots with very many guilds the shard count must be a multiple of this, else 4010.
    pub shard_multiple: Option<u32>,
    /// Seed of guilds, ids and load: the same seed makes the same events.
    pub seed: u64,
    /// The load to begin with.
    pub load: Load,
    /// Paced events come one by one, as from guilds that know nothing of each other: with gaps that
    /// are exponentially distributed. Otherwise in batches of a millisecond, which costs less.
    pub one_by_one: bool,
    /// How strictly unclear rules are kept.
    pub strict: Strictness,
    /// Compression effort.
    pub compression: Compression,
    /// Unsent events after which the socket of a slow reader is dropped.
    pub backlog_events: usize,
    /// Time from op 7 until the server closes the socket by itself.
    pub reconnect_grace: Duration,
    /// REST requests per second over all routes but the interaction endpoints.
    pub rest_per_second: u32,
    /// Actions at given moments.
    pub script: Vec<ScriptStep>,
    /// Recorded gateway frames (NDJSON) that replace the generated load.
    pub playback: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            public_host: None,
            gateway_port: 0,
            resume_port: 0,
            rest_port: 0,
            tokens: vec!["simulated.bot.token".to_owned()],
            application_id: 898_710_496_221_405_185,
            guilds: 20,
            guild_bytes: GuildBytes::default(),
            shards: 1,
            max_concurrency: 1,
            session_starts: SessionStarts::default(),
            heartbeat_interval: HEARTBEAT_INTERVAL,
            heartbeat_tolerance: 1.5,
            replay_events: REPLAY_EVENTS,
            replay_ttl: REPLAY_TTL,
            privileged_intents: super::events::PRIVILEGED,
            identify_window: IDENTIFY_WINDOW,
            guilds_per_shard_max: GUILDS_PER_SHARD_MAX,
            shard_multiple: None,
            seed: 1,
            load: Load::quiet(),
            one_by_one: false,
            strict: Strictness::default(),
            compression: Compression::default(),
            backlog_events: BACKLOG_EVENTS,
            reconnect_grace: Duration::from_secs(5),
            rest_per_second: 50,
            script: Vec::new(),
            playback: None,
        }
    }
}

/// How large GUILD_CREATEs are: log-normal around the median.
#[derive(Clone, Copy, Debug)]
pub struct GuildBytes {
    /// Half of the guilds are smaller.
    pub median: usize,
    /// No guild is larger.
    pub max: usize,
    /// Spread of the logarithm; 1.0 puts one guild in a hundred above ten times the median.
    pub sigma: f64,
    /// The first guilds that are made as large as `max`, so that a test surely meets some.
    pub forced_max: usize,
}

impl Default for GuildBytes {
    fn default() -> Self {
        Self {
            median: 20_000,
            max: 2_000_000,
            sigma: 1.0,
            forced_max: 0,
        }
    }
}

/// `session_start_limit` of `/gateway/bot`.
#[derive(Clone, Copy, Debug)]
pub struct SessionStarts {
    /// IDENTIFYs per period.
    pub total: u32,
    /// What is left of them at the start.
    pub remaining: u32,
    /// Until the period ends.
    pub reset_after: Duration,
}

impl Default for SessionStarts {
    fn default() -> Self {
        Self {
            total: SESSION_STARTS_PER_DAY,
            remaining: SESSION_STARTS_PER_DAY,
            reset_after: Duration::from_secs(24 * 3600),
        }
    }
}

/// Rules that Discord leaves unclear or that a test wants bent.
#[derive(Clone, Copy, Debug)]
pub struct Strictness {
    /// A RESUME with other query parameters than the session's is refused with op 9.
    pub same_params_on_resume: bool,
    /// 120 sends per minute and connection, else 4008.
    pub send_rate: bool,
    /// One IDENTIFY per bucket and window, else op 9.
    pub identify_rate: bool,
    /// A client's close frame without a code ends its session. Unverified at Discord.
    pub close_without_code_ends_session: bool,
    /// Code for a socket whose client sent no heartbeat.
    pub missed_heartbeat_code: u16,
    /// Code for the older of two sockets of one session.
    pub takeover_code: u16,
}

impl Default for Strictness {
    fn default() -> Self {
        Self {
            same_params_on_resume: true,
            send_rate: true,
            identify_rate: true,
            close_without_code_ends_session: false,
            missed_heartbeat_code: 4009,
            takeover_code: 4009,
        }
    }
}

/// Compression effort and deliberate oddities of the transport compression.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// zlib level 0 to 9.
    pub zlib_level: u32,
    /// zstd level 1 to 19.
    pub zstd_level: i32,
    /// Logarithm of zstd's window; Discord's is 256 KiB.
    pub zstd_window_log: u32,
    /// zlib: a logical message is split into WebSocket messages of at most this many bytes.
    pub zlib_split: Option<usize>,
    /// zlib: this many logical messages share one WebSocket message where several are due.
    pub zlib_coalesce: usize,
    /// zlib: the suffix `00 00 ff ff` also stands in the middle of messages.
    pub zlib_inner_suffix: bool,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            zlib_level: 1,
            zstd_level: 1,
            zstd_window_log: 18,
            zlib_split: None,
            zlib_coalesce: 1,
            zlib_inner_suffix: false,
        }
    }
}

/// What happens in the guilds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// How fast.
    pub pace: Pace,
    /// Which events.
    pub mix: Mix,
    /// Slash commands per second over all guilds, on top of the pace.
    pub commands_per_second: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self::quiet()
    }
}

impl Load {
    /// Nothing but READY and GUILD_CREATE.
    #[must_use]
    pub const fn quiet() -> Self {
        Self {
            pace: Pace::Quiet,
            mix: Mix::PresencesOff,
            commands_per_second: 0.0,
        }
    }

    /// So many events per second over all guilds.
    #[must_use]
    pub const fn rate(events_per_second: f64) -> Self {
        Self {
            pace: Pace::Rate { events_per_second },
            ..Self::quiet()
        }
    }

    /// As fast as each socket takes it; `Some(n)` stops after n events per shard.
    #[must_use]
    pub const fn flood(events_per_shard: Option<u64>) -> Self {
        Self {
            pace: Pace::Flood { events_per_shard },
            ..Self::quiet()
        }
    }

    /// The same load with another mix.
    #[must_use]
    pub const fn mix(self, mix: Mix) -> Self {
        Self { mix, ..self }
    }

    /// The same load with slash commands.
    #[must_use]
    pub const fn commands(self, commands_per_second: f64) -> Self {
        Self {
            commands_per_second,
            ..self
        }
    }
}

/// How fast events come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Pace {
    /// No background events.
    Quiet,
    /// A rate over all guilds; also while sessions are disconnected.
    Rate {
        /// Events per second in total.
        events_per_second: f64,
    },
    /// A rate for each shard of the recommended count.
    RatePerShard {
        /// Events per second and shard.
        events_per_second: f64,
    },
    /// As fast as each connected socket takes it.
    Flood {
        /// Events for each shard until it falls quiet; endless when absent.
        events_per_shard: Option<u64>,
    },
}

/// Shares of the events, after public figures of large bots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Without GUILD_PRESENCES: 38 % messages, 22 % typing, 9 % voice, …
    #[default]
    PresencesOff,
    /// With GUILD_PRESENCES: 93 % presences, 3 % messages, …
    PresencesOn,
}
