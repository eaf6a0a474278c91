//! The coordinator's lease: who should have it, and what this process does about it.
//!
//! Who: the highest `--coordinator-priority`, then the oldest, then the first name. Ages are wall-clock
//! times of different machines, so they only break ties; a wrong clock makes another one coordinate,
//! not two. A higher priority that (re)joins gets the lease from its holder, a higher age does not:
//! a change costs a pause in granting and gains nothing.
//!
//! Like a member's, the lease is counted from when a renewal was *sent* by its holder, and from when
//! it was *seen* by everybody else. Two coordinators at once are harmless all the same: what they
//! write (plan, identify state) is compare-and-set and carries the epoch.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use schemas::{Leader, Member, ProxyId};

use super::view::View;
use super::{Current, Gone, Held, margin, said_ttl};

/// Renewals per TTL.
const RENEWALS: u32 = 4;
/// A write that failed is tried again after this share of the TTL.
const RETRIES: u32 = 10;
/// How long each lower rank lets the better ones try first, as a share of the TTL: a better one may be
/// seen by us and yet unable to write.
const PATIENCE: u32 = 8;
/// Ranks beyond this all wait as long as this one.
const RANKS_MAX: u32 = 8;
/// A member with a higher priority has been there for so long before the lease is handed to it.
pub const HAND_BACK_AFTER: Duration = Duration::from_secs(5);
/// Time between two hand-backs: one that is not taken up must not repeat at every turn.
const HAND_BACK_REST: Duration = Duration::from_secs(60);

/// What the driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the key `leader`, with TTL, if it has this revision (0: no key; over a delete marker the
    /// marker's revision). Then exactly one of [`Candidate::handle_written`],
    /// [`Candidate::handle_refused`], [`Candidate::handle_failed`].
    Acquire {
        /// What to compare with.
        expected_revision: u64,
        /// What to write, but for its time.
        epoch: u64,
    },
    /// Write it again with TTL. Then one of the same.
    Renew {
        /// What to compare with.
        expected_revision: u64,
        /// What to write, but for its time.
        epoch: u64,
    },
    /// Coordinate no longer: no plan, no grant. With a revision, delete the key if it still has that
    /// one, so that the successor need not wait; whatever comes of it.
    StepDown {
        /// `None`: the lease is lost already.
        delete: Option<u64>,
    },
    /// Nothing until then, or until something is seen.
    Wait(Instant),
}

/// A member's claim to coordinate: the greatest has the best.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    stays: bool,
    priority: i64,
    age: Reverse<u64>,
    name: Reverse<ProxyId>,
}

impl Standing {
    /// What a member's heartbeat says. One that drains comes last.
    #[must_use]
    pub fn of(proxy: &ProxyId, member: &Member) -> Self {
        Self {
            stays: !member.draining,
            priority: member.coordinator_priority,
            age: Reverse(member.started_at_unix_ms),
            name: Reverse(proxy.clone()),
        }
    }
}

/// This process as coordinator, or as one who may become it.
#[derive(Clone, Debug)]
pub struct Candidate {
    me: ProxyId,
    ttl: Duration,
    key: Key,
    state: State,
    // Highest ever seen; the next coordinator's is higher.
    epoch: u64,
    // Since when the lease has been seen ended; ranks wait from here.
    vacant_since: Option<Instant>,
    outranked_since: Option<Instant>,
    handed_back_at: Option<Instant>,
}

/// The key as last seen.
#[derive(Clone, Debug)]
struct Key {
    revision: u64,
    // `None`: no key, or garbage that counts as a lease until it stops changing.
    leader: Option<Leader>,
    changed_at: Option<Instant>,
    gone: Option<Gone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Watching {
        not_before: Option<Instant>,
    },
    // Answers to writes begun earlier are of another try.
    Acquiring {
        epoch: u64,
        since: Instant,
    },
    Leading {
        held: Held,
        epoch: u64,
        renew_at: Option<Instant>,
    },
    Lost,
}

impl Candidate {
    /// One who watches.
    #[must_use]
    pub const fn new(me: ProxyId, ttl: Duration) -> Self {
        Self {
            me,
            ttl,
            key: Key {
                revision: 0,
                leader: None,
                changed_at: None,
                gone: None,
            },
            state: State::Watching { not_before: None },
            epoch: 0,
            vacant_since: None,
            outranked_since: None,
            handed_back_at: None,
        }
    }

    /// The epoch under which this process coordinates, `None` when it does not: asked immediately
    /// before everything a coordinator does.
    #[must_use]
    pub fn leads(&self, now: Instant) -> Option<u64> {
        match self.state {
            State::Leading { held, epoch, .. } if now < held.valid_until(self.ttl) => Some(epoch),
            State::Leading { .. }
            | State::Watching { .. }
            | State::Acquiring { .. }
            | State::Lost => None,
        }
    }

