//! One shard between the model of Discord and a publisher whose acknowledgements come late, and the
//! checks that hold after every step.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use gateway_proxy_core::fleet::limiter::PERIOD;
use gateway_proxy_core::session::{
    Action, DispatchKind, Endpoint, Incoming, Phase, Resumable, Session, Settings, Verdict,
};
use schemas::ShardId;

use crate::discord::{Discord, Frame, INTERVAL, Kind};

const RESUME_URL: &str = "wss://resume";
/// Connections a shard may make in 60 s, whatever happens. Each end that was not preceded by a stable
/// time doubles the wait, so a minute has room for seven steps of it, and each step for about four
/// connections: a fault, a failure that events forget, and twice the resume url that is tried first.
pub(crate) const CONNECTS_PER_MINUTE: usize = 30;

/// What is in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Event { session: String, seq: u64 },
    Gap { old: String, last_seq: u64 },
}

/// JetStream and the publisher in front of it.
#[derive(Default)]
struct Publisher {
    // With the generation of its session and, for events, the sequence it acknowledges.
    queue: VecDeque<(u16, Entry)>,
    acks: VecDeque<(Duration, u16, u64)>,
    stream: Vec<Entry>,
    ids: BTreeSet<(String, u64)>,
    next: Option<Duration>,
    down: bool,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    epoch: Instant,
    pub(crate) now: Duration,
    pub(crate) session: Session,
    pub(crate) discord: Discord,
    publisher: Publisher,
    wants_grant: bool,
    granted: bool,
    identified: Option<Duration>,
    dialing: Option<(Duration, Option<Option<Frame>>)>,
    /// The next dials fail.
    pub(crate) unreachable: u32,
    /// The next connection gets this instead of HELLO.
    pub(crate) next_hello: Option<Option<Frame>>,
    reading: bool,
    next_event: Option<Duration>,
    quiet: bool,
    connects: VecDeque<Duration>,
    // By this process: what it handed over, so that it never does so twice.
    handed: BTreeSet<(String, u64)>,
    // Set when the operator ended a session, which needs no other reason.
    renewed: bool,
    skips: u64,
}

