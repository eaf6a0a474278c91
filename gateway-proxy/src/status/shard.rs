//! One shard's live numbers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gateway_proxy_core::silence::Pulse;
use schemas::health::ShardHealth;
use schemas::{ShardId, ShardState};

use super::{Average, locked, rounded, unix_ms};

/// Guilds before READY: not zero, but unknown.
const GUILDS_UNKNOWN: i64 = -1;

/// Written by the shard's task alone, read by everybody.
#[derive(Debug)]
pub struct ShardStatus {
    shard: ShardId,
    state: AtomicU8,
    was_ready: AtomicBool,
    events: AtomicU64,
    bytes: AtomicU64,
    /// 0: none; Discord's sequences begin at 1.
    last_seq: AtomicU64,
    acked_seq: AtomicU64,
    guilds: AtomicI64,
    /// 0: not measured.
    latency_us: AtomicU64,
    /// 0: no session.
    session_started_unix_ms: AtomicU64,
    changed_unix_ms: AtomicU64,
    reconnects: AtomicU64,
    resumes: AtomicU64,
    identifies: AtomicU64,
    gaps: AtomicU64,
    pulse: AtomicU8,
    /// 0: no silence is suspected.
    patience_ms: AtomicU64,
    /// It has fallen silent though heartbeats are acknowledged.
    silent: AtomicBool,
    texts: Mutex<Texts>,
    rate: Mutex<Average>,
}

#[derive(Debug, Default)]
struct Texts {
    session_id: Option<String>,
    reason: Option<String>,
}

/// A relaxed load and store: half the cost of an atomic addition, right for one writer.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(count),
        Ordering::Relaxed,
    );
}

