//! This process as a member: one task that renews its leases, follows the plan, and coordinates while it
//! has the lease. It waits for one cause, tells the decisions of `core::fleet`, and carries out what
//! they answer; whatever takes time runs beside it and reports back.
//!
//! It has a thread, a runtime and a connection of its own: a lease ends after two seconds, and a process
//! whose shards have a lot to do (a start brings megabytes for each) would lose it by being busy, let go
//! of its shards, and have as much to do again.
//!
//! Outside a fleet it does the same but for the plan: it is a member so that others see what it holds, and
//! a candidate because somebody must grant IDENTIFYs.

mod leases;
mod outside;
mod shards;

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::TTL;
use gateway_proxy_core::fleet::fence::Fence as Lease;
use gateway_proxy_core::fleet::handover::Handover;
use gateway_proxy_core::fleet::lease::{self, Candidate};
use gateway_proxy_core::fleet::view::View;
use schemas::{FleetKey, IdentifyState, Leader, Member, Plan, ProxyId, ShardId, ShardRecord};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::bucket::{Bucket, News};
use super::coordinator::{self, Coordinator};
use super::leadership::Leadership;
use super::service::Wish;
use super::states::States;
use super::write::Outcome;
use crate::claim::{Claim, ClaimAtError};
use crate::config::Config;
use crate::exit::Fatal;
use crate::fence::Fence;
use crate::holder::Holder;
use crate::identify::Sighting;
use crate::metrics::Metrics;
use crate::ownership::Ownership;
use crate::shutdown::Shutdown;
use crate::status::{Hold, ProcessStatus};

/// Members of a fleet all return within this time after NATS was away: their renewals are tried several
/// times per TTL. At least; with a longer TTL a quarter more than that.
const SETTLE: Duration = Duration::from_millis(2_500);
/// Reports of work that runs beside; who has more to say waits.
const DONE_MAX: usize = 1_024;
/// The agent rests at least so long, whatever is due: others share its thread.
const BREATH: Duration = Duration::from_millis(2);
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
    /// Where the shards live, and everything that takes time. The agent has a runtime of its own.
    pub(crate) shards: Handle,
    /// On a connection of the agent's own.
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

/// Why a process is not ready before it has joined.
pub(crate) const NO_MEMBER: &str = "this proxy is not a member of the fleet";

impl Agent {
    /// `waiting` keeps the process from being ready until it has what it shall have.
    pub(crate) fn new(
        means: Means,
        coordinator: Coordinator,
        leadership: Leadership,
        others: watch::Sender<usize>,
        wishes: mpsc::Receiver<Wish>,
        waiting: Option<Hold>,
    ) -> Self {
        let me = means.config.proxy_id().clone();
        let fleet = means.config.fleet().is_some();
        let gate = means.ownership.fence().clone();
        let (now, ttl) = (Instant::now(), means.config.lease_ttl());
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
            view: View::new(me.clone(), TTL, SETTLE.max(ttl + ttl / 4)),
            lease: Lease::new(ttl, now),
            candidate: Candidate::new(me.clone(), ttl),
            handover: Handover::new(me.clone(), instance),
            means: Arc::new(means),
            me,
            fleet,
            gate,
            coordinator,
            leadership,
            waiting,
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
            let gone = self
                .means
                .bucket
                .delete(&FleetKey::Leader, revision, LEAVE_TIMEOUT);
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
        // Who joins must know who is there.
        if self.view.is_listed() || self.joined {
            while let Some(action) = self.lease.poll_action(now) {
                self.keep_lease(action, now);
            }
        }
        let may_act = self.lease.may_act(now) && (!self.fleet || self.gate.holds());
        self.lead(may_act, now);
        let follows = self.fleet && self.means.following.load(Ordering::Acquire);
        if follows {
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
            let (means, reports) = (Arc::clone(&self.means), self.done.clone());
            self.beside(async move {
                let done = work.carry_out(&means.bucket).await;
                drop(reports.send(Done::Coordinated(done)).await);
            });
        }
        self.show(now);
        let soon = [
            self.lease.poll_timeout().filter(|at| *at > now),
            self.view.poll_timeout(now),
            self.candidate_waits,
            // Without the right to act nothing is due.
            self.handover.poll_timeout().filter(|_| follows && may_act),
            self.coordinator.poll_timeout(),
        ];
        let soon = soon.into_iter().flatten().min();
        soon.map_or(now + TICK, |at| at.clamp(now + BREATH, now + TICK))
    }

    /// Runs something short that ends by itself, such as a write of a lease.
    fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(work));
    }

    /// Runs something where the shards are.
    fn among_shards(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.means.shards.spawn(work)
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
                let due = self.said_plan.is_none_or(|at| at.elapsed() >= SAY_EVERY);
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
