//! A member's own lease: when to renew it, and when the process must have let go of everything.
//!
//! The contract: whatever the process does for its shards (publish, IDENTIFY, RESUME, write a record)
//! it does while [`Fence::may_act`] says so, asked immediately before. A process that stood still
//! therefore finds itself fenced before it can do harm.
//!
//! Standing still is seen by the monotonic clock. Linux stops `CLOCK_MONOTONIC` while the whole machine
//! sleeps; a machine that sleeps loses its lease without noticing until the next renewal is refused.

use std::time::{Duration, Instant};

use super::{Current, Held, margin};

/// Renewals per TTL.
const RENEWALS: u32 = 4;
/// A renewal that failed is tried again after this share of the TTL.
const RETRIES: u32 = 10;

/// What the driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the key `member.<proxy>`, with TTL, under a **new** instance name (see
    /// [`Fence::generation`]): as [`super::view::View::admission`] says. Then exactly one of
    /// [`Fence::handle_written`], [`Fence::handle_refused`], [`Fence::handle_failed`].
    Join,
    /// Write the key with TTL if it still has this revision. Then one of the same.
    Renew {
        /// What to compare with.
        expected_revision: u64,
    },
    /// The lease ends: stop publishing at once, close every socket resumably, write no record, forget
    /// the instance name and every answer that is still to come. Then [`Fence::handle_closed`].
    Close(Why),
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It could not be renewed in time: NATS is away, or this process stood still.
    NotRenewed,
    /// The key is gone or another's: it ran out, or somebody deleted or edited it.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Outside { next: Instant },
    // Answers to writes begun earlier are of another life.
    Joining { since: Instant },
    Inside { held: Held, next: Next },
    Lost,
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    At(Instant),
    // A renewal is on its way.
    Answer,
}

/// A member's own lease.
#[derive(Clone, Debug)]
pub struct Fence {
    ttl: Duration,
    state: State,
    generation: u64,
}

impl Fence {
    /// Outside the fleet, about to join. `ttl` is that of the key.
    #[must_use]
    pub const fn new(ttl: Duration, now: Instant) -> Self {
        Self {
            ttl,
            state: State::Outside { next: now },
            generation: 0,
        }
    }

    /// True while the lease holds: asked immediately before every act.
    #[must_use]
    pub fn may_act(&self, now: Instant) -> bool {
        self.valid_until().is_some_and(|until| now < until)
    }

    /// Until when the lease holds if it is not renewed, `None` when there is none.
    #[must_use]
    pub fn valid_until(&self) -> Option<Instant> {
        match self.state {
            State::Inside { held, .. } => Some(held.valid_until(self.ttl)),
            State::Outside { .. } | State::Joining { .. } | State::Lost | State::Closing => None,
        }
    }

    /// Grows whenever a lease was lost: part of the instance's name, so that an instance never returns.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Revision of the key as last known, while the lease is held: a leaving member deletes that one.
    #[must_use]
    pub const fn revision(&self) -> Option<u64> {
        match self.state {
            State::Inside { held, .. } => Some(held.revision),
            State::Outside { .. } | State::Joining { .. } | State::Lost | State::Closing => None,
        }
    }

    /// The write of [`Action::Join`] or [`Action::Renew`] is done. `sent_at` is when it was *begun*.
    pub fn handle_written(&mut self, revision: u64, sent_at: Instant, now: Instant) {
        let held = Held { revision, sent_at };
        let in_time = now < held.valid_until(self.ttl);
        let next = Next::At(sent_at + self.ttl / RENEWALS);
        match self.state {
            State::Joining { since } if sent_at >= since && in_time => {
                self.state = State::Inside { held, next };
            }
            // Nothing was held yet; the key that was written ends by itself.
            State::Joining { since } if sent_at >= since => self.joins_again(now),
            // An answer after the end changes nothing: others may have acted on it.
            State::Inside { held: before, .. } if now < before.valid_until(self.ttl) => {
                self.state = State::Inside { held, next };
            }
            State::Inside { .. }
            | State::Joining { .. }
            | State::Outside { .. }
            | State::Lost
            | State::Closing => {}
        }
    }

