//! What the coordinator does for the shards: it looks at the members, plans, and says what is to be
//! written. The agent runs the write beside itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::count::{self, Facts, Notice};
use gateway_proxy_core::fleet::plan::{self, Candidate, Input, Outcome, Problem, Reason, Request};
use gateway_proxy_core::fleet::rebalance::{Observed, Rebalancer, ShardLoad};
use gateway_proxy_core::fleet::view::View;
use schemas::control::FleetReply;
use schemas::{FleetKey, Member, Plan, ProxyId};
use tracing::{error, info, warn};

use super::bucket::{Bucket, WriteError};
use super::service::Refusal;
use crate::metrics::Metrics;
use crate::status::{Hold, ProcessStatus, unix_ms};

/// Shards moved per minute without need: for load, and to give joining members their share. Each move is
/// a pause of some ten milliseconds for one shard.
const MOVES_PER_MINUTE: u32 = 240;
/// Most of them at once: what members stop and start side by side.
const MOVES_AT_ONCE: u32 = 16;
/// A first plan waits so long for members that start together, and no longer.
const GATHER: Duration = Duration::from_millis(2_500);
/// How often load is judged.
const OBSERVE_EVERY: Duration = Duration::from_secs(5);
/// Until the rest of a joining member's share is planned.
const SHARE_EVERY: Duration = Duration::from_secs(1);
/// How long a write of the plan may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// A plan that could not be written is made again after this time.
const WRITE_REST: Duration = Duration::from_millis(250);
/// Requests of operators that wait for the next plan.
const REQUESTS_MAX: usize = 1_024;
/// How often a trouble that stays is said.
const SAY_EVERY: Duration = Duration::from_secs(600);

/// The coordinator's part of every process; it rests while another coordinates.
#[derive(Debug)]
pub(crate) struct Coordinator {
    metrics: Metrics,
    process: Arc<ProcessStatus>,
    sharding: Sharding,
    // The plan as it stands, and the key's revision.
    plan: Option<Plan>,
    revision: u64,
    // Epoch under which this process coordinates.
    term: Option<u64>,
    rebalancer: Rebalancer,
    requests: Vec<Request>,
    // Proxies an operator wants emptied, with the instance that was meant.
    drains: BTreeMap<ProxyId, Option<String>>,
    // Requests in the plan that is being written.
    writing: Option<Vec<Request>>,
    // What the last plan was made of: the same again makes the same.
    basis: Option<Basis>,
    observe_at: Option<Instant>,
    again_at: Option<Instant>,
    said: Said,
}

/// What the number of shards depends on.
#[derive(Debug)]
pub(crate) struct Sharding {
    /// `--shards` of this process.
    pub(crate) wish: count::Wish,
    /// The count of a first plan if nobody asked for another.
    pub(crate) first: u32,
    /// Epoch of a plan found at the start of which nothing is left: no member, no session.
    pub(crate) void_plan: Option<u64>,
}

/// What a plan depends on, but for requests.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    count: u32,
    members: Vec<Candidate>,
    revision: u64,
}

#[derive(Debug, Default)]
struct Said {
    problems: Vec<Problem>,
    hold: Option<Hold>,
    count: Option<Notice>,
    newer: Option<Instant>,
}

/// A plan to be written.
#[derive(Debug)]
pub(crate) struct Work {
    plan: Plan,
    expected_revision: u64,
}

/// How writing it went.
#[derive(Debug)]
pub(crate) enum Done {
    Written { plan: Plan, revision: u64 },
    Refused { revision: u64, plan: Option<Plan> },
    Failed(String),
}

impl Done {
    /// The revision that was written, 0 for none.
    pub(crate) const fn revision(&self) -> u64 {
        match self {
            Self::Written { revision, .. } => *revision,
            Self::Refused { .. } | Self::Failed(_) => 0,
        }
    }
}

impl Work {
    /// Writes the plan if nobody wrote another meanwhile.
    pub(crate) async fn carry_out(self, bucket: &Bucket) -> Done {
        let value = serde_json::to_vec(&self.plan).expect("plans hold only strings and numbers");
        let (key, expected) = (FleetKey::Plan, self.expected_revision);
        let write = bucket.write(&key, value.into(), expected, None, WRITE_TIMEOUT);
        match write.await {
            Ok(revision) => Done::Written {
                plan: self.plan,
                revision,
            },
            Err(WriteError::Refused) => match bucket.read(&key, WRITE_TIMEOUT).await {
                Ok(entry) => Done::Refused {
                    revision: entry.revision,
                    plan: entry
                        .value
                        .and_then(|value| serde_json::from_slice(&value).ok()),
                },
                Err(reason) => Done::Failed(reason),
            },
            Err(WriteError::Failed(reason)) => Done::Failed(reason),
        }
    }
}

