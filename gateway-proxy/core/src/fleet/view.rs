//! Who lives: the members as one process sees them through its watch of the bucket.
//!
//! A member is dead for sure ([`View::is_dead`]) when so much time has passed here since its last
//! renewal was *seen* that it must have fenced itself, and one of two things proves that the silence is
//! the member's and not the watch's: the server says the key ran out, or a heartbeat of our own, sent
//! after that time, came back through the same watch. Nobody's wall clock is asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use schemas::{Member, ProxyId};

use super::{Gone, TTL_MAX, said_ttl};

/// Most members believed in. A fleet has tens; garbage in the bucket must not cost memory.
const MEMBERS_MAX: usize = 1_024;
/// Own heartbeats on their way back through the watch.
const BEATS_MAX: usize = 64;
/// Earlier instances of this process whose writes may still arrive: it joins a few times a second, and
/// no write takes longer than a TTL.
const FORMER_MAX: usize = 64;
/// How much earlier than a TTL after the last sight an expiry may show: part of it was spent on the
/// way here. Less than the fence's margin, which is a quarter.
const EARLY: u32 = 8;

/// One process's view of the members.
#[derive(Clone, Debug)]
pub struct View {
    me: ProxyId,
    instance: Option<String>,
    // Names this process joined under before, at most FORMER_MAX: they are over.
    former: VecDeque<String>,
    ttl: Duration,
    settle: Duration,
    // At most MEMBERS_MAX.
    members: BTreeMap<ProxyId, Seen>,
    // The delete marker of a key of ours from before the watch, which a create must name.
    own_marker: u64,
    // Since when the watch shows everything, `None` until its first values are all here.
    listed_at: Option<Instant>,
    // Own heartbeats and when they were sent; at most BEATS_MAX.
    beats: VecDeque<(u64, Instant)>,
    // Everything others had stored before this moment has been seen.
    synced_through: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Seen {
    // The last readable value, `None` when there never was one.
    member: Option<Member>,
    revision: u64,
    first_at: Instant,
    // The revision at `first_at`.
    first_revision: u64,
    // When the last readable value was seen.
    changed_at: Instant,
    gone: Option<Gone>,
}

/// Who holds a shard, as its record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The proxy.
    pub proxy: ProxyId,
    /// Which joining of it; `None` in records of older versions.
    pub instance: Option<String>,
    /// The record's revision. Keys of one bucket share one sequence: news of the member with a lower
    /// one are older than the record and prove nothing.
    pub revision: u64,
    /// When the record was seen here.
    pub seen_at: Instant,
}

/// What somebody wrote under `member.…` that cannot be a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// No member's JSON.
    #[error("the value of member.{proxy} at revision {revision} is no member: {detail}")]
    Unreadable {
        /// Whose key it is.
        proxy: ProxyId,
        /// The value's revision.
        revision: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// More members than [`View`] keeps.
    #[error("member.{proxy} is ignored: there are {MEMBERS_MAX} members already")]
    TooMany {
        /// Who is ignored.
        proxy: ProxyId,
    },
}

/// May this process join under its name?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes: write the key if it has this revision: 0 for no key, over a delete marker the marker's.
    Free {
        /// What to compare with.
        expected_revision: u64,
    },
    /// Somebody has the name and may be dead: ask again then.
    Wait(Instant),
    /// Somebody alive has the name.
    Taken(DuplicateId),
}

/// Two processes with one name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process with the proxy id {proxy} is alive{}; give this one another --proxy-id",
    .http.as_ref().map(|http| format!(" at {http}")).unwrap_or_default()
)]
pub struct DuplicateId {
    /// The name.
    pub proxy: ProxyId,
    /// Where the other listens.
    pub http: Option<String>,
}

impl View {
    /// Nothing seen yet. `ttl` is that of members that do not say theirs; `settle` is how long a complete
    /// view is waited with before shards are moved
    /// away from members that are not in it: after a restart of NATS all return at different moments.
    #[must_use]
    pub const fn new(me: ProxyId, ttl: Duration, settle: Duration) -> Self {
        Self {
            me,
            instance: None,
            former: VecDeque::new(),
            ttl,
            settle,
            members: BTreeMap::new(),
            own_marker: 0,
            listed_at: None,
            beats: VecDeque::new(),
            synced_through: None,
        }
    }

    /// The name under which this process joins from here on.
    pub fn set_instance(&mut self, instance: String) {
        if self.former.len() == FORMER_MAX {
            self.former.pop_front();
        }
        self.former.extend(self.instance.replace(instance));
        self.beats.clear();
    }

