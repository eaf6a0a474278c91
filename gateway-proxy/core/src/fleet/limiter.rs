//! Who may IDENTIFY when, over all proxies: the coordinator's side and the asker's.
//!
//! Discord takes one IDENTIFY per bucket (`shard_id % max_concurrency`) per 5 s. What keeps to it
//! whoever dies, freezes or is cut off at whatever moment, with clocks that disagree:
//!
//! - **Persist before grant.** A grant is in the bucket's key `identify`, by compare-and-set, before it
//!   is told to anybody ([`Action::Store`], then [`Action::Answer`]). A coordinator first stores its
//!   epoch there; from then on its predecessor's writes fail.
//! - **A grant ends.** It is good for [`GOOD_FOR`] after the *asker sent its request* ([`Permit`]), by the
//!   asker's monotonic clock, so however late an answer arrives. The request was sent before the grant was stored,
//!   and that was before anybody saw it stored. So whoever counts [`GOOD_FOR`] and one [`PERIOD`] from
//!   when it saw (or gave) the grant is on the safe side.
//! - **A report frees the bucket early.** Once the asker has sent its IDENTIFY it says so, and one
//!   [`PERIOD`] from then on is enough: without faults the pace is Discord's own.
//!
//! Every process feeds [`Limiter::handle_state`] with what it sees of the key, so that it knows, if it
//! becomes coordinator, how long ago the last grants were, by its own clock.
//!
//! Requests are asked again and again: a request is held for at most [`HELD_FOR`] and then told when to come
//! back; in between its place is kept.

mod breaker;
mod buckets;
mod queue;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use schemas::control::{
    IdentifyOutcome, IdentifyReply, IdentifyReport, IdentifyRequest, IdentifyStatus,
};
use schemas::{IdentifyState, SessionBudget, ShardId};

use breaker::Breaker;
pub use breaker::FAILURES_MAX;
use buckets::Buckets;
use queue::{Queue, Waiting};

/// One IDENTIFY per bucket in this time: Discord's 5 s (Gateway, Rate Limiting), and a margin: Discord
/// measures at arrival, we at sending, and two sendings may take differently long on the way.
pub const PERIOD: Duration = Duration::from_millis(5_000 + 100);
/// How long after asking a grant may be used.
pub const GOOD_FOR: Duration = Duration::from_secs(3);
/// How long a request is held before it is told to come again. Well below [`GOOD_FOR`].
pub const HELD_FOR: Duration = Duration::from_secs(1);
/// How much earlier than its turn a request is told to come again.
const COME_EARLIER: Duration = Duration::from_millis(500);
/// Shortest and longest time until a request is told to come again.
const COME_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A place is kept for so long after its request should have come again.
const PLACE_KEPT: Duration = Duration::from_secs(5);
/// Clocks of different machines are believed to differ by less. Only a process that sees the key for
/// the first time asks the wall clock, to tell a grant of a moment ago from one of yesterday.
pub const SKEW_MAX: Duration = Duration::from_secs(600);
/// How often Discord is asked for the budget while shards wait: others may spend it too.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// A write of the key that failed is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Grants whose outcome is awaited. READY takes at most 300 s.
const OUTCOME_WITHIN: Duration = Duration::from_secs(330);
/// How often what is over is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Proxies whose last turn is remembered.
const SERVED_MAX: usize = 1_024;
/// A day's budget lasts so long.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A request that the driver holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What the driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the key `identify` if it has this revision (0: no key). Then exactly one of
    /// [`Limiter::handle_stored`], [`Limiter::handle_store_refused`], [`Limiter::handle_store_failed`].
    Store {
        /// What to compare with.
        expected_revision: u64,
        /// What to write.
        state: IdentifyState,
    },
    /// Answer a request. Before it, the driver looks whether it still coordinates.
    Answer {
        /// Which.
        ticket: Ticket,
        /// With what.
        reply: IdentifyReply,
    },
    /// Ask Discord for the session start limit, then [`Limiter::handle_budget`].
    AskDiscord,
}