impl Coordinator {
    /// One that rests.
    pub(crate) fn new(metrics: Metrics, process: Arc<ProcessStatus>, sharding: Sharding) -> Self {
        Self {
            metrics,
            process,
            sharding,
            plan: None,
            revision: 0,
            term: None,
            rebalancer: Rebalancer::new(MOVES_PER_MINUTE),
            requests: Vec::new(),
            drains: BTreeMap::new(),
            writing: None,
            basis: None,
            observe_at: None,
            again_at: None,
            said: Said::default(),
        }
    }

    /// The watch shows the plan: `None` when there is none, or nobody can read it.
    pub(crate) fn handle_plan(&mut self, revision: u64, plan: Option<Plan>) {
        if revision > self.revision {
            self.revision = revision;
            self.plan = plan;
        }
    }

    /// This process does not coordinate.
    pub(crate) fn rest(&mut self) {
        if self.term.take().is_none() {
            return;
        }
        self.rebalancer = Rebalancer::new(MOVES_PER_MINUTE);
        self.requests.clear();
        self.drains.clear();
        self.basis = None;
        (self.observe_at, self.again_at) = (None, None);
        self.said = Said::default();
        self.metrics.fleet_unplaced_shards.set(0);
    }

    /// When [`Coordinator::turn`] may find something although nothing happened.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.term?;
        [self.observe_at, self.again_at].into_iter().flatten().min()
    }

    /// Looks at the fleet as its coordinator; a plan to be written, if there is a better one.
    pub(crate) fn turn(&mut self, epoch: u64, view: &View, now: Instant) -> Option<Work> {
        self.term = Some(epoch);
        let waits = self.again_at.is_some_and(|at| now < at) && self.requests.is_empty();
        let planned = self.plan.iter().flat_map(|plan| plan.shards.values());
        let planned: BTreeSet<&ProxyId> = planned.collect();
        if self.writing.is_some() || !view.is_complete(planned.into_iter(), GATHER, now) {
            return None;
        }
        // Nobody follows a plan: the processes hold what they were started with.
        if !view.live(now).any(|(_, member)| member.fleet) {
            return None;
        }
        if let Some(format) = self.newer_format() {
            self.say_newer(format, now);
            return None;
        }
        let count = self.shard_count(view, now);
        self.observe(count, view, now);
        self.forget_drains(view, now);
        let basis = Basis {
            count,
            members: self.candidates(count, view, now),
            revision: self.revision,
        };
        let due = self.again_at.is_some_and(|at| now >= at);
        let same = self.basis.as_ref() == Some(&basis);
        if same && self.requests.is_empty() && !due || (waits && same) {
            return None;
        }
        self.again_at = None;
        let holders = holders(count, view, now);
        let input = Input {
            shard_count: count,
            members: &basis.members,
            previous: self.plan.as_ref(),
            holders: &holders,
            requests: &self.requests,
            moves_max: self.rebalancer.moves_left(now).min(MOVES_AT_ONCE),
        };
        let outcome = plan::plan(&input);
        let next_epoch = self.plan.as_ref().map_or(0, |plan| plan.epoch) + 1;
        let plan = outcome.to_plan(&input, next_epoch, unix_ms());
        self.basis = Some(basis);
        self.say(&outcome);
        if outcome.more {
            let again = now + SHARE_EVERY;
            let possible = self.rebalancer.moves_again_at(now);
            self.again_at = Some(possible.map_or(again, |at| at.max(again)));
        }
        let Some(plan) = plan else {
            self.requests.clear();
            return None;
        };
        self.announce(&plan, &outcome);
        let joining = |moved: &&plan::Move| moved.reason == Reason::Joining;
        let joining = outcome.moves.iter().filter(joining).count();
        self.rebalancer.handle_moved(joining, now);
        self.writing = Some(std::mem::take(&mut self.requests));
        Some(Work {
            plan,
            expected_revision: self.revision,
        })
    }

    /// How writing a plan went.
    pub(crate) fn hear(&mut self, done: Done, now: Instant) {
        let requests = self.writing.take().unwrap_or_default();
        match done {
            Done::Written { plan, revision } => self.handle_plan(revision, Some(plan)),
            Done::Refused { revision, plan } => {
                info!("the plan was written by somebody else meanwhile: planning again");
                self.handle_plan(revision, plan);
                self.requests.extend(requests);
                self.basis = None;
            }
            Done::Failed(reason) => {
                warn!(reason, "the plan was not written, trying again");
                self.requests.extend(requests);
                self.basis = None;
                self.again_at = Some(now + WRITE_REST);
            }
        }
    }

    // ---- what operators want ----

    /// A proxy is to be emptied. It ends by itself once it is.
    pub(crate) fn drain(
        &mut self,
        proxy: &ProxyId,
        view: &View,
        now: Instant,
    ) -> Result<FleetReply, Refusal> {
        let member = self.member(proxy, view, now)?;
        let shards: Vec<u32> = member.shards.iter().map(|shard| shard.id()).collect();
        self.drains.insert(proxy.clone(), member.instance.clone());
        Ok(FleetReply {
            accepted: true,
            detail: Some(format!(
                "{proxy} hands {} shards over and ends",
                shards.len()
            )),
            epoch: self.next_epoch(),
            shards,
        })
    }

    /// A shard is to go to a certain proxy.
    pub(crate) fn migrate(
        &mut self,
        shard: u32,
        to: ProxyId,
        view: &View,
        now: Instant,
    ) -> Result<FleetReply, Refusal> {
        let target = self.member(&to, view, now)?;
        if !target.fleet {
            let text = format!("{to} holds what it was started with: it runs without --fleet");
            return Err(Refusal::new(409, text));
        }
        let Some(plan) = &self.plan else {
            return Err(Refusal::new(409, "there is no plan yet"));
        };
        if plan.shards.get(&shard) == Some(&to) {
            return Ok(FleetReply {
                accepted: false,
                detail: Some(format!("{to} has shard {shard} already")),
                epoch: plan.epoch,
                shards: Vec::new(),
            });
        }
        let request = Request {
            shard,
            to: to.clone(),
            reason: Reason::Requested,
        };
        let count = plan.shard_count;
        let trial = plan::plan(&Input {
            shard_count: count,
            members: &self.candidates(count, view, now),
            previous: Some(plan),
            holders: &holders(count, view, now),
            requests: std::slice::from_ref(&request),
            moves_max: 0,
        });
        let refused = |problem: &&Problem| matches!(problem, Problem::Refused { shard: refused, .. } if *refused == shard);
        if let Some(problem) = trial.problems.iter().find(refused) {
            let missing = shard >= count;
            let code = if missing { 404 } else { 409 };
            return Err(Refusal::new(code, problem.to_string()));
        }
        if self.requests.len() >= REQUESTS_MAX {
            return Err(Refusal::new(
                503,
                "too many requests wait for the next plan",
            ));
        }
        self.requests.push(request);
        Ok(FleetReply {
            accepted: true,
            detail: Some(format!("shard {shard} goes to {to}")),
            epoch: self.next_epoch(),
            shards: vec![shard],
        })
    }

    /// A shard is to connect anew; who holds it has heard it too.
    pub(crate) fn restart(
        &self,
        shard: u32,
        holder: Option<ProxyId>,
    ) -> Result<FleetReply, Refusal> {
        let Some(proxy) = holder else {
            return Err(Refusal::new(404, format!("no proxy holds shard {shard}")));
        };
        Ok(FleetReply {
            accepted: true,
            detail: Some(format!("shard {shard} connects anew at {proxy}")),
            epoch: self.plan.as_ref().map_or(0, |plan| plan.epoch),
            shards: vec![shard],
        })
    }

    fn member<'a>(
        &self,
        proxy: &ProxyId,
        view: &'a View,
        now: Instant,
    ) -> Result<&'a Member, Refusal> {
        view.member(proxy, now).ok_or_else(|| {
            let known: Vec<&str> = view.live(now).map(|(proxy, _)| proxy.as_str()).collect();
            let known = known.join(", ");
            Refusal::new(
                404,
                format!("there is no proxy {proxy}; there are: {known}"),
            )
        })
    }

    fn next_epoch(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.epoch) + 1
    }

    // ---- what a plan is made of ----

    fn candidates(&self, count: u32, view: &View, now: Instant) -> Vec<Candidate> {
        view.live(now)
            // Who holds shards of another sharding has no part in this one.
            .filter(|(_, member)| {
                member.fleet || member.shards.iter().all(|shard| shard.count() == count)
            })
            .map(|(proxy, member)| {
                let mut candidate = Candidate::of(proxy, member, self.rebalancer.is_hot(proxy));
                candidate.draining |= self.drains.contains_key(proxy);
                candidate
            })
            .collect()
    }

    fn shard_count(&mut self, view: &View, now: Instant) -> u32 {
        let stays = |(_, member): &(&ProxyId, &Member)| member.fleet && !member.draining;
        let wishes: Vec<(&ProxyId, count::Wish)> = view
            .live(now)
            .filter(stays)
            .map(|(proxy, member)| (proxy, member.wants_shards))
            .collect();
        let plan = self.plan.as_ref();
        let (count, notice) = count::of_fleet(&Facts {
            own: self.sharding.wish,
            wishes: &wishes,
            kept: plan
                .filter(|plan| Some(plan.epoch) != self.sharding.void_plan)
                .map(|plan| plan.shard_count),
            first: self.sharding.first,
        });
        if let Some(notice) = &notice
            && self.said.count.as_ref() != Some(notice)
        {
            warn!("{notice}");
        }
        self.said.count = notice;
        count
    }

    fn observe(&mut self, count: u32, view: &View, now: Instant) {
        if self.observe_at.is_some_and(|at| now < at) {
            return;
        }
        self.observe_at = Some(now + OBSERVE_EVERY);
        let observed: Vec<Observed<'_>> = view
            .live(now)
            .filter(|(_, member)| member.fleet)
            .map(|(proxy, member)| observed(proxy, member, count))
            .collect();
        self.rebalancer.observe(&observed, now);
        let requests = self.rebalancer.requests(&observed, now);
        for request in &requests {
            info!(shard = request.shard, to = %request.to, "a shard moves away from an overloaded proxy");
        }
        self.requests.extend(requests);
    }

    fn forget_drains(&mut self, view: &View, now: Instant) {
        self.drains.retain(|proxy, instance| {
            view.member(proxy, now)
                .is_some_and(|member| member.instance == *instance)
        });
    }

    fn newer_format(&self) -> Option<u32> {
        let format = self.plan.as_ref()?.format;
        (format > Plan::FORMAT).then_some(format)
    }

    // ---- what people are told ----

    fn say_newer(&mut self, format: u32, now: Instant) {
        if self.said.newer.is_some_and(|at| now < at + SAY_EVERY) {
            return;
        }
        self.said.newer = Some(now);
        error!(
            format,
            known = Plan::FORMAT,
            "the plan is of a newer version: this process does not plan, update it"
        );
        let reason = format!("the plan has format {format}, which is newer than this version");
        self.said.hold = Some(self.process.hold(reason));
    }

    fn say(&mut self, outcome: &Outcome) {
        let unplaced = outcome.unplaced.len();
        self.metrics.fleet_unplaced_shards.set(unplaced as u64);
        self.process.set_unplaced(outcome.unplaced.clone());
        if self.said.problems == outcome.problems {
            return;
        }
        for problem in &outcome.problems {
            if !self.said.problems.contains(problem) {
                warn!(%problem, "the plan has a problem");
            }
        }
        let room = outcome
            .problems
            .iter()
            .find(|problem| matches!(problem, Problem::NoRoom { .. } | Problem::NoMembers { .. }));
        self.said.hold = room.map(|problem| self.process.hold(problem.to_string()));
        if outcome.problems.is_empty() {
            info!("every shard has a place");
        }
        self.said.problems.clone_from(&outcome.problems);
    }

    fn announce(&self, plan: &Plan, outcome: &Outcome) {
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        for moved in &outcome.moves {
            *reasons.entry(moved.reason).or_default() += 1;
        }
        let proxies: BTreeSet<&ProxyId> = plan.shards.values().collect();
        info!(
            epoch = plan.epoch,
            shards = plan.shard_count,
            proxies = proxies.len(),
            moves = outcome.moves.len(),
            unplaced = outcome.unplaced.len(),
            ?reasons,
            "a new plan"
        );
    }
}

fn observed<'a>(proxy: &'a ProxyId, member: &Member, count: u32) -> Observed<'a> {
    let shards: Vec<u32> = member
        .shards
        .iter()
        .filter(|shard| shard.count() == count)
        .map(|shard| shard.id())
        .collect();
    let held = u32::try_from(shards.len()).unwrap_or(u32::MAX);
    // Heartbeats do not tell shards apart: each counts an even part.
    let each = member.load.events_per_second / f64::from(held.max(1));
    Observed {
        proxy,
        load: member.load,
        takes: !member.draining && member.pinned.is_none(),
        room: member
            .max_shards
            .map_or(u32::MAX, |max| max.saturating_sub(held)),
        shards: shards
            .into_iter()
            .map(|shard| ShardLoad {
                shard,
                events_per_second: each,
            })
            .collect(),
    }
}

/// Who holds what, by the heartbeats of the living.
fn holders(count: u32, view: &View, now: Instant) -> BTreeMap<u32, ProxyId> {
    view.live(now)
        .flat_map(|(proxy, member)| member.shards.iter().map(move |shard| (shard, proxy)))
        .filter(|(shard, _)| shard.count() == count)
        .map(|(shard, proxy)| (shard.id(), proxy.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
