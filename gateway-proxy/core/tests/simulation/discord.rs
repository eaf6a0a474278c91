//! A naive Discord: sessions with a replay buffer, one connection of one shard, and its faults.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use gateway_proxy_core::budget;

pub(crate) const INTERVAL: Duration = Duration::from_millis(41_250);
/// A session nobody is connected to is forgotten after this (SIM: 180 s).
const SESSION_LIFE: Duration = Duration::from_secs(180);
/// Events kept for a replay: few, so that it is exceeded at times.
const BUFFER: usize = 60;

/// What goes to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello,
    Ack,
    HeartbeatRequest,
    Reconnect,
    Invalid(bool),
    Event {
        seq: u64,
        kind: Kind,
    },
    /// A READY of a session that is not there, in the middle of another.
    StrayReady,
    Undecodable,
    Close(Option<u16>),
}

/// What a dispatch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ready(String),
    Resumed,
    Other,
}

struct Session {
    seq: u64,
    buffer: VecDeque<(u64, Kind)>,
    alive: bool,
    /// Since when nobody is connected.
    left: Option<Duration>,
}

pub(crate) struct Connection {
    session: Option<String>,
    /// The session that RESUME named, granted or not: what the client takes a refusal to be about.
    named: Option<String>,
    outbox: VecDeque<(Duration, Frame)>,
    /// Half-open: takes nothing in, sends nothing.
    pub(crate) silent: bool,
    last_heartbeat: Duration,
    payloads: VecDeque<Duration>,
}

/// How this Discord differs from others, by seed.
pub(crate) struct Manner {
    /// RESUMED is kept for replays like other events.
    keeps_resumed: bool,
    /// READY too.
    keeps_ready: bool,
    latency: Duration,
}

pub(crate) struct Discord {
    sessions: BTreeMap<String, Session>,
    pub(crate) connection: Option<Connection>,
    manner: Manner,
    /// What the next IDENTIFY or RESUME meets instead of an answer.
    pub(crate) next_start: Option<Frame>,
    /// Nothing comes for the next IDENTIFY or RESUME.
    pub(crate) next_start_hangs: bool,
    /// RESUMEs in a row that were answered by a close code.
    pub(crate) refused_resumes: u32,
}

