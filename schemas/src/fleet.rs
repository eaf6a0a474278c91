//! The KV bucket of the fleet: keys, built and parsed by one type, and every value.
//!
//! Values are JSON. Times are Unix milliseconds in fields named `…_unix_ms`. Readers ignore fields
//! they do not know and have a default for each that is not essential, because proxies of several
//! versions share a bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Intents, ProxyId, ShardId};

mod key;

pub use key::{FleetKey, FleetKeyError};

/// A proxy's heartbeat: gone when its TTL ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Version of the program.
    pub version: String,
    /// Where it runs; plans spread shards over zones.
    #[serde(default)]
    pub zone: Option<String>,
    /// Most shards it takes (`--max-shards`), null for no limit.
    #[serde(default)]
    pub max_shards: Option<u32>,
    /// Shards it holds whatever the plan says (`--shard-ids`), null when it takes any.
    #[serde(default)]
    pub pinned: Option<Vec<u32>>,
    /// Who coordinates: the highest wins (`--coordinator-priority`), then the oldest.
    #[serde(default)]
    pub coordinator_priority: i64,
    /// How many shards the bot shall have (`--shards`), null for `auto`. The count changes once all members
    /// of a fleet want the same other one.
    #[serde(default)]
    pub wants_shards: Option<u32>,
    /// When the process started, Unix milliseconds.
    #[serde(default)]
    pub started_at_unix_ms: u64,
    /// What it has to do.
    #[serde(default)]
    pub load: Load,
    /// Shards it holds, as [id, count].
    #[serde(default)]
    pub shards: Vec<ShardId>,
    /// Where its HTTP endpoints listen, as host:port.
    #[serde(default)]
    pub http: Option<String>,
    /// True while it hands its shards over to end.
    #[serde(default)]
    pub draining: bool,
    /// True when it follows the plan (`--fleet`); otherwise it holds what it was started with.
    #[serde(default)]
    pub fleet: bool,
    /// Random name of the process, a new one each time it joins: what stands in its shards' records
    /// as `owner_instance`. Null in what older versions wrote.
    #[serde(default)]
    pub instance: Option<String>,
    /// TTL of this key in milliseconds (`--lease-ttl`): others wait so long before they take its shards. Null
    /// in what older versions wrote, which is 2,000.
    #[serde(default)]
    pub lease_ttl_ms: Option<u64>,
    /// Number of this heartbeat since it joined, so that a process knows its own writes again when it
    /// sees them.
    #[serde(default)]
    pub beat: u64,
}

/// What a process has to do, over the last few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// Share of one core the process uses, in percent: 150 is one and a half cores.
    #[serde(default)]
    pub cpu_percent: f64,
    /// Resident memory in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Slowest heartbeat round trip of its shards in milliseconds, null before the first.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Events per second over all its shards.
    #[serde(default)]
    pub events_per_second: f64,
}

/// The lease of the coordinator: gone when its TTL ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leader {
    /// Who coordinates.
    pub proxy: ProxyId,
    /// Grows by one with every change of the coordinator.
    pub epoch: u64,
    /// TTL of this key in milliseconds, as in [`Member`].
    #[serde(default)]
    pub lease_ttl_ms: Option<u64>,
    /// Its `--coordinator-priority`: a member with a higher one takes over.
    #[serde(default)]
    pub priority: i64,
    /// Since when, Unix milliseconds.
    #[serde(default)]
    pub since_unix_ms: u64,
}

/// Who shall hold which shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Grows with every plan; the one that stands in the key counts.
    pub epoch: u64,
    /// Shard count.
    pub shard_count: u32,
    /// Shard number to proxy; a shard that is missing has no place.
    pub shards: BTreeMap<u32, ProxyId>,
    /// When it was made, Unix milliseconds.
    #[serde(default)]
    pub made_at_unix_ms: u64,
    /// Proxies that have received their share: from these on, shards move only when they must.
    #[serde(default)]
    pub settled: BTreeSet<ProxyId>,
    /// What the plan means: a reader that knows only lower numbers keeps what it holds and does not
    /// plan itself.
    #[serde(default = "Plan::first_format")]
    pub format: u32,
}

impl Plan {
    /// The format this version writes.
    pub const FORMAT: u32 = 1;

    const fn first_format() -> u32 {
        1
    }

    /// Shards that no proxy has room for.
    pub fn unplaced(&self) -> impl Iterator<Item = u32> {
        (0..self.shard_count).filter(|shard| !self.shards.contains_key(shard))
    }
}