/// Why nothing is granted at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody waits, or somebody is about to be granted.
    None,
    /// This process does not coordinate.
    NotCoordinating,
    /// Discord was not asked yet, or the day is over and it was not asked since.
    BudgetUnknown,
    /// The day's budget is down to its reserve; it is refilled at this time, unix ms.
    Reserve(u64),
    /// IDENTIFYs keep failing: the next try is then.
    Failing(Instant),
    /// All buckets in demand are in use; the first is free then.
    Buckets(Instant),
}

/// The right to send one IDENTIFY, on the asker's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Its number, for the report.
    pub grant: u64,
    until: Instant,
}

impl Permit {
    /// What a reply permits; `asked_at` is when its request was *sent*. `None`: nothing.
    #[must_use]
    pub fn of(reply: &IdentifyReply, asked_at: Instant) -> Option<Self> {
        let grant = reply.grant?;
        let good_for = Duration::from_millis(reply.wait_ms.unwrap_or(0)).min(GOOD_FOR);
        let until = asked_at + good_for;
        (reply.status == IdentifyStatus::Granted).then_some(Self { grant, until })
    }

    /// Asked immediately before IDENTIFY is sent. If not: report [`IdentifyOutcome::Unused`], ask anew.
    #[must_use]
    pub fn is_good(&self, now: Instant) -> bool {
        now < self.until
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Follower,
    // The epoch is not stored yet.
    Claiming(u64),
    Leader(u64),
}

/// The limiter: grants while this process coordinates, and watches while another does.
#[derive(Clone, Debug)]
pub struct Limiter {
    reserve_percent: u8,
    role: Role,
    // The key as last seen or written.
    revision: u64,
    known: Option<IdentifyState>,
    buckets: Buckets,
    queue: Queue,
    breaker: Breaker,
    budget: Option<SessionBudget>,
    // True while the budget is a predecessor's word or the day is over.
    budget_stale: bool,
    asked_discord: Option<Instant>,
    grants: u64,
    // Chosen, not stored yet: nobody knows of them.
    storing: Option<Vec<Chosen>>,
    store_after: Option<Instant>,
    // Whether somebody may be granted, and when at the latest to look although nothing happened.
    look: bool,
    look_at: Option<Instant>,
    forget_at: Option<Instant>,
    // Given, outcome unknown; ends after OUTCOME_WITHIN. At most one per shard and period.
    open: BTreeMap<u64, Open>,
    answers: VecDeque<Action>,
}

#[derive(Clone, Debug)]
struct Chosen {
    grant: u64,
    waiting: Waiting,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    shard: ShardId,
    given_at: Instant,
    sent_at: Option<Instant>,
}

impl Limiter {
    /// One that only watches. `reserve_percent` of the day's total is never spent.
    #[must_use]
    pub fn new(reserve_percent: u8) -> Self {
        Self {
            reserve_percent: reserve_percent.min(100),
            role: Role::Follower,
            revision: 0,
            known: None,
            buckets: Buckets::new(),
            queue: Queue::default(),
            breaker: Breaker::default(),
            budget: None,
            budget_stale: true,
            asked_discord: None,
            grants: 0,
            storing: None,
            store_after: None,
            look: false,
            look_at: None,
            forget_at: None,
            open: BTreeMap::new(),
            answers: VecDeque::new(),
        }
    }

    /// This process coordinates under this epoch: its first write says so.
    pub fn lead(&mut self, epoch: u64) {
        match self.role {
            Role::Leader(own) | Role::Claiming(own) if own == epoch => {}
            Role::Follower | Role::Leader(_) | Role::Claiming(_) => {
                self.role = Role::Claiming(epoch)
            }
        }
    }

    /// It coordinates no longer: who waits is told to ask again.
    pub fn resign(&mut self) {
        self.role = Role::Follower;
        self.withdraw_chosen();
        self.open.clear();
        while let Some((ticket, _)) = self.queue.pop_held() {
            self.answer_wait(
                ticket,
                COME_AGAIN.0,
                "another proxy coordinates from here on",
            );
        }
        self.queue = Queue::default();
    }

