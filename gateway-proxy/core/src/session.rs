//! One shard's session with Discord's gateway: HELLO, heartbeats, IDENTIFY, RESUME, and what every
//! close, op 7 and op 9 means for it.
//!
//! `handle_*` takes facts and `now`; `poll_action` yields what the driver is to do, until `None`;
//! `poll_timeout` is the one timer to arm. Payload bytes never enter the action queue: whether the
//! frame in the driver's hands is published is the return value of [`Session::handle_frame`].
//! Jitter is an argument in `[0, 1)`. Time never goes backwards.

mod heart;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use schemas::ShardId;

use crate::budget::SendBudget;
use crate::close::{self, AfterClose, FatalClose};
use heart::Heart;

/// How long HELLO may take after the WebSocket is up (@discordjs/ws waits as long).
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// How long READY or RESUMED may take while nothing but heartbeat ACKs arrives. Long, because during
/// an outage Discord keeps such connections open, and a new IDENTIFY costs budget.
const SESSION_START_TIMEOUT: Duration = Duration::from_secs(300);
/// First delay of the back-off; it doubles per failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest delay of the back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(128);
/// A connection whose events flowed so long forgets earlier faults.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// A connection whose events flowed shorter than this counts as a fault.
const SHORT_LIVED: Duration = Duration::from_secs(5);
/// The wait after op 9, plus up to [`INVALID_SESSION_SPREAD`]: 1 to 5 s (Discord, Invalid Session).
const INVALID_SESSION_WAIT: Duration = Duration::from_secs(1);
const INVALID_SESSION_SPREAD: Duration = Duration::from_secs(4);

/// What must be remembered to RESUME a session, in this process or another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumable {
    /// Discord's session id.
    pub session_id: String,
    /// Where to connect to for RESUME; the gateway's own url when unknown.
    pub resume_url: Option<String>,
    /// The highest sequence JetStream has acknowledged contiguously.
    pub seq: u64,
}

/// A session that ended without RESUME; the next READY is preceded by a gap marker that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub session_id: String,
    /// The last sequence handed to the publisher.
    pub last_seq: u64,
    /// Why it ended.
    pub reason: EndReason,
    /// When it was known to have ended.
    pub at: Instant,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Op 9 `false` while the session was live.
    InvalidSession,
    /// Discord refused to RESUME it: its replay buffer or its life was exceeded.
    ReplayExceeded,
    /// A close code that voids the session.
    SessionExpired,
    /// An operator asked for a fresh session.
    Forced,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The url of `/gateway/bot`.
    Gateway,
    /// The session's `resume_gateway_url`.
    Resume(String),
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection, then call `handle_connected` or `handle_connect_failed`.
    Connect(Endpoint),
    /// Send op 1.
    Heartbeat {
        /// What goes into `d`.
        seq: Option<u64>,
    },
    /// Ask the identify limiter for a grant, then call `handle_identify_granted`.
    RequestIdentify,
    /// The grant is not wanted any more.
    CancelIdentify,
    /// Send op 2.
    Identify,
    /// Send op 6 with this.
    Resume {
        /// The session.
        session_id: String,
        /// Replay starts after it.
        seq: u64,
    },
    /// Close the connection with this code and forget it; `handle_closed` is not called for it.
    Close {
        /// Never 1000 or 1001.
        code: u16,
        /// For logs and counters.
        reason: CloseReason,
    },
    /// Stop: nothing but another configuration helps.
    Fatal(FatalClose),
}

/// Why we close a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// No HELLO in time.
    HelloTimeout,
    /// No READY or RESUMED in time.
    StartTimeout,
    /// Nothing came in between two heartbeats, or for `--heartbeat-timeout`.
    Zombie,
    /// Op 7.
    Reconnect,
    /// Op 9.
    InvalidSession,
    /// Bytes that are not a frame: the compression context or the peer is broken.
    Undecodable,
    /// Sequence numbers skipped: something was lost on the way.
    SequenceJump,
    /// READY that lacks what a session needs.
    BadReady,
    /// This process lets go of the shard.
    Drain,
    /// The publish buffer is full for too long; Discord's replay buffer takes over.
    Overloaded,
}

impl CloseReason {
    /// Every reason, for counters.
    pub const ALL: [Self; 10] = [
        Self::HelloTimeout,
        Self::StartTimeout,
        Self::Zombie,
        Self::Reconnect,
        Self::InvalidSession,
        Self::Undecodable,
        Self::SequenceJump,
        Self::BadReady,
        Self::Drain,
        Self::Overloaded,
    ];