    /// The watch begins anew: what was seen is void, and so is every silence.
    pub fn handle_reset(&mut self) {
        self.members.clear();
        self.own_marker = 0;
        self.beats.clear();
        self.listed_at = None;
        self.synced_through = None;
    }

    /// The watch has shown all there was when it began.
    pub fn handle_listed(&mut self, now: Instant) {
        self.listed_at.get_or_insert(now);
    }

    /// A heartbeat of this process was sent, with this [`Member::beat`].
    pub fn handle_beat_sent(&mut self, beat: u64, sent_at: Instant) {
        if self.beats.len() == BEATS_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back((beat, sent_at));
    }

    /// The watch shows a value of `member.<proxy>`.
    ///
    /// # Errors
    /// [`ViewError`] when the value is ignored. The member's silence then goes on.
    pub fn handle_put(
        &mut self,
        proxy: &ProxyId,
        revision: u64,
        value: &[u8],
        now: Instant,
    ) -> Result<(), ViewError> {
        let member = serde_json::from_slice::<Member>(value);
        if !self.members.contains_key(proxy) && !self.make_room(now) {
            let proxy = proxy.clone();
            return Err(ViewError::TooMany { proxy });
        }
        let seen = self
            .members
            .entry(proxy.clone())
            .or_insert_with(|| Seen::new(revision, now));
        match member {
            Ok(member) => {
                let same = seen.member.as_ref().is_some_and(|before| {
                    before.instance == member.instance && seen.gone.is_none()
                });
                if !same {
                    *seen = Seen::new(revision, now);
                }
                seen.revision = revision;
                seen.changed_at = now;
                let beat =
                    (*proxy == self.me && member.instance == self.instance).then_some(member.beat);
                seen.member = Some(member);
                if let Some(beat) = beat {
                    self.handle_echo(beat, now);
                }
                Ok(())
            }
            Err(error) => {
                seen.revision = revision;
                Err(ViewError::Unreadable {
                    proxy: proxy.clone(),
                    revision,
                    detail: error.to_string(),
                })
            }
        }
    }

    /// The watch shows that `member.<proxy>` is gone.
    pub fn handle_gone(&mut self, proxy: &ProxyId, revision: u64, gone: Gone) {
        if let Some(seen) = self.members.get_mut(proxy) {
            seen.revision = revision;
            seen.gone = Some(gone);
        } else if *proxy == self.me {
            self.own_marker = revision;
        }
    }

    /// True when this instance certainly does nothing any more: its shards may be taken.
    #[must_use]
    pub fn is_dead(&self, owner: &Owner, now: Instant) -> bool {
        let Some(listed_at) = self.listed_at else {
            return false;
        };
        let synced_since = |at: Instant| self.synced_through.is_some_and(|synced| synced >= at);
        let Some(seen) = self.members.get(&owner.proxy) else {
            return synced_since(listed_at.max(owner.seen_at));
        };
        let current = seen.member.as_ref().map(|member| &member.instance);
        let same = current.is_some_and(|current| *current == owner.instance);
        if same && seen.gone.is_none() {
            return self.is_silent(seen, now);
        }
        if seen.revision < owner.revision {
            // What is known of the member is older than its record: it may have joined since.
            return synced_since(owner.seen_at + self.ttl_of(seen))
                && (same || seen.gone.is_some() || self.is_silent(seen, now));
        }
        match (seen.gone, current) {
            (Some(_), _) | (None, None) => self.is_silent(seen, now),
            // A name changes hands only when its lease has ended. Older versions write no instance.
            (None, Some(_)) => owner.instance.is_some() || owner.proxy == self.me,
        }
    }

    /// The members that plans count on: there, readable, and not proven silent.
    pub fn live(&self, now: Instant) -> impl Iterator<Item = (&ProxyId, &Member)> {
        self.members.iter().filter_map(move |(proxy, seen)| {
            let lives = seen.gone.is_none() && !self.is_silent(seen, now);
            let member = seen.member.as_ref().filter(|_| lives)?;
            Some((proxy, member))
        })
    }

    /// A member, when it lives.
    #[must_use]
    pub fn member(&self, proxy: &ProxyId, now: Instant) -> Option<&Member> {
        let seen = self.members.get(proxy)?;
        let lives = seen.gone.is_none() && !self.is_silent(seen, now);
        seen.member.as_ref().filter(|_| lives)
    }

