//! What workers do among themselves and with shards: messages, singletons, gateway commands.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::InFlight;
use crate::messages::Address;

/// What became of a message between workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MessageOutcome {
    Handled,
    /// The handler failed, panicked or was too slow.
    Failed,
    /// Came when it was not for this worker any more.
    Refused,
    /// Handled, but the answer was longer than NATS takes.
    TooLarge,
}

impl EncodeLabelValue for MessageOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Handled => "handled",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
        };
        name.encode(encoder)
    }
}

/// What became of a run of a singleton.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RunOutcome {
    Finished,
    /// The handler failed or panicked.
    Failed,
    /// The lease was over before the run was.
    CutShort,
}

impl EncodeLabelValue for RunOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::CutShort => "cut_short",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    singleton: String,
    outcome: RunOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SingletonLabels {
    singleton: String,
}

/// What became of a gateway command that this worker sent to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CommandOutcome {
    Sent,
    /// It waits for its turn at the proxy.
    Queued,
    /// The proxy will not send it.
    Rejected,
    /// No proxy holds the shard.
    NobodyHolds,
    /// It was too long, or NATS or the reply failed.
    Failed,
}

impl EncodeLabelValue for CommandOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Sent => "sent",
            Self::Queued => "queued",
            Self::Rejected => "rejected",
            Self::NobodyHolds => "nobody_holds",
            Self::Failed => "failed",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    outcome: CommandOutcome,
}

/// What commands to shards are counted by; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandMetrics(Family<CommandLabels, Counter>);

impl CommandMetrics {
    pub(crate) fn count(&self, outcome: CommandOutcome) {
        self.0.get_or_create(&CommandLabels { outcome }).inc();
    }
}

/// Topics are the program's, so there are few; shards are told by other instruments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    to: String,
    outcome: MessageOutcome,
}

/// The instruments.
#[derive(Debug, Default)]
pub(crate) struct AmongMetrics {
    commands: CommandMetrics,
    messages: Family<MessageLabels, Counter>,
    runs: Family<RunLabels, Counter>,
    singletons: Family<SingletonLabels, Gauge<i64, AtomicI64>>,
}

impl AmongMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Gateway commands to shards by what became of them";
        registry.register("commands", help, self.commands.0.clone());
        let help = "Messages between workers by what became of them";
        registry.register("messages", help, self.messages.clone());
        let help = "Runs of singletons by what became of them";
        registry.register("singleton_runs", help, self.runs.clone());
        let help = "Whether this worker is the one that runs the singleton";
        registry.register("singleton_held", help, self.singletons.clone());
    }

    /// For the commands that this worker sends to shards.
    pub(crate) const fn commands(&self) -> &CommandMetrics {
        &self.commands
    }

    pub(crate) fn message(&self, to: &Address, outcome: MessageOutcome) {
        let to = match to {
            Address::Topic(topic) => topic.to_string(),
            Address::Shard(_) => "shard".to_owned(),
        };
        let labels = MessageLabels { to, outcome };
        self.messages.get_or_create(&labels).inc();
    }

    /// Counts a singleton as this worker's while the answer lives.
    pub(crate) fn singleton_held(&self, singleton: &str) -> InFlight {
        let singleton = singleton.to_owned();
        let held = self
            .singletons
            .get_or_create(&SingletonLabels { singleton });
        let held = held.clone();
        held.inc();
        InFlight(held)
    }

    pub(crate) fn singleton_ran(&self, singleton: &str, outcome: RunOutcome) {
        let singleton = singleton.to_owned();
        let labels = RunLabels { singleton, outcome };
        self.runs.get_or_create(&labels).inc();
    }
}