    /// A label for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HelloTimeout => "hello_timeout",
            Self::StartTimeout => "start_timeout",
            Self::Zombie => "zombie",
            Self::Reconnect => "reconnect",
            Self::InvalidSession => "invalid_session",
            Self::Undecodable => "undecodable",
            Self::SequenceJump => "sequence_jump",
            Self::BadReady => "bad_ready",
            Self::Drain => "drain",
            Self::Overloaded => "overloaded",
        }
    }
}

/// A frame, reduced to what the session needs of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Incoming<'a> {
    /// Op 0.
    Dispatch {
        /// `s`.
        seq: Option<u64>,
        /// What the event means for the session.
        kind: DispatchKind<'a>,
    },
    /// Op 1.
    HeartbeatRequest,
    /// Op 7.
    Reconnect,
    /// Op 9.
    InvalidSession {
        /// `d`.
        resumable: bool,
    },
    /// Op 10.
    Hello {
        /// `d.heartbeat_interval`.
        interval: Duration,
    },
    /// Op 11.
    HeartbeatAck,
    /// Any other opcode: ignored, counted by the driver.
    Unknown,
}

/// What a dispatch means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchKind<'a> {
    /// READY.
    Ready {
        /// `d.session_id`.
        session_id: &'a str,
        /// `d.resume_gateway_url`.
        resume_url: Option<&'a str>,
    },
    /// READY without a session id.
    BadReady,
    /// RESUMED.
    Resumed,
    /// Anything else.
    Other,
}

/// Whether the driver publishes the bytes it is still holding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Publish under [`Session::id`] with this sequence; first the gap marker, if there is one.
    Publish {
        /// `s`.
        seq: u64,
        /// The session that ended before this READY.
        gap: Option<Ended>,
    },
    /// Handed to the publisher before: a replay after RESUME.
    Replayed,
    /// A dispatch without a sequence or outside a session: nothing can name it.
    Unnameable,
    /// Not a dispatch, or one that arrived on a connection we are leaving.
    Consumed,
}

/// What a session needs to know besides its shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The shard.
    pub shard: ShardId,
    /// Without any inbound frame for so long a connection counts as dead, even between heartbeats.
    pub heartbeat_timeout: Option<Duration>,
}

/// Where the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits to connect.
    Waiting,
    /// The driver is connecting.
    Connecting,
    /// Connected, no HELLO yet.
    AwaitingHello,
    /// HELLO seen, waits for the identify limiter.
    AwaitingGrant,
    /// IDENTIFY sent, no READY yet.
    Identifying,
    /// RESUME sent, no RESUMED yet.
    Resuming,
    /// Events flow.
    Ready,
    /// Let go of on purpose.
    Stopped,
    /// Refused for good.
    Fatal,
}

/// The state machine of one shard.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    phase: Phase,
    // The phase's own deadline: back-off, HELLO, READY. `None` while only heartbeats matter.
    deadline: Option<Instant>,
    actions: VecDeque<Action>,
    current: Option<Current>,
    generation: u16,
    ended: Option<Ended>,
    heart: Option<Heart>,
    budget: SendBudget,
    // The resume url failed: the next attempt goes to the gateway's own url, still with RESUME.
    resume_url_failed: bool,
    // Attempts since events last flowed that came to nothing.
    failures: u32,
    // Connections that ended by our fault, or right after events began to flow; forgotten by one
    // that lasts.
    faults: u32,
    connected_at: Option<Instant>,
    // Dispatches to let pass although they skip sequences: the same skip came again after a RESUME.
    tolerated_jump: Option<(u64, u64)>,
}

/// The session we have.
#[derive(Debug)]
struct Current {
    id: String,
    // Tells acknowledgements of this session from those of an earlier one on the shard.
    generation: u16,
    resume_url: Option<String>,
    // Highest sequence handed to the publisher. `acked <= handed` always.
    handed: u64,
    // Highest sequence JetStream acknowledged contiguously.
    acked: u64,
}

