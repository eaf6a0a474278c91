//! Processes, their links to NATS, and true time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::handover::Hold;
use gateway_proxy_core::fleet::{Gone, TTL};
use schemas::{ProxyId, ShardId};

use crate::fleet::bucket::{Bucket, Key, Value, Write};
use crate::fleet::process::{Message, Process, Settings};

/// A process in the world.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) frozen_until: Duration,
    link: Link,
    clock: Clock,
    // True once it was killed or ended.
    pub(crate) dead: bool,
}

/// Its clock: another origin, another speed.
struct Clock {
    origin: Instant,
    drift: f64,
}

/// Its way to NATS.
#[derive(Default)]
struct Link {
    cut_until: Duration,
    // Writes under way, in order.
    to_server: VecDeque<(Duration, u64, Write)>,
    last_arrival: Duration,
    last_return: Duration,
    // What the watch has read; `None`: it must be made anew.
    read: Option<u64>,
    // The watch stands still until then.
    slow_until: Duration,
    // Writes wait for the connection instead of being lost, as some clients do.
    buffers: bool,
}

pub(crate) struct World {
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: Duration,
    pub(crate) bucket: Bucket,
    pub(crate) nodes: Vec<Node>,
    pub(crate) shard_count: u32,
    pub(crate) starts: u64,
    base: Instant,
    delay_max: Duration,
    // Every third process has a longer TTL than the others.
    patience: bool,
    named: u64,
}

impl World {
    pub(crate) fn new(seed: u64, shard_count: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let bucket = Bucket::new(rng.u8(0..10) == 0, Duration::from_millis(rng.u64(0..60)));
        let delay_max = Duration::from_millis(*rng.choice(&[2, 2, 20, 150]).unwrap());
        let patience = rng.bool();
        Self {
            rng,
            now: Duration::ZERO,
            bucket,
            nodes: Vec::new(),
            shard_count,
            starts: 0,
            base: Instant::now(),
            delay_max,
            patience,
            named: 0,
        }
    }

    /// Short ways, and a server as it should be.
    pub(crate) fn be_calm(&mut self) {
        self.delay_max = Duration::from_millis(2);
        self.patience = false;
        self.bucket.never_expires = false;
    }

    /// Starts a process; with a name that is taken, a second one of it.
    pub(crate) fn start(&mut self, name: Option<ProxyId>, max_shards: Option<u32>, priority: i64) {
        self.named += 1;
        let name = name.unwrap_or_else(|| format!("p{}", self.named).parse().unwrap());
        let skew = self.rng.u64(0..600_000);
        let settings = Settings {
            name,
            number: self.named,
            zone: Some(format!("z{}", self.named % 3)),
            max_shards,
            priority,
            started_at_unix_ms: 1_800_000_000_000 + self.now.as_millis() as u64 + skew,
            shard_count: self.shard_count,
            moves_max: self.rng.u32(1..10),
            ttl: if self.patience && self.named.is_multiple_of(3) {
                3 * TTL
            } else {
                TTL
            },
        };
        let offset = Duration::from_secs(self.rng.u64(0..1_000_000));
        let clock = Clock {
            origin: self.base + offset,
            drift: 1.0 + (self.rng.f64() - 0.5) / 50.0,
        };
        let process = Process::new(settings, self.rng.u64(..), clock.at(self.now));
        let link = Link {
            buffers: self.rng.bool(),
            ..Link::default()
        };
        self.nodes.push(Node {
            process,
            frozen_until: Duration::ZERO,
            link,
            clock,
            dead: false,
        });
    }

    pub(crate) fn step(&mut self) {
        self.now += Duration::from_micros(self.rng.u64(500..30_000));
        self.bucket.advance(self.now);
        for index in 0..self.nodes.len() {
            self.carry_writes(index);
        }
        for index in 0..self.nodes.len() {
            self.carry_watch(index);
            self.run(index);
        }
        self.nodes
            .retain(|node| !node.dead && !node.process.gave_up);
    }

