//! Whether a worker can do its job, and if not, why: the source of `/ready`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use schemas::Readiness;
use schemas::health::ProcessStatus;

/// Where a worker stands. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Not pulling yet; the step it is at.
    Starting(Step),
    Running,
    /// Finishes what is in flight.
    Stopping,
}

/// The steps of a start, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Nats,
    Consumer,
    Commands,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Streams whose consumer cannot be used at the moment.
    unusable: BTreeSet<String>,
    connected: bool,
}

/// Shared by the parts of a worker, each of which reports what it knows.
#[derive(Debug)]
pub(crate) struct Status(Mutex<State>);

impl Status {
    pub(crate) const fn new() -> Self {
        let phase = Phase::Starting(Step::Nats);
        Self(Mutex::new(State {
            phase,
            unusable: BTreeSet::new(),
            connected: false,
        }))
    }

    /// Goes on to a later phase; going back does nothing.
    pub(crate) fn advance(&self, to: Phase) {
        self.with(|state| state.phase = state.phase.max(to));
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.with(|state| state.connected = connected);
    }

    pub(crate) fn set_usable(&self, stream: &str, usable: bool) {
        self.with(|state| {
            if usable {
                state.unusable.remove(stream);
            } else {
                state.unusable.insert(stream.to_owned());
            }
        });
    }

    pub(crate) fn connected(&self) -> bool {
        self.with(|state| state.connected)
    }

    pub(crate) fn process(&self) -> ProcessStatus {
        let ready = self.readiness().ready;
        match self.with(|state| state.phase) {
            Phase::Starting(_) => ProcessStatus::Starting,
            Phase::Stopping => ProcessStatus::Draining,
            Phase::Running if ready => ProcessStatus::Ready,
            Phase::Running => ProcessStatus::Degraded,
        }
    }

    /// The body of `/ready`.
    pub(crate) fn readiness(&self) -> Readiness {
        let reasons = self.with(|state| {
            let mut reasons = Vec::new();
            match state.phase {
                Phase::Starting(Step::Nats) => reasons.push("starting: connecting to NATS".into()),
                Phase::Starting(Step::Commands) => {
                    reasons.push("starting: registering commands with Discord".into());
                }
                Phase::Starting(Step::Consumer) => {
                    reasons.push("starting: opening the consumer".into());
                }
                Phase::Running => {}
                Phase::Stopping => reasons.push("stopping".into()),
            }
            if !state.connected && state.phase != Phase::Starting(Step::Nats) {
                reasons.push("NATS is away".into());
            }
            let unusable = state.unusable.iter();
            reasons.extend(unusable.map(|stream| format!("the consumer on {stream} is missing")));
            reasons
        });
        Readiness {
            ready: reasons.is_empty(),
            reasons,
        }
    }

    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        // Every action is a simple assignment, so a panic elsewhere leaves no half of one.
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_ready_when_it_runs_with_nats_and_its_consumers() {
        let status = Status::new();
        assert_eq!(status.readiness().reasons, ["starting: connecting to NATS"]);
        status.set_connected(true);
        status.advance(Phase::Starting(Step::Consumer));
        assert_eq!(
            status.readiness().reasons,
            ["starting: opening the consumer"]
        );
        status.advance(Phase::Running);
        assert!(status.readiness().ready);
        assert_eq!(status.process(), ProcessStatus::Ready);
        status.set_usable("DISCORD_EVENTS", false);
        assert_eq!(
            status.readiness().reasons,
            ["the consumer on DISCORD_EVENTS is missing"]
        );
        status.set_usable("DISCORD_EVENTS", true);
        status.set_connected(false);
        assert_eq!(status.readiness().reasons, ["NATS is away"]);
        assert_eq!(status.process(), ProcessStatus::Degraded);
    }

    #[test]
    fn a_stopping_worker_stays_stopping() {
        let status = Status::new();
        status.set_connected(true);
        status.advance(Phase::Stopping);
        status.advance(Phase::Running);
        assert_eq!(status.readiness().reasons, ["stopping"]);
        assert_eq!(status.process(), ProcessStatus::Draining);
    }
}
