//! One shard's session with Discord's gateway: HELLO, heartbeats, IDENTIFY, RESUME, and what every
//! close, op 7 and op 9 means for it.
//!
//! `handle_*` takes facts and `now`; `poll_action` yields what the driver is to do, until `None`;
//! `poll_timeout` is the one timer to arm. Payload bytes never enter the action queue: whether the
//! frame in the driver's hands is published is the return value of [`Session::handle_frame`].
//! Jitter is an argument in `[0, 1)`. Time never goes backwards.

mod backoff;
mod frames;
mod heart;
mod types;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use schemas::ShardId;

use crate::budget::SendBudget;
use crate::close::{self, AfterClose};
use backoff::{Backoff, End};
use heart::{HELD_UP, Heart};
pub use types::{
    Action, CloseReason, DispatchKind, EndReason, Ended, Endpoint, Incoming, Phase, Resumable,
    Settings, Verdict,
};

/// How long HELLO may take after the WebSocket is up (@discordjs/ws waits as long).
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// How long READY or RESUMED may take while nothing but heartbeat ACKs arrives. Long, because during
/// an outage Discord keeps such connections open, and a new IDENTIFY costs budget.
const SESSION_START_TIMEOUT: Duration = Duration::from_secs(300);
/// What a process that was held up past one of these grants the server, so that it can read first
/// what has arrived.
const GRACE: Duration = Duration::from_secs(5);
/// RESUMEs answered by neither events nor op 9 `false`, after which the session counts as gone. With
/// the back-off between them they take two to four minutes, which is what Discord gives a session.
const REFUSED_RESUMES_MAX: u32 = 8;

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
    backoff: Backoff,
    // Where the connection goes that is being made or there is: to the session's resume url.
    at_resume_url: bool,
    // An attempt at the resume url failed: the next goes to the gateway's own url, still with RESUME.
    avoid_resume_url: bool,
    // Since events last flowed; see [`REFUSED_RESUMES_MAX`].
    refused_resumes: u32,
    // The RESUME of this connection was answered with events: the session lives.
    replaying: bool,
    // `None` while the connection's events do not flow yet.
    flowing_since: Option<Instant>,
    // The sequence after which live events last skipped numbers; they were asked for by a RESUME.
    known_hole: Option<u64>,
    skipped: u64,
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
        Self {
            settings,
            phase: Phase::Waiting,
            deadline: Some(now),
            actions: VecDeque::new(),
            current,
            generation: 0,
            ended: None,
            heart: None,
            budget: SendBudget::default(),
            backoff: Backoff::default(),
            at_resume_url: false,
            avoid_resume_url: false,
            refused_resumes: 0,
            replaying: false,
            flowing_since: None,
            known_hole: None,
            skipped: 0,
        }
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

    /// The highest sequence of the session that JetStream has, with all before it.
    #[must_use]
    pub fn acked(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.acked)
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

    /// The session that ended without RESUME, until the next READY announces the gap.
    #[must_use]
    pub const fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Sequence numbers that Discord left out of a replay, over all sessions. Not a loss by itself, but
    /// worth a look: they may have been events.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Failed attempts since events last flowed.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.backoff.failures()
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
        self.phase = Phase::AwaitingHello;
        self.replaying = false;
        self.deadline = Some(now + HELLO_TIMEOUT);
        if self.at_resume_url && self.current.is_none() {
            // The session ended meanwhile, and a new one begins at the gateway's own url.
            self.close(CloseReason::Drain, Duration::ZERO, now);
        }
    }

    /// The connection asked for could not be opened.
    pub fn handle_connect_failed(&mut self, jitter: f64, now: Instant) {
        if self.phase != Phase::Connecting {
            return;
        }
        // The session outlives its url: try the gateway's own next, without waiting; after that the
        // resume url again, each round waiting longer.
        self.avoid_resume_url = self.at_resume_url;
        let delay = if self.at_resume_url {
            Duration::ZERO
        } else {
            self.backoff.end(None, End::Regular);
            self.backoff.delay(jitter)
        };
        self.disconnect(delay, now);
    }

    /// The connection ended, with Discord's close code if it sent one.
    pub fn handle_closed(&mut self, code: Option<u16>, jitter: f64, now: Instant) {
        if !self.is_connected() {
            return;
        }
        let resuming = self.phase == Phase::Resuming;
        // Only where the session was spoken of can a code void it.
        let in_session = matches!(self.phase, Phase::Resuming | Phase::Ready);
        match close::after_close(code) {
            AfterClose::Fatal(fatal) => {
                self.cancel_grant();
                self.leave_connection();
                self.phase = Phase::Fatal;
                self.actions.push_back(Action::Fatal(fatal));
                return;
            }
            AfterClose::Identify => {
                self.end_connection(End::Fault, now);
                if in_session {
                    self.end_session(EndReason::SessionExpired, now);
                }
            }
            AfterClose::ResumeSlowly => self.end_connection(End::Ours, now),
            AfterClose::Resume => self.end_connection(End::Regular, now),
        }
        if resuming && code == Some(close::SESSION_TIMED_OUT) && !self.replaying {
            self.end_session(EndReason::SessionExpired, now);
        } else if resuming && code.is_some_and(|code| code != close::ABNORMAL) {
            self.count_refused_resume(now);
        }
        self.disconnect(self.backoff.delay(jitter), now);
    }

    /// Bytes arrived that are no frame: a corrupt compression stream, or not a gateway at all.
    ///
    /// Only a new connection has a fresh compression context; RESUME brings what was lost.
    pub fn handle_undecodable(&mut self, jitter: f64, now: Instant) {
        if self.is_connected() {
            self.give_up(CloseReason::Undecodable, End::Fault, jitter, now);
        }
    }

    /// The limiter granted the IDENTIFY asked for. `false`: it is not wanted any more and can be
    /// given back.
    #[must_use]
    pub fn handle_identify_granted(&mut self, now: Instant) -> bool {
        if self.phase != Phase::AwaitingGrant {
            return false;
        }
        if self.budget.take_reserved(now).is_err() {
            // The budget keeps a place for it; should that be taken: wait for the next turn.
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
            self.handle_phase_timeout(now.saturating_duration_since(deadline), jitter, now);
        }
        let Some(heart) = &mut self.heart else { return };
        match heart.handle_timeout(now) {
            heart::Beat::NotYet => {}
            heart::Beat::Due => self.send_heartbeat(true, now),
            heart::Beat::Dead => self.give_up(CloseReason::Zombie, End::Regular, jitter, now),
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

    /// Lets the connection go, resumably, and connects again at once, as an operator asked.
    pub fn reconnect(&mut self, now: Instant) {
        if self.is_connected() {
            self.close(CloseReason::Drain, Duration::ZERO, now);
        }
    }

    /// Lets go of the shard: another process resumes it. Of a connection that is being opened the
    /// driver lets go by itself.
    pub fn stop(&mut self) {
        // What was decided before is not done any more.
        let lets_go =
            |action: &Action| matches!(action, Action::Close { .. } | Action::CancelIdentify);
        self.actions.retain(lets_go);
        self.cancel_grant();
        if self.is_connected() {
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
        if matches!(self.phase, Phase::Waiting | Phase::Connecting) {
            self.end_session(reason, now);
        }
    }

    /// Ends the session and starts a new one, as an operator asked. Nothing to do while there is
    /// none, since then a new one is on its way, and once the shard was let go of.
    pub fn renew(&mut self, now: Instant) {
        if self.current.is_none() || matches!(self.phase, Phase::Stopped | Phase::Fatal) {
            return;
        }
        self.end_session(EndReason::Forced, now);
        if self.is_connected() {
            self.close(CloseReason::Drain, Duration::ZERO, now);
        }
    }

    /// Leaves a connection that lives but delivers nothing: for a RESUME, or for a new session.
    pub fn leave_silent(&mut self, for_new_session: bool, now: Instant) {
        if self.phase != Phase::Ready {
            return;
        }
        if for_new_session {
            self.end_session(EndReason::Forced, now);
        }
        self.close(CloseReason::Silent, Duration::ZERO, now);
    }

    fn handle_phase_timeout(&mut self, late: Duration, jitter: f64, now: Instant) {
        let (reason, start) = match self.phase {
            Phase::Waiting => {
                self.connect();
                return;
            }
            Phase::AwaitingHello => (CloseReason::HelloTimeout, false),
            Phase::Identifying | Phase::Resuming => (CloseReason::StartTimeout, true),
            Phase::Connecting
            | Phase::AwaitingGrant
            | Phase::Ready
            | Phase::Stopped
            | Phase::Fatal => {
                self.deadline = None;
                return;
            }
        };
        if late >= HELD_UP {
            self.deadline = Some(now + GRACE);
            return;
        }
        let resuming = start && self.phase == Phase::Resuming;
        self.end_connection(End::Regular, now);
        if resuming {
            self.count_refused_resume(now);
        }
        self.close(reason, self.backoff.delay(jitter), now);
    }

    fn connect(&mut self) {
        let resume_url = self
            .current
            .as_ref()
            .and_then(|current| current.resume_url.clone())
            .filter(|_| !self.avoid_resume_url);
        self.at_resume_url = resume_url.is_some();
        self.deadline = None;
        self.phase = Phase::Connecting;
        let endpoint = resume_url.map_or(Endpoint::Gateway, Endpoint::Resume);
        self.actions.push_back(Action::Connect(endpoint));
    }

    fn send_heartbeat(&mut self, regular: bool, now: Instant) {
        let Some(heart) = &mut self.heart else { return };
        let room = if regular {
            self.budget.take_heartbeat(now)
        } else {
            self.budget.take_demanded(now)
        };
        // Only a server that wants more than 120 a minute can use the budget up; skip those.
        if room.is_err() {
            return;
        }
        heart.sent(regular, now);
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
        self.avoid_resume_url = false;
        self.refused_resumes = 0;
        self.known_hole = None;
        // Nothing is overwritten: a session begins with the READY that takes this.
        self.ended = Some(Ended {
            session_id: current.id,
            last_seq: current.handed,
            reason,
            at: now,
        });
    }

    /// A RESUME was answered, but by nothing that decides. It is tried again, though not for ever: a
    /// session that Discord cannot even name as invalid must not keep the shard down.
    fn count_refused_resume(&mut self, now: Instant) {
        self.refused_resumes += 1;
        if self.refused_resumes >= REFUSED_RESUMES_MAX {
            self.end_session(EndReason::SessionExpired, now);
        }
    }

    /// Counts the end of the connection in the phase it is in.
    fn end_connection(&mut self, end: End, now: Instant) {
        let flowed = self
            .flowing_since
            .map(|since| now.saturating_duration_since(since));
        self.backoff.end(flowed, end);
        if matches!(self.phase, Phase::AwaitingHello | Phase::Resuming) {
            self.avoid_resume_url = self.at_resume_url;
        }
    }

    /// Leaves a connection that is of no use and connects anew after the back-off.
    fn give_up(&mut self, reason: CloseReason, end: End, jitter: f64, now: Instant) {
        self.end_connection(end, now);
        self.close(reason, self.backoff.delay(jitter), now);
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
        self.phase = Phase::Waiting;
        self.deadline = Some(now + delay);
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
        self.flowing_since = None;
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
}
