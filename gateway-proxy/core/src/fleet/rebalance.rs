//! Which proxies are overloaded for so long that they should give shards away, and to whom.
//!
//! Made to do too little rather than too much: a move is a pause, and a fleet that shuffles its shards
//! because of its own shuffling is worse than a hot one. So: only sustained load counts, hot and cool
//! have different thresholds, a receiver must be far from hot even with what it gets, after a move its
//! effect is awaited, and a shard that was moved stays for long.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use schemas::{Load, ProxyId};

use super::plan::{Reason, Request};

/// Load of one process above which it is hot.
pub const HOT_CPU_PERCENT: f64 = 80.0;
/// Heartbeat round trip above which it is hot.
pub const HOT_LATENCY_MS: f64 = 500.0;
/// A process that was hot is so until it is below both of these.
pub const COOL_CPU_PERCENT: f64 = 60.0;
/// See [`COOL_CPU_PERCENT`].
pub const COOL_LATENCY_MS: f64 = 300.0;
/// How long load must stay above (or below) a threshold to count.
pub const SUSTAINED: Duration = Duration::from_secs(60);
/// After a move neither its giver nor its receiver takes part in another for so long: the figures are
/// averages and must settle.
pub const EFFECT_AFTER: Duration = Duration::from_secs(60);
/// A shard that was moved for its load stays at its new place for so long.
pub const SHARD_RESTS: Duration = Duration::from_secs(30 * 60);
/// A proxy that received shards for load gives none away for load for so long.
pub const RECEIVER_RESTS: Duration = Duration::from_secs(10 * 60);
/// The window in which [`Rebalancer`] counts moves.
const WINDOW: Duration = Duration::from_secs(60);
/// Moves remembered, whatever the limit is.
const REMEMBERED_MAX: usize = 10_000;

/// What a process does, and with which shards.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The proxy.
    pub proxy: &'a ProxyId,
    /// Its heartbeat's figures.
    pub load: Load,
    /// True when it may get shards: not draining, not pinned.
    pub takes: bool,
    /// How many more shards it takes.
    pub room: u32,
    /// Its shards that are ready, of the plan's sharding.
    pub shards: Vec<ShardLoad>,
}

/// One shard's part of the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardLoad {
    /// The shard.
    pub shard: u32,
    /// Its events.
    pub events_per_second: f64,
}

/// Decides over time. One per coordinator; a new coordinator begins anew and thus with patience.
#[derive(Clone, Debug)]
pub struct Rebalancer {
    moves_per_minute: u32,
    // One per living member.
    states: BTreeMap<ProxyId, State>,
    // Shards that rest until then; at most one per shard, cleaned as they end.
    resting: BTreeMap<u32, Instant>,
    // When voluntary moves were made within WINDOW; at most REMEMBERED_MAX.
    moves: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    hot: bool,
    // Since when the figures say the opposite of `hot`.
    since: Option<Instant>,
    // Takes part in no move before then.
    rests_until: Option<Instant>,
    // Gives nothing away for load before then.
    gives_after: Option<Instant>,
}

impl Rebalancer {
    /// Nothing observed yet. `moves_per_minute` bounds all voluntary moves: for load, and to give
    /// joining members their share.
    #[must_use]
    pub const fn new(moves_per_minute: u32) -> Self {
        Self {
            moves_per_minute,
            states: BTreeMap::new(),
            resting: BTreeMap::new(),
            moves: VecDeque::new(),
        }
    }

    /// How many voluntary moves may be made now: for [`super::plan::Input::moves_max`].
    #[must_use]
    pub fn moves_left(&self, now: Instant) -> u32 {
        let recent = self.moves.iter().filter(|at| now < **at + WINDOW).count();
        let recent = u32::try_from(recent).unwrap_or(u32::MAX);
        self.moves_per_minute.saturating_sub(recent)
    }

