//! The heartbeat of one connection: when the next is due, and whether the peer still lives.

use std::time::{Duration, Instant};

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
    // The last regular heartbeat; silence since then at the next one means death.
    last_beat: Option<Instant>,
    // Sent and not acknowledged yet, for the latency.
    awaiting_ack: Option<Instant>,
    latency: Option<Duration>,
    reading: bool,
}

/// Shortest interval honoured: below it a broken HELLO would make us spin.
const INTERVAL_MIN: Duration = Duration::from_millis(20);

impl Heart {
    /// Starts with HELLO; the first heartbeat comes at `interval × jitter`.
    pub(super) fn new(
        interval: Duration,
        timeout: Option<Duration>,
        jitter: f64,
        now: Instant,
    ) -> Self {
        let interval = interval.max(INTERVAL_MIN);
        Self {
            interval,
            timeout,
            next: now + interval.mul_f64(jitter.clamp(0.0, 1.0)),
            last_inbound: now,
            last_beat: None,
            awaiting_ack: None,
            latency: None,
            reading: true,
        }
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
    }

    pub(super) fn handle_ack(&mut self, now: Instant) {
        if let Some(sent) = self.awaiting_ack.take() {
            self.latency = Some(now.saturating_duration_since(sent));
        }
    }

    pub(super) fn set_reading(&mut self, reading: bool, now: Instant) {
        if reading && !self.reading {
            // What waited in the socket meanwhile has not been looked at.
            self.last_inbound = now;
            self.awaiting_ack = None;
        }
        self.reading = reading;
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Beat {
        if self.reading
            && let Some(timeout) = self.timeout
            && now.saturating_duration_since(self.last_inbound) >= timeout
        {
            return Beat::Dead;
        }
        if now < self.next {
            return Beat::NotYet;
        }
        let silent = self.last_beat.is_some_and(|beat| self.last_inbound <= beat);
        if self.reading && silent {
            return Beat::Dead;
        }
        // A process that was held up sends one heartbeat, not all it missed.
        self.next = now + self.interval;
        self.last_beat = Some(now);
        Beat::Due
    }

    /// The server asked for one; the regular rhythm goes on.
    pub(super) const fn beat_now(&mut self, now: Instant) {
        self.last_inbound = now;
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.awaiting_ack.get_or_insert(now);
    }
}
