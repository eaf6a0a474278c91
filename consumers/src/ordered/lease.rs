//! A member's lease on its shards: the TTL of its key, renewed well before its end. Whoever works
//! under it asks, by the monotonic clock, before it begins anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::WorkerMember;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::registry::{PutError, Registry};

/// How much earlier than the server's the worker's own end of the lease is: what was begun just
/// before still reaches NATS, and two clocks may drift within one TTL.
const MARGIN: Duration = Duration::from_millis(150);
/// Renewals per TTL: three may fail or be late.
const RENEWALS: u32 = 4;
/// Pause between looks at a lease that is not valid at the moment.
const RECHECK: Duration = Duration::from_millis(10);

/// Whether a member may act for its shards.
#[derive(Debug)]
pub(crate) struct Lease {
    origin: Instant,
    /// End, in microseconds after the origin.
    end_us: AtomicU64,
    lost: CancellationToken,
}

impl Lease {
    /// A lease whose key was sent at this moment with this TTL.
    pub(crate) fn new(sent: Instant, ttl: Duration) -> Self {
        let lease = Self {
            origin: sent,
            end_us: AtomicU64::new(0),
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

    fn end(&self) -> Instant {
        self.origin + Duration::from_micros(self.end_us.load(Ordering::Relaxed))
    }

    /// Whether nobody else can hold the member's shards yet.
    pub(crate) fn is_valid(&self) -> bool {
        Instant::now() < self.end() && !self.lost.is_cancelled()
    }

    /// Waits until it is valid; for ever if it is lost.
    pub(crate) async fn valid(&self) {
        while !self.is_valid() {
            sleep(RECHECK).await;
        }
    }

    /// Waits until it has ended for good.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// What is renewed.
pub(crate) struct Keeper {
    pub(crate) lease: Arc<Lease>,
    pub(crate) registry: Registry,
    pub(crate) member: String,
    pub(crate) record: WorkerMember,
    /// Revision of the key.
    pub(crate) revision: u64,
    pub(crate) ttl: Duration,
    /// Turns true when the worker begins to leave.
    pub(crate) leaving: watch::Receiver<bool>,
}

impl Keeper {
    /// Renews until the lease is lost. Without an answer it goes on: the lease stops being valid by
    /// itself, and comes back if NATS does before the key has ended.
    pub(crate) async fn run(mut self) {
        let key = self.registry.member_key(&self.member);
        let mut next = Instant::now() + self.ttl / RENEWALS;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = became_true(&mut self.leaving), if !self.record.leaving => {
                    self.record.leaving = true;
                }
            }
            let sent = Instant::now();
            next = sent + self.ttl / RENEWALS;
            let ttl = Some(self.ttl);
            let writing = self.registry.put(&key, &self.record, self.revision, ttl);
            // An answer after the TTL is of no use.
            match timeout_at(sent + self.ttl, writing).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    self.lease.renewed(sent, self.ttl);
                }
                Ok(Err(PutError::Conflict)) => {
                    match self.registry.get::<WorkerMember>(&key).await {
                        // Ours, from a write whose answer got lost: nobody else uses this key.
                        Ok(Some((_, revision))) => {
                            self.revision = revision;
                            next = Instant::now();
                        }
                        Ok(None) => {
                            self.lease.lost.cancel();
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

async fn became_true(value: &mut watch::Receiver<bool>) {
    if value.wait_for(|value| *value).await.is_err() {
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
        lease.lost.cancel();
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
