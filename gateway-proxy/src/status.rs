//! What the process and its shards are doing at this moment: written by the shard tasks, read by the
//! HTTP endpoints, the metrics and the fleet. Decides readiness, nothing else.
//!
//! Counters are relaxed atomics with one writer each: the task that owns the shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::health::{
    FleetHealth, Health, NatsHealth, ProcessStatus as Activity, Readiness, StartupProgress,
};
use schemas::{ProxyId, ShardId, Timestamp};

use crate::fleet::Cluster;

mod shard;
mod usage;

pub use shard::ShardStatus;
pub use usage::Usage;

/// Over how many seconds events/s and CPU are averaged.
const RATE_SECONDS: usize = 5;

/// How often [`ProcessStatus::sample`] wants to be called.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Most shards `/ready` names one by one; the rest is counted.
const REASONS_MAX: usize = 20;

/// Milliseconds since 1970; 0 on a clock before that.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// To a thousandth, for people; a negative zero becomes a plain one.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3 + 0.0
}

/// The state of one process; shared by reference count.
#[derive(Debug)]
pub struct ProcessStatus {
    proxy: ProxyId,
    started: Instant,
    started_unix_ms: u64,
    shards: RwLock<Vec<Arc<ShardStatus>>>,
    holds: Mutex<Holds>,
    nats: Mutex<NatsHealth>,
    nats_connected: AtomicBool,
    unacknowledged: AtomicU64,
    draining: AtomicBool,
    /// Shards of the whole bot; 0 before Discord was asked.
    total_shards: AtomicU32,
    /// Set once and for good when everything was up for the first time.
    was_ready: AtomicBool,
    /// Unix ms when the last queued shard may IDENTIFY; 0: unknown.
    startup_ends_unix_ms: AtomicU64,
    /// Unix ms until which new sessions wait for the budget; 0: they do not.
    budget_reset_unix_ms: AtomicU64,
    /// What the process knows of its fleet.
    fleet: Mutex<Option<FleetHealth>>,
    /// Reads what the whole fleet does, once there is somebody to ask.
    cluster: OnceLock<Cluster>,
    usage: Mutex<UsageTrack>,
}

/// What keeps the process from being ready, by number of its [`Hold`].
#[derive(Debug, Default)]
struct Holds {
    next: u64,
    reasons: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
struct UsageTrack {
    latest: Usage,
    cpu: Average,
}

/// A counter's growth per second over the last [`RATE_SECONDS`].
#[derive(Debug, Default)]
struct Average(VecDeque<(Instant, f64)>);

impl Average {
    fn push(&mut self, now: Instant, total: f64) {
        self.0.push_back((now, total));
        while self.0.len() > RATE_SECONDS + 1 {
            self.0.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let (Some((from, first)), Some((to, last))) = (self.0.front(), self.0.back()) else {
            return 0.0;
        };
        let elapsed = to.saturating_duration_since(*from).as_secs_f64();
        if elapsed > 0.0 {
            (last - first).max(0.0) / elapsed
        } else {
            0.0
        }
    }
}

/// Keeps the process from being ready while it lives; says why.
#[derive(Debug)]
pub struct Hold {
    process: Arc<ProcessStatus>,
    number: u64,
}

impl Hold {
    /// Says something else.
    pub fn set_reason(&self, reason: impl Into<String>) {
        locked(&self.process.holds)
            .reasons
            .insert(self.number, reason.into());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        locked(&self.process.holds).reasons.remove(&self.number);
    }
}

impl ProcessStatus {
    /// A process that just started, with nothing up.
    #[must_use]
    pub fn new(proxy: ProxyId) -> Arc<Self> {
        Arc::new(Self {
            proxy,
            started: Instant::now(),
            started_unix_ms: unix_ms(),
            shards: RwLock::default(),
            holds: Mutex::default(),
            nats: Mutex::default(),
            nats_connected: AtomicBool::new(false),
            unacknowledged: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            total_shards: AtomicU32::new(0),
            was_ready: AtomicBool::new(false),
            startup_ends_unix_ms: AtomicU64::new(0),
            budget_reset_unix_ms: AtomicU64::new(0),
            fleet: Mutex::default(),
            cluster: OnceLock::new(),
            usage: Mutex::default(),
        })
    }

