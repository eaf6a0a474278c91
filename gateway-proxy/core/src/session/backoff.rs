//! How long to wait before the next connection: never at once for ever, whatever the server does.

use std::time::Duration;

/// First delay; it doubles per failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay (twilight waits as long).
const MAX: Duration = Duration::from_secs(128);
/// [`FIRST`] doubled so often is [`MAX`].
const DOUBLINGS_MAX: u32 = 7;
/// A connection whose events flowed so long forgets earlier faults.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// A connection whose events flowed shorter than this counts as a fault, however it ended.
const SHORT_LIVED: Duration = Duration::from_secs(15);

/// How the end of a connection counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The network, or Discord in the course of its business.
    Regular,
    /// Doing the same again may end the same way.
    Fault,
    /// Something we sent: doing it again at once would repeat it.
    Ours,
}

/// Counts what went wrong.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    // Attempts since events last flowed that came to nothing.
    failures: u32,
    // Connections that ended by a fault; forgotten by one that lasts. Apart from `failures`, so that
    // a server that lets events flow for a moment cannot have us connect in a loop.
    faults: u32,
}

impl Backoff {
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Events flow: what was tried before has succeeded.
    pub(super) const fn flow(&mut self) {
        self.failures = 0;
    }

    /// A connection ended. `flowed`: for how long its events did, if they did.
    pub(super) fn end(&mut self, flowed: Option<Duration>, end: End) {
        let Some(flowed) = flowed else {
            self.failures = self.failures.saturating_add(1);
            if end == End::Ours {
                self.fault(2);
            }
            return;
        };
        if flowed >= STABLE_AFTER {
            self.faults = 0;
        }
        match end {
            End::Regular if flowed >= SHORT_LIVED => {}
            End::Regular | End::Fault => self.fault(1),
            End::Ours => self.fault(2),
        }
    }

    /// One fault more, at least so many.
    fn fault(&mut self, at_least: u32) {
        self.faults = self.faults.saturating_add(1).max(at_least);
    }

    /// 0 without failures, then 1, 2, 4 … 128 s, of which the upper half is jittered so that a fleet
    /// that lost its connections together does not return together. The first fault is free.
    pub(super) fn delay(&self, jitter: f64) -> Duration {
        let rounds = self.failures.saturating_add(self.faults.saturating_sub(1));
        let Some(doublings) = rounds.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = FIRST
            .saturating_mul(1 << doublings.min(DOUBLINGS_MAX))
            .min(MAX);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}
