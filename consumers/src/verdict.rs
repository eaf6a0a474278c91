//! What becomes of an event after a handler has seen it. Pure.

use std::time::Duration;

/// What a handler says about an event it took. `()` is [`Verdict::Done`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Handled: never delivered again.
    #[default]
    Done,
    /// Not now: deliver it again after the pause, or after the usual one. Counts as an attempt.
    Retry(Option<Duration>),
    /// Never again, and it need not be kept: out of date, not meant for us.
    Discard,
    /// Never again, but keep it in the dead-letter stream with this reason.
    Dead(String),
}

impl From<()> for Verdict {
    fn from((): ()) -> Self {
        Self::Done
    }
}

/// How often and after which pauses an event is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempts {
    pub(crate) most: u32,
    /// Pause after the first failure, the second, …; the last one repeats.
    pub(crate) pauses: Vec<Duration>,
}

/// Attempts unless a program says otherwise: with the pauses below some 12 seconds, enough for a
/// short trouble of a database, and not so long that nobody notices a mistake.
const ATTEMPTS: u32 = 5;
const PAUSES: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(8),
];

impl Default for Attempts {
    fn default() -> Self {
        Self {
            most: ATTEMPTS,
            pauses: PAUSES.to_vec(),
        }
    }
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Verdict(Verdict),
    /// The handler failed, panicked or hung; the text says how.
    Failed(String),
    /// The frame does not decode and nobody takes it raw.
    Undecodable(String),
    /// Nobody handles it here.
    Unhandled,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Done with it.
    Ack(Finished),
    /// Another attempt after this pause.
    Again(Duration),
    /// To the dead-letter stream, with the reason.
    Bury(String),
}

/// Ways to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Finished {
    Handled,
    Discarded,
    Unhandled,
}

impl Ended {
    /// How the event is done with, if an acknowledgement is all that is left to do. The same as what
    /// [`Attempts::next`] says, without taking it away.
    pub(crate) const fn finished(&self) -> Option<Finished> {
        match self {
            Self::Verdict(Verdict::Done) => Some(Finished::Handled),
            Self::Verdict(Verdict::Discard) => Some(Finished::Discarded),
            Self::Unhandled => Some(Finished::Unhandled),
            Self::Verdict(Verdict::Retry(_) | Verdict::Dead(_))
            | Self::Failed(_)
            | Self::Undecodable(_) => None,
        }
    }
}

impl Attempts {
    /// Decides after the attempt with this number, counted from 1.
    pub(crate) fn next(&self, ended: Ended, attempt: u32) -> Next {
        match ended {
            Ended::Verdict(Verdict::Done) => Next::Ack(Finished::Handled),
            Ended::Verdict(Verdict::Discard) => Next::Ack(Finished::Discarded),
            Ended::Unhandled => Next::Ack(Finished::Unhandled),
            Ended::Verdict(Verdict::Dead(reason)) | Ended::Undecodable(reason) => {
                Next::Bury(reason)
            }
            Ended::Verdict(Verdict::Retry(pause)) => {
                self.again(attempt, pause, "the handler asks for another attempt")
            }
            Ended::Failed(reason) => self.again(attempt, None, &reason),
        }
    }

    fn again(&self, attempt: u32, pause: Option<Duration>, reason: &str) -> Next {
        if attempt >= self.most {
            let times = if attempt == 1 { "time" } else { "times" };
            return Next::Bury(format!("tried {attempt} {times}: {reason}"));
        }
        Next::Again(pause.unwrap_or_else(|| self.pause(attempt)))
    }

    /// Pause after the failure of this attempt.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let last = self.pauses.last().copied().unwrap_or_default();
        self.pauses.get(index).copied().unwrap_or(last)
    }

    /// Deliveries after which an event is given up unseen. A handler that fails is counted by its
    /// worker; one that takes its worker down with it, only by the stream. Hand-overs between
    /// workers count there too, hence the room.
    pub(crate) fn deliveries_max(&self) -> u64 {
        u64::from(self.most) * 2 + 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts() -> Attempts {
        Attempts {
            most: 3,
            pauses: vec![Duration::from_millis(10), Duration::from_millis(20)],
        }
    }

    #[test]
    fn a_failing_event_is_tried_with_growing_pauses_and_then_buried_with_the_reason() {
        let fail = |attempt| attempts().next(Ended::Failed("no luck".into()), attempt);
        assert_eq!(fail(1), Next::Again(Duration::from_millis(10)));
        assert_eq!(fail(2), Next::Again(Duration::from_millis(20)));
        assert_eq!(fail(3), Next::Bury("tried 3 times: no luck".into()));
        assert_eq!(attempts().pause(9), Duration::from_millis(20));
    }

    #[test]
    fn a_handler_decides_about_its_event() {
        let verdict = |verdict| attempts().next(Ended::Verdict(verdict), 1);
        assert_eq!(verdict(Verdict::Done), Next::Ack(Finished::Handled));
        assert_eq!(verdict(().into()), Next::Ack(Finished::Handled));
        assert_eq!(verdict(Verdict::Discard), Next::Ack(Finished::Discarded));
        assert_eq!(verdict(Verdict::Dead("x".into())), Next::Bury("x".into()));
        let pause = Duration::from_secs(60);
        assert_eq!(verdict(Verdict::Retry(Some(pause))), Next::Again(pause));
        assert_eq!(
            verdict(Verdict::Retry(None)),
            Next::Again(Duration::from_millis(10))
        );
        let last = attempts().next(Ended::Verdict(Verdict::Retry(None)), 3);
        assert!(matches!(last, Next::Bury(_)));
    }

    #[test]
    fn what_is_done_with_is_known_beforehand() {
        for ended in [
            Ended::Verdict(Verdict::Done),
            Ended::Verdict(Verdict::Discard),
            Ended::Verdict(Verdict::Retry(None)),
            Ended::Verdict(Verdict::Dead("x".into())),
            Ended::Failed("x".into()),
            Ended::Undecodable("x".into()),
            Ended::Unhandled,
        ] {
            let before = ended.finished();
            let next = attempts().next(ended, 1);
            match before {
                Some(finished) => assert_eq!(next, Next::Ack(finished)),
                None => assert!(!matches!(next, Next::Ack(_)), "{next:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_kept_and_what_nobody_wants_is_not() {
        let next = attempts().next(Ended::Undecodable("not a typed X".into()), 1);
        assert_eq!(next, Next::Bury("not a typed X".into()));
        assert_eq!(
            attempts().next(Ended::Unhandled, 1),
            Next::Ack(Finished::Unhandled)
        );
    }
}