    /// Name of the process.
    #[must_use]
    pub const fn proxy(&self) -> &ProxyId {
        &self.proxy
    }

    /// When the process started, Unix milliseconds.
    #[must_use]
    pub const fn started_unix_ms(&self) -> u64 {
        self.started_unix_ms
    }

    /// Keeps the process from being ready until the result is dropped. Parts that start hold one.
    #[must_use]
    pub fn hold(self: &Arc<Self>, reason: impl Into<String>) -> Hold {
        let mut holds = locked(&self.holds);
        let number = holds.next;
        holds.next += 1;
        holds.reasons.insert(number, reason.into());
        drop(holds);
        Hold {
            process: Arc::clone(self),
            number,
        }
    }

    /// Takes on a shard; one with the same number is replaced.
    pub fn add_shard(&self, shard: ShardId) -> Arc<ShardStatus> {
        let status = Arc::new(ShardStatus::new(shard));
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        match shards.binary_search_by_key(&shard.id(), |one| one.shard().id()) {
            Ok(at) => shards[at] = Arc::clone(&status),
            Err(at) => shards.insert(at, Arc::clone(&status)),
        }
        status
    }

    /// Lets a shard go.
    pub fn remove_shard(&self, id: u32) {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.retain(|one| one.shard().id() != id);
    }

    /// The shards, in the order of their numbers.
    #[must_use]
    pub fn shards(&self) -> Vec<Arc<ShardStatus>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One shard, by its number.
    #[must_use]
    pub fn shard(&self, id: u32) -> Option<Arc<ShardStatus>> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.iter().find(|one| one.shard().id() == id).cloned()
    }

    /// How many shards the whole bot has.
    pub fn set_total_shards(&self, count: u32) {
        self.total_shards.store(count, Ordering::Relaxed);
    }

    /// How many shards the whole bot has, 0 while nobody knows.
    #[must_use]
    pub fn total_shards(&self) -> u32 {
        self.total_shards.load(Ordering::Relaxed)
    }

    /// Which server the process is connected to.
    pub fn set_nats_server(&self, server: String, version: String) {
        let mut nats = locked(&self.nats);
        nats.server = Some(server);
        nats.server_version = Some(version);
    }

    /// Whether NATS is there.
    pub fn set_nats_connected(&self, connected: bool) {
        self.nats_connected.store(connected, Ordering::Relaxed);
    }

    /// True while NATS is there.
    #[must_use]
    pub fn nats_connected(&self) -> bool {
        self.nats_connected.load(Ordering::Relaxed)
    }

    /// Events sent and not yet acknowledged.
    pub fn set_unacknowledged(&self, events: u64) {
        self.unacknowledged.store(events, Ordering::Relaxed);
    }

    /// The process ends: not ready from here on.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// When the last queued shard may IDENTIFY, for the progress of the start.
    pub fn set_startup_end(&self, at_unix_ms: Option<u64>) {
        self.startup_ends_unix_ms
            .store(at_unix_ms.unwrap_or(0), Ordering::Relaxed);
    }

    /// Until when new sessions wait because the day's budget is at its reserve.
    pub fn set_budget_reset(&self, at_unix_ms: Option<u64>) {
        self.budget_reset_unix_ms
            .store(at_unix_ms.unwrap_or(0), Ordering::Relaxed);
    }

    /// Who coordinates, who lives, which plan is followed.
    pub(crate) fn set_fleet(&self, fleet: FleetHealth) {
        let mut known = locked(&self.fleet);
        let unplaced = known.take().map(|known| known.unplaced_shards);
        let coordinates = fleet.coordinator.as_ref() == Some(&self.proxy);
        *known = Some(FleetHealth {
            unplaced_shards: unplaced.filter(|_| coordinates).unwrap_or_default(),
            ..fleet
        });
    }

