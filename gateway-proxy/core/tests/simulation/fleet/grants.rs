//! The limiter of identifies over several processes, of which any number may believe to coordinate.
//! What counts is what Discord sees: never two IDENTIFYs of a bucket within 5 s.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::limiter::{Action, Limiter, Permit, Ticket};
use schemas::control::{
    IdentifyOutcome, IdentifyPriority, IdentifyReply, IdentifyReport, IdentifyRequest,
    IdentifyStatus,
};
use schemas::{IdentifyState, SessionBudget, ShardId};

use crate::for_each_seed;

const SEEDS: u64 = 16;
const STEPS: u32 = 8_000;
const WINDOW: Duration = Duration::from_secs(5);
/// Longest way to Discord: within the limiter's margin.
const WAY_MAX: Duration = Duration::from_millis(90);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const UNIX_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 86_400_000;

#[derive(Clone, Debug)]
enum Message {
    State(u64, Option<IdentifyState>),
    Stored(u64),
    NotStored(u64, Option<IdentifyState>),
    Request {
        from: u64,
        ask: u64,
        request: Box<IdentifyRequest>,
    },
    Reply {
        shard: u32,
        ask: u64,
        reply: Box<IdentifyReply>,
    },
    Report(IdentifyReport),
    Budget(SessionBudget, u32, Instant),
}

struct Process {
    number: u64,
    limiter: Limiter,
    // Origin, speed and wall clock of its own.
    origin: Instant,
    speed: f64,
    skew_ms: i64,
    frozen_until: Duration,
    cut_until: Duration,
    reconnects: bool,
    inbox: VecDeque<(Duration, Message)>,
    tickets: BTreeMap<u64, (u64, u32, u64)>,
    next_ticket: u64,
}

/// A shard that wants a session.
#[derive(Clone, Debug)]
struct Asker {
    process: u64,
    priority: IdentifyPriority,
    state: Asking,
    asks: u64,
}

#[derive(Clone, Debug)]
enum Asking {
    Idle { until: Duration },
    Asked { at: Instant, until: Duration },
    Permitted { permit: Permit, using_at: Duration },
    Ready,
}

struct World {
    rng: fastrand::Rng,
    now: Duration,
    tick: Duration,
    delay_max: Duration,
    faults: bool,
    // Shards use what they were granted whenever they come to it, which the simulation must notice.
    reckless: bool,
    base: Instant,
    key: (u64, Option<IdentifyState>),
    epoch: u64,
    concurrency: u32,
    total: u32,
    processes: Vec<Process>,
    named: u64,
    askers: Vec<Asker>,
    // IDENTIFYs on their way, and when each bucket had its last.
    under_way: Vec<(Duration, u32)>,
    arrived: BTreeMap<u32, Duration>,
    identifies: u32,
}

impl World {
    fn new(seed: u64, concurrency: u32, shards: u32, total: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let delay_max = Duration::from_millis(*rng.choice(&[1, 20, 400]).unwrap());
        let asker = |process| Asker {
            process,
            priority: IdentifyPriority::Start,
            state: Asking::Idle {
                until: Duration::ZERO,
            },
            asks: 0,
        };
        Self {
            rng,
            now: Duration::ZERO,
            tick: Duration::from_millis(20),
            delay_max,
            faults: true,
            reckless: false,
            base: Instant::now(),
            key: (0, None),
            epoch: 0,
            concurrency,
            total,
            processes: Vec::new(),
            named: 0,
            askers: (0..shards).map(|_| asker(0)).collect(),
            under_way: Vec::new(),
            arrived: BTreeMap::new(),
            identifies: 0,
        }
    }

    fn start(&mut self) {
        self.named += 1;
        let offset = Duration::from_secs(self.rng.u64(0..100_000));
        let skew = if self.faults { 240_000 } else { 1 };
        let mut process = Process {
            number: self.named,
            limiter: Limiter::new(20),
            origin: self.base + offset,
            speed: 1.0 + (self.rng.f64() - 0.5) / 5_000.0,
            skew_ms: self.rng.i64(-skew..=skew),
            frozen_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            reconnects: false,
            inbox: VecDeque::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
        };
        let (revision, state) = self.key.clone();
        if revision > 0 {
            let message = Message::State(revision, state);
            process.inbox.push_back((self.now, message));
        }
        self.processes.push(process);
        self.adopt();
    }

    /// Shards without a process go to any.
    fn adopt(&mut self) {
        let numbers: Vec<u64> = self
            .processes
            .iter()
            .map(|process| process.number)
            .collect();
        for asker in &mut self.askers {
            if !numbers.contains(&asker.process)
                && let Some(number) = self.rng.choice(&numbers)
            {
                asker.process = *number;
                asker.state = Asking::Idle { until: self.now };
            }
        }
    }

