//! What one member does for the shards of the plan, so that each has at most one owner.
//!
//! A shard runs here only after its record was written, by compare-and-set, with this instance's name,
//! and only while the own lease holds. It is claimed from nobody (released) or from an instance that is
//! certainly dead. It is given away by: stop reading, wait for the acknowledgements, close resumably,
//! write the record with the last sequence and no owner. The new owner sees that and RESUMEs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use schemas::{Plan, ProxyId, ShardId, ShardRecord};

use super::view::{Owner, View};

/// Claims and releases that failed are tried again after this time.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Shards that are stopped at the same moment; the others go on delivering until it is their turn.
const STOPPING_MAX: usize = 16;
/// Highest shard count believed in: Discord's largest bots have some ten thousand.
pub const SHARDS_MAX: u32 = 1 << 20;

/// What the driver does. Every action is said once and answered once, as it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the record with this proxy and instance as owner, everything else as it was, if it has
    /// this revision (0: no record). Then [`Handover::handle_written`] or [`Handover::handle_unwritten`].
    Claim {
        /// The shard.
        shard: ShardId,
        /// What to compare with.
        expected_revision: u64,
    },
    /// Run the shard: RESUME from its checkpoint, or IDENTIFY when there is none. From here on its
    /// record is written regularly, each time by compare-and-set with [`Handover::revision`]; the
    /// watch shows the success, [`Handover::handle_recorded`] tells it sooner.
    Start {
        /// The shard.
        shard: ShardId,
    },
    /// Drain its window and close resumably; then [`Handover::handle_stopped`].
    Stop {
        /// The shard.
        shard: ShardId,
    },
    /// Write the record with the final sequence and no owner, if it has this revision. Then
    /// [`Handover::handle_written`] or [`Handover::handle_unwritten`].
    Release {
        /// The shard.
        shard: ShardId,
        /// What to compare with.
        expected_revision: u64,
    },
    /// Stop publishing and close resumably at once, write no record: it is another's already. Then
    /// [`Handover::handle_stopped`].
    Abandon {
        /// The shard.
        shard: ShardId,
    },
}

/// What a shard is to this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hold {
    /// Not here.
    #[default]
    Away,
    /// A claim is on its way.
    Claiming,
    /// It runs here.
    Running,
    /// It runs here for the last moments.
    Stopping,
    /// Stopped, the record still names us.
    Stopped,
    /// The record is being written.
    Releasing,
    /// Closing what is another's.
    Abandoning,
}

impl Hold {
    /// True while the shard may have a connection here.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Stopping | Self::Abandoning)
    }
}

/// A plan that is not followed; what runs goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Its format is of a newer version.
    #[error(
        "the plan has format {format}, this version knows {}: it is not followed",
        Plan::FORMAT
    )]
    Newer {
        /// The plan's format.
        format: u32,
    },
    /// It contradicts itself.
    #[error("the plan names shard {shard} of {count} shards and is not followed")]
    Nonsense {
        /// A shard it names.
        shard: u32,
        /// Its shard count.
        count: u32,
    },
}

/// One member's shards.
#[derive(Clone, Debug)]
pub struct Handover {
    me: ProxyId,
    instance: String,
    plan: Option<Plan>,
    // Highest of all plans seen.
    epoch: u64,
    // At most SHARDS_MAX of records, and those held.
    shards: BTreeMap<ShardId, Shard>,
    // Those to look at again; subsets of `shards`. A dirty one has news, a waiting one waits for another
    // member's end or for its turn.
    dirty: BTreeSet<ShardId>,
    waiting: BTreeSet<ShardId>,
    stopping: usize,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    hold: Hold,
    // Revision of the record as last seen or written.
    revision: u64,
    owner: Option<Owner>,
    // A release of ours may still arrive, for it was compared with this very revision.
    unsure: bool,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Here,
    At(&'a ProxyId),
    Nowhere,
}

impl Handover {
    /// A member that holds nothing. `instance` is the name it joined under.
    #[must_use]
    pub const fn new(me: ProxyId, instance: String) -> Self {
        Self {
            me,
            instance,
            plan: None,
            epoch: 0,
            shards: BTreeMap::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            stopping: 0,
        }
    }

    /// The plan that is followed.
    #[must_use]
    pub const fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// The epoch of the next plan, should this process make it.
    #[must_use]
    pub const fn next_epoch(&self) -> u64 {
        self.epoch.saturating_add(1)
    }

    /// What a shard is to this member.
    #[must_use]
    pub fn hold(&self, shard: ShardId) -> Hold {
        self.shards
            .get(&shard)
            .map_or(Hold::Away, |known| known.hold)
    }

    /// What the next regular write of the shard's record is compared with.
    #[must_use]
    pub fn revision(&self, shard: ShardId) -> u64 {
        self.shards.get(&shard).map_or(0, |known| known.revision)
    }

    /// Shards that are not away: a draining process ends when there is none.
    pub fn held(&self) -> impl Iterator<Item = (ShardId, Hold)> {
        let held = |(shard, known): (&ShardId, &Shard)| (*shard, known.hold);
        self.shards
            .iter()
            .map(held)
            .filter(|(_, hold)| *hold != Hold::Away)
    }