    /// True while grants are given.
    #[must_use]
    pub const fn is_leading(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The watch, or a look after a refused write, shows the key: `None` when nobody can read it.
    /// Every process calls this, always.
    pub fn handle_state(
        &mut self,
        revision: u64,
        state: Option<IdentifyState>,
        now: Instant,
        unix_ms: u64,
    ) {
        if revision <= self.revision {
            return;
        }
        self.revision = revision;
        self.look = true;
        let Some(state) = state else {
            return;
        };
        if matches!(self.role, Role::Claiming(own) | Role::Leader(own) if own == state.epoch) {
            // Our own write, seen before its answer. What is in it is known.
            self.known = Some(state);
            return;
        }
        self.buckets
            .learn(self.known.as_ref(), &state, now, unix_ms);
        self.grants = self.grants.max(state.grants);
        self.breaker.learn(state.failures);
        if let Some(budget) = state.budget
            && (self.role == Role::Follower || self.budget.is_none())
        {
            self.budget = Some(budget);
            self.budget_stale = false;
        }
        let newer = state.epoch;
        self.known = Some(state);
        match self.role {
            Role::Claiming(own) | Role::Leader(own) if newer > own => self.resign(),
            Role::Claiming(_) | Role::Leader(_) | Role::Follower => {}
        }
    }

    /// The epoch that stands in the key, for [`super::lease::Candidate::handle_epoch`].
    #[must_use]
    pub fn stored_epoch(&self) -> u64 {
        self.known.as_ref().map_or(0, |state| state.epoch)
    }

    /// Discord's session start limit, asked at `asked_at`: what was granted since is not in it.
    pub fn handle_budget(
        &mut self,
        budget: SessionBudget,
        max_concurrency: u32,
        asked_at: Instant,
    ) {
        let unsent = |open: &&Open| open.sent_at.is_none_or(|sent| sent >= asked_at);
        let unsent = self.open.values().filter(unsent).count();
        let chosen = self.storing.as_ref().map_or(0, Vec::len);
        let pending = u32::try_from(unsent + chosen).unwrap_or(u32::MAX);
        self.budget = Some(SessionBudget {
            remaining: budget.remaining.saturating_sub(pending),
            ..budget
        });
        self.budget_stale = false;
        self.buckets.set_count(max_concurrency);
        self.look = true;
    }

    /// A proxy asks for a shard that is its own by the plan; what is not, the driver refuses itself.
    /// A request with a report goes to [`Limiter::handle_report`].
    pub fn handle_request(&mut self, ticket: Ticket, request: &IdentifyRequest, now: Instant) {
        if !matches!(self.role, Role::Claiming(_) | Role::Leader(_)) {
            self.answer_wait(ticket, COME_AGAIN.0, "this proxy does not coordinate");
            return;
        }
        let bucket = self.buckets.of(request.shard.id());
        match self.buckets.free_at(bucket).filter(|at| now < *at) {
            Some(at) => self.look_at = Some(self.look_at.map_or(at, |look_at| look_at.min(at))),
            None => self.look = true,
        }
        let until = now + HELD_FOR + PLACE_KEPT;
        let proxy = request.proxy.clone();
        let pushed = self
            .queue
            .push(request.shard, proxy, request.priority, ticket, now, until);
        match pushed {
            Ok(None) => {}
            Ok(Some(before)) => self.answer_wait(before, COME_AGAIN.1, "asked again meanwhile"),
            Err(ticket) => self.answer_wait(ticket, COME_AGAIN.1, "too many shards wait"),
        }
    }

    /// Who asked does not wait for the answer any more.
    pub fn handle_cancelled(&mut self, ticket: Ticket) {
        self.queue.cancel(ticket);
    }

    /// What became of a grant. Reports of grants that are not ours are void.
    pub fn handle_report(&mut self, report: IdentifyReport, now: Instant) {
        let Some(open) = self.open.get_mut(&report.grant) else {
            return;
        };
        self.look = true;
        let shard = open.shard.id();
        let bucket = self.buckets.of(shard);
        match report.outcome {
            IdentifyOutcome::Sent => {
                open.sent_at.get_or_insert(now);
                self.buckets.sent(bucket, report.grant, now);
            }
            IdentifyOutcome::Unused if open.sent_at.is_none() => {
                self.open.remove(&report.grant);
                self.buckets.give_back(bucket, report.grant);
                self.queue.unused(shard);
                self.breaker.unused();
                self.refund(1);
            }
            IdentifyOutcome::Ready => {
                self.open.remove(&report.grant);
                self.buckets.sent(bucket, report.grant, now);
                self.queue.ready(shard);
                self.breaker.ready();
            }
            IdentifyOutcome::Failed => {
                self.open.remove(&report.grant);
                self.buckets.sent(bucket, report.grant, now);
                self.breaker.failed(now);
            }
            IdentifyOutcome::Unused | IdentifyOutcome::Unknown => {}
        }
    }

    /// [`Action::Store`] is done.
    pub fn handle_stored(&mut self, revision: u64, now: Instant) {
        let Some(chosen) = self.storing.take() else {
            return;
        };
        self.revision = self.revision.max(revision);
        self.look = true;
        let epoch = match self.role {
            Role::Claiming(epoch) => {
                self.role = Role::Leader(epoch);
                epoch
            }
            Role::Leader(epoch) => epoch,
            Role::Follower => return,
        };
        for Chosen { grant, waiting } in chosen {
            let open = Open {
                shard: waiting.shard,
                given_at: now,
                sent_at: None,
            };
            self.open.insert(grant, open);
            self.breaker.granted(now);
            let Some((ticket, _)) = waiting.present else {
                continue;
            };
            let reply = IdentifyReply {
                status: IdentifyStatus::Granted,
                wait_ms: Some(GOOD_FOR.as_millis() as u64),
                reason: None,
                epoch,
                remaining: self.budget.map(|budget| budget.remaining),
                reset_at_unix_ms: self.budget.map(|budget| budget.reset_at_unix_ms),
                grant: Some(grant),
            };
            self.answers.push_back(Action::Answer { ticket, reply });
        }
    }

    /// [`Action::Store`] was refused: the key has another revision. [`Limiter::handle_state`] with what
    /// it holds comes before.
    pub fn handle_store_refused(&mut self, now: Instant) {
        self.handle_store_failed(now);
    }

    /// [`Action::Store`] failed or got no answer. Nobody was told of the grants in it.
    pub fn handle_store_failed(&mut self, now: Instant) {
        self.withdraw_chosen();
        self.store_after = Some(now + RETRY_AFTER);
        self.look = true;
    }

    /// What to do now: asked until `None` after every `handle_*` and at [`Limiter::poll_timeout`].
    pub fn poll_action(&mut self, now: Instant, unix_ms: u64) -> Option<Action> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let (Role::Claiming(epoch) | Role::Leader(epoch)) = self.role else {
            return None;
        };
        self.forget(now);
        self.begin_day(unix_ms);
        let may_store = self.storing.is_none() && self.store_after.is_none_or(|at| now >= at);
        if may_store {
            self.store_after = None;
            let chosen = self.choose(now, unix_ms);
            if !chosen.is_empty() || matches!(self.role, Role::Claiming(_)) {
                self.storing = Some(chosen);
                return Some(Action::Store {
                    expected_revision: self.revision,
                    state: self.state(epoch),
                });
            }
        }
        if let Some((ticket, shard)) = self.queue.overdue(HELD_FOR, now) {
            let (wait, reason) = self.come_again(shard, now, unix_ms);
            self.queue.expect_again(shard.id(), now + wait + PLACE_KEPT);
            self.answer_wait(ticket, wait, reason);
            return self.answers.pop_front();
        }
        let due = self.asked_discord.is_none_or(|at| now >= at + ASK_EVERY);
        if due && (self.budget_stale || self.queue.len() > 0) {
            self.asked_discord = Some(now);
            return Some(Action::AskDiscord);
        }
        None
    }