    fn kill(&mut self, index: usize) {
        self.processes.remove(index);
        if self.processes.is_empty() {
            self.start();
        }
        self.adopt();
    }

    fn make_leader(&mut self, index: usize) {
        self.epoch += 1;
        self.processes[index].limiter.lead(self.epoch);
    }

    fn send(&mut self, to: u64, message: Message) {
        let share = self.rng.f64();
        let at = self.now + self.delay_max.mul_f64(share * share);
        let now = self.now;
        if let Some(process) = self.processes.iter_mut().find(|to_| to_.number == to) {
            if now < process.cut_until {
                return;
            }
            let at = process.inbox.back().map_or(at, |(last, _)| at.max(*last));
            process.inbox.push_back((at, message));
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(self.rng.u64(500..=self.tick.as_micros() as u64));
        self.discord();
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            if self.now >= process.cut_until && process.reconnects {
                process.reconnects = false;
                let number = process.number;
                let (revision, state) = self.key.clone();
                self.send(number, Message::State(revision, state));
            }
        }
        for index in 0..self.processes.len() {
            if self.now >= self.processes[index].frozen_until {
                self.run(index);
            }
        }
        for shard in 0..self.askers.len() {
            self.ask(shard);
        }
    }

    fn discord(&mut self) {
        let now = self.now;
        let due: Vec<(Duration, u32)> = self
            .under_way
            .iter()
            .copied()
            .filter(|(at, _)| *at <= now)
            .collect();
        self.under_way.retain(|(at, _)| *at > now);
        for (at, shard) in due {
            self.identifies += 1;
            let bucket = shard % self.concurrency;
            let before = self.arrived.insert(bucket, at);
            assert!(
                before.is_none_or(|before| at.abs_diff(before) >= WINDOW),
                "bucket {bucket} had IDENTIFYs at {before:?} and {at:?}"
            );
        }
    }

    fn run(&mut self, index: usize) {
        let local = self.processes[index].local(self.now);
        let unix_ms = self.processes[index].unix_ms(self.now);
        let now = self.now;
        while let Some((at, _)) = self.processes[index].inbox.front()
            && *at <= now
        {
            let (_, message) = self.processes[index].inbox.pop_front().unwrap();
            self.receive(index, message, local, unix_ms);
        }
        while let Some(action) = self.processes[index].limiter.poll_action(local, unix_ms) {
            self.act(index, action, local);
        }
    }

    fn receive(&mut self, index: usize, message: Message, local: Instant, unix_ms: u64) {
        let process = &mut self.processes[index];
        let limiter = &mut process.limiter;
        match message {
            Message::State(revision, state) => {
                limiter.handle_state(revision, state, local, unix_ms);
            }
            Message::Stored(revision) => limiter.handle_stored(revision, local),
            Message::NotStored(revision, state) => {
                limiter.handle_state(revision, state, local, unix_ms);
                limiter.handle_store_refused(local);
            }
            Message::Request { from, ask, request } => {
                process.next_ticket += 1;
                let ticket = process.next_ticket;
                process
                    .tickets
                    .insert(ticket, (from, request.shard.id(), ask));
                limiter.handle_request(Ticket(ticket), &request, local);
            }
            Message::Report(report) => limiter.handle_report(report, local),
            Message::Budget(budget, concurrency, asked_at) => {
                limiter.handle_budget(budget, concurrency, asked_at);
            }
            Message::Reply { shard, ask, reply } => {
                let number = process.number;
                self.answered(number, shard, ask, &reply);
            }
        }
    }

    fn act(&mut self, index: usize, action: Action, local: Instant) {
        let number = self.processes[index].number;
        match action {
            Action::Store {
                expected_revision,
                state,
            } => self.store(index, expected_revision, state, local),
            Action::Answer { ticket, reply } => {
                let found = self.processes[index].tickets.remove(&ticket.0);
                if let Some((from, shard, ask)) = found {
                    let reply = Box::new(reply);
                    self.send(from, Message::Reply { shard, ask, reply });
                }
            }
            Action::AskDiscord => {
                let arrived = self.identifies;
                let skew = self.processes[index].skew_ms;
                let budget = SessionBudget {
                    total: self.total,
                    remaining: self.total.saturating_sub(arrived),
                    reset_at_unix_ms: (UNIX_MS + DAY_MS).saturating_add_signed(skew),
                };
                let concurrency = self.concurrency;
                self.send(number, Message::Budget(budget, concurrency, local));
            }
        }
    }