    fn run(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        // Busy processes miss their turn.
        if node.dead || self.now < node.frozen_until || self.rng.u8(0..8) == 0 {
            return;
        }
        let due = |(at, _): &(Duration, Message)| *at <= self.now;
        let mut arrived = Vec::new();
        while node.process.inbox.front().is_some_and(due) {
            arrived.extend(node.process.inbox.pop_front().map(|(_, message)| message));
        }
        node.process.step(arrived, node.clock.at(self.now));
        for (number, write) in std::mem::take(&mut node.process.outbox) {
            let delay = delay(&mut self.rng, self.delay_max);
            node.link.last_arrival = node.link.last_arrival.max(self.now + delay);
            let way = (node.link.last_arrival, number, write);
            if self.now >= node.link.cut_until || node.link.buffers {
                node.link.to_server.push_back(way);
            }
        }
        for shard in std::mem::take(&mut self.nodes[index].process.started) {
            self.starts += 1;
            self.check_alone(index, shard);
        }
    }

    /// Whoever may act for a shard, frozen ones that would not notice included.
    fn owners(&self, shard: ShardId) -> Vec<usize> {
        let owns = |index: &usize| {
            let node = &self.nodes[*index];
            let may_act = node.process.may_act(node.clock.at(self.now));
            !node.dead && may_act && node.process.handover.hold(shard).is_active()
        };
        (0..self.nodes.len()).filter(owns).collect()
    }

    fn check_alone(&self, index: usize, shard: ShardId) {
        let owners = self.owners(shard);
        assert!(
            owners.iter().all(|owner| *owner == index),
            "shard {shard} has the owners {owners:?} at {:?}:\n{}",
            self.now,
            self.describe()
        );
    }

    fn carry_writes(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if self.now < node.link.cut_until {
            if !node.link.buffers {
                node.link.to_server.clear();
            }
            return;
        }
        while let Some((at, _, _)) = node.link.to_server.front()
            && *at <= self.now
        {
            let Some((_, number, write)) = node.link.to_server.pop_front() else {
                return;
            };
            let result = self.bucket.write(&write, self.now);
            let delay = delay(&mut self.rng, self.delay_max);
            node.link.last_return = node.link.last_return.max(self.now + delay);
            let message = Message::Written(number, result);
            node.process
                .inbox
                .push_back((node.link.last_return, message));
        }
    }

    fn carry_watch(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if self.now < node.link.cut_until {
            node.link.read = None;
            return;
        }
        if self.now < node.link.slow_until {
            return;
        }
        let mut messages = Vec::new();
        let anew = node.link.read.is_none();
        if anew {
            messages.push(Message::Reset);
        }
        let entries = self.bucket.after(node.link.read.unwrap_or(0));
        messages.extend(entries.cloned().map(Message::Entry));
        if anew {
            messages.push(Message::Listed);
        }
        node.link.read = Some(self.bucket.revision());
        for message in messages {
            let delay = delay(&mut self.rng, self.delay_max);
            node.link.last_return = node.link.last_return.max(self.now + delay);
            node.process
                .inbox
                .push_back((node.link.last_return, message));
        }
    }

    pub(crate) fn freeze(&mut self, index: usize, time: Duration) {
        self.nodes[index].frozen_until = self.now + time;
    }

    pub(crate) fn cut(&mut self, index: usize, time: Duration) {
        let node = &mut self.nodes[index];
        node.link.cut_until = node.link.cut_until.max(self.now + time);
        // Answers under way are lost with the connection.
        let now = self.now;
        node.process.inbox.retain(|(at, _)| *at <= now);
    }

    pub(crate) fn slow_watch(&mut self, index: usize, time: Duration) {
        self.nodes[index].link.slow_until = self.now + time;
    }

    pub(crate) fn edit(&mut self, key: Key, value: Value) {
        let write = Write {
            key,
            value,
            expected_revision: None,
            ttl: None,
        };
        self.bucket.write(&write, self.now).unwrap();
    }