impl Session {
    /// A shard that starts, with the session of an earlier process if it left one.
    #[must_use]
    pub fn new(settings: Settings, resumable: Option<Resumable>, now: Instant) -> Self {
        let current = resumable.map(|saved| Current {
            id: saved.session_id,
            generation: 0,
            resume_url: saved.resume_url,
            handed: saved.seq,
            acked: saved.seq,
        });
        let mut session = Self {
            settings,
            phase: Phase::Waiting,
            deadline: None,
            actions: VecDeque::new(),
            current,
            generation: 0,
            ended: None,
            heart: None,
            budget: SendBudget::default(),
            resume_url_failed: false,
            failures: 0,
            faults: 0,
            connected_at: None,
            tolerated_jump: None,
        };
        session.wait_to_connect(Duration::ZERO, now);
        session
    }

    /// Where the session stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.settings.shard
    }

    /// Discord's id of the session we have.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.current.as_ref().map(|current| current.id.as_str())
    }

    /// What another process needs to carry on: the sequence is the acknowledged one.
    #[must_use]
    pub fn resumable(&self) -> Option<Resumable> {
        let current = self.current.as_ref()?;
        Some(Resumable {
            session_id: current.id.clone(),
            resume_url: current.resume_url.clone(),
            seq: current.acked,
        })
    }

    /// Counts the shard's sessions in this process, so that acknowledgements find theirs.
    #[must_use]
    pub const fn generation(&self) -> u16 {
        self.generation
    }

    /// Highest sequence handed to the publisher.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.handed)
    }

    /// Round trip of the last heartbeat.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.heart.as_ref().and_then(Heart::latency)
    }

    /// Failed attempts since events last flowed.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The next thing to do, until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// True when [`Session::poll_action`] has something.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// When to call [`Session::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let heart = self.heart.as_ref().map(Heart::deadline);
        match (self.deadline, heart) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The connection asked for is up.
    pub fn handle_connected(&mut self, now: Instant) {
        if self.phase != Phase::Connecting {
            return;
        }
        self.connected_at = Some(now);
        self.phase = Phase::AwaitingHello;
        self.deadline = Some(now + HELLO_TIMEOUT);
    }

    /// The connection asked for could not be opened.
    pub fn handle_connect_failed(&mut self, jitter: f64, now: Instant) {
        if self.phase != Phase::Connecting {
            return;
        }
        let tried_resume_url = !self.resume_url_failed
            && self
                .current
                .as_ref()
                .is_some_and(|current| current.resume_url.is_some());
        // The session outlives its url: try the gateway's own next, without waiting; after that the
        // resume url again, each round waiting longer.
        self.resume_url_failed = tried_resume_url;
        let delay = if tried_resume_url {
            Duration::ZERO
        } else {
            self.failures = self.failures.saturating_add(1);
            self.backoff(jitter)
        };
        self.disconnect(delay, now);
    }

    /// The connection ended, with Discord's close code if it sent one.
    pub fn handle_closed(&mut self, code: Option<u16>, jitter: f64, now: Instant) {
        if !self.is_connected() {
            return;
        }
        let before_session = !matches!(self.phase, Phase::Ready);
        match close::after_close(code) {
            AfterClose::Fatal(fatal) => {
                self.leave_connection();
                self.phase = Phase::Fatal;
                self.actions.push_back(Action::Fatal(fatal));
                return;
            }
            AfterClose::Identify => {
                self.end_session(EndReason::SessionExpired, now);
                self.failures = self.failures.saturating_add(1);
            }
            AfterClose::ResumeSlowly => {
                self.note_fault(now);
                self.faults = self.faults.max(2);
            }
            AfterClose::Resume if before_session => {
                self.failures = self.failures.saturating_add(1);
            }
            AfterClose::Resume => self.note_end(now),
        }
        let delay = self.backoff(jitter);
        self.disconnect(delay, now);
    }

    /// One frame from the connection.
    pub fn handle_frame(&mut self, frame: Incoming<'_>, jitter: f64, now: Instant) -> Verdict {
        if !self.is_connected() {
            return Verdict::Consumed;
        }
        if let Some(heart) = &mut self.heart {
            heart.handle_inbound(now);
        }
        match frame {
            Incoming::Dispatch { seq, kind } => {
                return self.handle_dispatch(seq, kind, jitter, now);
            }
            Incoming::HeartbeatRequest => self.beat(now),
            Incoming::Reconnect => {
                self.note_end(now);
                let delay = self.backoff(jitter);
                self.close(CloseReason::Reconnect, delay, now);
            }
            Incoming::InvalidSession { resumable } => {
                self.handle_invalid_session(resumable, jitter, now);
            }
            Incoming::Hello { interval } => self.handle_hello(interval, jitter, now),
            Incoming::HeartbeatAck => {
                if let Some(heart) = &mut self.heart {
                    heart.handle_ack(now);
                }
            }
            Incoming::Unknown => {}
        }
        Verdict::Consumed
    }

    /// Bytes arrived that are no frame: a corrupt compression stream, or not a gateway at all.
    ///
    /// Only a new connection has a fresh compression context; RESUME brings what was lost.
    pub fn handle_undecodable(&mut self, jitter: f64, now: Instant) {
        if !self.is_connected() {
            return;
        }
        self.note_fault(now);
        let delay = self.backoff(jitter);
        self.close(CloseReason::Undecodable, delay, now);
    }

    /// The limiter granted the IDENTIFY asked for. `false`: it is not wanted any more and can be
    /// given back.
    #[must_use]
    pub fn handle_identify_granted(&mut self, now: Instant) -> bool {
        if self.phase != Phase::AwaitingGrant {
            return false;
        }
        if self.budget.take_reserved(now).is_err() {
            // A server that asked for 120 heartbeats a minute: wait for the next turn.
            self.actions.push_back(Action::RequestIdentify);
            return false;
        }
        self.phase = Phase::Identifying;
        self.deadline = Some(now + SESSION_START_TIMEOUT);
        self.actions.push_back(Action::Identify);
        true
    }

    /// JetStream acknowledged everything up to `seq` of the session that had this generation.
    pub fn handle_acked(&mut self, generation: u16, seq: u64) {
        if let Some(current) = &mut self.current
            && current.generation == generation
        {
            current.acked = current.acked.max(seq.min(current.handed));
        }
    }

    /// Reading the socket was stopped or taken up again by us: silence meanwhile is our own.
    pub fn handle_reading(&mut self, reading: bool, now: Instant) {
        if let Some(heart) = &mut self.heart {
            heart.set_reading(reading, now);
        }
    }

    /// A deadline of [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, jitter: f64, now: Instant) {
        if let Some(deadline) = self.deadline
            && now >= deadline
        {
            self.deadline = None;
            self.handle_phase_timeout(jitter, now);
        }
        let Some(heart) = &mut self.heart else { return };
        match heart.handle_timeout(now) {
            heart::Beat::NotYet => {}
            heart::Beat::Due => self.send_heartbeat(now),
            heart::Beat::Dead => {
                self.note_end(now);
                let delay = self.backoff(jitter);
                self.close(CloseReason::Zombie, delay, now);
            }
        }
    }

    /// Takes room in the send budget for a user's command.
    ///
    /// # Errors
    /// How long to wait; `None` while the shard is not ready.
    pub fn reserve_command(&mut self, now: Instant) -> Result<(), Option<Duration>> {
        if self.phase != Phase::Ready {
            return Err(None);
        }
        self.budget.take_command(now).map_err(Some)
    }

    /// Lets the connection go, resumably, and connects again after `delay`.
    pub fn pause(&mut self, delay: Duration, now: Instant) {
        if self.is_connected() {
            self.close(CloseReason::Overloaded, delay, now);
        }
    }

    /// Lets go of the shard: another process resumes it.
    pub fn stop(&mut self) {
        if self.is_connected() {
            self.cancel_grant();
            self.actions.push_back(Action::Close {
                code: close::RESUMABLE,
                reason: CloseReason::Drain,
            });
        }
        self.leave_connection();
        self.phase = Phase::Stopped;
    }

    /// Before connecting: the session of an earlier process is not resumed, but announced as ended.
    pub fn expire(&mut self, reason: EndReason, now: Instant) {
        if !self.is_connected() {
            self.end_session(reason, now);
        }
    }

    /// Ends the session and starts a new one, as an operator asked.
    pub fn renew(&mut self, now: Instant) {
        self.end_session(EndReason::Forced, now);
        if self.is_connected() {
            self.close(CloseReason::Drain, Duration::ZERO, now);
        }
    }

    fn handle_dispatch(
        &mut self,
        seq: Option<u64>,
        kind: DispatchKind<'_>,
        jitter: f64,
        now: Instant,
    ) -> Verdict {
        let Some(seq) = seq else {
            return Verdict::Unnameable;
        };
        match kind {
            DispatchKind::Ready {
                session_id,
                resume_url,
            } => {
                return self.handle_ready(seq, session_id, resume_url, now);
            }
            DispatchKind::BadReady => {
                self.failures = self.failures.saturating_add(1);
                let delay = self.backoff(jitter);
                self.close(CloseReason::BadReady, delay, now);
                return Verdict::Unnameable;
            }
            DispatchKind::Resumed | DispatchKind::Other => {}
        }
        if !matches!(self.phase, Phase::Resuming | Phase::Ready) {
            return Verdict::Unnameable;
        }
        let Some(current) = &mut self.current else {
            return Verdict::Unnameable;
        };
        let expected = current.handed + 1;
        if seq < expected {
            if kind == DispatchKind::Resumed {
                self.resumed(now);
            }
            return Verdict::Replayed;
        }
        if seq > expected && self.tolerated_jump != Some((expected, seq)) {
            // Ask again from the acknowledged sequence; if the same numbers are missing in the
            // replay too, Discord never used them.
            self.tolerated_jump = Some((expected, seq));
            self.close(CloseReason::SequenceJump, Duration::ZERO, now);
            return Verdict::Consumed;
        }
        current.handed = seq;
        if self.deadline.is_some() {
            // A replay that moves is not a start that hangs.
            self.deadline = Some(now + SESSION_START_TIMEOUT);
        }
        if kind == DispatchKind::Resumed {
            self.resumed(now);
        }
        Verdict::Publish { seq, gap: None }
    }

    fn handle_ready(
        &mut self,
        seq: u64,
        session_id: &str,
        resume_url: Option<&str>,
        now: Instant,
    ) -> Verdict {
        // READY answers an IDENTIFY; in a session we have it would start a second one.
        if self.phase != Phase::Identifying {
            return Verdict::Unnameable;
        }
        self.generation = self.generation.wrapping_add(1);
        self.current = Some(Current {
            id: session_id.to_owned(),
            generation: self.generation,
            resume_url: resume_url.map(str::to_owned),
            handed: seq,
            acked: 0,
        });
        self.resume_url_failed = false;
        self.tolerated_jump = None;
        self.events_flow(now);
        Verdict::Publish {
            seq,
            gap: self.ended.take(),
        }
    }

    fn resumed(&mut self, now: Instant) {
        self.resume_url_failed = false;
        self.events_flow(now);
    }

    fn events_flow(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.deadline = None;
        self.connected_at = Some(now);
        self.failures = 0;
    }

    fn handle_hello(&mut self, interval: Duration, jitter: f64, now: Instant) {
        if self.phase != Phase::AwaitingHello {
            return;
        }
        self.budget = SendBudget::new(interval);
        self.heart = Some(Heart::new(
            interval,
            self.settings.heartbeat_timeout,
            jitter,
            now,
        ));
        self.deadline = None;
        let resume = self.current.as_ref().map(|current| Action::Resume {
            session_id: current.id.clone(),
            seq: current.acked,
        });
        match resume {
            Some(action) => {
                // A new connection's budget has room.
                if self.budget.take_reserved(now).is_ok() {
                    self.phase = Phase::Resuming;
                    self.deadline = Some(now + SESSION_START_TIMEOUT);
                    self.actions.push_back(action);
                }
            }
            None => {
                self.phase = Phase::AwaitingGrant;
                self.actions.push_back(Action::RequestIdentify);
            }
        }
    }

    fn handle_invalid_session(&mut self, resumable: bool, jitter: f64, now: Instant) {
        let wait = INVALID_SESSION_WAIT + INVALID_SESSION_SPREAD.mul_f64(jitter.clamp(0.0, 1.0));
        if !resumable && self.current.is_some() {
            let reason = match self.phase {
                Phase::Resuming => EndReason::ReplayExceeded,
                _ => EndReason::InvalidSession,
            };
            self.end_session(reason, now);
        } else {
            self.failures = self.failures.saturating_add(1);
        }
        // A refused IDENTIFY or RESUME that keeps being refused backs off further than 5 s.
        let wait = if self.failures > 3 {
            wait.max(self.backoff(jitter))
        } else {
            wait
        };
        self.close(CloseReason::InvalidSession, wait, now);
    }

    fn handle_phase_timeout(&mut self, jitter: f64, now: Instant) {
        match self.phase {
            Phase::Waiting => {
                self.phase = Phase::Connecting;
                self.actions.push_back(Action::Connect(self.endpoint()));
            }
            Phase::AwaitingHello => {
                self.failures = self.failures.saturating_add(1);
                let delay = self.backoff(jitter);
                self.close(CloseReason::HelloTimeout, delay, now);
            }
            Phase::Identifying | Phase::Resuming => {
                self.failures = self.failures.saturating_add(1);
                let delay = self.backoff(jitter);
                self.close(CloseReason::StartTimeout, delay, now);
            }
            Phase::Connecting
            | Phase::AwaitingGrant
            | Phase::Ready
            | Phase::Stopped
            | Phase::Fatal => {}
        }
    }

    fn endpoint(&self) -> Endpoint {
        let resume_url = self
            .current
            .as_ref()
            .and_then(|current| current.resume_url.clone());
        match resume_url {
            Some(url) if !self.resume_url_failed => Endpoint::Resume(url),
            _ => Endpoint::Gateway,
        }
    }

    fn beat(&mut self, now: Instant) {
        if let Some(heart) = &mut self.heart {
            heart.beat_now(now);
            self.send_heartbeat(now);
        }
    }

    fn send_heartbeat(&mut self, now: Instant) {
        // Only a server that asks for more than 120 a minute can use the budget up; skip those.
        if self.budget.take_reserved(now).is_err() {
            return;
        }
        if let Some(heart) = &mut self.heart {
            heart.sent(now);
        }
        // The acknowledged sequence, as in RESUME: Discord may trim its replay buffer by it.
        let seq = self
            .current
            .as_ref()
            .map(|current| current.acked)
            .filter(|acked| *acked > 0);
        self.actions.push_back(Action::Heartbeat { seq });
    }

    fn end_session(&mut self, reason: EndReason, now: Instant) {
        let Some(current) = self.current.take() else {
            return;
        };
        self.resume_url_failed = false;
        self.tolerated_jump = None;
        // Several sessions may end before a READY; the gap starts at the first.
        self.ended.get_or_insert(Ended {
            session_id: current.id,
            last_seq: current.handed,
            reason,
            at: now,
        });
    }

    fn close(&mut self, reason: CloseReason, delay: Duration, now: Instant) {
        self.cancel_grant();
        self.actions.push_back(Action::Close {
            code: close::RESUMABLE,
            reason,
        });
        self.disconnect(delay, now);
    }

    fn disconnect(&mut self, delay: Duration, now: Instant) {
        self.cancel_grant();
        self.leave_connection();
        self.wait_to_connect(delay, now);
    }

    fn cancel_grant(&mut self) {
        if self.phase == Phase::AwaitingGrant {
            self.actions.push_back(Action::CancelIdentify);
            self.phase = Phase::AwaitingHello;
        }
    }

    fn leave_connection(&mut self) {
        self.heart = None;
        self.deadline = None;
        self.connected_at = None;
    }

    fn wait_to_connect(&mut self, delay: Duration, now: Instant) {
        self.phase = Phase::Waiting;
        self.deadline = Some(now + delay);
    }

    const fn is_connected(&self) -> bool {
        matches!(
            self.phase,
            Phase::AwaitingHello
                | Phase::AwaitingGrant
                | Phase::Identifying
                | Phase::Resuming
                | Phase::Ready
        )
    }

    /// A connection ended in a regular way. One that ended right after its events began to flow is
    /// counted, so that a server that accepts and closes in a loop is not hammered.
    fn note_end(&mut self, now: Instant) {
        match self.lived(now) {
            Some(lived) if lived >= STABLE_AFTER => self.faults = 0,
            Some(lived) if lived >= SHORT_LIVED => {}
            Some(_) => self.faults = self.faults.saturating_add(1),
            None => {}
        }
    }

    /// A connection ended by our fault, or so that doing the same again at once may repeat it.
    fn note_fault(&mut self, now: Instant) {
        if self.lived(now).is_some_and(|lived| lived >= STABLE_AFTER) {
            self.faults = 0;
        }
        self.faults = self.faults.saturating_add(1);
    }

    fn lived(&self, now: Instant) -> Option<Duration> {
        let since = self.connected_at.filter(|_| self.phase == Phase::Ready)?;
        Some(now.saturating_duration_since(since))
    }

    /// 0 without failures, then 1, 2, 4 … 128 s, of which the upper half is jittered so that a fleet
    /// that lost its connections together does not return together. The first fault is free.
    fn backoff(&self, jitter: f64) -> Duration {
        let rounds = self.failures.max(self.faults.saturating_sub(1));
        let Some(doublings) = rounds.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = BACKOFF_FIRST
            .saturating_mul(1 << doublings.min(7))
            .min(BACKOFF_MAX);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}
