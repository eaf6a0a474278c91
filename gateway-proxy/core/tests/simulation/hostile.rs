//! A server that does its worst: however it answers, a shard does not connect in a loop, and sends no
//! connection more than Discord allows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fastrand::Rng;
use gateway_proxy_core::budget;
use gateway_proxy_core::session::{Action, DispatchKind, Incoming, Phase, Session, Settings};
use schemas::ShardId;

use crate::for_each_seed;
use crate::world::CONNECTS_PER_MINUTE;

const SEEDS: u64 = 500;
const MINUTE: Duration = Duration::from_secs(60);
/// Time simulated per seed.
const LASTS: Duration = Duration::from_secs(8 * 60);
/// Against a server that only talks, without time passing.
const MOVES_MAX: u32 = 10_000;

/// What the server does next.
#[derive(Clone, Copy, Debug)]
enum Move {
    RefuseConnection,
    Hello(Duration),
    /// READY or RESUMED, whichever is asked for.
    Start,
    StrayReady,
    BadReady,
    Event,
    Jump,
    HeartbeatRequests(u32),
    Ack,
    Reconnect,
    Invalid(bool),
    Undecodable,
    Close(Option<u16>),
    Wait(Duration),
}

fn random_move(rng: &mut Rng) -> Move {
    const CODES: [u16; 12] = [
        1000, 1001, 4000, 4001, 4002, 4003, 4005, 4006, 4007, 4008, 4009, 4999,
    ];
    match rng.u8(0..20) {
        0 => Move::RefuseConnection,
        1 | 2 => Move::Hello(Duration::from_millis(
            rng.choice([0, 10, 50, 1_000, 41_250]).unwrap(),
        )),
        3..=5 => Move::Start,
        6 => Move::StrayReady,
        7 => Move::BadReady,
        8 => Move::Event,
        9 => Move::Jump,
        10 => Move::HeartbeatRequests(rng.u32(1..200)),
        11 => Move::Ack,
        12 => Move::Reconnect,
        13 => Move::Invalid(rng.bool()),
        14 => Move::Undecodable,
        15 => Move::Close(rng.choice(CODES)),
        16 => Move::Close(None),
        17 => Move::Wait(Duration::from_millis(rng.u64(0..2_000))),
        // Just long enough to count for something.
        18 => Move::Wait(Duration::from_secs(
            rng.choice([1, 5, 15, 16, 60, 61]).unwrap(),
        )),
        _ => Move::Wait(Duration::from_secs(rng.u64(0..100))),
    }
}

struct Attack {
    session: Session,
    now: Instant,
    jitter: f64,
    seq: u64,
    sessions: u64,
    connects: VecDeque<Instant>,
    most_connects: usize,
    payloads: VecDeque<Instant>,
}

impl Attack {
    fn new(jitter: f64) -> Self {
        let settings = Settings {
            shard: ShardId::new(0, 1).unwrap(),
            heartbeat_timeout: None,
        };
        let now = Instant::now();
        Self {
            session: Session::new(settings, None, now),
            now,
            jitter,
            seq: 0,
            sessions: 0,
            connects: VecDeque::new(),
            most_connects: 0,
            payloads: VecDeque::new(),
        }
    }

