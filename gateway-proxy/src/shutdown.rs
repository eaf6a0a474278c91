//! The phases a stop goes through, and the signals that start it. Knows no part of the program; the
//! parts ask where the process stands and wait for a phase.
//!
//! `Running → Draining → Releasing → Stopped`: *draining* hands shards over and lets go of the rest, each
//! as `holder` does; *releasing* has given the leases back; *stopped* lets the HTTP endpoint and telemetry
//! end. Phases only go forward.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::exit::{Fatal, Signal};

/// Where the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Working.
    Running,
    /// No new work; shards are handed over or let go of.
    Draining,
    /// Records are written, sockets are closed, leases are given back.
    Releasing,
    /// Nothing is left to do.
    Stopped,
}

/// A handle on the phase; clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    phase: watch::Sender<Phase>,
    draining: CancellationToken,
    grace_period: Duration,
}

impl Shutdown {
    /// A running process whose drain may take `grace_period`.
    #[must_use]
    pub fn new(grace_period: Duration) -> Self {
        let (phase, _) = watch::channel(Phase::Running);
        Self {
            phase,
            draining: CancellationToken::new(),
            grace_period,
        }
    }

    /// The phase at this moment.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// True from the first signal on.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Completes when the drain begins; at once if it has begun.
    pub async fn cancelled(&self) {
        self.draining.cancelled().await;
    }

    /// The token that is cancelled when the drain begins, for `select!`s and child tokens.
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.draining
    }

    /// How long the drain may take before what is left is given up.
    #[must_use]
    pub const fn grace_period(&self) -> Duration {
        self.grace_period
    }

    /// Goes on to a later phase; going back does nothing.
    pub fn advance(&self, to: Phase) {
        let advanced = self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            if later {
                *phase = to;
            }
            later
        });
        if !advanced {
            return;
        }
        tracing::info!(phase = ?to, "shutdown phase");
        if to >= Phase::Draining {
            self.draining.cancel();
        }
    }

    /// Completes when the phase is `at_least` this one.
    pub async fn reached(&self, at_least: Phase) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as self, so this cannot fail.
        drop(phase.wait_for(|phase| *phase >= at_least).await);
    }

    /// Runs `work` until it ends. The first SIGTERM or SIGINT starts the drain and `work` goes on;
    /// the second one drops `work` where it stands.
    ///
    /// # Errors
    /// What `work` returns, or [`Fatal::Interrupted`] after a second signal.
    pub async fn guard(&self, work: impl Future<Output = Result<(), Fatal>>) -> Result<(), Fatal> {
        let no_signals = |error| Fatal::bug(format!("cannot listen for signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        tokio::pin!(work);
        loop {
            let signal = tokio::select! {
                outcome = &mut work => return outcome,
                _ = interrupt.recv() => Signal::Interrupt,
                _ = terminate.recv() => Signal::Terminate,
            };
            if self.draining() {
                tracing::warn!(%signal, "second signal: stopping without draining");
                return Err(Fatal::Interrupted(signal));
            }
            tracing::info!(%signal, grace = ?self.grace_period, "draining; a second signal stops at once");
            self.advance(Phase::Draining);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        assert_eq!(shutdown.phase(), Phase::Running);
        assert!(!shutdown.draining());
        shutdown.advance(Phase::Releasing);
        shutdown.advance(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Releasing);
        assert!(shutdown.draining());
    }

    #[tokio::test]
    async fn a_clone_sees_the_drain_and_whoever_asks_later_too() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        let seen = shutdown.clone();
        let waiter = tokio::spawn(async move { seen.cancelled().await });
        shutdown.advance(Phase::Draining);
        waiter.await.unwrap();
        shutdown.cancelled().await;
    }

    #[tokio::test]
    async fn skipping_to_stopped_also_counts_as_draining() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        shutdown.advance(Phase::Stopped);
        shutdown.cancelled().await;
        shutdown.reached(Phase::Releasing).await;
    }

    #[tokio::test]
    async fn the_guard_returns_what_the_work_returns() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        assert_eq!(shutdown.guard(async { Ok(()) }).await, Ok(()));
        let fatal = Fatal::bug("x");
        assert_eq!(
            shutdown.guard(async { Err(Fatal::bug("x")) }).await,
            Err(fatal)
        );
    }
}
