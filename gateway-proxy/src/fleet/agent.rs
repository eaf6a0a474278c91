//! This process as a member: one task that renews its leases, follows the plan, and coordinates while it
//! has the lease. It waits for one cause, tells the decisions of `core::fleet`, and carries out what
//! they answer; whatever takes time runs beside it and reports back.
//!
//! Outside a fleet it does the same but for the plan: it is a member so that others see what it holds, and
//! a candidate because somebody must grant IDENTIFYs.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::fence::{self, Fence as Lease, Why};
use gateway_proxy_core::fleet::handover::{self, Handover};
use gateway_proxy_core::fleet::lease::{self, Candidate};
use gateway_proxy_core::fleet::view::{Admission, View};
use gateway_proxy_core::fleet::TTL;
use schemas::health::FleetHealth;
use schemas::{FleetKey, IdentifyState, Leader, Load, Member, Plan, ProxyId, ShardId, ShardRecord};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::bucket::{Bucket, News};
use super::coordinator::{self, Coordinator};
use super::leadership::Leadership;
use super::service::{Refusal, Wish};
use super::states::States;
use super::write::{LeaseWrite, Outcome};
use crate::claim::{Claim, ClaimAtError};
use crate::config::Config;
use crate::exit::Fatal;
use crate::fence::Fence;
use crate::holder::Holder;
use crate::identify::Sighting;
use crate::metrics::Metrics;
use crate::ownership::Ownership;
use crate::shard::Order;
use crate::shutdown::{Phase, Shutdown};
use crate::status::{Hold, ProcessStatus, rounded, unix_ms};

/// Members of a fleet all return within this time after NATS was away: their renewals are tried several
/// times per TTL.
const SETTLE: Duration = Duration::from_millis(2_500);
/// How long storing what a shard that moves has on its way may take; what is missing is replayed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the record of a shard that moves may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// A shard that could not be started is tried again after this time.
const START_REST: Duration = Duration::from_secs(1);
/// Reports of work that runs beside; who has more to say waits.
const DONE_MAX: usize = 1_024;
/// Orders that are over and still remembered, before they are cleared away.
const AT_WORK_KEPT: usize = 256;
/// How long the coordinator may act on a lease of [`TTL`] after it was sent; what `core::fleet` says of a
/// member's counts here too.
const LEADS_FOR: Duration = Duration::from_millis(1_500);
/// The agent looks around at least this often.
const TICK: Duration = Duration::from_secs(1);
/// How long leaving may take: two deletions of keys.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the same trouble is said.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What the agent works with.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) config: Arc<Config>,
    pub(crate) bucket: Bucket,
    pub(crate) holder: Arc<Holder>,
    pub(crate) ownership: Ownership,
    pub(crate) process: Arc<ProcessStatus>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    /// Where a reason to give up goes.
    pub(crate) fatal: mpsc::Sender<Fatal>,
    /// What this process holds whatever the plan says.
    pub(crate) pinned: Option<BTreeSet<u32>>,
    /// Where the HTTP endpoints listen.
    pub(crate) http: String,
    /// Reads what the whole fleet does.
    pub(crate) states: States,
    /// Who grants IDENTIFYs hears of the last grants.
    pub(crate) sightings: mpsc::Sender<Sighting>,
    /// False once the process lets go of everything by itself.
    pub(crate) following: Arc<AtomicBool>,
}

/// What ran beside the agent and is over.
#[derive(Debug)]
enum Done {
    Member(Outcome),
    Leader {
        epoch: u64,
        outcome: Outcome,
    },
    Abandoned,
    Shard {
        /// Of which joining it speaks: what an earlier one began is void.
        joining: u64,
        shard: ShardId,
        report: Report,
    },
    Coordinated(coordinator::Done),
}

/// What became of an order about one shard.
#[derive(Debug)]
enum Report {
    Claimed(Result<Claim, ClaimAtError>),
    Stopped,
    Released(Option<u64>),
}

type Work = Pin<Box<dyn Future<Output = Option<Report>> + Send>>;