    /// When to ask [`Limiter::poll_action`] although nothing happened.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        if self.role == Role::Follower {
            return None;
        }
        let asks = self.budget_stale || self.queue.len() > 0;
        let ask = asks.then(|| self.asked_discord.map_or(now, |at| at + ASK_EVERY));
        let look = self.look_at.filter(|_| self.storing.is_none());
        let held = self.queue.next_overdue(HELD_FOR);
        [held, self.store_after, ask, look]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why nothing is granted.
    #[must_use]
    pub fn hold(&self, now: Instant) -> Hold {
        if !self.is_leading() {
            return Hold::NotCoordinating;
        }
        if self.queue.len() == 0 {
            return Hold::None;
        }
        let Some(budget) = self.budget.filter(|_| !self.budget_stale) else {
            return Hold::BudgetUnknown;
        };
        if budget.remaining <= self.reserve() {
            return Hold::Reserve(budget.reset_at_unix_ms);
        }
        if let Some(until) = self.breaker.paused_until(now) {
            return Hold::Failing(until);
        }
        let free_at = |shard| {
            let bucket = self.buckets.of(shard);
            self.buckets.free_at(bucket).filter(|at| now < *at)
        };
        match self.queue.shards().map(free_at).min() {
            Some(Some(at)) => Hold::Buckets(at),
            Some(None) | None => Hold::None,
        }
    }