fn settings() -> Settings {
    Settings {
        shard: ShardId::new(0, 1).unwrap(),
        heartbeat_timeout: None,
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let epoch = Instant::now();
        Self {
            discord: Discord::new(&mut rng),
            rng,
            epoch,
            now: Duration::ZERO,
            session: Session::new(settings(), None, epoch),
            publisher: Publisher::default(),
            wants_grant: false,
            granted: false,
            identified: None,
            dialing: None,
            unreachable: 0,
            next_hello: None,
            reading: true,
            next_event: Some(Duration::ZERO),
            quiet: false,
            connects: VecDeque::new(),
            handed: BTreeSet::new(),
            renewed: false,
            skips: 0,
        }
    }

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    /// Goes to whatever comes next and lets it happen.
    pub(crate) fn step(&mut self) {
        let timer = self.session.poll_timeout().map(|at| at - self.epoch);
        let dial = self.dialing.as_ref().map(|(at, _)| *at);
        let delivery = self.discord.next_delivery().filter(|_| self.reading);
        let store = self.publisher.next.filter(|_| !self.publisher.down);
        let ack = self.publisher.acks.front().map(|(at, ..)| *at);
        let grant = self.next_grant();
        let causes = [timer, dial, delivery, store, ack, grant, self.next_event];
        let Some(next) = causes.into_iter().flatten().min() else {
            panic!("nothing will ever happen: {:?}", self.session.phase());
        };
        self.now = self.now.max(next);
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= self.now);
        let (timer, dial, delivery) = (due(timer), due(dial), due(delivery));
        let (store, ack, grant, event) = (due(store), due(ack), due(grant), due(self.next_event));
        if ack {
            self.acknowledge();
        } else if delivery {
            self.receive();
        } else if timer {
            let jitter = self.rng.f64();
            self.session.handle_timeout(jitter, self.instant());
        } else if dial {
            self.dialed();
        } else if grant {
            self.grant();
        } else if store {
            self.store();
        } else if event {
            self.happen();
        }
        self.perform();
        self.discord.housekeeping(self.now);
    }

    fn next_grant(&self) -> Option<Duration> {
        // One IDENTIFY per period; whose turn it is among many is the limiter's own simulation.
        let free = self.identified.map_or(Duration::ZERO, |at| at + PERIOD);
        self.wants_grant.then(|| free.max(self.now))
    }

    fn happen(&mut self) {
        self.discord.happen(self.now);
        let gap = if self.quiet {
            // A lost frame shows with the next one.
            Duration::from_secs(60)
        } else {
            Duration::from_millis(self.rng.u64(0..8_000))
        };
        self.next_event = Some(self.now + gap);
    }

    /// Little happens in the guilds any more.
    pub(crate) fn hush(&mut self) {
        self.quiet = true;
    }

    fn acknowledge(&mut self) {
        if let Some((_, generation, seq)) = self.publisher.acks.pop_front() {
            self.session.handle_acked(generation, seq);
        }
    }

    fn dialed(&mut self) {
        let Some((_, hello)) = self.dialing.take() else {
            return;
        };
        match hello {
            Some(hello) => {
                self.discord.connect(hello, self.now);
                self.session.handle_connected(self.instant());
            }
            None => {
                let jitter = self.rng.f64();
                self.session.handle_connect_failed(jitter, self.instant());
            }
        }
    }

    fn grant(&mut self) {
        self.wants_grant = false;
        self.granted = self.session.handle_identify_granted(self.instant());
    }

    fn receive(&mut self) {
        let Some(frame) = self.discord.deliver(self.now) else {
            return;
        };
        let (jitter, now) = (self.rng.f64(), self.instant());
        let incoming = match &frame {
            Frame::Hello => Incoming::Hello { interval: INTERVAL },
            Frame::Ack => Incoming::HeartbeatAck,
            Frame::HeartbeatRequest => Incoming::HeartbeatRequest,
            Frame::Reconnect => Incoming::Reconnect,
            Frame::Invalid(resumable) => {
                if !resumable {
                    self.discord.kill_attached();
                }
                Incoming::InvalidSession {
                    resumable: *resumable,
                }
            }
            Frame::Event { seq, kind } => {
                let kind = match kind {
                    Kind::Ready(id) => DispatchKind::Ready {
                        session_id: id,
                        resume_url: Some(RESUME_URL),
                    },
                    Kind::Resumed => DispatchKind::Resumed,
                    Kind::Other => DispatchKind::Other,
                };
                Incoming::Dispatch {
                    seq: Some(*seq),
                    kind,
                }
            }
            // To IDENTIFY it would be a proper answer.
            Frame::StrayReady if self.session.phase() == Phase::Identifying => return,
            Frame::StrayReady => Incoming::Dispatch {
                seq: Some(1),
                kind: DispatchKind::Ready {
                    session_id: "stray",
                    resume_url: None,
                },
            },
            Frame::Undecodable => {
                self.session.handle_undecodable(jitter, now);
                return;
            }
            Frame::Close(code) => {
                self.session.handle_closed(*code, jitter, now);
                return;
            }
        };
        let verdict = self.session.handle_frame(incoming, jitter, now);
        if let Verdict::Publish { seq, gap } = verdict {
            self.hand_over(seq, gap.map(|gap| (gap.session_id, gap.last_seq)));
        }
    }

    fn hand_over(&mut self, seq: u64, gap: Option<(String, u64)>) {
        let id = self.session.id().unwrap().to_owned();
        let generation = self.session.generation();
        if let Some((old, last_seq)) = gap {
            let refused = self.discord.refused_resumes >= 7;
            let legitimate = self.renewed || refused || !self.discord.is_alive(&old);
            assert!(legitimate, "{old} was given up although Discord had it");
            self.renewed = false;
            self.publisher
                .queue
                .push_back((generation, Entry::Gap { old, last_seq }));
        }
        let new = self.handed.insert((id.clone(), seq));
        assert!(new, "{id}:{seq} was handed over twice");
        let event = Entry::Event { session: id, seq };
        self.publisher.queue.push_back((generation, event));
        let delay = Duration::from_millis(self.rng.u64(0..500));
        self.publisher.next.get_or_insert(self.now + delay);
    }

    /// JetStream takes some of the queue.
    fn store(&mut self) {
        let count = self.rng.usize(1..=8).min(self.publisher.queue.len());
        for _ in 0..count {
            let (generation, entry) = self.publisher.queue.pop_front().unwrap();
            if let Entry::Event { session, seq } = &entry {
                if !self.publisher.ids.insert((session.clone(), *seq)) {
                    panic!("{session}:{seq} was published again by another process");
                }
                let delay = Duration::from_millis(self.rng.u64(0..300));
                let last = self.publisher.acks.back().map_or(self.now, |(at, ..)| *at);
                self.publisher
                    .acks
                    .push_back((last.max(self.now + delay), generation, *seq));
            }
            self.append(entry);
        }
        let delay = Duration::from_millis(self.rng.u64(0..500));
        let more = !self.publisher.queue.is_empty();
        self.publisher.next = more.then_some(self.now + delay);
    }

    fn last_event(&self) -> Option<(&str, u64)> {
        self.publisher
            .stream
            .iter()
            .rev()
            .find_map(|entry| match entry {
                Entry::Event { session, seq } => Some((session.as_str(), *seq)),
                Entry::Gap { .. } => None,
            })
    }

    /// The stream's invariants: contiguous within a session, a gap before every other session.
    fn append(&mut self, entry: Entry) {
        if let Entry::Event { session, seq } = &entry {
            match self.last_event() {
                None => assert_eq!(*seq, 1, "the stream begins with a READY"),
                Some((last, at)) if last == session => {
                    let hole = at + 1..*seq;
                    assert!(at < *seq, "{session}: {seq} after {at}");
                    self.skips += *seq - at - 1;
                    let skipped = self.discord.never_replayed(session, hole.clone());
                    assert!(skipped, "{session}: {hole:?} is lost");
                }
                Some((last, at)) => {
                    let gap = Entry::Gap {
                        old: last.to_owned(),
                        last_seq: at,
                    };
                    assert_eq!(self.publisher.stream.last(), Some(&gap), "before {entry:?}");
                    assert_eq!(*seq, 1, "{session} begins with its READY");
                }
            }
        }
        self.publisher.stream.push(entry);
    }

    /// Does what the session decided.
    pub(crate) fn perform(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Connect(endpoint) => self.connect(&endpoint),
                Action::Heartbeat { .. } => self.discord.heartbeat(self.now),
                Action::RequestIdentify => self.wants_grant = true,
                Action::CancelIdentify => self.wants_grant = false,
                Action::Identify => {
                    assert!(
                        std::mem::take(&mut self.granted),
                        "IDENTIFY without a grant"
                    );
                    self.identified = Some(self.now);
                    self.discord.identify(self.now);
                }
                Action::Resume { session_id, seq } => {
                    let stored = self.last_event().filter(|(id, _)| *id == session_id);
                    let stored = stored.map_or(0, |(_, seq)| seq);
                    assert!(seq <= stored, "resumed from {seq}, stored is {stored}");
                    self.discord.resume(&session_id, seq, self.now);
                }
                Action::Close { code, .. } => {
                    assert!(code != 1000 && code != 1001);
                    self.discord.disconnect(self.now);
                }
                Action::Fatal(fatal) => panic!("{fatal}"),
            }
        }
    }

    fn connect(&mut self, endpoint: &Endpoint) {
        if let Endpoint::Resume(url) = endpoint {
            assert_eq!(url, RESUME_URL);
        }
        self.connects.push_back(self.now);
        while self
            .connects
            .front()
            .is_some_and(|at| self.now - *at >= Duration::from_secs(60))
        {
            self.connects.pop_front();
        }
        assert!(
            self.connects.len() <= CONNECTS_PER_MINUTE,
            "connects in a loop"
        );
        let delay = Duration::from_millis(self.rng.u64(0..300));
        let fails = self.unreachable > 0;
        self.unreachable = self.unreachable.saturating_sub(1);
        let hello = self.next_hello.take().unwrap_or(Some(Frame::Hello));
        self.dialing = Some((self.now + delay, (!fails).then_some(hello)));
    }

    /// The process stands still, timers and all.
    pub(crate) fn freeze(&mut self, time: Duration) {
        self.now += time;
        self.discord.housekeeping(self.now);
        let jitter = self.rng.f64();
        self.session.handle_timeout(jitter, self.instant());
        self.perform();
    }

    /// NATS goes or comes back; when the publisher's buffer is full, the socket is not read.
    pub(crate) fn set_nats_down(&mut self, down: bool) {
        self.publisher.down = down;
    }

    pub(crate) fn set_reading(&mut self, reading: bool) {
        self.reading = reading;
        self.session.handle_reading(reading, self.instant());
    }

    /// A frame is lost on the way, as one the proxy cannot read is. Of a replay it would be lost in
    /// every other too.
    pub(crate) fn lose_live_event(&mut self) {
        if self.session.phase() == Phase::Ready && self.discord.is_live() {
            self.discord.lose_one(&mut self.rng);
        }
    }

    pub(crate) fn renew(&mut self) {
        self.renewed |= self.session.id().is_some();
        self.session.renew(self.instant());
        self.perform();
    }

    pub(crate) fn pause(&mut self) {
        let delay = Duration::from_secs(self.rng.u64(0..20));
        self.session.pause(delay, self.instant());
        self.perform();
    }

    /// The process dies, with what it had not published; another carries on from the stream.
    pub(crate) fn crash(&mut self) {
        let checkpoint = self.last_event().map(|(id, seq)| (id.to_owned(), seq));
        self.become_another_process(checkpoint);
    }

    /// The process lets go in good order: everything handed over is stored first.
    pub(crate) fn hand_over_shard(&mut self) {
        self.session.stop();
        self.perform();
        assert_eq!(self.session.phase(), Phase::Stopped);
        while !self.publisher.queue.is_empty() {
            self.store();
        }
        while !self.publisher.acks.is_empty() {
            self.acknowledge();
        }
        let resumable = self.session.resumable();
        let stored = self.last_event().map(|(id, seq)| (id.to_owned(), seq));
        if let Some(resumable) = &resumable {
            let own = stored
                .as_ref()
                .filter(|(id, _)| *id == resumable.session_id);
            assert_eq!(resumable.seq, own.map_or(0, |(_, seq)| *seq));
        }
        self.become_another_process(stored);
    }

    fn become_another_process(&mut self, checkpoint: Option<(String, u64)>) {
        self.publisher.queue.clear();
        self.publisher.acks.clear();
        self.publisher.next = None;
        self.handed.clear();
        self.dialing = None;
        self.granted = false;
        self.wants_grant = false;
        self.discord.disconnect(self.now);
        self.reading = true;
        self.connects.clear();
        let resumable = checkpoint.map(|(session_id, seq)| Resumable {
            session_id,
            resume_url: self.rng.bool().then(|| RESUME_URL.to_owned()),
            seq,
        });
        self.session = Session::new(settings(), resumable, self.instant());
    }

    /// Events flow, and everything Discord sent is stored.
    pub(crate) fn is_settled(&self) -> bool {
        let Some((id, seq)) = self.last_event() else {
            return false;
        };
        self.session.phase() == Phase::Ready
            && self.session.id() == Some(id)
            && seq == self.discord.seq(id)
            && self
                .session
                .resumable()
                .is_some_and(|resumable| resumable.seq == seq)
    }

    /// Nothing is missing without Discord having left it out.
    pub(crate) fn check_skipped(&self) {
        assert!(self.session.skipped() <= self.skips);
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "{:?} {:?}, stored {:?}, discord at {:?}, {} queued",
            self.session.phase(),
            self.session.resumable(),
            self.last_event(),
            self.session.id().map(|id| self.discord.seq(id)),
            self.publisher.queue.len(),
        )
    }
}
