//! The heartbeat of one connection: when the next is due, and whether the peer still lives.

use std::time::{Duration, Instant};

/// Shortest interval honoured: below it a broken HELLO would make us spin.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Longest interval honoured: Discord's is 41 s, and a broken HELLO must not stop the heart.
const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// No connection is dead before it was silent so long: an answer may take that even if the server
/// asks for faster heartbeats.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// Longest `--heartbeat-timeout` that means anything.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A deadline looked at so much too late means that the process was held up (frozen, suspended,
/// starved): frames may lie unread in the socket, so the peer is not to blame for silence.
pub(super) const HELD_UP: Duration = Duration::from_secs(1);

/// What a heartbeat deadline asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing yet.
    NotYet,
    /// Send one.
    Due,
    /// Nothing came in since the last one: the connection is dead.
    Dead,
}

/// Any inbound frame is a sign of life: behind megabytes of dispatches the ACK itself can be late,
/// and a healthy shard must not be killed for it.
#[derive(Debug)]
pub(super) struct Heart {
    interval: Duration,
    timeout: Option<Duration>,
    next: Instant,
    last_inbound: Instant,
    // A regular heartbeat was sent and nothing came in since: still so at the next one means death.
    unanswered: bool,
    // Sent and not acknowledged yet, for the latency.
    awaiting_ack: Option<Instant>,
    latency: Option<Duration>,
    // False while we leave the socket unread: silence is our own then.
    reading: bool,
}

impl Heart {
    /// Starts with HELLO; the first heartbeat comes at `interval × jitter`.
    ///
    /// `timeout` is the silence after which the connection counts as dead. Only heartbeats make a
    /// quiet connection answer, so they come at least twice in that time.
    pub(super) fn new(
        interval: Duration,
        timeout: Option<Duration>,
        jitter: f64,
        now: Instant,
    ) -> Self {
        let timeout = timeout.map(|timeout| timeout.clamp(SILENCE_MIN * 2, TIMEOUT_MAX));
        let interval = interval
            .clamp(INTERVAL_MIN, INTERVAL_MAX)
            .min(timeout.map_or(INTERVAL_MAX, |timeout| timeout / 2));
        Self {
            interval,
            timeout,
            next: now + interval.mul_f64(jitter.clamp(0.0, 1.0)),
            last_inbound: now,
            unanswered: false,
            awaiting_ack: None,
            latency: None,
            reading: true,
        }
    }

    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) const fn latency(&self) -> Option<Duration> {
        self.latency
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.timeout {
            Some(timeout) if self.reading => self.next.min(self.last_inbound + timeout),
            _ => self.next,
        }
    }

    pub(super) const fn handle_inbound(&mut self, now: Instant) {
        self.last_inbound = now;
        self.unanswered = false;
    }

    pub(super) fn handle_ack(&mut self, now: Instant) {
        if let Some(sent) = self.awaiting_ack.take() {
            self.latency = Some(now.saturating_duration_since(sent));
        }
    }

    pub(super) const fn set_reading(&mut self, reading: bool, now: Instant) {
        if reading && !self.reading {
            // What waited in the socket meanwhile has not been looked at.
            self.handle_inbound(now);
            self.awaiting_ack = None;
        }
        self.reading = reading;
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Beat {
        if now.saturating_duration_since(self.deadline()) >= HELD_UP {
            self.handle_inbound(now);
        }
        let silence = now.saturating_duration_since(self.last_inbound);
        if self.reading && self.timeout.is_some_and(|timeout| silence >= timeout) {
            return Beat::Dead;
        }
        if now < self.next {
            return Beat::NotYet;
        }
        if self.reading && self.unanswered && silence >= SILENCE_MIN {
            return Beat::Dead;
        }
        // A process that was held up sends one heartbeat, not all it missed.
        self.next = now + self.interval;
        Beat::Due
    }

    /// A heartbeat went out. The server may answer one it asked for itself a moment before the next
    /// regular one is due, so only those decide about life.
    pub(super) fn sent(&mut self, regular: bool, now: Instant) {
        self.unanswered |= regular;
        self.awaiting_ack.get_or_insert(now);
    }
}
