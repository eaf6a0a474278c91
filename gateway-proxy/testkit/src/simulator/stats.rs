//! Counters to look at while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::interactions::InteractionStats;
use super::ledger::SessionState;
use super::state::Shared;

/// Totals since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Time since the start, µs.
    pub uptime_us: u64,
    /// Guilds of the bot.
    pub guilds: usize,
    /// Connections open.
    pub connections: usize,
    /// Connections accepted so far.
    pub connects: u64,
    /// IDENTIFYs with a valid token.
    pub identifies: u64,
    /// RESUMEs.
    pub resumes: u64,
    /// RESUMEs that were refused.
    pub resumes_refused: u64,
    /// Heartbeats received.
    pub heartbeats: u64,
    /// Dispatches generated, over all sessions.
    pub events_queued: u64,
    /// Dispatches written to sockets, replays included.
    pub events_written: u64,
    /// Their JSON.
    pub json_bytes: u64,
    /// Bytes written to sockets.
    pub wire_bytes: u64,
    /// Rules broken.
    pub violations: u64,
    /// What is left of the session budget.
    pub starts_left: u32,
    /// REST requests.
    pub rest_requests: u64,
    /// REST requests answered 429.
    pub rest_limited: u64,
    /// REST answers that count towards a ban.
    pub rest_invalid: u64,
    /// Sessions that have not ended, by `id/count`.
    pub shards: BTreeMap<String, ShardStats>,
    /// Slash commands.
    pub interactions: InteractionStats,
}

/// The sessions of one shard tuple.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ShardStats {
    /// Sessions with a socket.
    pub connected: usize,
    /// Sessions that wait for a RESUME.
    pub disconnected: usize,
    /// Dispatches generated.
    pub events: u64,
    /// Dispatches generated but not yet written.
    pub unsent: u64,
    /// Guilds.
    pub guilds: usize,
}

impl Stats {
    pub(crate) fn of(shared: &Shared) -> Self {
        let counters = &shared.counters;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (live, connections, starts_left) = {
            let hub = shared.hub();
            let live: Vec<_> = hub.live.values().cloned().collect();
            (live, hub.connections.len(), hub.starts_left)
        };
        let mut shards = BTreeMap::<String, ShardStats>::new();
        for session in live {
            let progress = session.progress();
            let shard = shards.entry(session.shard.to_string()).or_default();
            match progress.state {
                SessionState::Connected => shard.connected += 1,
                SessionState::Disconnected => shard.disconnected += 1,
                SessionState::Ended => continue,
            }
            shard.events += progress.events;
            shard.unsent += progress.unsent;
            shard.guilds = session.guilds.len();
        }
        Self {
            uptime_us: shared.now_us(),
            guilds: shared.world.len(),
            connections,
            connects: read(&counters.connects),
            identifies: read(&counters.identifies),
            resumes: read(&counters.resumes),
            resumes_refused: read(&counters.resumes_refused),
            heartbeats: read(&counters.heartbeats),
            events_queued: counters.queued_so_far(),
            events_written: counters.written_so_far(),
            json_bytes: counters.json_bytes_so_far(),
            wire_bytes: read(&counters.wire_bytes),
            violations: shared.log.violations(),
            starts_left,
            rest_requests: read(&shared.rest.requests),
            rest_limited: read(&shared.rest.limited),
            rest_invalid: read(&shared.rest.invalid),
            shards,
            interactions: shared.interactions.stats(),
        }
    }
}