    /// Who coordinates as far as seen, for people.
    #[must_use]
    pub fn leader(&self) -> Option<&Leader> {
        self.key.leader.as_ref().filter(|_| self.key.gone.is_none())
    }

    /// An epoch that stands somewhere else (in [`schemas::IdentifyState`]): the next one is higher.
    pub fn handle_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// The watch begins anew. What was seen counts from now.
    pub fn handle_reset(&mut self, now: Instant) {
        if self.key.changed_at.is_some() {
            self.key.changed_at = Some(now);
        }
        self.vacant_since = None;
    }

    /// The watch shows a value of `leader`, or garbage (`None`), which ends like any lease that is
    /// not renewed.
    pub fn handle_put(&mut self, revision: u64, leader: Option<Leader>, now: Instant) {
        if let Some(leader) = &leader {
            self.epoch = self.epoch.max(leader.epoch);
            if leader.proxy != self.me {
                // A hand-back that was taken up needs no rest.
                self.handed_back_at = None;
            }
        }
        if let State::Leading { held, epoch, .. } = &mut self.state
            && revision > held.revision
        {
            let ours = leader
                .as_ref()
                .is_some_and(|leader| leader.proxy == self.me && leader.epoch == *epoch);
            if ours {
                held.revision = revision;
            } else {
                self.state = State::Lost;
            }
        }
        self.vacant_since = None;
        self.key = Key {
            revision,
            leader,
            changed_at: Some(now),
            gone: None,
        };
    }

    /// The watch shows that `leader` is gone.
    pub fn handle_gone(&mut self, revision: u64, gone: Gone) {
        if let State::Leading { held, .. } = self.state
            && revision > held.revision
        {
            self.state = State::Lost;
        }
        self.key.revision = revision;
        self.key.gone = Some(gone);
    }

    /// The write that [`Action::Acquire`] or [`Action::Renew`] asked for is done. `sent_at` is when it
    /// was begun.
    pub fn handle_written(&mut self, revision: u64, sent_at: Instant, now: Instant) {
        let held = Held { revision, sent_at };
        let renew_at = Some(sent_at + self.ttl / RENEWALS);
        let in_time = now < held.valid_until(self.ttl);
        self.state = match self.state {
            State::Acquiring { epoch, since } if sent_at >= since && in_time => {
                self.epoch = self.epoch.max(epoch);
                State::Leading {
                    held,
                    epoch,
                    renew_at,
                }
            }
            State::Acquiring { since, .. } if sent_at >= since => self.later(now),
            State::Leading {
                held: before,
                epoch,
                ..
            } if now < before.valid_until(self.ttl) => State::Leading {
                held,
                epoch,
                renew_at,
            },
            other => other,
        };
    }

    /// The key had another revision; this is what it holds. `Ours` is only what has our name *and* the
    /// epoch the action named.
    pub fn handle_refused(&mut self, current: Current, now: Instant) {
        self.state = match (self.state, current) {
            (State::Acquiring { .. }, _) => self.later(now),
            (State::Leading { held, epoch, .. }, Current::Ours { revision }) => State::Leading {
                held: Held { revision, ..held },
                epoch,
                renew_at: Some(now),
            },
            (State::Leading { .. }, Current::Other | Current::Gone) => State::Lost,
            (other, _) => other,
        };
    }

    /// The write failed or nobody answered: it may have arrived or not.
    pub fn handle_failed(&mut self, now: Instant) {
        let retry = now + self.ttl / RETRIES;
        match &mut self.state {
            State::Acquiring { .. } => self.state = self.later(now),
            State::Leading { renew_at, .. } => *renew_at = Some(retry),
            State::Watching { .. } | State::Lost => {}
        }
    }

    /// What to do now; asked after every `handle_*`, whenever the members change, and when the wait is
    /// over. `may_act` is [`super::fence::Fence::may_act`]: who is no member coordinates nothing.
    ///
    /// [`Action::Acquire`] and [`Action::Renew`] are said once, until they are answered.
    pub fn observe(&mut self, members: &View, may_act: bool, now: Instant) -> Action {
        match self.state {
            State::Lost => {
                self.state = State::Watching { not_before: None };
                Action::StepDown { delete: None }
            }
            State::Acquiring { since, .. } if now < since + self.ttl => {
                Action::Wait(since + self.ttl)
            }
            // The answer got lost on the way through the driver.
            State::Acquiring { .. } => {
                self.state = self.later(now);
                Action::Wait(now)
            }
            State::Leading {
                held,
                epoch,
                renew_at,
            } => self.observe_leading(held, epoch, renew_at, members, may_act, now),
            State::Watching { not_before } => {
                if !may_act {
                    self.vacant_since = None;
                    return Action::Wait(now + self.ttl);
                }
                self.observe_watching(not_before, members, now)
            }
        }
    }