    /// The shards without a place, as the coordinator sees it.
    pub(crate) fn set_unplaced(&self, shards: Vec<u32>) {
        if let Some(fleet) = &mut *locked(&self.fleet) {
            fleet.unplaced_shards = shards;
        }
    }

    /// From here on `/cluster/state` has somebody to ask.
    pub(crate) fn set_cluster(&self, cluster: Cluster) {
        // A process joins one fleet.
        drop(self.cluster.set(cluster));
    }

    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get()
    }

    /// Who coordinates, as far as known.
    pub(crate) fn coordinator(&self) -> Option<ProxyId> {
        locked(&self.fleet).as_ref()?.coordinator.clone()
    }

    /// Takes one sample of every rate; to be called every [`SAMPLE_EVERY`].
    pub fn sample(&self, now: Instant) {
        for shard in self.shards() {
            shard.sample(now);
        }
        let latest = Usage::read();
        let mut usage = locked(&self.usage);
        usage.cpu.push(now, latest.cpu.as_secs_f64());
        usage.latest = latest;
        drop(usage);
        // Also notes the first time everything is up, should nobody ask.
        drop(self.readiness());
    }

    /// Memory and CPU of the process at the last sample.
    #[must_use]
    pub fn usage(&self) -> Usage {
        locked(&self.usage).latest
    }

    /// Share of one core, in percent.
    #[must_use]
    pub fn cpu_percent(&self) -> f64 {
        locked(&self.usage).cpu.per_second() * 100.0
    }

    /// The body of `/ready`.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("draining".to_owned());
        }
        reasons.extend(locked(&self.holds).reasons.values().cloned());
        if !self.nats_connected() {
            reasons.push("not connected to NATS".to_owned());
        }
        if let Some(until) = instant(&self.budget_reset_unix_ms) {
            reasons.push(format!(
                "new sessions wait for Discord's daily budget until {until}"
            ));
        }
        let mut down = 0_usize;
        for shard in self
            .shards()
            .iter()
            .filter(|shard| !shard.state().is_ready())
        {
            down += 1;
            if down <= REASONS_MAX {
                reasons.push(shard.reason_not_ready());
            }
        }
        if down > REASONS_MAX {
            reasons.push(format!("and {} more shards", down - REASONS_MAX));
        }
        let ready = reasons.is_empty();
        if ready {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        Readiness { ready, reasons }
    }

    /// The body of `/health`.
    #[must_use]
    pub fn health(&self) -> Health {
        let readiness = self.readiness();
        let shards = self.shards();
        let usage = self.usage();
        let started = self.was_ready.load(Ordering::Relaxed);
        let status = match (
            self.draining.load(Ordering::Relaxed),
            readiness.ready,
            started,
        ) {
            (true, _, _) => Activity::Draining,
            (false, true, _) => Activity::Ready,
            (false, false, true) => Activity::Degraded,
            (false, false, false) => Activity::Starting,
        };
        let mut nats = locked(&self.nats).clone();
        nats.connected = self.nats_connected();
        nats.unacknowledged = self.unacknowledged.load(Ordering::Relaxed);
        Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            proxy: self.proxy.clone(),
            status,
            started_at: Timestamp::from_unix_ms(self.started_unix_ms),
            uptime_s: self.started.elapsed().as_secs(),
            memory_bytes: usage.memory_bytes,
            cpu_percent: self.cpu_percent(),
            nats,
            total_shards: Some(self.total_shards.load(Ordering::Relaxed)).filter(|n| *n > 0),
            events_per_second: shards.iter().map(|shard| shard.events_per_second()).sum(),
            startup: (!started).then(|| self.startup(&shards)),
            fleet: locked(&self.fleet).clone(),
            shards: shards.iter().map(|shard| shard.health(unix_ms())).collect(),
        }
    }

    fn startup(&self, shards: &[Arc<ShardStatus>]) -> StartupProgress {
        let up = shards.iter().filter(|shard| shard.was_ready()).count();
        let ends = self.startup_ends_unix_ms.load(Ordering::Relaxed);
        StartupProgress {
            // Never more than 65,536 shards (config::SHARDS_MAX).
            ready: u32::try_from(up).unwrap_or(u32::MAX),
            total: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            remaining_s: (ends > 0).then(|| ends.saturating_sub(unix_ms()).div_ceil(1_000)),
            budget_reset_at: instant(&self.budget_reset_unix_ms),
        }
    }
}