    /// Whom a shard's record names.
    #[must_use]
    pub fn owner(&self, shard: ShardId) -> Option<&Owner> {
        self.shards.get(&shard)?.owner.as_ref()
    }

    /// The watch shows a plan. The key's order is what counts: a plan with a lower epoch that comes later
    /// was put back by hand and is followed like any other, for a coordinator that joined since knows
    /// no better one.
    ///
    /// # Errors
    /// [`PlanError`] when it is not followed: what runs goes on.
    pub fn handle_plan(&mut self, plan: Plan) -> Result<(), PlanError> {
        if plan.format > Plan::FORMAT {
            return Err(PlanError::Newer {
                format: plan.format,
            });
        }
        let count = plan.shard_count;
        let beyond = plan.shards.keys().copied().find(|shard| *shard >= count);
        if count == 0 || count > SHARDS_MAX || beyond.is_some() {
            let shard = beyond.unwrap_or(0);
            return Err(PlanError::Nonsense { shard, count });
        }
        self.epoch = self.epoch.max(plan.epoch);
        self.shards
            .retain(|shard, known| shard.count() == count || known.hold != Hold::Away);
        for id in plan.shards.keys() {
            if let Ok(shard) = ShardId::new(*id, count) {
                self.shards.entry(shard).or_default();
            }
        }
        self.dirty.extend(self.shards.keys());
        self.plan = Some(plan);
        Ok(())
    }

    /// The watch, or a look after a refused write, shows a shard's record: `None` when there is none or
    /// nobody can read it.
    pub fn handle_record(
        &mut self,
        shard: ShardId,
        revision: u64,
        record: Option<&ShardRecord>,
        now: Instant,
    ) {
        let room = self.shards.len() < SHARDS_MAX as usize;
        if !room && !self.shards.contains_key(&shard) {
            return;
        }
        let known = self.shards.entry(shard).or_default();
        if revision <= known.revision {
            return;
        }
        known.revision = revision;
        known.unsure = false;
        known.owner = record.and_then(|record| {
            Some(Owner {
                proxy: record.owner.clone()?,
                instance: record.owner_instance.clone(),
                revision,
                seen_at: now,
            })
        });
        self.dirty.insert(shard);
    }

    /// The write that [`Action::Claim`] or [`Action::Release`] asked for is done.
    pub fn handle_written(&mut self, shard: ShardId, revision: u64, now: Instant) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        let owner = match known.hold {
            Hold::Claiming => Some(Owner {
                proxy: self.me.clone(),
                instance: Some(self.instance.clone()),
                revision,
                seen_at: now,
            }),
            Hold::Releasing => None,
            Hold::Away | Hold::Running | Hold::Stopping | Hold::Stopped | Hold::Abandoning => {
                return;
            }
        };
        known.hold = Hold::Away;
        if revision > known.revision {
            known.revision = revision;
            known.unsure = false;
            known.owner = owner;
        }
        self.dirty.insert(shard);
    }