impl ShardStatus {
    /// A shard without a connection.
    pub(super) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            state: AtomicU8::new(index(ShardState::Disconnected)),
            was_ready: AtomicBool::new(false),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            last_seq: AtomicU64::new(0),
            acked_seq: AtomicU64::new(0),
            guilds: AtomicI64::new(GUILDS_UNKNOWN),
            latency_us: AtomicU64::new(0),
            session_started_unix_ms: AtomicU64::new(0),
            changed_unix_ms: AtomicU64::new(unix_ms()),
            reconnects: AtomicU64::new(0),
            resumes: AtomicU64::new(0),
            identifies: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            patience_ms: AtomicU64::new(0),
            pulse: AtomicU8::new(pulse_index(Pulse::Unknown)),
            silent: AtomicBool::new(false),
            texts: Mutex::default(),
            rate: Mutex::default(),
        }
    }

    /// Which shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> ShardState {
        STATES[usize::from(self.state.load(Ordering::Relaxed)) % STATES.len()]
    }

    /// Goes on to another state; the reason for not being ready is forgotten.
    pub fn set_state(&self, state: ShardState) {
        self.state.store(index(state), Ordering::Relaxed);
        self.changed_unix_ms.store(unix_ms(), Ordering::Relaxed);
        if state.is_ready() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        locked(&self.texts).reason = None;
    }

    /// Unix ms of the last change of state.
    #[must_use]
    pub fn changed_unix_ms(&self) -> u64 {
        self.changed_unix_ms.load(Ordering::Relaxed)
    }

    /// True when it has been up once.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Why it is not ready, for people; until the next change of state.
    pub fn set_reason(&self, reason: impl Into<String>) {
        locked(&self.texts).reason = Some(reason.into());
    }

    /// One dispatch came in: `bytes` of JSON.
    pub fn count_event(&self, bytes: usize) {
        add(&self.events, 1);
        add(&self.bytes, bytes as u64);
    }

    /// Dispatches since the process started.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Their bytes of JSON.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A session began.
    pub fn set_session(&self, session_id: &str, started_unix_ms: u64) {
        locked(&self.texts).session_id = Some(session_id.to_owned());
        self.session_started_unix_ms
            .store(started_unix_ms, Ordering::Relaxed);
    }

    /// The session is gone.
    pub fn clear_session(&self) {
        locked(&self.texts).session_id = None;
        for number in [
            &self.session_started_unix_ms,
            &self.last_seq,
            &self.acked_seq,
        ] {
            number.store(0, Ordering::Relaxed);
        }
    }

    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> Option<String> {
        locked(&self.texts).session_id.clone()
    }

    /// Unix ms of the session's READY.
    #[must_use]
    pub fn session_started_unix_ms(&self) -> Option<u64> {
        some(&self.session_started_unix_ms)
    }

    /// Highest sequence received.
    pub fn set_last_seq(&self, seq: u64) {
        self.last_seq.store(seq, Ordering::Relaxed);
    }

    /// Highest sequence received in the session.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        some(&self.last_seq)
    }

    /// Highest sequence up to which everything is acknowledged.
    pub fn set_acked_seq(&self, seq: u64) {
        self.acked_seq.store(seq, Ordering::Relaxed);
    }

    /// Where a resume would start.
    #[must_use]
    pub fn acked_seq(&self) -> Option<u64> {
        some(&self.acked_seq)
    }

    /// READY said how many guilds there are.
    pub fn set_guilds(&self, count: u32) {
        self.guilds.store(i64::from(count), Ordering::Relaxed);
    }

    /// A guild was joined (+1) or left (−1); nothing before READY.
    pub fn add_guilds(&self, change: i64) {
        let guilds = self.guilds.load(Ordering::Relaxed);
        if guilds >= 0 {
            self.guilds
                .store(guilds.saturating_add(change).max(0), Ordering::Relaxed);
        }
    }

    /// Guilds on the shard; `None` before READY.
    #[must_use]
    pub fn guilds(&self) -> Option<u32> {
        u32::try_from(self.guilds.load(Ordering::Relaxed)).ok()
    }

    /// A heartbeat's round trip.
    pub fn set_latency(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        self.latency_us.store(us, Ordering::Relaxed);
    }

    /// The last heartbeat's round trip.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        some(&self.latency_us).map(Duration::from_micros)
    }

    /// A connection after the first was made.
    pub fn count_reconnect(&self) {
        add(&self.reconnects, 1);
    }

    /// A session was carried on.
    pub fn count_resume(&self) {
        add(&self.resumes, 1);
    }

    /// An IDENTIFY was sent.
    pub fn count_identify(&self) {
        add(&self.identifies, 1);
    }

    /// A gap was announced.
    pub fn count_gap(&self) {
        add(&self.gaps, 1);
    }

    /// Whether it delivers at this moment, for the judgement of others.
    pub(crate) fn set_pulse(&self, pulse: Pulse) {
        self.pulse.store(pulse_index(pulse), Ordering::Relaxed);
    }

    /// Whether it delivers at this moment.
    pub(crate) fn pulse(&self) -> Pulse {
        PULSES[usize::from(self.pulse.load(Ordering::Relaxed)) % PULSES.len()]
    }

    /// How long a silence must last to be suspected; `None`: none is.
    pub fn set_patience(&self, patience: Option<Duration>) {
        let ms = patience.map_or(0, |patience| patience.as_millis());
        self.patience_ms
            .store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long a silence must last to be suspected.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        some(&self.patience_ms).map(Duration::from_millis)
    }

    /// Whether it has fallen silent though heartbeats are acknowledged.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// IDENTIFYs sent since the process started.
    #[must_use]
    pub fn identifies(&self) -> u64 {
        self.identifies.load(Ordering::Relaxed)
    }

    /// Events per second over the last few seconds.
    #[must_use]
    pub fn events_per_second(&self) -> f64 {
        locked(&self.rate).per_second()
    }

    pub(super) fn sample(&self, now: Instant) {
        // Exact up to 2^53 events; a rate needs no more.
        locked(&self.rate).push(now, self.events() as f64);
    }

    pub(super) fn reason_not_ready(&self) -> String {
        let id = self.shard.id();
        match &locked(&self.texts).reason {
            Some(reason) => format!("shard {id}: {}, {reason}", self.state()),
            None => format!("shard {id}: {}", self.state()),
        }
    }

    pub(super) fn health(&self, now_unix_ms: u64) -> ShardHealth {
        let age = |since: u64| now_unix_ms.saturating_sub(since) / 1_000;
        ShardHealth {
            shard: self.shard,
            status: self.state(),
            guilds: self.guilds(),
            latency_ms: self
                .latency()
                .map(|latency| rounded(latency.as_secs_f64() * 1_000.0)),
            events_per_second: rounded(self.events_per_second()),
            events_total: self.events(),
            session_age_s: self.session_started_unix_ms().map(age),
            last_seq: self.last_seq(),
            acknowledged_seq: self.acked_seq(),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            resumes: self.resumes.load(Ordering::Relaxed),
            identifies: self.identifies(),
            gaps: self.gaps.load(Ordering::Relaxed),
            silent: self.silent.load(Ordering::Relaxed),
            reason: locked(&self.texts).reason.clone(),
        }
    }
}