    /// The process ends or was asked to step down. Ask [`Candidate::observe`] no more for a while, or
    /// it may take the lease again as the best there is.
    pub fn step_down(&mut self, now: Instant) -> Option<Action> {
        let State::Leading { held, .. } = self.state else {
            return None;
        };
        self.handed_back_at = Some(now);
        self.state = State::Watching {
            not_before: Some(now + self.ttl),
        };
        Some(Action::StepDown {
            delete: Some(held.revision),
        })
    }

    fn observe_leading(
        &mut self,
        held: Held,
        epoch: u64,
        renew_at: Option<Instant>,
        members: &View,
        may_act: bool,
        now: Instant,
    ) -> Action {
        let end = held.valid_until(self.ttl);
        if now >= end || !may_act {
            self.state = State::Watching { not_before: None };
            return Action::StepDown { delete: None };
        }
        if self.is_outranked(members, now) {
            self.handed_back_at = Some(now);
            self.outranked_since = None;
            // The better one needs a moment; with it gone again, we are the best there is.
            let not_before = Some(now + self.ttl);
            self.state = State::Watching { not_before };
            return Action::StepDown {
                delete: Some(held.revision),
            };
        }
        match renew_at {
            Some(at) if now >= at => {
                self.state = State::Leading {
                    held,
                    epoch,
                    renew_at: None,
                };
                Action::Renew {
                    expected_revision: held.revision,
                    epoch,
                }
            }
            Some(at) => Action::Wait(at.min(end)),
            None => Action::Wait(end),
        }
    }

    /// True when a member of higher priority has been there for long enough.
    fn is_outranked(&mut self, members: &View, now: Instant) -> bool {
        let mine = members
            .member(&self.me, now)
            .map(|member| (!member.draining, member.coordinator_priority));
        let better = members.live(now).any(|(proxy, member)| {
            let theirs = (!member.draining, member.coordinator_priority);
            *proxy != self.me && mine.is_some_and(|mine| theirs > mine)
        });
        if !better {
            self.outranked_since = None;
            return false;
        }
        let since = *self.outranked_since.get_or_insert(now);
        let rested = self
            .handed_back_at
            .is_none_or(|at| now >= at + HAND_BACK_REST);
        rested && now >= since + HAND_BACK_AFTER
    }

    fn observe_watching(
        &mut self,
        not_before: Option<Instant>,
        members: &View,
        now: Instant,
    ) -> Action {
        let Some(rank) = self.rank(members, now) else {
            return Action::Wait(now + self.ttl / RENEWALS);
        };
        if let Some(ends) = self.lease_ends(now) {
            self.vacant_since = None;
            return Action::Wait(ends);
        }
        let since = *self.vacant_since.get_or_insert(now);
        let turn = since + self.ttl / PATIENCE * rank.min(RANKS_MAX);
        let turn = not_before.map_or(turn, |not_before| turn.max(not_before));
        if now < turn {
            return Action::Wait(turn);
        }
        let epoch = self.epoch + 1;
        self.state = State::Acquiring { epoch, since: now };
        Action::Acquire {
            expected_revision: self.key.revision,
            epoch,
        }
    }

    /// When the lease as seen ends, `None` when there is none (any more).
    fn lease_ends(&self, now: Instant) -> Option<Instant> {
        if self.key.gone.is_some() {
            return None;
        }
        let said = self
            .key
            .leader
            .as_ref()
            .and_then(|leader| leader.lease_ttl_ms);
        let ttl = said_ttl(said, self.ttl);
        let ends = self.key.changed_at? + ttl + margin(ttl) / 2;
        (now < ends).then_some(ends)
    }

    /// How many of the living come before this process; `None` while it is not among them.
    fn rank(&self, members: &View, now: Instant) -> Option<u32> {
        let mine = Standing::of(&self.me, members.member(&self.me, now)?);
        // Who let the lease end is dead or cut off; its heartbeat may just not have ended yet.
        let failed = self.key.leader.as_ref().map(|leader| &leader.proxy);
        let gave_up = self.key.gone == Some(Gone::Deleted);
        let better = members.live(now).filter(|(proxy, member)| {
            let counts = gave_up || Some(*proxy) != failed;
            counts && **proxy != self.me && Standing::of(proxy, member) > mine
        });
        Some(u32::try_from(better.count()).unwrap_or(u32::MAX))
    }

    fn later(&mut self, now: Instant) -> State {
        self.vacant_since = None;
        State::Watching {
            not_before: Some(now + self.ttl / RETRIES),
        }
    }
}

#[cfg(test)]
mod tests;