    fn store(&mut self, index: usize, expected: u64, state: IdentifyState, local: Instant) {
        let number = self.processes[index].number;
        let cut = self.now < self.processes[index].cut_until;
        let lost = self.faults && self.rng.u8(0..20) == 0;
        if cut || (lost && self.rng.bool()) {
            // The driver's timeout, somewhat early.
            return self.processes[index].limiter.handle_store_failed(local);
        }
        if expected != self.key.0 {
            let (revision, state) = self.key.clone();
            return self.send(number, Message::NotStored(revision, state));
        }
        self.key = (expected + 1, Some(state.clone()));
        if lost {
            self.processes[index].limiter.handle_store_failed(local);
        } else {
            self.send(number, Message::Stored(expected + 1));
        }
        let numbers: Vec<u64> = self
            .processes
            .iter()
            .map(|process| process.number)
            .collect();
        for to in numbers {
            self.send(to, Message::State(expected + 1, Some(state.clone())));
        }
    }

    /// The side of the shards: asks, and uses what it gets, unless its process stands still.
    fn ask(&mut self, shard: usize) {
        let asker = self.askers[shard].clone();
        let Some(process) = self
            .processes
            .iter()
            .find(|process| process.number == asker.process)
        else {
            return;
        };
        if self.now < process.frozen_until {
            return;
        }
        let local = process.local(self.now);
        match asker.state {
            Asking::Idle { until } | Asking::Asked { until, .. } if self.now >= until => {
                self.request(shard, local);
            }
            Asking::Permitted { permit, using_at } if self.now >= using_at => {
                self.identify(shard, permit, local);
            }
            Asking::Ready if self.faults && self.rng.u32(0..20_000) == 0 => {
                self.askers[shard].priority = IdentifyPriority::Failed;
                self.askers[shard].state = Asking::Idle { until: self.now };
            }
            _ => {}
        }
    }

    fn request(&mut self, shard: usize, local: Instant) {
        let count = self.askers.len() as u32;
        let asker = &mut self.askers[shard];
        asker.asks += 1;
        asker.state = Asking::Asked {
            at: local,
            until: self.now + ASK_TIMEOUT,
        };
        let request = IdentifyRequest {
            proxy: format!("p{}", asker.process).parse().unwrap(),
            shard: ShardId::new(shard as u32, count).unwrap(),
            priority: asker.priority,
            reason: None,
            report: None,
        };
        let (from, ask) = (asker.process, asker.asks);
        let leaders: Vec<u64> = self
            .processes
            .iter()
            .filter(|process| process.limiter.is_leading())
            .map(|process| process.number)
            .collect();
        if let Some(to) = self.rng.choice(&leaders).copied() {
            let request = Box::new(request);
            self.send(to, Message::Request { from, ask, request });
        }
    }

    fn answered(&mut self, process: u64, shard: u32, ask: u64, reply: &IdentifyReply) {
        let asker = &mut self.askers[shard as usize];
        let Asking::Asked { at, .. } = asker.state else {
            return;
        };
        if asker.process != process || asker.asks != ask {
            return;
        }
        if let Some(permit) = Permit::of(reply, at) {
            let most = if self.faults { 4_000 } else { 2 };
            let wait = Duration::from_millis(self.rng.u64(0..most));
            asker.state = Asking::Permitted {
                permit,
                using_at: self.now + wait,
            };
        } else if reply.status == IdentifyStatus::Wait {
            let wait = Duration::from_millis(reply.wait_ms.unwrap());
            asker.state = Asking::Idle {
                until: self.now + wait,
            };
        }
    }

    fn identify(&mut self, shard: usize, permit: Permit, local: Instant) {
        let outcome = if self.reckless || permit.is_good(local) {
            let way = WAY_MAX.mul_f64(self.rng.f64());
            self.under_way.push((self.now + way, shard as u32));
            self.askers[shard].state = Asking::Ready;
            IdentifyOutcome::Sent
        } else {
            self.askers[shard].state = Asking::Idle { until: self.now };
            IdentifyOutcome::Unused
        };
        self.report(permit.grant, outcome);
        if outcome == IdentifyOutcome::Sent {
            self.report(permit.grant, IdentifyOutcome::Ready);
        }
    }

    /// Reports go to any that coordinates, and get lost.
    fn report(&mut self, grant: u64, outcome: IdentifyOutcome) {
        let leaders: Vec<u64> = self
            .processes
            .iter()
            .filter(|process| process.limiter.is_leading())
            .map(|process| process.number)
            .collect();
        let lost = self.faults && self.rng.u8(0..5) == 0;
        if let Some(to) = self.rng.choice(&leaders).copied().filter(|_| !lost) {
            self.send(to, Message::Report(IdentifyReport { grant, outcome }));
        }
    }