    /// The day's budget as known.
    #[must_use]
    pub const fn budget(&self) -> Option<SessionBudget> {
        self.budget
    }

    /// IDENTIFYs that are kept back.
    #[must_use]
    pub fn reserve(&self) -> u32 {
        let total = self.budget.map_or(0, |budget| budget.total);
        let reserve = u64::from(total) * u64::from(self.reserve_percent) / 100;
        u32::try_from(reserve).unwrap_or(u32::MAX)
    }

    /// How many shards wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Discord's number of buckets as known.
    #[must_use]
    pub const fn max_concurrency(&self) -> u32 {
        self.buckets.count()
    }

    /// How long until the last of these shards may have had its grant, if nothing holds them up but
    /// their buckets: for people, of all shards that have no session yet.
    #[must_use]
    pub fn time_for(&self, shards: impl Iterator<Item = u32>, now: Instant) -> Duration {
        self.buckets.time_for(shards, now)
    }

    fn choose(&mut self, now: Instant, unix_ms: u64) -> Vec<Chosen> {
        let mut chosen = Vec::new();
        if !self.is_leading() {
            return chosen;
        }
        let reserve = self.reserve();
        let Some(budget) = self.budget.filter(|_| !self.budget_stale) else {
            return chosen;
        };
        if !self.look && self.look_at.is_none_or(|at| now < at) {
            return chosen;
        }
        self.look = false;
        let room = budget.remaining.saturating_sub(reserve) as usize;
        let room = room.min(self.breaker.room(now));
        if room == 0 {
            self.look_at = self.breaker.paused_until(now);
            return chosen;
        }
        let free = |shard| self.buckets.is_free(self.buckets.of(shard), now);
        for shard in self.queue.present(free, now) {
            let bucket = self.buckets.of(shard);
            if !self.buckets.is_free(bucket, now) {
                continue;
            }
            let Some(waiting) = self.queue.remove(shard) else {
                continue;
            };
            self.grants += 1;
            let grant = self.grants;
            self.buckets.take(bucket, grant, now, unix_ms);
            self.queue.granted(&waiting, grant, now);
            self.spend();
            chosen.push(Chosen { grant, waiting });
            if chosen.len() == room {
                break;
            }
        }
        let free_at = |shard| self.buckets.free_at(self.buckets.of(shard));
        self.look_at = self.queue.held().filter_map(free_at).min();
        chosen
    }