    /// The key had another revision; this is what it holds.
    pub fn handle_refused(&mut self, current: Current, now: Instant) {
        match (self.state, current) {
            (State::Joining { .. }, _) => self.joins_again(now),
            (State::Inside { held, .. }, Current::Ours { revision }) => {
                let held = Held { revision, ..held };
                let next = Next::At(now);
                self.state = State::Inside { held, next };
            }
            (State::Inside { .. }, Current::Other | Current::Gone) => self.state = State::Lost,
            (State::Outside { .. } | State::Lost | State::Closing, _) => {}
        }
    }

    /// The write failed or nobody answered: it may have arrived or not.
    pub fn handle_failed(&mut self, now: Instant) {
        match &mut self.state {
            State::Joining { .. } => self.joins_again(now),
            State::Inside { next, .. } => *next = Next::At(now + self.ttl / RETRIES),
            State::Outside { .. } | State::Lost | State::Closing => {}
        }
    }

    /// The watch shows the own key, in the own instance's words: a renewal whose answer was lost.
    pub fn handle_seen(&mut self, revision: u64) {
        if let State::Inside { held, .. } = &mut self.state {
            held.revision = held.revision.max(revision);
        }
    }

    /// The watch shows the own key gone or in another instance's words, at a revision later than the own.
    pub fn handle_lost(&mut self, revision: u64) {
        if let State::Inside { held, .. } = self.state
            && revision > held.revision
        {
            self.state = State::Lost;
        }
    }

    /// Everything that [`Action::Close`] asked for is done.
    pub fn handle_closed(&mut self, now: Instant) {
        if self.state == State::Closing {
            self.state = State::Outside { next: now };
        }
    }

