//! Stops granting while IDENTIFYs bring no session: each costs one of a thousand a day.

use std::time::{Duration, Instant};

/// Failures in a row after which grants pause. Above the 16 that one bad moment of a large bot costs.
pub const FAILURES_MAX: u32 = 20;
/// First pause; each failed try doubles it.
const PAUSE: Duration = Duration::from_secs(30);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// How long one try may take before the next is made: as long as a shard waits for READY.
const TRY_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    // No grant before; set while tripped.
    pause_until: Option<Instant>,
    // The one grant that is tried while tripped.
    trying_until: Option<Instant>,
}

impl Breaker {
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// A predecessor's failures.
    pub(super) fn learn(&mut self, failures: u32) {
        self.failures = failures.min(FAILURES_MAX);
    }

    /// Until when nothing is granted.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.pause_until
            .max(self.trying_until)
            .filter(|until| now < *until)
    }

    /// How many may be granted at once now.
    pub(super) fn room(&self, now: Instant) -> usize {
        match (self.paused_until(now), self.is_tripped()) {
            (Some(_), _) => 0,
            (None, true) => 1,
            (None, false) => usize::MAX,
        }
    }

    pub(super) fn granted(&mut self, now: Instant) {
        if self.is_tripped() {
            self.trying_until = Some(now + TRY_TIMEOUT);
        }
    }

    pub(super) fn unused(&mut self) {
        self.trying_until = None;
    }

    pub(super) fn ready(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let Some(more) = self.failures.checked_sub(FAILURES_MAX) else {
            return;
        };
        // Those that were granted together fail together: one pause for all of them.
        if self.trying_until.take().is_some() || more == 0 {
            let doubled = PAUSE * 2_u32.pow(more.min(5));
            self.pause_until = Some(now + doubled.min(PAUSE_MAX));
        }
    }

    const fn is_tripped(&self) -> bool {
        self.failures >= FAILURES_MAX
    }
}
