//! Tasks that exactly one worker of a bot runs, at an interval. Decides when a run is due; who runs
//! it is decided by a lease, in `worker::singletons`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use schemas::SingletonRun;

use crate::context::WorkerContext;
use crate::lease::{self, Lease};
use crate::router::HandlerError;

/// Lease on a singleton unless it says otherwise: after this time another worker goes on.
const LEASE: Duration = Duration::from_secs(3);
/// Shortest interval: each run is two writes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// What [`SingletonHandler::run`] returns.
pub type RunFuture = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// Runs a singleton. Implemented by every
/// `async fn(WorkerContext, Turn) -> Result<(), HandlerError>`.
///
/// A run that fails or panics is not repeated before the next one is due. One that was cut short,
/// because its worker died, lost NATS or was stopped in the middle, is repeated at once by whichever
/// worker is next.
pub trait SingletonHandler: Send + Sync + 'static {
    /// Starts a run.
    fn run(&self, context: WorkerContext, turn: Turn) -> RunFuture;
}

impl<F, Fut> SingletonHandler for F
where
    F: Fn(WorkerContext, Turn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn run(&self, context: WorkerContext, turn: Turn) -> RunFuture {
        Box::pin(self(context, turn))
    }
}

/// A task that exactly one of the workers with a singleton of this name runs, at an interval.
///
/// ```
/// use std::time::Duration;
///
/// use consumers::{HandlerError, Router, Singleton, Turn, WorkerContext};
///
/// async fn digest(context: WorkerContext, turn: Turn) -> Result<(), HandlerError> {
///     let stats = context.directory().aggregate_stats().await?;
///     // Whatever can tell an older token from a newer one is safe from a worker that was frozen.
///     tracing::info!(token = turn.token(), guilds = stats.guilds, "the digest");
///     Ok(())
/// }
///
/// let router = Router::new().singleton(Singleton::every("digest", Duration::from_secs(3600), digest));
/// ```
#[derive(Clone)]
pub struct Singleton {
    pub(crate) name: String,
    pub(crate) interval: Duration,
    pub(crate) lease: Duration,
    pub(crate) handler: Arc<dyn SingletonHandler>,
}

impl Singleton {
    /// A task with this name (`[A-Za-z0-9_-]{1,32}`), from start to start in this interval, of at
    /// least a second. The first run is at once; one that takes longer than the interval is followed
    /// by the next at once. Runs that were due while no worker was there are made up for by one.
    #[must_use]
    pub fn every(
        name: impl Into<String>,
        interval: Duration,
        handler: impl SingletonHandler,
    ) -> Self {
        Self {
            name: name.into(),
            interval: interval.max(INTERVAL_MIN),
            lease: LEASE,
            handler: Arc::new(handler),
        }
    }

    /// After how long without a sign of life another worker runs the task: 3 s unless set, whole
    /// seconds, from one to an hour.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease::whole_seconds(lease);
        self
    }
}

impl fmt::Debug for Singleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Singleton")
            .field("name", &self.name)
            .field("interval", &self.interval)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// One run of a singleton.
///
/// The worker drops the run before its lease can be another's; a run that blocks its thread, or a
/// request that is on its way already, cannot be called back. Before something that must not happen
/// twice ask [`Turn::is_valid`], or hand [`Turn::token`] to whatever can refuse an older one.
#[derive(Clone, Debug)]
pub struct Turn {
    pub(crate) lease: Arc<Lease>,
    pub(crate) token: u64,
    pub(crate) last_started: Option<SystemTime>,
}

impl Turn {
    /// Whether no other worker can have begun a run yet.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.lease.is_valid()
    }

    /// Until when that is certain. It moves on while the worker is in contact with NATS.
    #[must_use]
    pub fn deadline(&self) -> std::time::Instant {
        self.lease.end().into_std()
    }

    /// The same for all runs of one holder, larger than that of any holder before it.
    #[must_use]
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// When the run before this one began, by the clock of its worker.
    #[must_use]
    pub const fn last_started(&self) -> Option<SystemTime> {
        self.last_started
    }
}

/// How long to wait for the next run.
pub(crate) fn wait(last: Option<&SingletonRun>, interval: Duration, now_unix_ms: u64) -> Duration {
    let Some(last) = last.filter(|last| last.finished_unix_ms.is_some()) else {
        // The first, or one that was cut short.
        return Duration::ZERO;
    };
    let passed = Duration::from_millis(now_unix_ms.saturating_sub(last.started_unix_ms));
    // Of a run in the future (clocks differ) nothing has passed: never longer than the interval.
    interval.saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn run(started_unix_ms: u64, finished_unix_ms: Option<u64>) -> SingletonRun {
        SingletonRun {
            worker: "w".to_owned(),
            token: 1,
            started_unix_ms,
            finished_unix_ms,
        }
    }

    #[test]
    fn the_first_run_is_at_once_and_so_is_one_that_was_cut_short() {
        assert_eq!(wait(None, MINUTE, 100_000), Duration::ZERO);
        let cut = run(99_000, None);
        assert_eq!(wait(Some(&cut), MINUTE, 100_000), Duration::ZERO);
    }

    #[test]
    fn runs_are_an_interval_apart_from_start_to_start() {
        let last = run(90_000, Some(95_000));
        let left = |now| wait(Some(&last), MINUTE, now);
        assert_eq!(left(100_000), Duration::from_secs(50));
        assert_eq!(left(150_000), Duration::ZERO);
        assert_eq!(left(900_000), Duration::ZERO, "many intervals are one run");
        assert_eq!(left(10_000), MINUTE, "a run in the future");
    }
}