    /// A plan was written with so many moves for joining members (those for load are counted already).
    pub fn handle_moved(&mut self, moves: usize, now: Instant) {
        while self.moves.front().is_some_and(|at| now >= *at + WINDOW) {
            self.moves.pop_front();
        }
        let room = REMEMBERED_MAX.saturating_sub(self.moves.len());
        self.moves.extend(std::iter::repeat_n(now, moves.min(room)));
    }

    /// When a voluntary move becomes possible again, `None` when one is possible now.
    #[must_use]
    pub fn moves_again_at(&self, now: Instant) -> Option<Instant> {
        if self.moves_left(now) > 0 {
            return None;
        }
        self.moves
            .iter()
            .find(|at| now < **at + WINDOW)
            .map(|at| *at + WINDOW)
    }

    /// True while a proxy counts as overloaded.
    #[must_use]
    pub fn is_hot(&self, proxy: &ProxyId) -> bool {
        self.states.get(proxy).is_some_and(|state| state.hot)
    }

    /// Takes in the latest heartbeats, of all living members; every few seconds.
    pub fn observe(&mut self, fleet: &[Observed<'_>], now: Instant) {
        self.states
            .retain(|proxy, _| fleet.iter().any(|member| member.proxy == proxy));
        self.resting.retain(|_, until| now < *until);
        for member in fleet {
            let state = self.states.entry(member.proxy.clone()).or_default();
            let contrary = if state.hot {
                is_cool(&member.load)
            } else {
                is_hot(&member.load)
            };
            if !contrary {
                state.since = None;
                continue;
            }
            let since = *state.since.get_or_insert(now);
            if now >= since + SUSTAINED {
                state.hot = !state.hot;
                state.since = None;
            }
        }
    }

    /// Moves away from hot proxies, to be planned at once: what is returned is counted and remembered
    /// as done.
    pub fn requests(&mut self, fleet: &[Observed<'_>], now: Instant) -> Vec<Request> {
        let mut left = self.moves_left(now);
        let mut estimates: BTreeMap<&ProxyId, Estimate> = fleet
            .iter()
            .map(|member| (member.proxy, Estimate::of(member)))
            .collect();
        let mut requests = Vec::new();
        for giver in fleet.iter().filter(|giver| self.gives(giver, now)) {
            let mut shards = giver.shards.clone();
            shards.sort_by(|a, b| {
                let order = b.events_per_second.total_cmp(&a.events_per_second);
                order.then(a.shard.cmp(&b.shard))
            });
            // The last shard would only carry the heat along.
            let mut givable = shards.len().saturating_sub(1);
            for shard in shards {
                let cool = estimates.get(giver.proxy).is_none_or(|own| !own.is_hot());
                if left == 0 || givable == 0 || cool {
                    break;
                }
                if self.resting.contains_key(&shard.shard) {
                    continue;
                }
                let cost = estimates[giver.proxy].cost(shard);
                let Some(to) = self.receiver(fleet, giver, &estimates, cost, now) else {
                    continue;
                };
                left -= 1;
                givable -= 1;
                if let Some(own) = estimates.get_mut(giver.proxy) {
                    own.give(shard, cost);
                }
                if let Some(other) = estimates.get_mut(to) {
                    other.take(shard, cost);
                }
                requests.push(Request {
                    shard: shard.shard,
                    to: to.clone(),
                    reason: Reason::Load,
                });
            }
        }
        self.remember(&requests, fleet, now);
        requests
    }

    fn gives(&self, member: &Observed<'_>, now: Instant) -> bool {
        self.states.get(member.proxy).is_some_and(|state| {
            let rested = state.rests_until.is_none_or(|until| now >= until);
            let gives = state.gives_after.is_none_or(|after| now >= after);
            state.hot && rested && gives && is_hot(&member.load)
        })
    }

    /// The coolest that stays cool with this shard.
    fn receiver<'a>(
        &self,
        fleet: &'a [Observed<'a>],
        giver: &Observed<'_>,
        estimates: &BTreeMap<&ProxyId, Estimate>,
        cost: f64,
        now: Instant,
    ) -> Option<&'a ProxyId> {
        let fits = |member: &&Observed<'_>| {
            let rested = self.states.get(member.proxy).is_none_or(|state| {
                !state.hot && state.rests_until.is_none_or(|until| now >= until)
            });
            let estimate = &estimates[member.proxy];
            member.proxy != giver.proxy && member.takes && rested && estimate.fits(cost)
        };
        let coolest = |a: &&Observed<'_>, b: &&Observed<'_>| {
            let (first, second) = (&estimates[a.proxy], &estimates[b.proxy]);
            let order = first.cpu_percent.total_cmp(&second.cpu_percent);
            order.then(a.proxy.cmp(b.proxy))
        };
        fleet
            .iter()
            .filter(fits)
            .min_by(coolest)
            .map(|member| member.proxy)
    }

    fn remember(&mut self, requests: &[Request], fleet: &[Observed<'_>], now: Instant) {
        self.handle_moved(requests.len(), now);
        for request in requests {
            self.resting.insert(request.shard, now + SHARD_RESTS);
            let giver = fleet.iter().find(|member| {
                let mut shards = member.shards.iter();
                shards.any(|held| held.shard == request.shard)
            });
            if let Some(giver) = giver {
                let state = self.states.entry(giver.proxy.clone()).or_default();
                state.rests_until = Some(now + EFFECT_AFTER);
            }
            let state = self.states.entry(request.to.clone()).or_default();
            state.rests_until = Some(now + EFFECT_AFTER);
            state.gives_after = Some(now + RECEIVER_RESTS);
        }
    }
}

