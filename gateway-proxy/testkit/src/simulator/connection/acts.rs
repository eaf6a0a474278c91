//! What a connection does when it is told to: faults and takeovers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::faults::{Fault, Moment, Until};
use super::super::ledger::{Entry, Injected, Step};
use super::super::session::{Body, RawFrame, Session};
use super::super::state::{Ambush, Order};
use super::{Connection, End, FAR, Lasting, ops};

/// Op 7.
const RECONNECT: &str = r#"{"t":null,"s":null,"op":7,"d":null}"#;
/// Op 1.
const HEARTBEAT_REQUEST: &str = r#"{"t":null,"s":null,"op":1,"d":null}"#;
/// An opcode nobody knows.
const UNKNOWN_OPCODE: &str = r#"{"t":null,"s":null,"op":99,"d":{"x":1}}"#;
/// A dispatch without its envelope.
const MISSING_FIELDS: &str = r#"{"op":0,"d":{"guild_id":"1"}}"#;

impl Connection {
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::Fault(fault) => self.suffer(&fault),
            Order::Within(ambush) => {
                self.forget_within();
                self.within = Some(ambush);
            }
            Order::TakenOver => {
                self.session = None;
                if self.lasting.stop_write {
                    self.end = Some(End::Reset);
                } else {
                    self.close(
                        self.shared.config.strict.takeover_code,
                        "Session resumed elsewhere.",
                    );
                }
            }
            Order::Revoked => {
                self.session = None;
                self.close(4004, "Authentication failed.");
            }
        }
    }

    /// Op 7, and the server's own close after a while.
    pub(super) fn reconnect(&mut self) {
        self.control(RECONNECT);
        self.grace = Some(Instant::now() + self.shared.config.reconnect_grace);
    }

    fn suffer(&mut self, fault: &Fault) {
        match fault {
            Fault::DropTcp => self.end = Some(End::Reset),
            Fault::HalfOpen { read, write } => {
                self.lasting.stop_read = *read;
                self.lasting.stop_write = *write;
            }
            Fault::Reconnect => self.reconnect(),
            Fault::InvalidSession { resumable } => self.invalidate(*resumable),
            Fault::Close { code } => self.close(*code, "Injected."),
            Fault::DelayAcks { ms } => {
                self.lasting.ack_delay = Some(Duration::from_millis(*ms));
            }
            Fault::SwallowAcks { count } => {
                self.lasting.swallow_acks = count.unwrap_or(u32::MAX);
            }
            Fault::RequestHeartbeat => {
                self.heartbeat_wanted = Some(Instant::now());
                self.control(HEARTBEAT_REQUEST);
            }
            Fault::SlowWrites { bytes_per_second } => {
                self.lasting.write_rate = Some((*bytes_per_second).max(1));
            }
            Fault::SlowReads { bytes_per_second } => {
                self.lasting.read_rate = Some((*bytes_per_second).max(1));
            }
            Fault::Silent { ms } => {
                self.lasting.silent_until = Some(Instant::now() + Duration::from_millis(*ms));
            }
            Fault::Withhold { until } => self.withhold(*until),
            Fault::Heal => {
                self.lasting = Lasting::default();
                self.grace = None;
                self.forget_within();
                if self.abandoned.is_some() {
                    // Its session is gone: alive it would be a connection that never delivers.
                    self.end = Some(End::Reset);
                }
                if let Some(session) = &self.session {
                    self.shared.hub().muted.remove(&session.shard.id());
                    session.set_muted(false);
                }
            }
            Fault::UnknownEvent | Fault::OversizedEvent { .. } => self.sound_event(fault),
            _ => self.bad_frame(fault),
        }
    }

    fn withhold(&mut self, until: Until) {
        if until == Until::Resume {
            self.lasting.silent_until = Some(Instant::now() + FAR);
            return;
        }
        let Some(session) = &self.session else { return };
        if until == Until::Never {
            self.shared.hub().muted.insert(session.shard.id());
        }
        session.set_muted(true);
    }

    /// Takes up the ambush that was laid for what the session just did.
    pub(super) fn lie_in_wait(&mut self, session: &Session, resumed: bool) {
        let Some(ambush) = self.shared.take_ambush(session, resumed) else {
            return;
        };
        match ambush.moment {
            Moment::Resume(dispatches) | Moment::Identify(dispatches) => {
                self.ambush = Some((dispatches, ambush));
            }
            Moment::Message => self.within = Some(ambush),
        }
    }

    fn forget_within(&mut self) {
        if self.within.take().is_some() {
            self.shared.counters.armed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn strike(&mut self, ambush: &Ambush) {
        self.suffer(&ambush.fault);
        self.shared.counters.armed.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection ended before the moment came: the next one's turn.
    pub(super) fn lift_ambush(&mut self) {
        let waiting = self.ambush.take().map(|(_, ambush)| ambush);
        for ambush in waiting.into_iter().chain(self.within.take()) {
            // Laid again first, so that it is never out of sight.
            self.shared.lay_ambush(ambush);
            self.shared.counters.armed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Writes the first WebSocket message of the next dispatch, then the fault strikes. Unless it ends
    /// the connection the rest follows, ahead of what the fault wrote: a stream that lacks a part could
    /// be read as something else by any client. A dispatch that is not split is written whole.
    pub(super) fn cut(&mut self, session: &Session, ambush: Ambush) {
        let (mut message, mut one) = (Vec::new(), 1);
        let (scratch, encoder) = (&mut self.scratch, &mut self.encoder);
        session.fill(
            &self.shared,
            self.id,
            encoder,
            scratch,
            &mut message,
            &mut one,
        );
        self.more = one == 0;
        let Some(first) = frame_len(&message).filter(|first| *first < message.len()) else {
            self.out.extend_from_slice(&message);
            self.within = Some(ambush);
            return;
        };
        self.out.extend_from_slice(&message[..first]);
        // It must be on its way before nothing is written any more.
        self.transmit();
        let at = self.out.len();
        self.strike(&ambush);
        if self.end.is_none() {
            self.out.splice(at..at, message[first..].iter().copied());
        }
    }

    fn invalidate(&mut self, resumable: bool) {
        if resumable {
            self.control(ops::INVALID_SESSION_RESUMABLE);
            if let Some(session) = &self.session {
                self.shared.step(session, Step::Invalidated { resumable });
            }
            self.release(Step::Disconnected { code: None });
        } else {
            self.control(ops::INVALID_SESSION);
            self.destroy(Step::Invalidated { resumable });
        }
    }

    /// Events that are unusual but sound: the session sends them, and they are in the ledger.
    fn sound_event(&mut self, fault: &Fault) {
        let Some(session) = &self.session else { return };
        let guild = session
            .guilds
            .first()
            .map_or(0, |guild| self.shared.world.guild(*guild).id);
        let frame = match fault {
            Fault::OversizedEvent { bytes } => {
                let fixed = format!("{{\"guild_id\":\"{guild}\",\"pad\":\"\"}}").len() + 60;
                let pad = "x".repeat(bytes.saturating_sub(fixed));
                let d = format!("{{\"guild_id\":\"{guild}\",\"pad\":\"{pad}\"}}");
                let mut frame = RawFrame::new(&self.shared, "OVERSIZED_EVENT", guild, d.as_bytes());
                frame.flags = Entry::OVERSIZED;
                frame
            }
            _ => {
                let d = format!("{{\"guild_id\":\"{guild}\",\"x\":[1,2.5,null,{{\"y\":true}}]}}");
                RawFrame::new(&self.shared, "NEVER.HEARD OF", guild, d.as_bytes())
            }
        };
        session.push(&self.shared, Body::Raw(Arc::new(frame)));
    }

    /// Frames that are no events.
    fn bad_frame(&mut self, fault: &Fault) {
        let last = self
            .session
            .as_ref()
            .map_or(0, |session| session.last_written());
        let mut seq = None;
        match fault {
            Fault::CorruptCompression => self.encoder.corrupt(&mut self.out),
            Fault::MalformedJson => {
                self.control("{\"t\":\"MESSAGE_CREATE\",\"s\":,\"op\":0,\"d\":{]}");
            }
            Fault::NonUtf8 => {
                let mut frame = dispatch(last + 1);
                let at = frame.len() - 4;
                frame[at] = 0xff;
                self.encoder.message(&frame, &mut self.out);
                self.encoder.finish(&mut self.out);
            }
            Fault::TruncatedJson => {
                let frame = dispatch(last + 1);
                self.encoder
                    .message(&frame[..frame.len() / 2], &mut self.out);
                self.encoder.finish(&mut self.out);
            }
            Fault::TruncatedFrame => {
                self.encoder.truncated(&dispatch(last + 1), &mut self.out);
                // The bytes must leave before the end, as far as the socket takes them.
                self.transmit();
                self.end = Some(End::Lost);
            }
            Fault::DecompressionBomb { bytes } => self.encoder.bomb(*bytes, &mut self.out),
            Fault::UnknownOpcode => self.control(UNKNOWN_OPCODE),
            Fault::SeqBackwards { by } => {
                let backwards = last.saturating_sub(*by).max(1);
                seq = Some(backwards);
                self.encoder.message(&dispatch(backwards), &mut self.out);
                self.encoder.finish(&mut self.out);
            }
            Fault::SeqForwards { by } => {
                let ahead = last + 1 + by;
                seq = Some(ahead);
                self.encoder.message(&dispatch(ahead), &mut self.out);
                self.encoder.finish(&mut self.out);
            }
            Fault::MissingFields => self.control(MISSING_FIELDS),
            // The others are no frames.
            _ => return,
        }
        self.shared.log.injected(Injected {
            at_us: self.shared.now_us(),
            session: self
                .session
                .as_ref()
                .map(|session| session.id.clone())
                .unwrap_or_default(),
            seq,
            fault: fault.name(),
        });
    }
}

/// Length of the first WebSocket frame, a server's and so without a mask.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    Some(match *bytes.get(1)? {
        126 => 4 + number(bytes.get(2..4)?),
        127 => 10 + number(bytes.get(2..10)?),
        len => 2 + usize::from(len),
    })
}

/// A plausible dispatch that never happened.
fn dispatch(seq: u64) -> Vec<u8> {
    format!(
        "{{\"t\":\"INJECTED_EVENT\",\"s\":{seq},\"op\":0,\"d\":{{\"guild_id\":\"1\",\"x\":\"--\"}}}}"
    )
    .into_bytes()
}