impl Discord {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self {
            sessions: BTreeMap::new(),
            connection: None,
            manner: Manner {
                keeps_resumed: rng.bool(),
                keeps_ready: rng.bool(),
                latency: Duration::from_millis(rng.u64(1..200)),
            },
            next_start: None,
            next_start_hangs: false,
            refused_resumes: 0,
        }
    }

    /// A client connected. `hello`: what it gets first.
    pub(crate) fn connect(&mut self, hello: Option<Frame>, now: Duration) {
        self.disconnect(now);
        self.connection = Some(Connection {
            session: None,
            named: None,
            outbox: VecDeque::new(),
            silent: false,
            last_heartbeat: now,
            payloads: VecDeque::new(),
        });
        if let Some(frame) = hello {
            self.send(frame, now);
        }
    }

    pub(crate) fn disconnect(&mut self, now: Duration) {
        let connection = self.connection.take();
        if let Some(id) = connection.and_then(|connection| connection.session)
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.left = Some(now);
        }
    }

    pub(crate) fn send(&mut self, frame: Frame, now: Duration) {
        let at = now + self.manner.latency;
        if let Some(connection) = self.connection.as_mut().filter(|open| !open.silent) {
            connection.outbox.push_back((at, frame));
        }
    }

    pub(crate) fn next_delivery(&self) -> Option<Duration> {
        let connection = self.connection.as_ref()?;
        connection.outbox.front().map(|(at, _)| *at)
    }

    /// What the client reads now.
    pub(crate) fn deliver(&mut self, now: Duration) -> Option<Frame> {
        let connection = self.connection.as_mut()?;
        let (_, frame) = connection.outbox.pop_front_if(|(at, _)| *at <= now)?;
        if let Frame::Close(code) = frame {
            if matches!(code, Some(4003 | 4006 | 4007 | 4009)) {
                self.kill_attached();
            }
            self.disconnect(now);
        }
        Some(frame)
    }

    /// A frame on its way is lost for the client although the connection goes on (a proxy cannot read
    /// it, say).
    pub(crate) fn lose_one(&mut self, rng: &mut Rng) {
        if let Some(connection) = &mut self.connection {
            let events: Vec<_> = (0..connection.outbox.len())
                .filter(|at| matches!(connection.outbox[*at].1, Frame::Event { .. }))
                .collect();
            if let Some(at) = rng.choice(events) {
                connection.outbox.remove(at);
            }
        }
    }

    /// The client sent a payload: no more than 120 in 60 s.
    fn count_payload(&mut self, now: Duration) -> Option<&mut Connection> {
        let connection = self.connection.as_mut()?;
        let payloads = &mut connection.payloads;
        payloads.push_back(now);
        while payloads
            .front()
            .is_some_and(|at| now - *at >= budget::WINDOW)
        {
            payloads.pop_front();
        }
        assert!(payloads.len() <= budget::LIMIT, "4008: too many payloads");
        (!connection.silent).then_some(connection)
    }

    pub(crate) fn heartbeat(&mut self, now: Duration) {
        let Some(connection) = self.count_payload(now) else {
            return;
        };
        connection.last_heartbeat = now;
        self.send(Frame::Ack, now);
    }

    pub(crate) fn identify(&mut self, now: Duration) {
        if self.count_payload(now).is_none() || self.start_fails(now) {
            return;
        }
        let id = format!("session{}", self.sessions.len());
        let ready = Kind::Ready(id.clone());
        let mut buffer = VecDeque::new();
        if self.manner.keeps_ready {
            buffer.push_back((1, ready.clone()));
        }
        let session = Session {
            seq: 1,
            buffer,
            alive: true,
            left: None,
        };
        self.sessions.insert(id.clone(), session);
        self.attach(id);
        self.send(
            Frame::Event {
                seq: 1,
                kind: ready,
            },
            now,
        );
    }

    pub(crate) fn resume(&mut self, id: &str, seq: u64, now: Duration) {
        if let Some(connection) = &mut self.connection {
            connection.named = Some(id.to_owned());
        }
        if self.count_payload(now).is_none() {
            return;
        }
        if self.start_fails(now) {
            self.refused_resumes += 1;
            return;
        }
        self.refused_resumes = 0;
        let session = self.sessions.get_mut(id).filter(|session| session.alive);
        let Some(session) = session else {
            self.send(Frame::Invalid(false), now);
            return;
        };
        assert!(
            seq <= session.seq,
            "4007: resumed from {seq}, sent {}",
            session.seq
        );
        let first = session
            .buffer
            .front()
            .map_or(session.seq + 1, |(first, _)| *first);
        // Without READY in the buffer, nothing is missing before the second event either.
        if first > seq + 1 && !(seq == 0 && first <= 2) {
            session.alive = false;
            self.send(Frame::Invalid(false), now);
            return;
        }
        session.left = None;
        let replay: Vec<_> = session
            .buffer
            .iter()
            .filter(|(kept, _)| *kept > seq)
            .cloned()
            .collect();
        self.attach(id.to_owned());
        for (seq, kind) in replay {
            self.send(Frame::Event { seq, kind }, now);
        }
        self.emit(id, Kind::Resumed, now);
    }

    fn start_fails(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.next_start_hangs) {
            return true;
        }
        let Some(frame) = self.next_start.take() else {
            return false;
        };
        self.send(frame, now);
        true
    }

    fn attach(&mut self, id: String) {
        if let Some(connection) = &mut self.connection {
            connection.session = Some(id);
        }
    }

    fn attached(&self) -> Option<&str> {
        self.connection.as_ref()?.session.as_deref()
    }

    /// The session of the connection is gone.
    pub(crate) fn kill_attached(&mut self) {
        let connection = self.connection.as_ref();
        let id = connection.and_then(|open| open.session.clone().or_else(|| open.named.clone()));
        if let Some(session) = id.and_then(|id| self.sessions.get_mut(&id)) {
            session.alive = false;
        }
    }

    /// The session of the connection is gone, and the client is told after a while.
    pub(crate) fn forget_attached(&mut self, told_after: Duration, now: Duration) {
        self.kill_attached();
        self.send(Frame::Invalid(false), now + told_after);
    }

    /// Something happens in a guild: every session that lives gets it.
    pub(crate) fn happen(&mut self, now: Duration) {
        let alive: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.alive)
            .map(|(id, _)| id.clone())
            .collect();
        for id in alive {
            self.emit(&id, Kind::Other, now);
        }
    }

    fn emit(&mut self, id: &str, kind: Kind, now: Duration) {
        let keep = kind != Kind::Resumed || self.manner.keeps_resumed;
        let session = self.sessions.get_mut(id).unwrap();
        session.seq += 1;
        let seq = session.seq;
        if keep {
            session.buffer.push_back((seq, kind.clone()));
            if session.buffer.len() > BUFFER {
                session.buffer.pop_front();
            }
        }
        if self.attached() == Some(id) {
            self.send(Frame::Event { seq, kind }, now);
        }
    }

    /// Forgets sessions nobody came back to; closes a connection without heartbeats.
    pub(crate) fn housekeeping(&mut self, now: Duration) {
        for session in self.sessions.values_mut() {
            if session.left.is_some_and(|left| now - left > SESSION_LIFE) {
                session.alive = false;
            }
        }
        if let Some(connection) = &mut self.connection
            && now - connection.last_heartbeat > INTERVAL * 3 / 2
        {
            connection.last_heartbeat = now;
            self.send(Frame::Close(Some(4009)), now);
        }
    }

    /// No RESUMED is on its way: what is, is not a replay.
    pub(crate) fn is_live(&self) -> bool {
        let resumed = |frame: &Frame| {
            matches!(
                frame,
                Frame::Event {
                    kind: Kind::Resumed,
                    ..
                }
            )
        };
        self.connection
            .as_ref()
            .is_some_and(|open| !open.outbox.iter().any(|(_, f)| resumed(f)))
    }

    pub(crate) fn is_alive(&self, id: &str) -> bool {
        self.sessions.get(id).is_some_and(|session| session.alive)
    }

    /// The last sequence of a session.
    pub(crate) fn seq(&self, id: &str) -> u64 {
        self.sessions.get(id).map_or(0, |session| session.seq)
    }

    /// Whether these numbers will never be sent again: not kept for replays.
    pub(crate) fn never_replayed(&self, id: &str, mut seqs: std::ops::Range<u64>) -> bool {
        let session = &self.sessions[id];
        seqs.all(|seq| session.buffer.iter().all(|(kept, _)| *kept != seq))
    }
}