/// The member.
pub(crate) struct Agent {
    means: Arc<Means>,
    me: ProxyId,
    fleet: bool,
    gate: Fence,
    view: View,
    lease: Lease,
    candidate: Candidate,
    handover: Handover,
    coordinator: Coordinator,
    leadership: Leadership,
    // Keeps the process from being ready while it is no member.
    waiting: Option<Hold>,
    // Members of the fleet that may take this one's shards.
    others: watch::Sender<usize>,
    wishes: mpsc::Receiver<Wish>,
    news: mpsc::Receiver<News>,
    // Highest revision of a watched key that this process has written.
    written: Arc<AtomicU64>,
    done: mpsc::Sender<Done>,
    reports: mpsc::Receiver<Done>,
    beat: u64,
    // The lease was had since the last joining.
    joined: bool,
    joinings: u64,
    leads_since: Option<u64>,
    // The last order about each shard; the next one waits for it.
    at_work: HashMap<ShardId, JoinHandle<()>>,
    // Until when a candidate has nothing to do.
    candidate_waits: Option<Instant>,
    draining: bool,
    // When a trouble was said last.
    said_duplicate: Option<Instant>,
    said_plan: Option<Instant>,
}

/// What can happen.
enum Wake {
    News(Option<News>),
    Done(Done),
    Wish(Wish),
    Deadline,
    Changed,
    Draining,
}

impl Agent {
    pub(crate) fn new(
        means: Means,
        coordinator: Coordinator,
        leadership: Leadership,
        others: watch::Sender<usize>,
        wishes: mpsc::Receiver<Wish>,
    ) -> Self {
        let me = means.config.proxy_id().clone();
        let fleet = means.config.fleet().is_some();
        let gate = means.ownership.fence().clone();
        let now = Instant::now();
        let mut keys = vec![FleetKey::ALL_MEMBERS.to_owned()];
        for key in [FleetKey::Leader, FleetKey::Plan, FleetKey::Identify] {
            keys.push(key.to_string());
        }
        if fleet {
            keys.push(FleetKey::ALL_SHARDS.to_owned());
        }
        let written = Arc::new(AtomicU64::new(0));
        let news = means.bucket.watch(keys, Arc::clone(&written));
        let (done, reports) = mpsc::channel(DONE_MAX);
        let instance = means.ownership.instance().to_string();
        Self {
            view: View::new(me.clone(), TTL, SETTLE),
            lease: Lease::new(TTL, now),
            candidate: Candidate::new(me.clone(), TTL),
            handover: Handover::new(me.clone(), instance),
            means: Arc::new(means),
            me,
            fleet,
            gate,
            coordinator,
            leadership,
            waiting: None,
            others,
            wishes,
            news,
            written,
            done,
            reports,
            beat: 0,
            joined: false,
            joinings: 0,
            leads_since: None,
            at_work: HashMap::new(),
            candidate_waits: None,
            draining: false,
            said_duplicate: None,
            said_plan: None,
        }
    }

    /// Runs until dropped; [`Agent::leave`] afterwards.
    pub(crate) async fn run(&mut self) {
        loop {
            let deadline = self.turn();
            let shutdown = self.means.shutdown.clone();
            let holder = Arc::clone(&self.means.holder);
            let draining = self.draining;
            let wake = tokio::select! {
                // 1: what ends the lease or tells of its end.
                biased;
                Some(done) = self.reports.recv() => Wake::Done(done),
                news = self.news.recv() => Wake::News(news),
                () = tokio::time::sleep_until(deadline.into()) => Wake::Deadline,
                // 2: the outside.
                () = shutdown.cancelled(), if !draining => Wake::Draining,
                Some(wish) = self.wishes.recv() => Wake::Wish(wish),
                () = holder.changed() => Wake::Changed,
            };
            self.handle(wake);
        }
    }

    /// Gives the leases back, so that nobody waits for their end.
    pub(crate) async fn leave(mut self) {
        let now = Instant::now();
        if let Some(lease::Action::StepDown {
            delete: Some(revision),
        }) = self.candidate.step_down(now)
        {
            let gone = self.means.bucket.delete(&FleetKey::Leader, revision, LEAVE_TIMEOUT);
            if let Err(error) = gone.await {
                debug!(%error, "the coordinator's lease ends by itself");
            }
        }
        self.leadership.end();
        if let Some(revision) = self.lease.revision() {
            let key = FleetKey::Member(self.me.clone());
            let gone = self.means.bucket.delete(&key, revision, LEAVE_TIMEOUT);
            if let Err(error) = gone.await {
                debug!(%error, "this member's lease ends by itself");
            }
        }
    }

