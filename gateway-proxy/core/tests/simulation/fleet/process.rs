//! One process of the fleet: the driver around the core's decisions, as dumb as it may be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::fence::{self, Fence};
use gateway_proxy_core::fleet::handover::{self, Handover, Hold};
use gateway_proxy_core::fleet::lease::{self, Candidate};
use gateway_proxy_core::fleet::plan::{self, Input, Reason, Request};
use gateway_proxy_core::fleet::view::{Admission, View};
use gateway_proxy_core::fleet::{Current, Gone, TTL};
use schemas::{Leader, Member, Plan, ProxyId, ShardId, ShardRecord, ShardState};

use crate::fleet::bucket::{Entry, Key, Value, Write};

const SETTLE: Duration = Duration::from_secs(3);
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
const RECORD_EVERY: Duration = Duration::from_secs(2);
const PLAN_EVERY: Duration = Duration::from_millis(100);

/// What comes in from NATS.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// The watch was made anew.
    Reset,
    Entry(Entry),
    Listed,
    Written(u64, Result<u64, Option<Box<Entry>>>),
}

#[derive(Clone, Debug)]
enum Why {
    Join,
    Renew,
    Lead,
    Shard(ShardId, Act),
    Plan,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Claim,
    Release,
    Regular,
}

#[derive(Clone, Debug)]
struct Pending {
    why: Why,
    sent_at: Instant,
}

/// How a process is made.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) name: ProxyId,
    /// Tells processes of one name apart.
    pub(crate) number: u64,
    pub(crate) zone: Option<String>,
    pub(crate) max_shards: Option<u32>,
    pub(crate) priority: i64,
    pub(crate) started_at_unix_ms: u64,
    pub(crate) shard_count: u32,
    pub(crate) moves_max: u32,
    pub(crate) ttl: Duration,
}

pub(crate) struct Process {
    pub(crate) settings: Settings,
    pub(crate) draining: bool,
    /// It does not ask its fence before it acts, which the simulation must notice.
    pub(crate) reckless: bool,
    /// Somebody alive has the name: it ends.
    pub(crate) gave_up: bool,
    pub(crate) view: View,
    pub(crate) fence: Fence,
    pub(crate) candidate: Candidate,
    pub(crate) handover: Handover,
    pub(crate) inbox: VecDeque<(Duration, Message)>,
    /// Writes to send, with their numbers.
    pub(crate) outbox: Vec<(u64, Write)>,
    /// Shards started in this step.
    pub(crate) started: Vec<ShardId>,
    pub(crate) requests: Vec<Request>,
    pub(crate) plans_written: u32,
    pending: BTreeMap<u64, Pending>,
    writes: u64,
    beat: u64,
    plan_revision: u64,
    plan_intact: bool,
    plan_after: Option<Instant>,
    stopping: Vec<(Instant, ShardId)>,
    recorded: BTreeMap<ShardId, Instant>,
    writing: BTreeSet<ShardId>,
    rng: fastrand::Rng,
}

impl Process {
    pub(crate) fn new(settings: Settings, seed: u64, now: Instant) -> Self {
        let name = settings.name.clone();
        Self {
            draining: false,
            reckless: false,
            gave_up: false,
            view: View::new(name.clone(), TTL, SETTLE),
            fence: Fence::new(settings.ttl, now),
            candidate: Candidate::new(name.clone(), settings.ttl),
            handover: Handover::new(name, format!("{}-0", settings.number)),
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            started: Vec::new(),
            requests: Vec::new(),
            plans_written: 0,
            pending: BTreeMap::new(),
            writes: 0,
            beat: 0,
            plan_revision: 0,
            plan_intact: false,
            plan_after: None,
            stopping: Vec::new(),
            recorded: BTreeMap::new(),
            writing: BTreeSet::new(),
            rng: fastrand::Rng::with_seed(seed),
            settings,
        }
    }

    /// Shards that may have a connection here.
    pub(crate) fn active(&self) -> impl Iterator<Item = ShardId> {
        let active = |(shard, hold): (ShardId, Hold)| hold.is_active().then_some(shard);
        self.handover.held().filter_map(active)
    }