fn instant(unix_ms: &AtomicU64) -> Option<Timestamp> {
    let at = unix_ms.load(Ordering::Relaxed);
    (at > 0).then(|| Timestamp::from_unix_ms(at))
}

/// What these locks guard is valid after every single statement, so a panic elsewhere is no reason
/// to stop reporting.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use schemas::ShardState;

    use super::*;

    fn process() -> Arc<ProcessStatus> {
        ProcessStatus::new("p-1".parse().unwrap())
    }

    fn shard(id: u32) -> ShardId {
        ShardId::new(id, 64).unwrap()
    }

    #[test]
    fn ready_needs_nats_no_holds_and_every_shard() {
        let process = process();
        process.set_nats_connected(true);
        let hold = process.hold("asking Discord");
        let one = process.add_shard(shard(1));
        assert_eq!(
            process.readiness().reasons,
            ["asking Discord", "shard 1: disconnected"]
        );
        hold.set_reason("still asking");
        assert_eq!(process.readiness().reasons[0], "still asking");
        drop(hold);
        one.set_state(ShardState::Ready);
        assert!(process.readiness().ready);
        process.set_nats_connected(false);
        assert_eq!(process.readiness().reasons, ["not connected to NATS"]);
    }

    #[test]
    fn draining_is_never_ready() {
        let process = process();
        process.set_nats_connected(true);
        process.set_draining();
        assert_eq!(process.readiness().reasons, ["draining"]);
        assert_eq!(process.health().status, Activity::Draining);
    }

    #[test]
    fn many_shards_that_are_down_are_named_up_to_a_limit() {
        let process = process();
        process.set_nats_connected(true);
        for id in 0..30 {
            process.add_shard(shard(id));
        }
        let reasons = process.readiness().reasons;
        assert_eq!(reasons.len(), REASONS_MAX + 1);
        assert_eq!(reasons[REASONS_MAX], "and 10 more shards");
    }

    #[test]
    fn a_process_that_was_up_is_degraded_not_starting() {
        let process = process();
        assert_eq!(process.health().status, Activity::Starting);
        assert!(process.health().startup.is_some());
        process.set_nats_connected(true);
        assert_eq!(process.health().status, Activity::Ready);
        process.set_nats_connected(false);
        assert_eq!(process.health().status, Activity::Degraded);
        assert!(process.health().startup.is_none());
    }

    #[test]
    fn shards_stay_in_order_and_a_number_exists_once() {
        let process = process();
        for id in [5, 1, 3, 1] {
            process.add_shard(shard(id));
        }
        let ids: Vec<_> = process
            .shards()
            .iter()
            .map(|one| one.shard().id())
            .collect();
        assert_eq!(ids, [1, 3, 5]);
        process.remove_shard(3);
        assert!(process.shard(3).is_none() && process.shard(5).is_some());
    }

    #[test]
    fn the_wait_for_the_budget_says_until_when() {
        let process = process();
        process.set_nats_connected(true);
        process.set_budget_reset(Some(1_000));
        let reasons = process.readiness().reasons;
        assert!(
            reasons[0].ends_with("until 1970-01-01T00:00:01.000Z"),
            "{reasons:?}"
        );
        process.set_budget_reset(None);
        assert!(process.readiness().ready);
    }

    #[test]
    fn an_average_forgets_what_is_older_than_its_window() {
        let mut average = Average::default();
        assert!(average.per_second().abs() < f64::EPSILON);
        let start = Instant::now();
        average.push(start, 0.0);
        average.push(start + Duration::from_secs(1), 1_000.0);
        assert!((average.per_second() - 1_000.0).abs() < 1e-9);
        for second in 2..20 {
            average.push(start + Duration::from_secs(second), 1_000.0);
        }
        assert!(average.per_second().abs() < f64::EPSILON);
        assert_eq!(average.0.len(), RATE_SECONDS + 1);
    }
}