    fn handle(&mut self, wake: Wake) {
        let now = Instant::now();
        match wake {
            Wake::News(Some(news)) => {
                self.learn(news, now);
                // What came together is judged together.
                while let Ok(news) = self.news.try_recv() {
                    self.learn(news, now);
                }
            }
            // The watch lives as long as its listener.
            Wake::News(None) | Wake::Deadline | Wake::Changed => {}
            Wake::Done(done) => {
                self.hear(done, now);
                while let Ok(done) = self.reports.try_recv() {
                    self.hear(done, now);
                }
            }
            Wake::Wish(wish) => self.grant_wish(wish, now),
            Wake::Draining => {
                info!("this proxy drains: its shards go to others");
                self.draining = true;
            }
        }
    }

    /// Asks every decision what is to be done, and begins it. Returns when to ask again.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        while let Some(action) = self.lease.poll_action(now) {
            self.keep_lease(action, now);
        }
        let may_act = self.lease.may_act(now) && (!self.fleet || self.gate.holds());
        self.lead(may_act, now);
        if self.fleet && self.means.following.load(Ordering::Acquire) {
            // Each shard is asked for once per change.
            while let Some(action) = self.handover.poll_action(&self.view, may_act, now) {
                self.follow(action);
            }
        }
        let begun = match self.candidate.leads(now) {
            Some(epoch) => self.coordinator.turn(epoch, &self.view, now),
            None => {
                self.coordinator.rest();
                None
            }
        };
        if let Some(work) = begun {
            let reports = self.done.clone();
            self.beside(async move {
                drop(reports.send(Done::Coordinated(work.carry_out().await)).await);
            });
        }
        self.show(now);
        let soon = [
            self.lease.poll_timeout(),
            self.view.poll_timeout(now),
            self.candidate_waits,
            self.handover.poll_timeout(),
            self.coordinator.poll_timeout(),
        ];
        let soon = soon.into_iter().flatten().min();
        soon.map_or(now + TICK, |at| at.min(now + TICK))
    }

    /// Runs something that ends by itself.
    fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(work));
    }

    // ---- what was seen ----

    fn learn(&mut self, news: News, now: Instant) {
        match news {
            News::Reset => {
                self.view.handle_reset();
                self.candidate.handle_reset(now);
                self.handover.handle_reset();
            }
            News::Listed => self.view.handle_listed(now),
            News::Put {
                key,
                revision,
                value,
            } => self.learn_value(key, revision, &value, now),
            News::Gone {
                key,
                revision,
                gone,
            } => match key {
                FleetKey::Member(proxy) => {
                    if proxy != self.me {
                        info!(%proxy, ?gone, "a member of the fleet is gone");
                    }
                    self.view.handle_gone(&proxy, revision, gone);
                    if proxy == self.me {
                        self.lease.handle_lost(revision);
                    }
                }
                FleetKey::Leader => self.candidate.handle_gone(revision, gone),
                FleetKey::Plan => self.coordinator.handle_plan(revision, None),
                FleetKey::Shard(shard) => self.handover.handle_record(shard, revision, None, now),
                FleetKey::Identify => drop(self.means.sightings.try_send((revision, None))),
            },
        }
    }

    fn learn_value(&mut self, key: FleetKey, revision: u64, value: &[u8], now: Instant) {
        match key {
            FleetKey::Member(proxy) => {
                if proxy == self.me {
                    let ours = self.is_our_member(value);
                    if ours {
                        self.lease.handle_seen(revision);
                    } else {
                        self.lease.handle_lost(revision);
                    }
                }
                if let Err(error) = self.view.handle_put(&proxy, revision, value, now) {
                    warn!(%error, "a strange value in the fleet's bucket: ignored");
                }
            }
            FleetKey::Leader => {
                let leader = readable::<Leader>("leader", value);
                self.candidate.handle_put(revision, leader, now);
            }
            FleetKey::Plan => {
                let plan = readable::<Plan>("plan", value);
                self.coordinator.handle_plan(revision, plan.clone());
                let Some(plan) = plan else { return };
                if self.fleet {
                    self.take_plan(plan);
                }
            }
            FleetKey::Identify => {
                let state = readable::<IdentifyState>("identify", value);
                if let Some(state) = &state {
                    self.candidate.handle_epoch(state.epoch);
                }
                // One that is missed is read when a write is refused.
                drop(self.means.sightings.try_send((revision, state)));
            }
            FleetKey::Shard(shard) => {
                let key = FleetKey::Shard(shard).to_string();
                let record = readable::<ShardRecord>(&key, value);
                let record = record.as_ref().filter(|record| record.shard == shard);
                self.handover.handle_record(shard, revision, record, now);
            }
        }
    }

    fn take_plan(&mut self, plan: Plan) {
        let epoch = plan.epoch;
        let count = plan.shard_count;
        match self.handover.handle_plan(plan) {
            Ok(()) => {
                debug!(epoch, "the plan is followed");
                self.means.metrics.fleet_plan_epoch.set(epoch);
                self.means.process.set_total_shards(count);
                self.said_plan = None;
            }
            Err(error) => {
                let due = self
                    .said_plan
                    .is_none_or(|at| at.elapsed() >= SAY_EVERY);
                if due {
                    self.said_plan = Some(Instant::now());
                    error!(%error, "what this proxy holds goes on as it is");
                }
            }
        }
    }

    fn is_our_member(&self, value: &[u8]) -> bool {
        is_member_of(value, &self.means.ownership.instance())
    }

    // ---- the own lease ----

    fn keep_lease(&mut self, action: fence::Action, now: Instant) {
        match action {
            fence::Action::Join => self.join(now),
            fence::Action::Renew { expected_revision } => self.write_member(expected_revision, now),
            fence::Action::Close(why) => self.close(why, now),
        }
    }

    fn join(&mut self, now: Instant) {
        match self.view.admission(now) {
            Admission::Free { expected_revision } => {
                if self.fleet {
                    let instance = self.means.ownership.rename().to_string();
                    self.joinings += 1;
                    self.handover.handle_fenced(instance);
                }
                let instance = self.means.ownership.instance().to_string();
                self.view.set_instance(instance);
                self.joined = false;
                self.beat = 0;
                self.write_member(expected_revision, now);
            }
            Admission::Wait(_) => self.lease.handle_failed(now),
            Admission::Taken(duplicate) => {
                self.lease.handle_failed(now);
                if self.fleet {
                    let fatal = Fatal::unfit(
                        duplicate.to_string(),
                        "each proxy needs a --proxy-id of its own",
                    );
                    // Somebody else's reason came first.
                    drop(self.means.fatal.try_send(fatal));
                } else if self
                    .said_duplicate
                    .is_none_or(|at| at.elapsed() >= SAY_EVERY)
                {
                    self.said_duplicate = Some(Instant::now());
                    warn!(%duplicate, "this process is no member as long as the other one lives");
                }
            }
        }
    }

    fn write_member(&mut self, expected_revision: u64, now: Instant) {
        self.beat += 1;
        self.view.handle_beat_sent(self.beat, now);
        let instance = self.means.ownership.instance();
        let member = self.member(&instance);
        let write = LeaseWrite {
            key: FleetKey::Member(self.me.clone()),
            value: encode(&member),
            expected_revision,
            ttl: TTL,
            within: self.lease.write_timeout(),
        };
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        self.beside(async move {
            let outcome = write
                .send(&means.bucket, |value| is_member_of(value, &instance))
                .await;
            drop(done.send(Done::Member(outcome)).await);
        });
    }

    fn member(&self, instance: &str) -> Member {
        let (config, process) = (&self.means.config, &self.means.process);
        let shards = process.shards();
        let latency = shards.iter().filter_map(|shard| shard.latency()).max();
        Member {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: config.fleet().and_then(|fleet| fleet.zone.clone()),
            max_shards: config
                .fleet()
                .and_then(|fleet| fleet.max_shards)
                .map(std::num::NonZeroU32::get),
            pinned: self
                .means
                .pinned
                .as_ref()
                .map(|pinned| pinned.iter().copied().collect()),
            coordinator_priority: config.coordinator_priority().into(),
            started_at_unix_ms: process.started_unix_ms(),
            load: Load {
                cpu_percent: rounded(process.cpu_percent()),
                memory_bytes: process.usage().memory_bytes,
                latency_ms: latency.map(|latency| rounded(latency.as_secs_f64() * 1e3)),
                events_per_second: rounded(
                    shards.iter().map(|shard| shard.events_per_second()).sum(),
                ),
            },
            shards: self.means.holder.shards(),
            http: Some(self.means.http.clone()),
            draining: self.draining,
            fleet: self.fleet,
            instance: Some(instance.to_owned()),
            beat: self.beat,
        }
    }

    fn close(&mut self, why: Why, now: Instant) {
        if !self.fleet {
            debug!(?why, "this process is no member for the moment");
            self.lease.handle_closed(now);
            return;
        }
        let shards = self.means.holder.ids().len();
        warn!(?why, shards, "the lease of this proxy ended: it lets go of everything");
        self.gate.lower();
        self.means.metrics.fleet_fenced.increment();
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        self.beside(async move {
            means.holder.abandon_all().await;
            drop(done.send(Done::Abandoned).await);
        });
    }

    fn hear_of_lease(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Written { revision, sent_at } => {
                self.written.fetch_max(revision, Ordering::AcqRel);
                self.lease.handle_written(revision, sent_at, now);
                let Some(until) = self.lease.valid_until() else {
                    return;
                };
                if !self.joined {
                    self.joined = true;
                    info!(instance = %self.means.ownership.instance(), "this proxy is a member of the fleet");
                    if self.fleet {
                        self.gate.raise(until);
                    }
                } else if self.fleet && !self.gate.extend(until) {
                    // Somebody has seen the end of the right and acted on it.
                    self.lease.handle_lost(u64::MAX);
                }
            }
            Outcome::Refused(current) => self.lease.handle_refused(current, now),
            Outcome::Failed => self.lease.handle_failed(now),
        }
    }

    // ---- the coordinator's lease ----

    fn lead(&mut self, may_act: bool, now: Instant) {
        // Acquire and Renew are said once until answered, and a step down ends in a wait.
        loop {
            match self.candidate.observe(&self.view, may_act, now) {
                lease::Action::Acquire {
                    expected_revision,
                    epoch,
                }
                | lease::Action::Renew {
                    expected_revision,
                    epoch,
                } => self.write_leader(expected_revision, epoch),
                lease::Action::StepDown { delete } => self.step_down(delete),
                lease::Action::Wait(at) => {
                    self.candidate_waits = Some(at);
                    return;
                }
            }
        }
    }

    fn write_leader(&mut self, expected_revision: u64, epoch: u64) {
        let me = self.me.clone();
        let leader = Leader {
            proxy: me.clone(),
            epoch,
            priority: self.means.config.coordinator_priority().into(),
            since_unix_ms: *self.leads_since.get_or_insert_with(unix_ms),
        };
        let write = LeaseWrite {
            key: FleetKey::Leader,
            value: encode(&leader),
            expected_revision,
            ttl: TTL,
            within: self.lease.write_timeout(),
        };
        let (means, done) = (Arc::clone(&self.means), self.done.clone());
        self.beside(async move {
            let ours = |value: &[u8]| {
                serde_json::from_slice::<Leader>(value)
                    .is_ok_and(|leader| leader.proxy == me && leader.epoch == epoch)
            };
            let outcome = write.send(&means.bucket, ours).await;
            drop(done.send(Done::Leader { epoch, outcome }).await);
        });
    }

    fn step_down(&mut self, delete: Option<u64>) {
        self.leadership.end();
        self.leads_since = None;
        info!("this proxy coordinates no longer");
        if let Some(revision) = delete {
            let means = Arc::clone(&self.means);
            self.beside(async move {
                let delete = means.bucket.delete(&FleetKey::Leader, revision, LEAVE_TIMEOUT);
                if let Err(error) = delete.await {
                    debug!(%error, "the coordinator's lease ends by itself");
                }
            });
        }
    }

    fn hear_of_leader(&mut self, epoch: u64, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Written { revision, sent_at } => {
                self.written.fetch_max(revision, Ordering::AcqRel);
                let led = self.candidate.leads(now);
                self.candidate.handle_written(revision, sent_at, now);
                if self.candidate.leads(now) == Some(epoch) {
                    if led != Some(epoch) {
                        info!(epoch, "this proxy coordinates");
                    }
                    self.leadership.hold(epoch, sent_at + LEADS_FOR);
                }
            }
            Outcome::Refused(current) => self.candidate.handle_refused(current, now),
            Outcome::Failed => self.candidate.handle_failed(now),
        }
        if self.candidate.leads(now).is_none() && self.leadership.epoch().is_none() {
            self.leads_since = None;
        }
    }

    // ---- the shards ----

    fn follow(&mut self, action: handover::Action) {
        debug!(?action, "an order about a shard");
        let holder = Arc::clone(&self.means.holder);
        let (shard, work): (ShardId, Work) = match action {
            handover::Action::Claim {
                shard,
                expected_revision,
            } => (
                shard,
                Box::pin(async move {
                    let claim = holder.claim_at(shard, expected_revision).await;
                    Some(Report::Claimed(claim))
                }),
            ),
            handover::Action::Start { shard } => (
                shard,
                Box::pin(async move {
                    let error = holder.run(shard).await.err()?;
                    warn!(%error, "a shard was not started, trying again");
                    tokio::time::sleep(START_REST).await;
                    Some(Report::Stopped)
                }),
            ),
            handover::Action::Stop { shard } => (
                shard,
                Box::pin(async move {
                    if let Some(unstored @ 1..) = holder.stop(shard.id(), STOP_PATIENCE).await {
                        warn!(%shard, unstored, "not everything was stored in time; Discord replays it");
                    }
                    Some(Report::Stopped)
                }),
            ),
            handover::Action::Release { shard, .. } => (
                shard,
                Box::pin(async move {
                    Some(Report::Released(holder.give_away(shard, RELEASE_PATIENCE).await))
                }),
            ),
            handover::Action::Abandon { shard } => (
                shard,
                Box::pin(async move {
                    holder.abandon(shard.id()).await;
                    Some(Report::Stopped)
                }),
            ),
        };
        self.order(shard, work);
    }

    /// Carries an order out after the one before it about the same shard.
    fn order(&mut self, shard: ShardId, work: Work) {
        let before = self.at_work.remove(&shard);
        let (done, joining) = (self.done.clone(), self.joinings);
        let work = tokio::spawn(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            if let Some(report) = work.await {
                let done_with = Done::Shard {
                    joining,
                    shard,
                    report,
                };
                drop(done.send(done_with).await);
            }
        });
        self.at_work.insert(shard, work);
        if self.at_work.len() > AT_WORK_KEPT {
            self.at_work.retain(|_, work| !work.is_finished());
        }
    }

    fn hear(&mut self, done: Done, now: Instant) {
        match done {
            Done::Member(outcome) => self.hear_of_lease(outcome, now),
            Done::Leader { epoch, outcome } => self.hear_of_leader(epoch, outcome, now),
            Done::Abandoned => self.lease.handle_closed(now),
            Done::Shard {
                joining,
                shard,
                report,
            } => {
                if joining == self.joinings {
                    self.hear_of_shard(shard, report, now);
                }
            }
            Done::Coordinated(done) => {
                self.written.fetch_max(done.revision(), Ordering::AcqRel);
                self.coordinator.hear(done, now);
            }
        }
    }

    fn hear_of_shard(&mut self, shard: ShardId, report: Report, now: Instant) {
        match report {
            Report::Claimed(Ok(claim)) => {
                self.means.metrics.fleet_moves.increment();
                if let Some(from) = &claim.from {
                    info!(%shard, %from, "taking over the shard of a member that is gone");
                    self.means.metrics.fleet_takeovers.increment();
                }
                self.handover.handle_written(shard, claim.revision, now);
            }
            Report::Claimed(Err(ClaimAtError::Refused { revision, record })) => {
                let record = record.as_deref();
                self.handover.handle_record(shard, revision, record, now);
                self.handover.handle_unwritten(shard, now);
            }
            Report::Claimed(Err(ClaimAtError::Failed(reason))) => {
                warn!(%shard, reason, "a shard was not claimed, trying again");
                self.handover.handle_unwritten(shard, now);
            }
            Report::Stopped => self.handover.handle_stopped(shard, now),
            Report::Released(Some(revision)) => self.handover.handle_written(shard, revision, now),
            Report::Released(None) => self.handover.handle_unwritten(shard, now),
        }
    }

    // ---- what others ask for ----

    fn grant_wish(&mut self, wish: Wish, now: Instant) {
        let leads = self.candidate.leads(now).is_some();
        match wish {
            Wish::Drain { proxy, answer } => {
                if proxy == self.me && !self.draining {
                    info!("an operator wants this proxy to drain and end");
                    self.means.shutdown.advance(Phase::Draining);
                }
                if leads {
                    answer.send(self.coordinator.drain(&proxy, &self.view, now));
                }
            }
            Wish::Migrate { shard, to, answer } => {
                if leads {
                    answer.send(self.coordinator.migrate(shard, to, &self.view, now));
                }
            }
            Wish::Restart {
                shard,
                fresh,
                answer,
            } => {
                let order = if fresh { Order::Renew } else { Order::Reconnect };
                if self.means.holder.order(shard, order) {
                    info!(shard, fresh, "an operator wants this shard to connect anew");
                }
                if leads {
                    answer.send(self.coordinator.restart(shard, &self.view, now));
                }
            }
            Wish::Reshard { answer } => {
                if leads {
                    answer.send(Err(Refusal::new(
                        501,
                        "this version changes the shard count only with a start: --shards",
                    )));
                }
            }
            Wish::State { answer } => {
                if leads {
                    let state = self.means.states.clone();
                    self.beside(async move { answer.send(state.read().await) });
                }
            }
        }
    }

    // ---- what is shown ----

    /// What this proxy waits for before it has what it shall have.
    fn lacks(&self) -> Option<String> {
        if self.lease.valid_until().is_none() {
            return Some("this proxy is not a member of the fleet".to_owned());
        }
        let Some(plan) = self.handover.plan() else {
            return Some("there is no plan yet".to_owned());
        };
        if !plan.settled.contains(&self.me) {
            return Some("the plan gives this proxy its share of the shards".to_owned());
        }
        let planned = plan.shards.values().filter(|proxy| **proxy == self.me);
        let missing = planned.count().saturating_sub(self.means.holder.ids().len());
        (missing > 0).then(|| format!("{missing} shards of this proxy are still elsewhere"))
    }

    fn show(&mut self, now: Instant) {
        let members = self.view.live(now).count();
        let others = self
            .view
            .live(now)
            .filter(|(proxy, member)| **proxy != self.me && member.fleet && !member.draining)
            .count();
        let coordinates = self.candidate.leads(now).is_some();
        let metrics = &self.means.metrics;
        metrics.fleet_members.set(members as u64);
        metrics.fleet_coordinates.set(u64::from(coordinates));
        self.means.process.set_fleet(FleetHealth {
            follows: self.fleet,
            coordinator: self.candidate.leader().map(|leader| leader.proxy.clone()),
            members: u32::try_from(members).unwrap_or(u32::MAX),
            plan_epoch: self.handover.plan().map_or(0, |plan| plan.epoch),
            unplaced_shards: Vec::new(),
        });
        if !self.fleet {
            return;
        }
        match (self.lacks(), &self.waiting) {
            (Some(reason), None) => self.waiting = Some(self.means.process.hold(reason)),
            (Some(reason), Some(hold)) => hold.set_reason(reason),
            (None, Some(_)) => self.waiting = None,
            (None, None) => {}
        }
        self.others.send_if_modified(|known| {
            let changed = *known != others;
            *known = others;
            changed
        });
    }
}

fn is_member_of(value: &[u8], instance: &str) -> bool {
    serde_json::from_slice::<Member>(value)
        .is_ok_and(|member| member.instance.as_deref() == Some(instance))
}

/// A value of the bucket; garbage is named and ignored.
fn readable<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    match serde_json::from_slice(value) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(key, %error, "a strange value in the fleet's bucket: ignored");
            None
        }
    }
}

fn encode(value: &impl serde::Serialize) -> bytes::Bytes {
    serde_json::to_vec(value)
        .expect("values of the bucket hold only strings and numbers")
        .into()
}