/// What a member's load will be when the moves so far are done.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    cpu_percent: f64,
    latency_ms: f64,
    events_per_second: f64,
    shards: usize,
    room: u32,
}

impl Estimate {
    fn of(member: &Observed<'_>) -> Self {
        let events = member.shards.iter().map(|shard| shard.events_per_second);
        Self {
            cpu_percent: finite(member.load.cpu_percent),
            latency_ms: finite(member.load.latency_ms.unwrap_or(0.0)),
            events_per_second: events.map(finite).sum(),
            shards: member.shards.len(),
            room: member.room,
        }
    }

    fn is_hot(&self) -> bool {
        // What is left is to be below the threshold with something to spare.
        let target = f64::midpoint(HOT_CPU_PERCENT, COOL_CPU_PERCENT);
        self.cpu_percent > target || self.latency_ms > HOT_LATENCY_MS
    }

    fn fits(&self, cost: f64) -> bool {
        let cool = self.cpu_percent + cost < COOL_CPU_PERCENT && self.latency_ms < COOL_LATENCY_MS;
        self.room > 0 && cool
    }

    /// A shard's CPU: by its part of the events, or an even part when there are none.
    fn cost(&self, shard: ShardLoad) -> f64 {
        let even = self.cpu_percent / self.shards.max(1) as f64;
        if self.events_per_second > 0.0 {
            self.cpu_percent * finite(shard.events_per_second) / self.events_per_second
        } else {
            even
        }
    }

    fn give(&mut self, shard: ShardLoad, cost: f64) {
        self.cpu_percent -= cost;
        self.events_per_second -= finite(shard.events_per_second);
        // How the latency follows cannot be told: one shard at a time.
        self.latency_ms = 0.0;
        self.shards -= 1;
    }

    fn take(&mut self, shard: ShardLoad, cost: f64) {
        self.cpu_percent += cost;
        self.events_per_second += finite(shard.events_per_second);
        self.shards += 1;
        self.room -= 1;
    }
}

fn is_hot(load: &Load) -> bool {
    let latency = load.latency_ms.map_or(0.0, finite);
    finite(load.cpu_percent) > HOT_CPU_PERCENT || latency > HOT_LATENCY_MS
}

fn is_cool(load: &Load) -> bool {
    let latency = load.latency_ms.map_or(0.0, finite);
    finite(load.cpu_percent) < COOL_CPU_PERCENT && latency < COOL_LATENCY_MS
}

/// Heartbeats are others' words: what is no number or negative counts as nothing.
fn finite(value: f64) -> f64 {
    if value.is_finite() {
        value.max(0.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests;
