//! The JSON of the HTTP endpoints: `/health`, `/ready` and `/cluster/state`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ProxyId, ShardId, ShardState, Timestamp};

/// Body of `/health`: the process and each of its shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Version of the program.
    pub version: String,
    /// Name of the process in the fleet.
    pub proxy: ProxyId,
    /// What the process is doing.
    pub status: ProcessStatus,
    /// When the process started.
    pub started_at: Timestamp,
    /// Seconds since then.
    pub uptime_s: u64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Share of one core over the last few seconds, in percent: 150 is one and a half cores.
    pub cpu_percent: f64,
    /// The connection to NATS.
    pub nats: NatsHealth,
    /// Shards of the whole bot, null before Discord was asked.
    #[serde(default)]
    pub total_shards: Option<u32>,
    /// Events per second over all shards of the process.
    #[serde(default)]
    pub events_per_second: f64,
    /// How far the start is, null once every shard has been up.
    #[serde(default)]
    pub startup: Option<StartupProgress>,
    /// What the process knows of the others, null before it is one of them.
    #[serde(default)]
    pub fleet: Option<FleetHealth>,
    /// The shards of this process, in the order of their numbers.
    pub shards: Vec<ShardHealth>,
}

/// What a process knows of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetHealth {
    /// True when it follows the plan (`--fleet`).
    #[serde(default)]
    pub follows: bool,
    /// Who coordinates, null while nobody does.
    #[serde(default)]
    pub coordinator: Option<ProxyId>,
    /// Proxies that live, this one included.
    #[serde(default)]
    pub members: u32,
    /// Epoch of the plan it follows, 0 for none.
    #[serde(default)]
    pub plan_epoch: u64,
    /// Shards no proxy has room for; only the coordinator knows.
    #[serde(default)]
    pub unplaced_shards: Vec<u32>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessStatus {
    /// Not all of its shards have been up yet.
    Starting,
    /// All of its shards deliver.
    Ready,
    /// A shard or NATS is away.
    Degraded,
    /// It hands its shards over and ends.
    Draining,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// The connection of a process to NATS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NatsHealth {
    /// True while connected.
    pub connected: bool,
    /// Address of the server, without credentials.
    #[serde(default)]
    pub server: Option<String>,
    /// Version of the server.
    #[serde(default)]
    pub server_version: Option<String>,
    /// Events sent and not yet acknowledged by JetStream.
    #[serde(default)]
    pub unacknowledged: u64,
}

/// How far the start of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartupProgress {
    /// Shards that have been up.
    pub ready: u32,
    /// Shards the process shall hold.
    pub total: u32,
    /// Seconds until the last one may IDENTIFY, null when unknown.
    #[serde(default)]
    pub remaining_s: Option<u64>,
    /// Until when new sessions wait because the day's budget is at its reserve, null otherwise.
    #[serde(default)]
    pub budget_reset_at: Option<Timestamp>,
}

/// One shard in `/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShardHealth {
    /// Shard, as [id, count].
    pub shard: ShardId,
    /// What it is doing.
    pub status: ShardState,
    /// Guilds on the shard, available or not; null before READY.
    #[serde(default)]
    pub guilds: Option<u32>,
    /// Last heartbeat round trip in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Events per second over the last few seconds.
    #[serde(default)]
    pub events_per_second: f64,
    /// Events since the process started.
    #[serde(default)]
    pub events_total: u64,
    /// Seconds since the session began, null when there is none.
    #[serde(default)]
    pub session_age_s: Option<u64>,
    /// Highest sequence received in the session.
    #[serde(default)]
    pub last_seq: Option<u64>,
    /// Highest sequence up to which JetStream has acknowledged every event: where a resume starts.
    #[serde(default)]
    pub acknowledged_seq: Option<u64>,
    /// Connections after the first.
    #[serde(default)]
    pub reconnects: u64,
    /// Sessions carried on by RESUME.
    #[serde(default)]
    pub resumes: u64,
    /// IDENTIFYs sent.
    #[serde(default)]
    pub identifies: u64,
    /// Gaps announced by `PROXY_GAP`.
    #[serde(default)]
    pub gaps: u64,
    /// True while heartbeats are acknowledged but events that usually come do not.
    #[serde(default)]
    pub silent: bool,
    /// Why it is not ready, for people.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Body of `/ready`, with status 200 when `ready`, else 503.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// True when all shards of the process are up, NATS is connected and it is not draining.
    pub ready: bool,
    /// What is missing, for people; empty when ready.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// Body of `/cluster/state` and answer of `discord.fleet.state`: who holds what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterState {
    /// The fleet as a whole.
    pub status: ClusterStatus,
    /// Who coordinates, null while nobody does.
    #[serde(default)]
    pub coordinator: Option<ProxyId>,
    /// Epoch of the plan.
    #[serde(default)]
    pub epoch: u64,
    /// Shards of the bot.
    pub total_shards: u32,
    /// How many of them deliver.
    #[serde(default)]
    pub ready_shards: u32,
    /// Shards no proxy holds.
    #[serde(default)]
    pub unplaced_shards: Vec<u32>,
    /// The proxies, in the order of their names.
    pub workers: Vec<WorkerState>,
}

/// A fleet as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterStatus {
    /// Every shard delivers.
    Healthy,
    /// Shards connect for the first time.
    Starting,
    /// Some shard does not deliver, or nobody coordinates.
    Degraded,
    /// No shard delivers.
    Down,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One proxy in `/cluster/state`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerState {
    /// Its name.
    pub proxy: ProxyId,
    /// What it is doing.
    pub status: ProcessStatus,
    /// Version of the program.
    #[serde(default)]
    pub version: Option<String>,
    /// Where it runs.
    #[serde(default)]
    pub zone: Option<String>,
    /// Numbers of the shards it holds.
    pub shards: Vec<u32>,
    /// Share of one core, in percent.
    #[serde(default)]
    pub cpu_percent: f64,
    /// Resident memory in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Slowest heartbeat round trip of its shards in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Events per second over all its shards.
    #[serde(default)]
    pub events_per_second: f64,
    /// Where its HTTP endpoints listen, as host:port.
    #[serde(default)]
    pub http: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_another_version_is_read() {
        let body = r#"{"ready":false,"reasons":["shard 3: resuming"],"since":"later"}"#;
        let ready: Readiness = serde_json::from_str(body).unwrap();
        assert_eq!(ready.reasons, ["shard 3: resuming"]);
        let state = r#"{"status":"splendid","total_shards":1,"workers":[]}"#;
        let state: ClusterState = serde_json::from_str(state).unwrap();
        assert_eq!(
            (state.status, state.coordinator),
            (ClusterStatus::Unknown, None)
        );
    }
}
