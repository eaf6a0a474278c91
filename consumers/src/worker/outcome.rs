//! What became of one delivery of an interaction, and what the stream is told about it. Pure.

use std::time::Duration;

use async_nats::jetstream::AckKind;

/// Pause before a delivery that was given back is delivered again, to another worker perhaps.
const GIVE_BACK_PAUSE: Duration = Duration::from_millis(100);

/// The same for one that has no handler here: another worker is to have it soon.
const LEAVE_PAUSE: Duration = Duration::from_millis(20);

/// How one delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Discord took our answer.
    Answered,
    /// Discord had an answer already, from an earlier delivery.
    AlreadyAnswered,
    /// The handler failed; the user got an apology if possible.
    Failed,
    /// No handler here, perhaps at a worker of another version.
    LeftToOthers,
    /// No handler at any worker that was asked; another consumer's may have one.
    Unhandled,
    /// Discord's 3 seconds were over on arrival.
    Stale,
    /// No interaction that we can read.
    Undecodable,
    /// Discord does not know the interaction any more.
    Expired,
    /// Discord refuses the answer itself.
    Refused,
    /// Discord could not be reached; given back with time left.
    GivenBack,
    /// Discord could not be reached before the 3 seconds were over.
    Unreachable,
}

impl Outcome {
    /// The name in metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::AlreadyAnswered => "already_answered",
            Self::Failed => "failed",
            Self::LeftToOthers => "left_to_others",
            Self::Unhandled => "unhandled",
            Self::Stale => "stale",
            Self::Undecodable => "undecodable",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::GivenBack => "given_back",
            Self::Unreachable => "unreachable",
        }
    }

    /// What JetStream is told: done, deliver again, or never again.
    pub(crate) const fn settlement(self) -> AckKind {
        match self {
            Self::Answered | Self::AlreadyAnswered | Self::Failed | Self::Unhandled => AckKind::Ack,
            Self::GivenBack => AckKind::Nak(Some(GIVE_BACK_PAUSE)),
            Self::LeftToOthers => AckKind::Nak(Some(LEAVE_PAUSE)),
            Self::Stale | Self::Undecodable | Self::Expired | Self::Refused | Self::Unreachable => {
                AckKind::Term
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interaction_is_delivered_again_only_if_that_can_help() {
        use Outcome::{
            AlreadyAnswered, Answered, Expired, Failed, GivenBack, LeftToOthers, Refused, Stale,
            Undecodable, Unhandled, Unreachable,
        };
        for done in [Answered, AlreadyAnswered, Failed, Unhandled] {
            assert!(matches!(done.settlement(), AckKind::Ack), "{done:?}");
        }
        for hopeless in [Stale, Undecodable, Expired, Refused, Unreachable] {
            assert!(
                matches!(hopeless.settlement(), AckKind::Term),
                "{hopeless:?}"
            );
        }
        for again in [GivenBack, LeftToOthers] {
            assert!(matches!(again.settlement(), AckKind::Nak(Some(_))));
        }
    }
}
