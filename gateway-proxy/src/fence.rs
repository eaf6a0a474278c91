//! The moment until which this process may publish and identify, by the monotonic clock.
//!
//! In a fleet the right ends a little before the process' lease in NATS does, so that whoever takes
//! its shards then meets nobody. Outside a fleet it does not end. What the moment is, is decided by
//! who renews the lease; everybody else only asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Nothing may be done.
const DOWN: u64 = 0;
/// The right does not end.
const ENDLESS: u64 = u64::MAX;

/// The right to act; clones share it.
///
/// Once it has ended it stays ended, also when the lease turns out to hold still: somebody may have
/// acted on the end already. [`Fence::raise`] begins anew.
#[derive(Clone, Debug)]
pub(crate) struct Fence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Instant,
    // Microseconds after `base`, DOWN or ENDLESS.
    until: AtomicU64,
    changed: Notify,
}

impl Fence {
    /// A right without an end: nobody else takes shards from this process unasked.
    pub(crate) fn endless() -> Self {
        Self::with(ENDLESS)
    }

    /// No right as yet.
    pub(crate) fn down() -> Self {
        Self::with(DOWN)
    }

    fn with(until: u64) -> Self {
        Self(Arc::new(Inner {
            base: Instant::now(),
            until: AtomicU64::new(until),
            changed: Notify::new(),
        }))
    }

    /// Whether this process may act at this moment.
    pub(crate) fn holds(&self) -> bool {
        let until = self.0.until.load(Ordering::Acquire);
        if until == ENDLESS || until > self.now() {
            return true;
        }
        if until != DOWN {
            self.lower();
        }
        false
    }

    /// When the right ends, as far as is known now. `None`: it does not.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        match self.0.until.load(Ordering::Acquire) {
            ENDLESS => None,
            until => Some(self.0.base + Duration::from_micros(until)),
        }
    }

    /// Moves the end. `false`: it has come already, and the right must begin anew.
    pub(crate) fn extend(&self, until: Instant) -> bool {
        let to = self.micros(until);
        let mut known = self.0.until.load(Ordering::Acquire);
        loop {
            if known == ENDLESS {
                return true;
            }
            if known == DOWN || known <= self.now() {
                self.lower();
                return false;
            }
            let swapped = self.0.until.compare_exchange_weak(
                known,
                to.max(known),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match swapped {
                Ok(_) => return true,
                Err(other) => known = other,
            }
        }
    }

    /// Begins the right: nothing from before its last end is going on any more.
    pub(crate) fn raise(&self, until: Instant) {
        self.0.until.store(self.micros(until), Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Ends the right now.
    pub(crate) fn lower(&self) {
        self.0.until.store(DOWN, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Waits for the end.
    pub(crate) async fn fallen(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.holds() {
                return;
            }
            match self.ends_at() {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Waits until this process may act.
    pub(crate) async fn raised(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.holds() {
                return;
            }
            changed.await;
        }
    }

    fn now(&self) -> u64 {
        self.micros(Instant::now())
    }

    /// Never one of the two special values.
    fn micros(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.0.base).as_micros();
        u64::try_from(micros)
            .unwrap_or(ENDLESS)
            .clamp(DOWN + 1, ENDLESS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[test]
    fn an_end_that_has_come_is_not_taken_back_by_a_late_renewal() {
        let fence = Fence::down();
        assert!(!fence.holds());
        assert!(!fence.extend(Instant::now() + LONG), "it never began");
        fence.raise(Instant::now());
        // Nobody looked between the end and the renewal.
        assert!(!fence.extend(Instant::now() + LONG));
        assert!(!fence.holds());
        fence.raise(Instant::now() + LONG);
        assert!(fence.holds() && fence.extend(Instant::now() + LONG));
    }

    #[test]
    fn a_right_without_an_end_needs_no_renewal() {
        let fence = Fence::endless();
        assert!(fence.holds() && fence.ends_at().is_none());
        assert!(fence.extend(Instant::now()));
        assert!(fence.holds());
    }

    #[tokio::test]
    async fn waiting_for_the_end_follows_renewals() {
        let fence = Fence::down();
        fence.fallen().await;
        fence.raise(Instant::now() + Duration::from_millis(30));
        let end = Instant::now() + Duration::from_millis(120);
        assert!(fence.extend(end));
        fence.fallen().await;
        assert!(Instant::now() >= end);
        let waiting = fence.clone();
        let waiter = tokio::spawn(async move { waiting.raised().await });
        tokio::task::yield_now().await;
        fence.raise(Instant::now() + LONG);
        waiter.await.unwrap();
    }
}