    /// What to do now; asked after every `handle_*` and at [`Fence::poll_timeout`] until `None`.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        match &mut self.state {
            State::Outside { next } if now >= *next => {
                self.state = State::Joining { since: now };
                Some(Action::Join)
            }
            State::Lost => Some(self.close(Why::Lost)),
            State::Inside { held, .. } if now >= held.valid_until(self.ttl) => {
                Some(self.close(Why::NotRenewed))
            }
            State::Inside { held, next } => match *next {
                Next::At(at) if now >= at => {
                    *next = Next::Answer;
                    let expected_revision = held.revision;
                    Some(Action::Renew { expected_revision })
                }
                Next::At(_) | Next::Answer => None,
            },
            // The answer got lost on the way through the driver.
            State::Joining { since } if now >= *since + self.ttl => {
                self.joins_again(now);
                None
            }
            State::Outside { .. } | State::Joining { .. } | State::Closing => None,
        }
    }

    /// When to ask [`Fence::poll_action`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Outside { next } => Some(next),
            State::Inside { held, next } => {
                let end = held.valid_until(self.ttl);
                Some(match next {
                    Next::At(at) => at.min(end),
                    Next::Answer => end,
                })
            }
            State::Joining { since } => Some(since + self.ttl),
            State::Lost | State::Closing => None,
        }
    }

    /// How long the driver waits for the answer of a write: several tries fit into a TTL.
    #[must_use]
    pub fn write_timeout(&self) -> Duration {
        margin(self.ttl)
    }

    fn close(&mut self, why: Why) -> Action {
        self.state = State::Closing;
        self.generation += 1;
        Action::Close(why)
    }

    fn joins_again(&mut self, now: Instant) {
        self.generation += 1;
        let next = now + self.ttl / RETRIES;
        self.state = State::Outside { next };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::TTL;

    const MS: Duration = Duration::from_millis(1);

    fn joined(now: Instant) -> Fence {
        let mut fence = Fence::new(TTL, now);
        assert_eq!(fence.poll_action(now), Some(Action::Join));
        fence.handle_written(1, now, now + MS);
        fence
    }

    #[test]
    fn a_lease_is_renewed_four_times_per_ttl() {
        let start = Instant::now();
        let mut fence = joined(start);
        assert!(fence.may_act(start + MS));
        assert_eq!(fence.poll_action(start + 499 * MS), None);
        assert_eq!(fence.poll_timeout(), Some(start + 500 * MS));
        let renew = |expected_revision| Some(Action::Renew { expected_revision });
        assert_eq!(fence.poll_action(start + 500 * MS), renew(1));
        assert_eq!(fence.poll_action(start + 501 * MS), None);
        fence.handle_written(2, start + 500 * MS, start + 502 * MS);
        assert_eq!(fence.poll_action(start + 1_000 * MS), renew(2));
        assert_eq!(fence.valid_until(), Some(start + 2_000 * MS));
    }

    #[test]
    fn the_lease_counts_from_when_the_renewal_was_sent() {
        let start = Instant::now();
        let mut fence = joined(start);
        fence.poll_action(start + 500 * MS);
        fence.handle_written(2, start + 500 * MS, start + 1_400 * MS);
        assert!(fence.may_act(start + 1_999 * MS));
        assert!(!fence.may_act(start + 2_000 * MS));
    }

    #[test]
    fn a_process_that_stood_still_is_fenced_before_it_may_act() {
        let start = Instant::now();
        let mut fence = joined(start);
        let later = start + 1_500 * MS;
        assert!(!fence.may_act(later));
        assert_eq!(
            fence.poll_action(later),
            Some(Action::Close(Why::NotRenewed))
        );
        assert_eq!(fence.generation(), 1);
    }

    #[test]
    fn an_answer_after_the_end_changes_nothing() {
        let start = Instant::now();
        let mut fence = joined(start);
        fence.poll_action(start + 500 * MS);
        fence.handle_written(2, start + 1_400 * MS, start + 1_600 * MS);
        assert!(!fence.may_act(start + 1_600 * MS));
        let close = fence.poll_action(start + 1_600 * MS);
        assert_eq!(close, Some(Action::Close(Why::NotRenewed)));
        fence.handle_closed(start + 1_700 * MS);
        assert_eq!(fence.poll_action(start + 1_700 * MS), Some(Action::Join));
        // Of the life before.
        fence.handle_written(3, start + 1_450 * MS, start + 1_750 * MS);
        assert!(!fence.may_act(start + 1_750 * MS));
        fence.handle_written(4, start + 1_700 * MS, start + 1_760 * MS);
        assert!(fence.may_act(start + 1_760 * MS));
    }

    #[test]
    fn a_renewal_whose_answer_was_lost_is_not_taken_for_a_loss() {
        let start = Instant::now();
        let mut fence = joined(start);
        fence.poll_action(start + 500 * MS);
        fence.handle_failed(start + 600 * MS);
        assert_eq!(fence.poll_action(start + 700 * MS), None);
        let retry = fence.poll_action(start + 800 * MS);
        assert_eq!(
            retry,
            Some(Action::Renew {
                expected_revision: 1
            })
        );
        fence.handle_refused(Current::Ours { revision: 2 }, start + 801 * MS);
        let again = fence.poll_action(start + 801 * MS);
        assert_eq!(
            again,
            Some(Action::Renew {
                expected_revision: 2
            })
        );
        assert!(fence.may_act(start + 801 * MS));
    }

    #[test]
    fn a_join_that_is_never_answered_is_tried_again() {
        let start = Instant::now();
        let mut fence = Fence::new(TTL, start);
        assert_eq!(fence.poll_action(start), Some(Action::Join));
        assert_eq!(fence.poll_timeout(), Some(start + TTL));
        assert_eq!(fence.poll_action(start + TTL), None);
        let again = fence.poll_timeout().unwrap();
        assert_eq!(fence.poll_action(again), Some(Action::Join));
    }

    #[test]
    fn a_key_that_is_gone_or_anothers_ends_the_lease_at_once() {
        let start = Instant::now();
        for current in [Current::Gone, Current::Other] {
            let mut fence = joined(start);
            fence.poll_action(start + 500 * MS);
            fence.handle_refused(current, start + 501 * MS);
            assert!(!fence.may_act(start + 501 * MS));
            let close = fence.poll_action(start + 501 * MS);
            assert_eq!(close, Some(Action::Close(Why::Lost)));
        }
        let mut fence = joined(start);
        fence.handle_lost(1);
        assert!(fence.may_act(start + MS), "its own revision");
        fence.handle_lost(2);
        assert!(!fence.may_act(start + MS));
    }
}