    fn fault(&mut self) {
        let index = self.rng.usize(0..self.processes.len());
        let time = Duration::from_millis(self.rng.u64(0..12_000));
        match self.rng.u8(0..9) {
            0 => self.kill(index),
            1 if self.processes.len() < 5 => self.start(),
            2 | 3 => self.processes[index].frozen_until = self.now + time,
            4 => {
                let now = self.now;
                let process = &mut self.processes[index];
                process.cut_until = now + time;
                process.reconnects = true;
                process.inbox.retain(|(at, _)| *at <= now);
            }
            5 => self.processes[index].limiter.resign(),
            6..=8 => self.make_leader(index),
            _ => {}
        }
    }

    fn waiting(&self) -> usize {
        let ready = |asker: &&Asker| matches!(asker.state, Asking::Ready);
        self.askers.len() - self.askers.iter().filter(ready).count()
    }
}

impl Process {
    fn local(&self, now: Duration) -> Instant {
        self.origin + now.mul_f64(self.speed)
    }

    fn unix_ms(&self, now: Duration) -> u64 {
        (UNIX_MS + now.as_millis() as u64).saturating_add_signed(self.skew_ms)
    }
}

fn storm(world: &mut World) {
    for _ in 0..3 {
        world.start();
    }
    world.make_leader(0);
    let calm = world.rng.u32(10..2_000);
    for _ in 0..STEPS {
        if world.rng.u32(0..calm) == 0 {
            world.fault();
        }
        world.step();
    }
}

#[test]
#[should_panic(expected = "had IDENTIFYs")]
fn shards_that_use_their_grants_too_late_are_caught() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 1, 24, 100_000);
        world.reckless = true;
        storm(&mut world);
    }
}

#[test]
fn discord_never_sees_two_identifies_of_a_bucket_within_its_window() {
    for_each_seed(SEEDS, |seed| {
        let concurrency = [1, 2, 4, 16][(seed % 4) as usize];
        let mut world = World::new(seed, concurrency, 24, 100_000);
        storm(&mut world);
        // The faults stop: everybody gets a session.
        world.faults = false;
        world.tick = Duration::from_millis(5);
        let now = world.now;
        for process in &mut world.processes {
            process.frozen_until = now;
            process.cut_until = now;
            process.limiter.resign();
        }
        world.make_leader(0);
        let waves = 24_u32.div_ceil(concurrency);
        // Each wave, once more for what is in use, and requests that come again late.
        let deadline = world.now + Duration::from_millis(5_500) * (waves + 4);
        while world.waiting() > 0 {
            world.step();
            assert!(world.now < deadline, "{} still wait", world.waiting());
        }
    });
}

#[test]
fn a_cold_start_keeps_discords_own_pace() {
    let mut world = World::new(1, 16, 256, 1_000);
    world.faults = false;
    world.delay_max = Duration::from_millis(2);
    world.tick = Duration::from_millis(3);
    for _ in 0..4 {
        world.start();
    }
    world.make_leader(0);
    while world.waiting() > 0 {
        world.step();
    }
    let minimum = Duration::from_secs(16 * 5);
    let took = world.now;
    assert!(took < minimum.mul_f64(1.02), "{took:?}");
    world.now += WAY_MAX;
    world.discord();
    assert_eq!(world.identifies, 256);
}

#[test]
fn the_reserve_outlives_every_coordinator() {
    let most = std::cell::Cell::new(0);
    for_each_seed(4, |seed| {
        let mut world = World::new(seed, 4, 24, 50);
        for _ in 0..3 {
            world.start();
        }
        world.make_leader(0);
        for _ in 0..2 * STEPS {
            if world.rng.u32(0..3_000) == 0 {
                world.fault();
            }
            // Sessions get lost all the time.
            let shard = world.rng.usize(0..24);
            if matches!(world.askers[shard].state, Asking::Ready) && world.rng.u8(0..100) == 0 {
                world.askers[shard].state = Asking::Idle { until: world.now };
            }
            world.step();
        }
        // 20 % of 50 are kept; what Discord has not counted yet when it is asked is at most a wave.
        assert!(world.identifies <= 40 + 4, "{}", world.identifies);
        most.set(most.get().max(world.identifies));
    });
    assert!(
        most.get() >= 36,
        "the reserve was not touched: {}",
        most.get()
    );
}