    fn withdraw_chosen(&mut self) {
        let chosen = self.storing.take().unwrap_or_default();
        self.refund(u32::try_from(chosen.len()).unwrap_or(u32::MAX));
        for Chosen { grant, waiting } in chosen {
            let bucket = self.buckets.of(waiting.shard.id());
            self.buckets.give_back(bucket, grant);
            self.queue.unused(waiting.shard.id());
            let ticket = waiting.present.map(|(ticket, _)| ticket);
            if !self.queue.put_back(waiting)
                && let Some(ticket) = ticket
            {
                self.answer_wait(ticket, COME_AGAIN.1, "asked again meanwhile");
            }
        }
    }

    fn state(&self, epoch: u64) -> IdentifyState {
        IdentifyState {
            epoch,
            max_concurrency: self.buckets.count(),
            last_grant_unix_ms: self.buckets.last_grants(),
            budget: self.budget,
            grants: self.grants,
            failures: self.breaker.failures(),
        }
    }

    fn come_again(&self, shard: ShardId, now: Instant, unix_ms: u64) -> (Duration, &'static str) {
        let (wait, reason) = match self.hold(now) {
            Hold::Reserve(reset) => (
                Duration::from_millis(reset.saturating_sub(unix_ms)),
                "the day's identify budget is down to its reserve",
            ),
            Hold::Failing(until) => (
                until.saturating_duration_since(now),
                "identifies keep failing",
            ),
            Hold::BudgetUnknown => (COME_AGAIN.0, "Discord has not said the day's budget yet"),
            Hold::NotCoordinating => (COME_AGAIN.0, "the coordinator is about to begin"),
            Hold::Buckets(_) | Hold::None => {
                let count = self.buckets.count();
                let bucket = self.buckets.of(shard.id());
                let free_at = self.buckets.free_at(bucket).unwrap_or(now);
                let waves = self.queue.before(shard.id(), count, now);
                let wait = free_at.saturating_duration_since(now) + PERIOD * waves;
                (wait.saturating_sub(COME_EARLIER), "the bucket is taken")
            }
        };
        (wait.clamp(COME_AGAIN.0, COME_AGAIN.1), reason)
    }

    fn answer_wait(&mut self, ticket: Ticket, wait: Duration, reason: &str) {
        let epoch = match self.role {
            Role::Leader(epoch) | Role::Claiming(epoch) => epoch,
            Role::Follower => self.stored_epoch(),
        };
        let reply = IdentifyReply {
            status: IdentifyStatus::Wait,
            wait_ms: Some(wait.as_millis() as u64),
            reason: Some(reason.to_owned()),
            epoch,
            remaining: self.budget.map(|budget| budget.remaining),
            reset_at_unix_ms: self.budget.map(|budget| budget.reset_at_unix_ms),
            grant: None,
        };
        self.answers.push_back(Action::Answer { ticket, reply });
    }

    /// The day is over: Discord is asked before it is believed, for clocks differ; if it cannot be
    /// reached for longer than they can, a new day has begun all the same.
    fn begin_day(&mut self, unix_ms: u64) {
        let Some(budget) = &mut self.budget else {
            return;
        };
        if unix_ms < budget.reset_at_unix_ms {
            return;
        }
        if unix_ms >= budget.reset_at_unix_ms + SKEW_MAX.as_millis() as u64 {
            budget.remaining = budget.total;
            budget.reset_at_unix_ms = unix_ms + DAY_MS;
            self.budget_stale = false;
        } else {
            self.budget_stale = true;
        }
    }

    fn spend(&mut self) {
        if let Some(budget) = &mut self.budget {
            budget.remaining = budget.remaining.saturating_sub(1);
        }
    }

    fn refund(&mut self, count: u32) {
        if let Some(budget) = &mut self.budget {
            budget.remaining = budget.remaining.saturating_add(count).min(budget.total);
        }
    }

    fn forget(&mut self, now: Instant) {
        if self.forget_at.is_some_and(|at| now < at) {
            return;
        }
        self.forget_at = Some(now + FORGET_EVERY);
        self.queue.forget(now);
        self.queue.forget_served(SERVED_MAX);
        self.buckets.forget(now);
        self.open
            .retain(|_, open| now < open.given_at + OUTCOME_WITHIN);
    }
}