const STATES: [ShardState; 8] = [
    ShardState::Disconnected,
    ShardState::Connecting,
    ShardState::Queued,
    ShardState::Identifying,
    ShardState::Resuming,
    ShardState::Ready,
    ShardState::Failed,
    ShardState::Unknown,
];

const fn index(state: ShardState) -> u8 {
    match state {
        ShardState::Disconnected => 0,
        ShardState::Connecting => 1,
        ShardState::Queued => 2,
        ShardState::Identifying => 3,
        ShardState::Resuming => 4,
        ShardState::Ready => 5,
        ShardState::Failed => 6,
        ShardState::Unknown => 7,
    }
}

const PULSES: [Pulse; 3] = [Pulse::Unknown, Pulse::Awake, Pulse::Asleep];

const fn pulse_index(pulse: Pulse) -> u8 {
    match pulse {
        Pulse::Unknown => 0,
        Pulse::Awake => 1,
        Pulse::Asleep => 2,
    }
}

fn some(number: &AtomicU64) -> Option<u64> {
    Some(number.load(Ordering::Relaxed)).filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> ShardStatus {
        ShardStatus::new(ShardId::new(3, 16).unwrap())
    }

    #[test]
    fn every_state_survives_the_atomic() {
        let shard = shard();
        for state in STATES {
            shard.set_state(state);
            assert_eq!(shard.state(), state);
        }
    }

    #[test]
    fn every_pulse_survives_the_atomic() {
        let shard = shard();
        for pulse in PULSES {
            shard.set_pulse(pulse);
            assert_eq!(shard.pulse(), pulse);
        }
    }

    #[test]
    fn unknown_numbers_are_absent_not_zero() {
        let health = shard().health(1_000);
        assert_eq!(
            (health.guilds, health.last_seq, health.session_age_s),
            (None, None, None)
        );
        assert_eq!((health.latency_ms, health.acknowledged_seq), (None, None));
    }

    #[test]
    fn a_session_has_an_age_and_ends_with_its_sequences() {
        let shard = shard();
        shard.set_session("abc", 5_000);
        shard.set_last_seq(7);
        shard.set_acked_seq(6);
        let health = shard.health(65_000);
        assert_eq!(health.session_age_s, Some(60));
        assert_eq!(
            (health.last_seq, health.acknowledged_seq),
            (Some(7), Some(6))
        );
        shard.clear_session();
        assert_eq!((shard.session_id(), shard.last_seq()), (None, None));
    }

    #[test]
    fn guilds_are_counted_from_ready_on_and_never_below_zero() {
        let shard = shard();
        shard.add_guilds(1);
        assert_eq!(shard.guilds(), None);
        shard.set_guilds(1);
        shard.add_guilds(-2);
        assert_eq!(shard.guilds(), Some(0));
    }

    #[test]
    fn events_per_second_come_from_samples() {
        let shard = shard();
        let start = Instant::now();
        shard.sample(start);
        for _ in 0..50 {
            shard.count_event(100);
        }
        shard.sample(start + Duration::from_secs(2));
        assert!((shard.events_per_second() - 25.0).abs() < 1e-9);
        assert_eq!((shard.events(), shard.bytes()), (50, 5_000));
    }

    #[test]
    fn the_reason_is_said_until_the_state_changes() {
        let shard = shard();
        shard.set_state(ShardState::Queued);
        shard.set_reason("budget at its reserve");
        assert_eq!(
            shard.reason_not_ready(),
            "shard 3: queued, budget at its reserve"
        );
        shard.set_state(ShardState::Connecting);
        assert_eq!(shard.reason_not_ready(), "shard 3: connecting");
    }
}
