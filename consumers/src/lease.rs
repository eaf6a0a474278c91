//! A lease: a key with a TTL, renewed well before its end. Whoever works under it asks, by the
//! monotonic clock, before it begins anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use schemas::{ShareClaim, SingletonLease, WorkerMember, WorkersKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::registry::{PutError, Registry};

/// How much earlier than the server's the worker's own end of the lease is: what was begun just
/// before still reaches NATS, and two clocks may drift within one TTL.
const MARGIN: Duration = Duration::from_millis(150);
/// Renewals per TTL: three may fail or be late.
const RENEWALS: u32 = 4;
/// Pause between looks at a lease that is not valid at the moment.
const RECHECK: Duration = Duration::from_millis(10);
/// Shortest lease: the smallest TTL of NATS.
const LEASE_MIN: Duration = Duration::from_secs(1);
/// Longest lease: so long nothing goes on after a death.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(3600);

/// A lease as NATS can keep it.
pub(crate) fn whole_seconds(length: Duration) -> Duration {
    Duration::from_secs(length.as_secs()).clamp(LEASE_MIN, LEASE_MAX)
}

/// Whether the holder of a key may act for what it leases.
#[derive(Debug)]
pub(crate) struct Lease {
    origin: Instant,
    /// End, in microseconds after the origin.
    end_us: AtomicU64,
    /// Whether `lost` says so: asking that takes a lock, and every event asks.
    is_lost: AtomicBool,
    lost: CancellationToken,
}

impl Lease {
    /// A lease whose key was sent at this moment with this TTL.
    pub(crate) fn new(sent: Instant, ttl: Duration) -> Self {
        let lease = Self {
            origin: sent,
            end_us: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
            lost: CancellationToken::new(),
        };
        lease.renewed(sent, ttl);
        lease
    }

    fn renewed(&self, sent: Instant, ttl: Duration) {
        let end = sent + ttl.saturating_sub(MARGIN);
        let end_us = end.saturating_duration_since(self.origin).as_micros();
        let end_us = u64::try_from(end_us).unwrap_or(u64::MAX);
        self.end_us.fetch_max(end_us, Ordering::Relaxed);
    }

    /// When it ends unless it is renewed.
    pub(crate) fn end(&self) -> Instant {
        self.origin + Duration::from_micros(self.end_us.load(Ordering::Relaxed))
    }

    /// Whether nobody else can hold what it is for yet.
    pub(crate) fn is_valid(&self) -> bool {
        self.is_valid_at(Instant::now())
    }

    /// The same at a moment that just was.
    pub(crate) fn is_valid_at(&self, now: Instant) -> bool {
        now < self.end() && !self.is_lost.load(Ordering::Acquire)
    }

    fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
        self.lost.cancel();
    }

    /// Waits until it is valid; for ever if it is lost.
    pub(crate) async fn valid(&self) {
        while !self.is_valid() {
            sleep(RECHECK).await;
        }
    }

    /// Waits until it is not valid any more.
    pub(crate) async fn ended(&self) {
        while self.is_valid() {
            tokio::select! {
                () = sleep_until(self.end()) => {}
                () = self.lost.cancelled() => {}
            }
        }
    }

    /// Waits until it has ended for good.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// A value that stands for a lease.
pub(crate) trait Leased:
    Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
    /// Whether both are of one holder: nobody takes another one's lease for its own.
    fn is_of(&self, other: &Self) -> bool;
}

impl Leased for WorkerMember {
    // Its key has the name of one life of one worker.
    fn is_of(&self, _: &Self) -> bool {
        true
    }
}

impl Leased for ShareClaim {
    // As above.
    fn is_of(&self, _: &Self) -> bool {
        true
    }
}

impl Leased for SingletonLease {
    fn is_of(&self, other: &Self) -> bool {
        self.member == other.member
    }
}

/// What is renewed.
pub(crate) struct Keeper<T> {
    pub(crate) lease: Arc<Lease>,
    pub(crate) registry: Registry,
    pub(crate) key: WorkersKey,
    /// Written at once when it changes.
    pub(crate) value: watch::Receiver<T>,
    /// Revision of the key.
    pub(crate) revision: u64,
    pub(crate) ttl: Duration,
}

impl<T: Leased> Keeper<T> {
    /// Renews until the lease is lost. Without an answer it goes on: the lease stops being valid by
    /// itself, and comes back if NATS does before the key has ended.
    pub(crate) async fn run(mut self) {
        let mut next = Instant::now() + self.ttl / RENEWALS;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = changed(&mut self.value) => {}
            }
            let value = self.value.borrow_and_update().clone();
            let sent = Instant::now();
            next = sent + self.ttl / RENEWALS;
            let ttl = Some(self.ttl);
            let writing = self.registry.put(&self.key, &value, self.revision, ttl);
            // An answer after the TTL is of no use.
            match timeout_at(sent + self.ttl, writing).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    self.lease.renewed(sent, self.ttl);
                }
                Ok(Err(PutError::Conflict)) => {
                    match self.registry.get::<T>(&self.key).await {
                        // Ours, from a write whose answer got lost.
                        Ok(Some((found, revision))) if found.is_of(&value) => {
                            self.revision = revision;
                            next = Instant::now();
                        }
                        Ok(_) => {
                            self.lease.lose();
                            return;
                        }
                        Err(error) => tracing::debug!(error, "the lease cannot be looked at"),
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "the lease could not be renewed"),
                Err(_) => tracing::debug!("the lease could not be renewed in time"),
            }
        }
    }
}

/// Waits until the value changes; for ever when nobody can change it any more.
pub(crate) async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_before_its_key_does_unless_renewed() {
        let ttl = Duration::from_secs(1);
        let lease = Lease::new(Instant::now(), ttl);
        sleep(Duration::from_millis(849)).await;
        assert!(lease.is_valid());
        sleep(Duration::from_millis(1)).await;
        assert!(!lease.is_valid());
        lease.renewed(Instant::now(), ttl);
        lease.valid().await;
        lease.lose();
        lease.ended().await;
        assert!(!lease.is_valid());
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_renewal_does_not_shorten_a_lease() {
        let (start, ttl) = (Instant::now(), Duration::from_secs(2));
        let lease = Lease::new(start + Duration::from_secs(1), ttl);
        lease.renewed(start, ttl);
        assert_eq!(lease.end(), start + Duration::from_secs(3) - MARGIN);
    }
}
