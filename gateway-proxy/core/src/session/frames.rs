//! What each frame of Discord does to the session.

use std::time::{Duration, Instant};

use schemas::message::is_session_id;

use super::backoff::End;
use super::heart::Heart;
use super::{
    Action, CloseReason, Current, DispatchKind, EndReason, Incoming, Phase, SESSION_START_TIMEOUT,
    Session, Verdict,
};
use crate::budget::SendBudget;

/// The wait after op 9, plus up to [`INVALID_SESSION_SPREAD`]: 1 to 5 s (Discord, Invalid Session).
const INVALID_SESSION_WAIT: Duration = Duration::from_secs(1);
const INVALID_SESSION_SPREAD: Duration = Duration::from_secs(4);
/// Longest session id taken: Discord's have 32 digits, and a RESUME with it must fit 4096 bytes.
const SESSION_ID_MAX: usize = 256;

impl Session {
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
            Incoming::HeartbeatRequest => self.send_heartbeat(false, now),
            Incoming::Reconnect => {
                self.give_up(CloseReason::Reconnect, End::Regular, jitter, now);
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

    fn handle_hello(&mut self, interval: Duration, jitter: f64, now: Instant) {
        if self.phase != Phase::AwaitingHello {
            return;
        }
        let heart = Heart::new(interval, self.settings.heartbeat_timeout, jitter, now);
        self.budget = SendBudget::new(heart.interval());
        self.heart = Some(heart);
        let resume = self.current.as_ref().map(|current| Action::Resume {
            session_id: current.id.clone(),
            seq: current.acked,
        });
        let Some(resume) = resume else {
            self.deadline = None;
            self.phase = Phase::AwaitingGrant;
            self.actions.push_back(Action::RequestIdentify);
            return;
        };
        // A new connection's budget has room for its first payload.
        if self.budget.take_reserved(now).is_ok() {
            self.phase = Phase::Resuming;
            self.deadline = Some(now + SESSION_START_TIMEOUT);
            self.actions.push_back(resume);
        }
    }

    fn handle_invalid_session(&mut self, resumable: bool, jitter: f64, now: Instant) {
        // Only where the session was spoken of: before RESUME it cannot be meant.
        match (self.phase, resumable) {
            (Phase::Resuming, false) => {
                self.end_connection(End::Regular, now);
                self.end_session(EndReason::ReplayExceeded, now);
            }
            (Phase::Ready, false) => {
                self.end_connection(End::Fault, now);
                self.end_session(EndReason::InvalidSession, now);
            }
            (Phase::Resuming, true) => {
                self.end_connection(End::Regular, now);
                self.count_refused_resume(now);
            }
            _ => self.end_connection(End::Fault, now),
        }
        let wait = INVALID_SESSION_WAIT + INVALID_SESSION_SPREAD.mul_f64(jitter.clamp(0.0, 1.0));
        let wait = wait.max(self.backoff.delay(jitter));
        self.close(CloseReason::InvalidSession, wait, now);
    }

    fn handle_dispatch(
        &mut self,
        seq: Option<u64>,
        kind: DispatchKind<'_>,
        jitter: f64,
        now: Instant,
    ) -> Verdict {
        match kind {
            DispatchKind::Ready {
                session_id,
                resume_url,
            } => self.handle_ready(seq, session_id, resume_url, jitter, now),
            DispatchKind::BadReady => self.refuse_ready(jitter, now),
            DispatchKind::Resumed => self.handle_event(seq, true, jitter, now),
            DispatchKind::Other => self.handle_event(seq, false, jitter, now),
        }
    }

    fn handle_ready(
        &mut self,
        seq: Option<u64>,
        session_id: &str,
        resume_url: Option<&str>,
        jitter: f64,
        now: Instant,
    ) -> Verdict {
        if self.id() == Some(session_id) {
            // Replayed: the session was resumed from before its first acknowledgement.
            return self.handle_event(seq, false, jitter, now);
        }
        let usable = is_session_id(session_id) && session_id.len() <= SESSION_ID_MAX;
        match (self.phase, seq) {
            (Phase::Identifying, Some(seq)) if usable => {
                self.begin_session(seq, session_id, resume_url, now)
            }
            _ => self.refuse_ready(jitter, now),
        }
    }

    fn begin_session(
        &mut self,
        seq: u64,
        session_id: &str,
        resume_url: Option<&str>,
        now: Instant,
    ) -> Verdict {
        self.generation = self.generation.wrapping_add(1);
        self.current = Some(Current {
            id: session_id.to_owned(),
            generation: self.generation,
            resume_url: resume_url.map(str::to_owned),
            handed: seq,
            acked: 0,
        });
        self.known_hole = None;
        self.events_flow(now);
        Verdict::Publish {
            seq,
            gap: self.ended.take(),
        }
    }

    /// READY that nobody asked for, or without what a session needs. The events behind it would be
    /// taken for those of the session we have, so the connection is left.
    fn refuse_ready(&mut self, jitter: f64, now: Instant) -> Verdict {
        if matches!(
            self.phase,
            Phase::Identifying | Phase::Resuming | Phase::Ready
        ) {
            self.give_up(CloseReason::BadReady, End::Fault, jitter, now);
        }
        Verdict::Unnameable
    }

    fn handle_event(
        &mut self,
        seq: Option<u64>,
        resumed: bool,
        jitter: f64,
        now: Instant,
    ) -> Verdict {
        if !matches!(self.phase, Phase::Resuming | Phase::Ready) {
            return Verdict::Unnameable;
        }
        let Some(current) = &mut self.current else {
            return Verdict::Unnameable;
        };
        self.replaying |= self.phase == Phase::Resuming;
        let verdict = match seq {
            None => Verdict::Unnameable,
            Some(seq) if seq <= current.handed => Verdict::Replayed,
            Some(seq) => {
                let skipped = seq - current.handed - 1;
                // A replay is Discord's answer to what we asked for: what it lacks was never used (a
                // RESUMED that did not reach us, for one) or is gone. In live events a hole means that
                // something was lost on the way, and a RESUME asks for it; a replay that looks live,
                // because it holds an old RESUMED, is asked for once.
                let answered =
                    self.phase == Phase::Resuming || self.known_hole == Some(current.handed);
                if skipped > 0 && !answered {
                    self.known_hole = Some(current.handed);
                    self.give_up(CloseReason::SequenceJump, End::Fault, jitter, now);
                    return Verdict::Consumed;
                }
                self.skipped = self.skipped.saturating_add(skipped);
                current.handed = seq;
                self.refused_resumes = 0;
                Verdict::Publish { seq, gap: None }
            }
        };
        if self.phase == Phase::Resuming {
            if resumed {
                self.events_flow(now);
            } else {
                // A replay that moves is not a start that hangs.
                self.deadline = Some(now + SESSION_START_TIMEOUT);
            }
        }
        verdict
    }

    fn events_flow(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.deadline = None;
        self.flowing_since = Some(now);
        self.avoid_resume_url = false;
        self.refused_resumes = 0;
        self.backoff.flow();
    }
}