    /// A regular write of the shard's record is done. It may be answered when a release is on its way
    /// already, which then has lost.
    pub fn handle_recorded(&mut self, shard: ShardId, revision: u64, now: Instant) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        if revision > known.revision && known.hold != Hold::Away {
            known.revision = revision;
            known.unsure = false;
            known.owner = Some(Owner {
                proxy: self.me.clone(),
                instance: Some(self.instance.clone()),
                revision,
                seen_at: now,
            });
            self.dirty.insert(shard);
        }
    }

    /// A claim or release was refused (after [`Handover::handle_record`] with what stands there), failed
    /// or got no answer.
    pub fn handle_unwritten(&mut self, shard: ShardId, now: Instant) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        match known.hold {
            Hold::Claiming => known.hold = Hold::Away,
            Hold::Releasing => {
                known.hold = Hold::Stopped;
                known.unsure = true;
            }
            Hold::Away | Hold::Running | Hold::Stopping | Hold::Stopped | Hold::Abandoning => {}
        }
        known.not_before = Some(now + RETRY_AFTER);
        self.dirty.insert(shard);
    }

    /// The shard's connection is closed and nothing of it is on its way: as asked for, or because its
    /// task ended by itself; then it is started again after a moment.
    pub fn handle_stopped(&mut self, shard: ShardId, now: Instant) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        match known.hold {
            Hold::Stopping => {
                known.hold = Hold::Stopped;
                self.stopping = self.stopping.saturating_sub(1);
                self.dirty.extend(self.waiting.iter().copied());
            }
            Hold::Running => {
                known.hold = Hold::Stopped;
                known.not_before = Some(now + RETRY_AFTER);
            }
            Hold::Abandoning => known.hold = Hold::Away,
            Hold::Away | Hold::Claiming | Hold::Stopped | Hold::Releasing => {}
        }
        self.dirty.insert(shard);
    }

    /// The lease is lost and everything was closed ([`super::fence::Action::Close`]): nothing is held.
    /// `instance` is the name under which the process joins again.
    pub fn handle_fenced(&mut self, instance: String) {
        self.instance = instance;
        self.stopping = 0;
        for known in self.shards.values_mut() {
            known.hold = Hold::Away;
            known.unsure = false;
            known.not_before = None;
        }
        self.dirty.extend(self.shards.keys());
    }

    /// The watch begins anew: records that went meanwhile are not shown, so what is not held is
    /// forgotten.
    pub fn handle_reset(&mut self) {
        self.shards.retain(|_, known| known.hold != Hold::Away);
        if let Some(plan) = &self.plan {
            for id in plan.shards.keys() {
                if let Ok(shard) = ShardId::new(*id, plan.shard_count) {
                    self.shards.entry(shard).or_default();
                }
            }
        }
        self.dirty.extend(self.shards.keys());
    }

    /// What to do now: asked until `None` after every `handle_*`, when the members change, and at
    /// [`Handover::poll_timeout`]. `may_act` is [`super::fence::Fence::may_act`] of this moment.
    pub fn poll_action(&mut self, members: &View, may_act: bool, now: Instant) -> Option<Action> {
        if !may_act || !members.is_listed() {
            return None;
        }
        while let Some(shard) = self.dirty.pop_first() {
            if let Some(action) = self.evaluate(shard, members, now) {
                return Some(action);
            }
        }
        // Waiting ones cost a look each, and only those that wait for this member's plan.
        let waiting: Vec<ShardId> = self.waiting.iter().copied().collect();
        waiting
            .into_iter()
            .find_map(|shard| self.evaluate(shard, members, now))
    }

    /// When to ask [`Handover::poll_action`] although nothing happened; besides
    /// [`View::poll_timeout`], at which the members change.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let not_before = |shard| self.shards.get(shard)?.not_before;
        self.waiting.iter().filter_map(not_before).min()
    }

    fn evaluate(&mut self, shard: ShardId, members: &View, now: Instant) -> Option<Action> {
        self.waiting.remove(&shard);
        let wanted = wanted(self.plan.as_ref(), &self.me, shard);
        let known = self.shards.get_mut(&shard)?;
        if known.not_before.is_some_and(|at| now < at) {
            self.waiting.insert(shard);
            return None;
        }
        known.not_before = None;
        let ours = known.owner.as_ref().is_some_and(|owner| {
            owner.proxy == self.me && owner.instance.as_deref() == Some(self.instance.as_str())
        });
        let anothers = known.owner.is_some() && !ours;
        let revision = known.revision;
        let (hold, action) = match (known.hold, wanted) {
            (Hold::Away, Wanted::Here) if ours && !known.unsure => {
                (Hold::Running, Action::Start { shard })
            }
            (Hold::Away, Wanted::Here) => {
                let free = |owner: &Owner| ours || members.is_dead(owner, now);
                if !known.owner.as_ref().is_none_or(free) {
                    self.waiting.insert(shard);
                    return None;
                }
                (Hold::Claiming, claim(shard, revision))
            }
            // A claim that arrived late, of a plan that is over.
            (Hold::Away, _) if ours => (Hold::Releasing, release(shard, revision)),
            (Hold::Running, _) if anothers => (Hold::Abandoning, Action::Abandon { shard }),
            (Hold::Running, Wanted::At(_) | Wanted::Nowhere) => {
                let taken_up = match wanted {
                    Wanted::At(proxy) => members.member(proxy, now).is_some(),
                    Wanted::Here | Wanted::Nowhere => true,
                };
                if !taken_up || self.stopping >= STOPPING_MAX {
                    self.waiting.insert(shard);
                    return None;
                }
                self.stopping += 1;
                (Hold::Stopping, Action::Stop { shard })
            }
            (Hold::Stopped, _) if !ours => {
                known.hold = Hold::Away;
                self.dirty.insert(shard);
                return None;
            }
            // The plan has changed its mind. A release that may still arrive must lose first.
            (Hold::Stopped, Wanted::Here) if known.unsure => {
                (Hold::Claiming, claim(shard, revision))
            }
            (Hold::Stopped, Wanted::Here) => (Hold::Running, Action::Start { shard }),
            (Hold::Stopped, _) => (Hold::Releasing, release(shard, revision)),
            (
                Hold::Away
                | Hold::Running
                | Hold::Claiming
                | Hold::Stopping
                | Hold::Releasing
                | Hold::Abandoning,
                _,
            ) => return None,
        };
        known.hold = hold;
        Some(action)
    }
}

const fn claim(shard: ShardId, expected_revision: u64) -> Action {
    Action::Claim {
        shard,
        expected_revision,
    }
}

const fn release(shard: ShardId, expected_revision: u64) -> Action {
    Action::Release {
        shard,
        expected_revision,
    }
}

fn wanted<'a>(plan: Option<&'a Plan>, me: &ProxyId, shard: ShardId) -> Wanted<'a> {
    let Some(plan) = plan.filter(|plan| plan.shard_count == shard.count()) else {
        return Wanted::Nowhere;
    };
    match plan.shards.get(&shard.id()) {
        Some(proxy) if proxy == me => Wanted::Here,
        Some(proxy) => Wanted::At(proxy),
        None => Wanted::Nowhere,
    }
}

#[cfg(test)]
mod tests;