    pub(crate) fn step(&mut self, arrived: Vec<Message>, now: Instant) {
        if self.rng.bool() {
            self.keep_lease(now);
        }
        for message in arrived {
            self.receive(message, now);
        }
        self.time_out(now);
        self.keep_lease(now);
        self.coordinate(now);
        let due = |(at, shard): &(Instant, ShardId)| (now >= *at).then_some(*shard);
        let stopped: Vec<ShardId> = self.stopping.iter().filter_map(due).collect();
        self.stopping.retain(|(at, _)| now < *at);
        for shard in stopped {
            self.handover.handle_stopped(shard, now);
        }
        self.hand_over(now);
        self.record(now);
    }

    fn instance(&self) -> String {
        format!("{}-{}", self.settings.number, self.fence.generation())
    }

    pub(crate) fn may_act(&self, now: Instant) -> bool {
        self.reckless || self.fence.may_act(now)
    }

    fn keep_lease(&mut self, now: Instant) {
        if self.reckless && !self.fence.may_act(now) && self.fence.revision().is_some() {
            return;
        }
        while let Some(action) = self.fence.poll_action(now) {
            match action {
                fence::Action::Join => self.join(now),
                fence::Action::Renew { expected_revision } => {
                    let write = self.heartbeat(expected_revision, now);
                    self.send(Why::Renew, write, now);
                }
                fence::Action::Close(_) => {
                    self.pending.clear();
                    self.writing.clear();
                    self.stopping.clear();
                    self.recorded.clear();
                    self.handover.handle_fenced(self.instance());
                    self.fence.handle_closed(now);
                }
            }
        }
    }

    fn join(&mut self, now: Instant) {
        self.view.set_instance(self.instance());
        self.handover.handle_fenced(self.instance());
        match self.view.admission(now) {
            Admission::Free { expected_revision } => {
                self.beat = 0;
                let write = self.heartbeat(expected_revision, now);
                self.send(Why::Join, write, now);
            }
            Admission::Wait(_) => self.fence.handle_failed(now),
            Admission::Taken(_) => {
                self.gave_up = true;
                self.fence.handle_failed(now);
            }
        }
    }