/// Everything another proxy needs to carry a shard on, and what an operator wants to see of it.
///
/// Written on every change and every few seconds, never per event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShardRecord {
    /// Shard, as [id, count]. A session is bound to both numbers.
    pub shard: ShardId,
    /// Proxy that holds it, null when nobody does.
    #[serde(default)]
    pub owner: Option<ProxyId>,
    /// Random name of the owner's process: tells a proxy that was started again from an earlier process
    /// of the same name that only stood still. Whoever reads another name than its own here has lost
    /// the shard.
    #[serde(default)]
    pub owner_instance: Option<String>,
    /// What the shard is doing.
    pub state: ShardState,
    /// Session to resume, null when there is none.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Where Discord wants that session resumed.
    #[serde(default)]
    pub resume_gateway_url: Option<String>,
    /// Highest sequence of that session up to which every event is stored or deliberately dropped.
    #[serde(default)]
    pub sequence: Option<u64>,
    /// Last moment the session was alive with that sequence, Unix milliseconds: Discord keeps a
    /// session for minutes only.
    #[serde(default)]
    pub sequence_at_unix_ms: Option<u64>,
    /// Intents the session was made with; with others a new session is due.
    #[serde(default)]
    pub intents: Option<Intents>,
    /// Gateway version the session was made with.
    #[serde(default)]
    pub api_version: Option<u8>,
    /// Transport compression the session was made with: Discord wants a resuming connection to
    /// have the same query parameters.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// Guilds on the shard, available or not.
    #[serde(default)]
    pub guilds: Option<u32>,
    /// Last heartbeat round trip in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Events per second over the last few seconds.
    #[serde(default)]
    pub events_per_second: f64,
    /// When `state`, `owner` or `session_id` changed last, Unix milliseconds.
    #[serde(default)]
    pub changed_at_unix_ms: u64,
}

impl ShardRecord {
    /// The record of a shard nobody has held yet.
    #[must_use]
    pub const fn new(shard: ShardId) -> Self {
        Self {
            shard,
            owner: None,
            owner_instance: None,
            state: ShardState::Disconnected,
            session_id: None,
            resume_gateway_url: None,
            sequence: None,
            sequence_at_unix_ms: None,
            intents: None,
            api_version: None,
            compression: None,
            guilds: None,
            latency_ms: None,
            events_per_second: 0.0,
            changed_at_unix_ms: 0,
        }
    }
}

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// No connection, and none is being made: waiting to reconnect, or handed over.
    Disconnected,
    /// A connection is being made, up to HELLO.
    Connecting,
    /// Waits for the right to IDENTIFY.
    Queued,
    /// IDENTIFY is sent, READY not yet here.
    Identifying,
    /// RESUME is sent, RESUMED not yet here: missed events are coming in.
    Resuming,
    /// Delivers events.
    Ready,
    /// Discord refuses it for good (close codes 4004 and 4010 to 4014).
    Failed,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl ShardState {
    /// True when the shard delivers what happens.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Ready)
    }

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Queued => "queued",
            Self::Identifying => "identifying",
            Self::Resuming => "resuming",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ShardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How frames are compressed on their way from Discord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// `zstd-stream`
    Zstd,
    /// `zlib-stream`
    Zlib,
    /// No compression.
    None,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What a new coordinator must know to never grant an IDENTIFY twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentifyState {
    /// Epoch of the coordinator that wrote it; an older one must not write any more.
    #[serde(default)]
    pub epoch: u64,
    /// How many buckets there are: one IDENTIFY per bucket and 5 s.
    pub max_concurrency: u32,
    /// Bucket (`shard_id % max_concurrency`) to its last grant, Unix milliseconds.
    #[serde(default)]
    pub last_grant_unix_ms: BTreeMap<u32, u64>,
    /// Session starts of the day, null before Discord was asked.
    #[serde(default)]
    pub budget: Option<SessionBudget>,
    /// Grants ever given; the last one's number.
    #[serde(default)]
    pub grants: u64,
    /// IDENTIFYs in a row that brought no session.
    #[serde(default)]
    pub failures: u32,
}

/// Discord's limit of session starts per day, over all shards and processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionBudget {
    /// Starts per day.
    pub total: u32,
    /// Starts left, every grant since Discord was asked counted.
    pub remaining: u32,
    /// When it is refilled, Unix milliseconds.
    pub reset_at_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_displayed_as_they_are_written() {
        use ShardState::{Connecting, Disconnected, Failed, Identifying, Queued, Ready, Resuming};
        for state in [
            Disconnected,
            Connecting,
            Queued,
            Identifying,
            Resuming,
            Ready,
            Failed,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
        let newer: ShardState = serde_json::from_str("\"teleporting\"").unwrap();
        assert_eq!(newer, ShardState::Unknown);
    }

    #[test]
    fn a_plan_names_the_shards_without_a_place() {
        let shards = [(0, "a".parse().unwrap()), (2, "b".parse().unwrap())].into();
        let plan = Plan {
            epoch: 1,
            shard_count: 4,
            shards,
            made_at_unix_ms: 0,
            settled: BTreeSet::new(),
            format: Plan::FORMAT,
        };
        assert_eq!(plan.unplaced().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn the_least_record_of_an_older_version_is_read() {
        let record: ShardRecord =
            serde_json::from_str(r#"{"shard":[0,2],"state":"disconnected","new_field":[1]}"#)
                .unwrap();
        assert_eq!(record, ShardRecord::new(ShardId::new(0, 2).unwrap()));
        assert!(serde_json::from_str::<ShardRecord>(r#"{"shard":[2,2],"state":"ready"}"#).is_err());
    }
}