    fn count(times: &mut VecDeque<Instant>, now: Instant) -> usize {
        times.push_back(now);
        while times
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            times.pop_front();
        }
        times.len()
    }

    fn perform(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Connect(_) => {
                    let connects = Self::count(&mut self.connects, self.now);
                    self.most_connects = self.most_connects.max(connects);
                    self.payloads.clear();
                }
                Action::Heartbeat { .. } | Action::Identify | Action::Resume { .. } => {
                    self.sent();
                }
                // The limiter is as generous as it can be.
                Action::RequestIdentify => {
                    assert!(self.session.handle_identify_granted(self.now));
                }
                Action::CancelIdentify | Action::Close { .. } => {}
                Action::Fatal(fatal) => panic!("{fatal}"),
            }
        }
        // Somebody has a lot to say.
        for _ in 0..3 {
            if self.session.reserve_command(self.now).is_ok() {
                self.sent();
            }
        }
    }

    fn sent(&mut self) {
        let payloads = Self::count(&mut self.payloads, self.now);
        assert!(payloads <= budget::LIMIT, "{payloads} payloads in a minute");
    }

    /// Time passes, each timer exactly on time.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.session.handle_timeout(self.jitter, self.now);
            self.perform();
            if self.session.phase() == Phase::Connecting {
                return;
            }
        }
        self.now = end;
    }

    fn frame(&mut self, frame: Incoming<'_>) {
        self.session.handle_frame(frame, self.jitter, self.now);
    }

    fn dispatch(&mut self, seq: u64, kind: DispatchKind<'_>) {
        self.frame(Incoming::Dispatch {
            seq: Some(seq),
            kind,
        });
    }

    /// The server makes its move; when it has to wait for the shard, time passes.
    fn make(&mut self, wanted: Move) {
        while self.session.phase() == Phase::Waiting {
            self.pass(Duration::from_secs(1));
        }
        if self.session.phase() == Phase::Connecting {
            match wanted {
                Move::RefuseConnection => {
                    self.session.handle_connect_failed(self.jitter, self.now);
                    return;
                }
                _ => self.session.handle_connected(self.now),
            }
        }
        match wanted {
            Move::RefuseConnection => {}
            Move::Hello(interval) => self.frame(Incoming::Hello { interval }),
            Move::Start => self.start(),
            Move::StrayReady => self.ready("stray"),
            Move::BadReady => self.dispatch(1, DispatchKind::BadReady),
            Move::Event | Move::Jump => {
                self.seq += if matches!(wanted, Move::Jump) { 5 } else { 1 };
                self.dispatch(self.seq, DispatchKind::Other);
            }
            Move::HeartbeatRequests(count) => {
                (0..count).for_each(|_| self.frame(Incoming::HeartbeatRequest));
            }
            Move::Ack => self.frame(Incoming::HeartbeatAck),
            Move::Reconnect => self.frame(Incoming::Reconnect),
            Move::Invalid(resumable) => self.frame(Incoming::InvalidSession { resumable }),
            Move::Undecodable => self.session.handle_undecodable(self.jitter, self.now),
            Move::Close(code) => self.session.handle_closed(code, self.jitter, self.now),
            Move::Wait(time) => self.pass(time),
        }
        self.perform();
    }

    fn start(&mut self) {
        if self.session.phase() == Phase::AwaitingHello {
            self.frame(Incoming::Hello {
                interval: Duration::from_millis(41_250),
            });
            self.perform();
        }
        match self.session.phase() {
            Phase::Identifying => {
                self.sessions += 1;
                self.seq = 1;
                self.ready(&format!("session{}", self.sessions));
            }
            Phase::Resuming => {
                self.seq += 1;
                self.dispatch(self.seq, DispatchKind::Resumed);
            }
            _ => {}
        }
    }

    fn ready(&mut self, session_id: &str) {
        let resume_url = Some("wss://resume");
        self.dispatch(
            1,
            DispatchKind::Ready {
                session_id,
                resume_url,
            },
        );
    }
}

#[test]
fn no_server_can_have_a_shard_connect_in_a_loop_or_send_too_much() {
    for_each_seed(SEEDS, |seed| {
        let mut rng = Rng::with_seed(seed);
        // A short cycle repeated is worse than chaos.
        let cycle: Vec<Move> = (0..rng.usize(1..7))
            .map(|_| random_move(&mut rng))
            .collect();
        let chaos = rng.u32(0..20) == 0;
        // The shortest delays, mostly.
        let mut attack = Attack::new(if rng.bool() { 0.0 } else { rng.f64() });
        let end = attack.now + LASTS;
        let mut moves = 0;
        while attack.now < end {
            for wanted in &cycle {
                let wanted = if chaos {
                    random_move(&mut rng)
                } else {
                    *wanted
                };
                attack.make(wanted);
                moves += 1;
            }
            if moves > MOVES_MAX {
                break;
            }
            attack.pass(Duration::from_millis(1));
        }
        let most = attack.most_connects;
        assert!(
            most <= CONNECTS_PER_MINUTE,
            "{most} connects in a minute by {cycle:?}"
        );
    });
}