    /// True when the watch has shown all there was when it began.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.listed_at.is_some()
    }

    /// True when the view has been complete for so long that who is missing is missing.
    #[must_use]
    pub fn is_settled(&self, now: Instant) -> bool {
        self.listed_at.is_some_and(|at| now >= at + self.settle)
    }

    /// True when a plan can be made: the view is settled, or it has been complete for `gather` and shows
    /// all that are `expected`. Who is not seen may only be late, and loses its shards by a plan.
    #[must_use]
    pub fn is_complete<'a>(
        &self,
        mut expected: impl Iterator<Item = &'a ProxyId>,
        gather: Duration,
        now: Instant,
    ) -> bool {
        let gathered = self.listed_at.is_some_and(|at| now >= at + gather);
        self.is_settled(now) || gathered && expected.all(|proxy| self.member(proxy, now).is_some())
    }

    /// May this process join under its name? Asked at every [`super::fence::Action::Join`].
    #[must_use]
    pub fn admission(&self, now: Instant) -> Admission {
        let Some(listed_at) = self.listed_at else {
            return Admission::Wait(now + self.ttl / EARLY);
        };
        let Some(seen) = self.members.get(&self.me) else {
            return Admission::Free {
                expected_revision: self.own_marker,
            };
        };
        let free = Admission::Free {
            expected_revision: seen.revision,
        };
        // What this process wrote itself in an earlier life is over, for it has closed everything.
        let ours = seen.member.as_ref().is_some_and(|member| {
            member.instance.is_some()
                && (member.instance == self.instance
                    || self
                        .former
                        .iter()
                        .any(|former| Some(former) == member.instance.as_ref()))
        });
        if seen.gone.is_some() || ours {
            return free;
        }
        // The server removes a dead one's key after a TTL; one that stays has lost its TTL.
        let ttl = self.ttl_of(seen);
        let until = seen.changed_at.max(listed_at) + ttl + ttl / EARLY;
        let renewed = seen.changed_at > seen.first_at && seen.revision > seen.first_revision;
        if renewed && now < until {
            let http = seen.member.as_ref().and_then(|member| member.http.clone());
            let proxy = self.me.clone();
            return Admission::Taken(DuplicateId { proxy, http });
        }
        if now < until {
            Admission::Wait(until)
        } else {
            free
        }
    }

    /// When [`View::is_dead`], [`View::live`] or [`View::is_settled`] may answer otherwise although
    /// nothing was seen.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let listed = self.listed_at?;
        let silences = self.members.values().filter_map(|seen| {
            let ttl = self.ttl_of(seen);
            match seen.gone {
                Some(Gone::Expired) => Some(seen.changed_at + ttl - ttl / EARLY),
                Some(Gone::Deleted) => Some(seen.changed_at + ttl),
                None => None,
            }
        });
        [listed + self.ttl, listed + self.settle]
            .into_iter()
            .chain(silences)
            .filter(|at| *at > now)
            .min()
    }

    fn is_silent(&self, seen: &Seen, now: Instant) -> bool {
        let ttl = self.ttl_of(seen);
        match seen.gone {
            Some(Gone::Expired) => now >= seen.changed_at + ttl - ttl / EARLY,
            // Somebody's hand: the member may not know yet.
            Some(Gone::Deleted) => now >= seen.changed_at + ttl,
            None => self
                .synced_through
                .is_some_and(|synced| synced >= seen.changed_at + ttl),
        }
    }

    /// How long a member acts at most after it was seen: each says its own.
    fn ttl_of(&self, seen: &Seen) -> Duration {
        let said = seen.member.as_ref().and_then(|member| member.lease_ttl_ms);
        said_ttl(said, self.ttl)
    }

    // Only an echo that was quick proves something: the bucket keeps one value per key, so a watch that
    // lags behind by more than a heartbeat may skip those of others.
    fn handle_echo(&mut self, beat: u64, now: Instant) {
        while let Some((sent, at)) = self.beats.front().copied() {
            if sent > beat {
                return;
            }
            self.beats.pop_front();
            if sent == beat && now.saturating_duration_since(at) <= self.ttl / EARLY {
                self.synced_through = Some(at);
            }
        }
    }

    fn make_room(&mut self, now: Instant) -> bool {
        if self.members.len() >= MEMBERS_MAX {
            let ttl = TTL_MAX;
            self.members
                .retain(|_, seen| seen.gone.is_none() || now < seen.changed_at + ttl);
        }
        self.members.len() < MEMBERS_MAX
    }
}

impl Seen {
    const fn new(revision: u64, now: Instant) -> Self {
        Self {
            member: None,
            revision,
            first_at: now,
            first_revision: revision,
            changed_at: now,
            gone: None,
        }
    }
}

#[cfg(test)]
mod tests;