    fn heartbeat(&mut self, expected_revision: u64, now: Instant) -> Write {
        self.beat += 1;
        self.view.handle_beat_sent(self.beat, now);
        let mut member: Member = serde_json::from_str(r#"{"version":"1","fleet":true}"#).unwrap();
        member.zone.clone_from(&self.settings.zone);
        member.max_shards = self.settings.max_shards;
        member.coordinator_priority = self.settings.priority;
        member.started_at_unix_ms = self.settings.started_at_unix_ms;
        member.draining = self.draining;
        member.instance = Some(self.instance());
        member.beat = self.beat;
        member.lease_ttl_ms = Some(self.settings.ttl.as_millis() as u64);
        Write {
            key: Key::Member(self.settings.name.clone()),
            value: Value::Member(Box::new(member)),
            expected_revision: Some(expected_revision),
            ttl: Some(self.settings.ttl),
        }
    }

    fn coordinate(&mut self, now: Instant) {
        loop {
            let may_act = self.may_act(now);
            match self.candidate.observe(&self.view, may_act, now) {
                lease::Action::Wait(_) => break,
                lease::Action::Acquire {
                    expected_revision,
                    epoch,
                }
                | lease::Action::Renew {
                    expected_revision,
                    epoch,
                } => self.write_leader(expected_revision, epoch, now),
                lease::Action::StepDown { delete: None } => {}
                lease::Action::StepDown {
                    delete: Some(revision),
                } => {
                    let write = Write {
                        key: Key::Leader,
                        value: Value::Gone(Gone::Deleted),
                        expected_revision: Some(revision),
                        ttl: None,
                    };
                    self.send(Why::Nothing, write, now);
                }
            }
        }
        let due = self.plan_after.is_none_or(|at| now >= at);
        if self.candidate.leads(now).is_some() && self.view.is_settled(now) && due {
            self.plan_after = Some(now + PLAN_EVERY);
            self.plan(now);
        }
    }

    fn write_leader(&mut self, expected_revision: u64, epoch: u64, now: Instant) {
        let leader = Leader {
            proxy: self.settings.name.clone(),
            epoch,
            lease_ttl_ms: Some(self.settings.ttl.as_millis() as u64),
            priority: self.settings.priority,
            since_unix_ms: 0,
        };
        let write = Write {
            key: Key::Leader,
            value: Value::Leader(leader),
            expected_revision: Some(expected_revision),
            ttl: Some(self.settings.ttl),
        };
        self.send(Why::Lead, write, now);
    }

    fn plan(&mut self, now: Instant) {
        if self
            .pending
            .values()
            .any(|pending| matches!(pending.why, Why::Plan))
        {
            return;
        }
        let count = self.settings.shard_count;
        let members: Vec<plan::Candidate> = self
            .view
            .live(now)
            .map(|(proxy, member)| plan::Candidate::of(proxy, member, false))
            .collect();
        let holders = (0..count)
            .filter_map(|id| {
                let owner = self.handover.owner(ShardId::new(id, count).unwrap())?;
                Some((id, owner.proxy.clone()))
            })
            .collect();
        let requests = std::mem::take(&mut self.requests);
        let input = Input {
            shard_count: count,
            members: &members,
            previous: self.handover.plan(),
            holders: &holders,
            requests: &requests,
            moves_max: self.settings.moves_max,
        };
        let outcome = plan::plan(&input);
        let epoch = self.handover.next_epoch();
        let changed = outcome.to_plan(&input, epoch, 0);
        let same = || Plan {
            epoch,
            shard_count: count,
            shards: outcome.shards.clone(),
            made_at_unix_ms: 0,
            settled: outcome.settled.clone(),
            format: Plan::FORMAT,
        };
        let Some(plan) = changed.or_else(|| (!self.plan_intact).then(same)) else {
            return;
        };
        self.plans_written += 1;
        let write = Write {
            key: Key::Plan,
            value: Value::Plan(plan),
            expected_revision: Some(self.plan_revision),
            ttl: None,
        };
        self.send(Why::Plan, write, now);
    }

    fn hand_over(&mut self, now: Instant) {
        loop {
            let may_act = self.may_act(now);
            let Some(action) = self.handover.poll_action(&self.view, may_act, now) else {
                return;
            };
            match action {
                handover::Action::Claim {
                    shard,
                    expected_revision,
                } => self.write_record(shard, Act::Claim, expected_revision, now),
                handover::Action::Release {
                    shard,
                    expected_revision,
                } => self.write_record(shard, Act::Release, expected_revision, now),
                handover::Action::Start { shard } => {
                    self.started.push(shard);
                    self.recorded.insert(shard, now);
                }
                handover::Action::Stop { shard } | handover::Action::Abandon { shard } => {
                    let takes = Duration::from_millis(self.rng.u64(1..300));
                    self.stopping.push((now + takes, shard));
                }
            }
        }
    }

    /// The regular writes of what runs.
    fn record(&mut self, now: Instant) {
        if !self.may_act(now) {
            return;
        }
        let due: Vec<ShardId> = self
            .active()
            .filter(|shard| !self.writing.contains(shard))
            .filter(|shard| {
                let last = self.recorded.get(shard);
                last.is_none_or(|last| now >= *last + RECORD_EVERY)
            })
            .collect();
        for shard in due {
            if self.handover.hold(shard) == Hold::Running {
                self.recorded.insert(shard, now);
                let expected = self.handover.revision(shard);
                self.write_record(shard, Act::Regular, expected, now);
            }
        }
    }

    fn write_record(&mut self, shard: ShardId, act: Act, expected_revision: u64, now: Instant) {
        let mut record = ShardRecord::new(shard);
        if act != Act::Release {
            record.owner = Some(self.settings.name.clone());
            record.owner_instance = Some(self.instance());
            record.state = ShardState::Ready;
        }
        if act == Act::Regular {
            self.writing.insert(shard);
        }
        let write = Write {
            key: Key::Shard(shard),
            value: Value::Shard(Box::new(record)),
            expected_revision: Some(expected_revision),
            ttl: None,
        };
        self.send(Why::Shard(shard, act), write, now);
    }

    fn send(&mut self, why: Why, write: Write, now: Instant) {
        self.writes += 1;
        self.pending
            .insert(self.writes, Pending { why, sent_at: now });
        self.outbox.push((self.writes, write));
    }

    fn time_out(&mut self, now: Instant) {
        let over: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| now >= pending.sent_at + WRITE_TIMEOUT)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            let Some(pending) = self.pending.remove(&number) else {
                continue;
            };
            match pending.why {
                Why::Join | Why::Renew => self.fence.handle_failed(now),
                Why::Lead => self.candidate.handle_failed(now),
                Why::Shard(shard, Act::Regular) => {
                    self.writing.remove(&shard);
                }
                Why::Shard(shard, _) => self.handover.handle_unwritten(shard, now),
                Why::Plan | Why::Nothing => {}
            }
        }
    }

    fn receive(&mut self, message: Message, now: Instant) {
        match message {
            Message::Reset => {
                self.view.handle_reset();
                self.candidate.handle_reset(now);
                self.handover.handle_reset();
            }
            Message::Listed => self.view.handle_listed(now),
            Message::Entry(entry) => self.see(&entry, now),
            Message::Written(number, result) => {
                if let Some(pending) = self.pending.remove(&number) {
                    self.answered(pending, result, now);
                }
            }
        }
    }

    fn answered(
        &mut self,
        pending: Pending,
        result: Result<u64, Option<Box<Entry>>>,
        now: Instant,
    ) {
        let Pending { why, sent_at } = pending;
        match (why, result) {
            (Why::Join | Why::Renew, Ok(revision)) => {
                self.fence.handle_written(revision, sent_at, now);
            }
            (Why::Join | Why::Renew, Err(entry)) => {
                let current = match entry.as_deref() {
                    Some(Entry {
                        value: Value::Member(member),
                        revision,
                        ..
                    }) if member.instance == Some(self.instance()) => Current::Ours {
                        revision: *revision,
                    },
                    Some(Entry {
                        value: Value::Gone(_),
                        ..
                    })
                    | None => Current::Gone,
                    Some(_) => Current::Other,
                };
                self.fence.handle_refused(current, now);
            }
            (Why::Lead, Ok(revision)) => self.candidate.handle_written(revision, sent_at, now),
            (Why::Lead, Err(_)) => self.candidate.handle_refused(Current::Other, now),
            (Why::Shard(shard, Act::Regular), Ok(revision)) => {
                self.writing.remove(&shard);
                // The watch shows it too.
                if self.rng.bool() {
                    self.handover.handle_recorded(shard, revision, now);
                }
            }
            (Why::Shard(shard, _), Ok(revision)) => {
                self.handover.handle_written(shard, revision, now);
            }
            (Why::Shard(shard, act), Err(entry)) => {
                if let Some(entry) = entry {
                    self.see(&entry, now);
                }
                if act == Act::Regular {
                    self.writing.remove(&shard);
                } else {
                    self.handover.handle_unwritten(shard, now);
                }
            }
            (Why::Plan | Why::Nothing, _) => {}
        }
    }

    fn see(&mut self, entry: &Entry, now: Instant) {
        let revision = entry.revision;
        match (&entry.key, &entry.value) {
            (Key::Member(proxy), value) => self.see_member(proxy, revision, value, now),
            (Key::Leader, Value::Gone(gone)) => self.candidate.handle_gone(revision, *gone),
            (Key::Leader, Value::Leader(leader)) => {
                self.candidate
                    .handle_put(revision, Some(leader.clone()), now);
            }
            (Key::Leader, _) => self.candidate.handle_put(revision, None, now),
            (Key::Plan, value) if revision > self.plan_revision => {
                self.plan_revision = revision;
                self.plan_intact = match value {
                    Value::Plan(plan) => self.handover.handle_plan(plan.clone()).is_ok(),
                    _ => false,
                };
            }
            (Key::Shard(shard), Value::Shard(record)) => {
                self.handover
                    .handle_record(*shard, revision, Some(record), now);
            }
            (Key::Shard(shard), _) => self.handover.handle_record(*shard, revision, None, now),
            (Key::Plan, _) => {}
        }
    }

    fn see_member(&mut self, proxy: &ProxyId, revision: u64, value: &Value, now: Instant) {
        let mine = *proxy == self.settings.name;
        match value {
            Value::Gone(gone) => {
                self.view.handle_gone(proxy, revision, *gone);
                if mine {
                    self.fence.handle_lost(revision);
                }
            }
            Value::Member(member) => {
                let bytes = serde_json::to_vec(&**member).unwrap();
                self.view.handle_put(proxy, revision, &bytes, now).unwrap();
                if mine && member.instance == Some(self.instance()) {
                    self.fence.handle_seen(revision);
                } else if mine {
                    self.fence.handle_lost(revision);
                }
            }
            _ => {
                self.view
                    .handle_put(proxy, revision, b"{]", now)
                    .unwrap_err();
                if mine {
                    self.fence.handle_lost(revision);
                }
            }
        }
    }

    pub(crate) fn ask_to_move(&mut self, shard: u32, to: ProxyId) {
        self.requests.push(Request {
            shard,
            to,
            reason: Reason::Requested,
        });
    }
}