    pub(crate) fn delete(&mut self, key: Key) {
        if self.bucket.get(&key).is_some() {
            self.edit(key, Value::Gone(Gone::Deleted));
        }
    }

    pub(crate) fn any(&mut self) -> Option<usize> {
        let len = self.nodes.len();
        (len > 0).then(|| self.rng.usize(0..len))
    }

    pub(crate) fn leaders(&self) -> Vec<usize> {
        let leads = |index: &usize| {
            let node = &self.nodes[*index];
            let local = node.clock.at(self.now);
            node.process.candidate.leads(local).is_some()
        };
        (0..self.nodes.len()).filter(leads).collect()
    }

    /// Ends faults that last.
    pub(crate) fn heal(&mut self) {
        for node in &mut self.nodes {
            node.frozen_until = self.now;
            node.link.cut_until = node.link.cut_until.min(self.now);
            node.link.slow_until = self.now;
        }
    }

    /// True when one coordinates and every shard that has a place runs there, and nowhere else.
    pub(crate) fn is_settled(&self) -> bool {
        let room: u32 = self
            .nodes
            .iter()
            .filter(|node| !node.process.draining)
            .map(|node| {
                let max = node.process.settings.max_shards.unwrap_or(self.shard_count);
                max.min(self.shard_count)
            })
            .sum();
        let placed = (0..self.shard_count)
            .filter(|id| {
                let shard = ShardId::new(*id, self.shard_count).unwrap();
                let owners = self.owners(shard);
                owners.len() == 1
                    && self.nodes[owners[0]].process.handover.hold(shard) == Hold::Running
            })
            .count();
        let drained = self
            .nodes
            .iter()
            .all(|node| !node.process.draining || node.process.handover.held().count() == 0);
        drained && placed as u32 == room.min(self.shard_count) && self.leaders().len() == 1
    }

    /// Where every shard runs.
    pub(crate) fn places(&self) -> BTreeMap<ShardId, ProxyId> {
        let mut places = BTreeMap::new();
        for node in &self.nodes {
            for shard in node.process.active() {
                places.insert(shard, node.process.settings.name.clone());
            }
        }
        places
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let local = node.clock.at(self.now);
            let process = &node.process;
            let held: Vec<_> = process
                .handover
                .held()
                .map(|(shard, hold)| format!("{}:{hold:?}", shard.id()))
                .collect();
            writeln!(
                text,
                "{} #{} max {:?} member {} leads {:?} frozen {} cut {} drains {} plan {:?} {}",
                process.settings.name,
                process.settings.number,
                process.settings.max_shards,
                process.fence.may_act(local),
                process.candidate.leads(local),
                self.now < node.frozen_until,
                self.now < node.link.cut_until,
                process.draining,
                process.handover.plan().map(|plan| plan.epoch),
                held.join(" ")
            )
            .unwrap();
        }
        let plan = self.bucket.get(&Key::Plan).map(|entry| &entry.value);
        let plan = plan.map(|value| match value {
            Value::Plan(plan) => format!("{:?}", plan.shards),
            other => format!("{other:?}"),
        });
        writeln!(text, "{plan:?}").unwrap();
        for id in 0..self.shard_count {
            let shard = ShardId::new(id, self.shard_count).unwrap();
            if let Some(entry) = self.bucket.get(&Key::Shard(shard))
                && let Value::Shard(record) = &entry.value
            {
                let owner = record.owner_instance.as_deref();
                writeln!(text, "{shard} at {}: {owner:?}", entry.revision).unwrap();
            }
        }
        text
    }
}

impl Clock {
    fn at(&self, now: Duration) -> Instant {
        self.origin + now.mul_f64(self.drift)
    }
}

fn delay(rng: &mut fastrand::Rng, max: Duration) -> Duration {
    let share = rng.f64();
    // Mostly short.
    max.mul_f64(share * share * share)
}
