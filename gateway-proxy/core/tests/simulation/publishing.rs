//! The publisher against the model of JetStream: everything is stored once, in order, nothing is
//! acknowledged that is not stored, and it never stands still while the server answers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fastrand::Rng;
use gateway_proxy_core::ingest::{Ingest, Outcome, Size};

use crate::for_each_seed;
use crate::jetstream::{Answer, Incoming, JetStream};

const SEEDS: u64 = 150;
const STEPS: u32 = 400;
/// The longest standstill without a fault: a timeout with a window of large messages in it (5 + 40 s),
/// a few back-offs.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);
/// What a replaced message's id begins at: `id + MARKER` is the marker of `id`.
const MARKER: u64 = 1 << 32;

#[derive(Debug)]
struct Event {
    id: u64,
    size: usize,
    too_large: bool,
}

impl Size for Event {
    fn size(&self) -> usize {
        self.size
    }
}

struct World {
    rng: Rng,
    epoch: Instant,
    now: Duration,
    ingest: Ingest<Event>,
    server: JetStream,
    // The connection in use, and when the next comes up.
    connection: Option<u64>,
    connections: u64,
    connects_at: Option<Duration>,
    last_batch: u64,
    // Written and not read by the server yet, of old connections too: each in its own order.
    pipes: Vec<(u64, VecDeque<Incoming>)>,
    // Answered and not read by the client yet.
    answers: VecDeque<Answer>,
    // The server reads nothing and answers nothing.
    frozen: bool,
    pushed: u64,
    acked: u64,
    checked: usize,
    oversized: bool,
    // Bytes of one message at most.
    large: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let server = JetStream::new(rng.bool());
        let large = rng
            .choice([100, 1_000, 100_000, 12 << 20, 40 << 20])
            .unwrap();
        Self {
            oversized: rng.bool(),
            rng,
            epoch: Instant::now(),
            now: Duration::ZERO,
            ingest: if server.is_clustered() {
                Ingest::replicated()
            } else {
                Ingest::new()
            },
            server,
            connection: None,
            connections: 0,
            connects_at: Some(Duration::ZERO),
            last_batch: 0,
            pipes: Vec::new(),
            answers: VecDeque::new(),
            frozen: false,
            pushed: 0,
            acked: 0,
            checked: 0,
            large,
        }
    }

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    fn push(&mut self) {
        // Trickles and floods.
        let most = self.rng.choice([2, 5, 30, 2_000]).unwrap();
        for _ in 0..self.rng.u32(1..most) {
            self.pushed += 1;
            let too_large = self.oversized && self.rng.u32(0..50) == 0;
            let size = self.rng.usize(0..self.large);
            self.ingest.push(Event {
                id: self.pushed,
                size,
                too_large,
            });
        }
    }

    /// Writes what may be written, at most so many messages.
    fn write(&mut self, most: usize) {
        let Some(connection) = self.connection else {
            return;
        };
        let now = self.instant();
        for _ in 0..most {
            let Some(write) = self.ingest.next_write(now) else {
                return;
            };
            self.last_batch = write.batch;
            let message = Incoming {
                connection,
                batch: write.batch,
                seq: write.batch_seq,
                operation: write.operation,
                id: write.message.id,
                too_large: write.message.too_large,
            };
            match self.pipes.last_mut().filter(|(of, _)| *of == connection) {
                Some((_, pipe)) => pipe.push_back(message),
                None => self.pipes.push((connection, VecDeque::from([message]))),
            }
        }
    }

    /// The server reads some of some connection.
    fn serve(&mut self) {
        if self.frozen || self.pipes.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.pipes.len());
        for _ in 0..self.rng.usize(1..700) {
            let Some(message) = self.pipes[at].1.pop_front() else {
                break;
            };
            self.server.receive(message, self.now);
        }
        if self.pipes[at].1.is_empty() {
            self.pipes.remove(at);
        }
    }

    fn apply(&mut self) {
        let count = self.rng.usize(0..=self.server.proposed());
        self.server.apply(count);
    }

    fn check_stored(&mut self) {
        for at in self.checked..self.server.stream.len() {
            let id = self.server.stream[at] % MARKER;
            assert_eq!(id, at as u64 + 1, "stored out of order");
        }
        self.checked = self.server.stream.len();
    }

    /// The client reads one answer.
    fn read(&mut self) {
        self.answers.extend(self.server.answers.drain(..));
        let Some(answer) = self.answers.pop_front() else {
            return;
        };
        if self.connection != Some(answer.connection) || !self.ingest.is_current(answer.batch) {
            return;
        }
        let (now, stored) = (self.instant(), self.server.stream.len() as u64);
        let acked = &mut self.acked;
        let outcome = self
            .ingest
            .handle_reply(answer.reply, now, &mut |event: Event| {
                *acked += 1;
                assert_eq!(event.id % MARKER, *acked, "acknowledged out of order");
                assert!(*acked <= stored, "{acked} acknowledged, {stored} stored");
            });
        self.heed(outcome);
    }

    fn heed(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Continue => return,
            Outcome::Restart(_) => {}
            Outcome::Replace(_) => {
                let front = self.ingest.front_mut().unwrap();
                assert!(front.too_large, "a good message was replaced");
                front.too_large = false;
                front.size = 100;
                front.id += MARKER;
            }
        }
        assert!(
            self.ingest.next_write(self.epoch + self.now).is_none(),
            "writes after trouble"
        );
        self.lose_connection();
    }

    /// The client is rid of it. The server may still read what it sent, up to some message.
    fn lose_connection(&mut self) {
        let delay = self.ingest.handle_disconnected();
        assert!(delay >= Duration::from_millis(50));
        self.connects_at = Some(self.now + delay);
        let Some(connection) = self.connection.take() else {
            return;
        };
        if let Some((_, pipe)) = self.pipes.iter_mut().find(|(of, _)| *of == connection) {
            let keeps = self.rng.usize(0..=pipe.len());
            pipe.truncate(keeps);
        }
        self.pipes.retain(|(_, pipe)| !pipe.is_empty());
    }

    fn connect(&mut self) {
        if self.connects_at.is_some_and(|at| at <= self.now) && self.connection.is_none() {
            self.connections += 1;
            self.connection = Some(self.connections);
            self.connects_at = None;
            self.ingest.handle_connected();
        }
    }

    fn timeout(&mut self) {
        if self
            .ingest
            .poll_timeout()
            .is_some_and(|at| at <= self.instant())
        {
            let outcome = self.ingest.handle_timeout(self.instant());
            assert_ne!(
                outcome,
                Outcome::Continue,
                "a timeout that does nothing spins"
            );
            self.heed(outcome);
        }
    }

    fn fault(&mut self) {
        match self.rng.u8(0..10) {
            0 => self.lose_connection(),
            1 => {
                self.server.restart();
                self.pipes.clear();
                self.answers.clear();
                self.lose_connection();
            }
            2 if self.server.is_clustered() => self.server.change_leader(),
            3 => self.server.leaderless = self.rng.bool(),
            4 => self.server.exhausted = true,
            5 => self.server.others = self.rng.u64(0..600),
            6 => self.frozen = !self.frozen,
            7 => self.now += Duration::from_millis(self.rng.u64(0..15_000)),
            8 => {
                // An answer about a batch of long ago.
                self.server.answers.push_back(Answer {
                    connection: self.connections,
                    batch: self.rng.u64(..self.last_batch.max(1)),
                    reply: gateway_proxy_core::ingest::Reply::Flow {
                        seq: 3,
                        messages: 7,
                    },
                });
            }
            _ => {}
        }
    }

    /// One thing of each kind may happen.
    fn step(&mut self, most: usize) {
        self.now += Duration::from_millis(self.rng.u64(0..20));
        self.connect();
        self.write(most);
        self.serve();
        self.apply();
        self.check_stored();
        for _ in 0..self.rng.u32(0..4) {
            self.read();
        }
        self.timeout();
    }

    fn settle(&mut self) {
        self.server.leaderless = false;
        self.server.exhausted = false;
        self.frozen = false;
        let (mut acked, mut since) = (self.acked, self.now);
        while !self.ingest.is_empty() {
            self.step(usize::MAX);
            if self.acked > acked {
                (acked, since) = (self.acked, self.now);
            }
            let queued = self.ingest.len();
            assert!(
                self.now < since + STANDSTILL_MAX,
                "stands still with {queued} queued"
            );
        }
        assert_eq!(self.acked, self.pushed);
        self.server.apply(self.server.proposed());
        self.check_stored();
        assert_eq!(self.server.stream.len() as u64, self.pushed);
        assert_eq!(self.ingest.in_flight(), 0);
    }
}

#[test]
fn whatever_happens_everything_is_stored_once_in_order() {
    for_each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        let calm = world.rng.u32(3..100);
        for _ in 0..STEPS {
            if world.rng.u32(0..20) == 0 {
                world.push();
            }
            if world.rng.u32(0..calm) == 0 {
                world.fault();
            }
            let most = world.rng.usize(1..1_000);
            world.step(most);
        }
        world.settle();
    });
}

#[test]
fn at_any_flow_the_window_never_closes_for_good() {
    for_each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        world.oversized = false;
        for _ in 0..200 {
            if world.rng.u32(0..3) == 0 {
                world.push();
            }
            if world.rng.u32(0..5) == 0 {
                world.server.others = world.rng.u64(0..600);
            }
            let most = world.rng.usize(1..1_000);
            world.step(most);
        }
        world.settle();
        assert_eq!(
            world.connections, 1,
            "without faults the first connection does"
        );
    });
}
