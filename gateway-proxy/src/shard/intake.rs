//! The way in: one WebSocket message to frames, one frame to a verdict, a verdict to a message for
//! the publisher. Synchronous, and the hot path of the proxy.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use gateway_proxy_core::frame::{Frame, FrameError, Frames, control};
use gateway_proxy_core::session::{DispatchKind, Ended, Incoming, Phase, Session, Verdict};
use gateway_proxy_core::silence::Heard;
use schemas::message::is_session_id;
use schemas::{EventKind, EventName, GuildId, ProxyEvent, ProxyGap, Timestamp};
use tracing::{debug, error, info, warn};

use super::{ShardParts, Shared, gap_reason};
use crate::compression::{InflateError, Inflater, OutputBuffer};
use crate::metrics::{EventSlot, Heartbeat, MalformedKind, ResumeOutcome};
use crate::publisher::{Outbound, Publisher, SessionTag};
use crate::rhythm;
use crate::status::unix_ms;
use crate::transport::{Received, Socket};

/// Messages taken from a socket before other shards get their turn: enough that a flood is cheap,
/// few enough that heartbeats of others are never late.
const READ_BURST: usize = 64;

thread_local! {
    /// Where messages are inflated: one for all shards of a thread, so that a shard that is silent
    /// holds no memory for it.
    static SCRATCH: RefCell<OutputBuffer> = const { RefCell::new(OutputBuffer::new()) };
}

fn is_earlier(deadline: Option<Instant>, than: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| than.is_none_or(|than| deadline < than))
}

/// Why reading paused.
#[derive(Debug)]
pub(super) enum Took {
    /// There is something to decide, or others are to have their turn; the socket may hold more.
    More,
    /// The connection ended, with Discord's code and words if it sent some.
    Closed { code: Option<u16>, reason: String },
}

/// A shard's side of the way in.
pub(super) struct Intake {
    shared: Arc<Shared>,
    parts: ShardParts,
    // Guilds announced by READY or gone in an outage whose GUILD_CREATE is still to come; one for
    // another guild is a guild the bot joined. At most the shard's guilds.
    awaited: HashSet<GuildId>,
    // When the last dispatch came: where a gap begins. Before the first one, when the session was last
    // known to be followed, unix ms.
    last_event: Option<Instant>,
    followed_ms: u64,
    heard: Heard,
    // Something else than dispatches of a session that is up: worth a look at the session.
    eventful: bool,
}

impl Intake {
    /// `followed_ms`: when the shard's session was last known to be followed, unix ms.
    pub(super) fn new(shared: Arc<Shared>, parts: ShardParts, followed_ms: u64) -> Self {
        Self {
            shared,
            parts,
            awaited: HashSet::new(),
            last_event: None,
            followed_ms,
            heard: Heard::default(),
            eventful: false,
        }
    }

    /// Takes frames as they come, until something is to be decided or others are to have their turn.
    /// Cancel-safe: what was read is taken.
    pub(super) async fn take_frames(
        &mut self,
        up: &mut (Socket, Inflater),
        session: &mut Session,
    ) -> Took {
        let took = poll_fn(|context| self.poll_frames(context, up, session, Publisher::is_open));
        let took = took.await;
        if matches!(took, Took::More) {
            tokio::task::yield_now().await;
        }
        took
    }

    /// Takes what the socket holds already, while there is room. `None`: it holds nothing more.
    pub(super) fn take_held(
        &mut self,
        up: &mut (Socket, Inflater),
        session: &mut Session,
    ) -> Option<Took> {
        // Whoever waits for the socket polls it again.
        let mut context = Context::from_waker(Waker::noop());
        match self.poll_frames(&mut context, up, session, Publisher::has_room) {
            Poll::Ready(took) => Some(took),
            Poll::Pending => None,
        }
    }

    fn poll_frames(
        &mut self,
        context: &mut Context<'_>,
        up: &mut (Socket, Inflater),
        session: &mut Session,
        may_go_on: fn(&Publisher) -> bool,
    ) -> Poll<Took> {
        let (socket, inflater) = up;
        let (deadline, skipped) = (session.poll_timeout(), session.skipped());
        self.eventful = session.phase() != Phase::Ready;
        let mut now = None;
        for _ in 0..READ_BURST {
            let received = ready!(socket.poll_receive(context));
            let now = *now.get_or_insert_with(|| self.wakes(session));
            match received {
                Received::Text => self.take(socket.message(), None, session, now),
                Received::Binary => self.take(socket.message(), Some(inflater), session, now),
                Received::Closed { code, reason } => {
                    return Poll::Ready(Took::Closed { code, reason });
                }
            }
            // An earlier deadline would be missed; a later one only comes to nothing.
            if self.eventful
                || session.has_actions()
                || is_earlier(session.poll_timeout(), deadline)
                || session.skipped() != skipped
                || !may_go_on(&self.parts.publisher)
            {
                break;
            }
        }
        socket.settle();
        Poll::Ready(Took::More)
    }

    /// What the session learns whenever the shard wakes up.
    fn wakes(&self, session: &mut Session) -> Instant {
        let (generation, acked) = self.parts.lane.checkpoint();
        session.handle_acked(generation, acked);
        if let Some(acked) = session.acked() {
            self.parts.status.set_acked_seq(acked);
        }
        Instant::now()
    }

    /// What was delivered, without what a start brings.
    pub(super) const fn heard(&self) -> Heard {
        self.heard
    }

    /// One WebSocket message, compressed if an inflater is given.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        inflater: Option<&mut Inflater>,
        session: &mut Session,
        now: Instant,
    ) {
        rhythm::note_message();
        self.shared.metrics.received_bytes.add(bytes.len() as u64);
        let Some(inflater) = inflater else {
            match Frame::parse(bytes) {
                Ok(frame) => self.take_frame(&frame, bytes, session, now),
                Err(error) => self.malformed(&error, bytes.len(), session),
            }
            return;
        };
        SCRATCH.with_borrow_mut(|scratch| match inflater.push(bytes, scratch) {
            Ok(text) => {
                self.shared.metrics.inflated_bytes.add(text.len() as u64);
                for frame in Frames::new(text) {
                    match frame {
                        Ok((payload, frame)) => self.take_frame(&frame, payload, session, now),
                        Err(error) => self.malformed(&error, text.len(), session),
                    }
                }
            }
            Err(error) => self.cannot_inflate(&error, session, now),
        });
    }

    fn cannot_inflate(&self, error: &InflateError, session: &mut Session, now: Instant) {
        let kind = match error {
            InflateError::OutputTooLarge { .. } | InflateError::InputTooLarge { .. } => {
                MalformedKind::TooLarge
            }
            InflateError::Corrupt { .. }
            | InflateError::Ended { .. }
            | InflateError::NoMemory { .. }
            | InflateError::Broken => MalformedKind::Compression,
        };
        self.shared.metrics.frames_malformed.add(kind);
        warn!(shard = %session.shard(), %error, "compressed stream is broken: connecting anew");
        session.handle_undecodable(fastrand::f64(), now);
    }

    /// Counts a frame that cannot be read. The compression context is intact, so the connection goes
    /// on; if this was a dispatch, the next one's sequence shows the hole and the session resumes.
    fn malformed(&self, error: &FrameError, bytes: usize, session: &Session) {
        let kind = match error {
            FrameError::NotUtf8 { .. } => MalformedKind::Utf8,
            FrameError::MissingOp | FrameError::WrongType { .. } => MalformedKind::MissingField,
            FrameError::NotObject | FrameError::NotJson(_) | FrameError::Trailing { .. } => {
                MalformedKind::Json
            }
        };
        self.shared.metrics.frames_malformed.add(kind);
        warn!(shard = %session.shard(), %error, bytes, "malformed frame");
    }

    fn take_frame(
        &mut self,
        frame: &Frame<'_>,
        payload: &[u8],
        session: &mut Session,
        now: Instant,
    ) {
        if frame.op == 0 {
            self.take_dispatch(frame, payload, session, now);
            return;
        }
        self.eventful = true;
        let incoming = match frame.op {
            1 => Incoming::HeartbeatRequest,
            7 => Incoming::Reconnect,
            9 => {
                let resumable = control::invalid_session_resumable(frame.data);
                if session.phase() == Phase::Resuming && !resumable {
                    self.shared.metrics.resumes.add(ResumeOutcome::Refused);
                }
                info!(shard = %session.shard(), resumable, "op 9: invalid session");
                Incoming::InvalidSession { resumable }
            }
            10 => match control::hello_interval(frame.data) {
                Some(interval) => Incoming::Hello {
                    interval: Duration::from_millis(interval),
                },
                None => {
                    self.shared
                        .metrics
                        .frames_malformed
                        .add(MalformedKind::MissingField);
                    warn!(shard = %session.shard(), "HELLO without a heartbeat interval");
                    session.handle_undecodable(fastrand::f64(), now);
                    return;
                }
            },
            11 => {
                self.shared.metrics.heartbeats.add(Heartbeat::Acknowledged);
                Incoming::HeartbeatAck
            }
            op => {
                self.shared
                    .metrics
                    .frames_malformed
                    .add(MalformedKind::UnknownOpcode);
                debug!(shard = %session.shard(), op, "unknown opcode ignored");
                Incoming::Unknown
            }
        };
        session.handle_frame(incoming, fastrand::f64(), now);
    }

    fn take_dispatch(
        &mut self,
        frame: &Frame<'_>,
        payload: &[u8],
        session: &mut Session,
        now: Instant,
    ) {
        let name = EventName::parse(frame.event.as_deref().unwrap_or_default());
        let slot = EventSlot::of(&name);
        let metrics = &self.shared.metrics;
        metrics.events_received.add(slot);
        let ready = match name {
            EventName::Known(EventKind::Ready) => self.read_ready(frame, session),
            _ => None,
        };
        let kind = match (&name, &ready) {
            (EventName::Known(EventKind::Ready), Some(ready)) => DispatchKind::Ready {
                session_id: &ready.session_id,
                resume_url: ready.resume_gateway_url.as_deref(),
            },
            (EventName::Known(EventKind::Ready), None) => DispatchKind::BadReady,
            (EventName::Known(EventKind::Resumed), _) => DispatchKind::Resumed,
            _ => DispatchKind::Other,
        };
        let was_resuming = session.phase() == Phase::Resuming;
        let incoming = Incoming::Dispatch {
            seq: frame.seq,
            kind,
        };
        let verdict = session.handle_frame(incoming, fastrand::f64(), now);
        if was_resuming && session.phase() == Phase::Ready {
            metrics.resumes.add(ResumeOutcome::Resumed);
            self.parts.status.count_resume();
        }
        match verdict {
            Verdict::Publish { seq, gap } => {
                if kind == DispatchKind::Other && !self.begins_guild(&name, frame) {
                    let heard = &mut self.heard;
                    *(if was_resuming {
                        &mut heard.replayed
                    } else {
                        &mut heard.live
                    }) += 1;
                }
                if let Some(ended) = gap {
                    self.announce_gap(&ended, session, now);
                }
                if let Some(ready) = &ready {
                    self.note_ready(ready, session);
                }
                self.note_guild(&name, frame);
                self.publish(frame, &name, slot, payload, seq, session, now);
            }
            Verdict::Replayed => metrics.events_duplicate.add(slot),
            Verdict::Unnameable => {
                metrics.frames_malformed.add(MalformedKind::MissingField);
                error!(
                    shard = %session.shard(),
                    event = name.as_str(),
                    seq = frame.seq,
                    "dispatch outside a session or without a sequence: not published"
                );
            }
            Verdict::Consumed => {
                if session.phase() == Phase::Waiting {
                    metrics.frames_malformed.add(MalformedKind::Sequence);
                }
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one event, in one place"
    )]
    fn publish(
        &mut self,
        frame: &Frame<'_>,
        name: &EventName<'_>,
        slot: EventSlot,
        payload: &[u8],
        seq: u64,
        session: &Session,
        now: Instant,
    ) {
        let Some(id) = session.id() else { return };
        let generation = session.generation();
        let status = &self.parts.status;
        self.last_event = Some(now);
        status.count_event(payload.len());
        status.set_last_seq(seq);
        if !self.shared.filter.publishes(name) {
            self.shared.metrics.events_filtered.add(slot);
            self.parts.lane.set_left_out((generation, seq));
            return;
        }
        let tag = SessionTag { id, generation };
        let message = Outbound::dispatch(
            &self.parts.lane,
            tag,
            seq,
            frame.guild(),
            name,
            payload,
            now,
        );
        self.shared.metrics.events_published.add(slot);
        self.shared
            .metrics
            .published_bytes
            .add(payload.len() as u64);
        self.parts.lane.set_published((generation, seq));
        self.parts.publisher.hand_over(message);
    }

    fn read_ready<'a>(&self, frame: &Frame<'a>, session: &Session) -> Option<control::Ready<'a>> {
        let problem = match control::ready(frame.data) {
            // The id goes into message headers, where `:` separates and line ends would forge.
            Ok(ready) if is_session_id(&ready.session_id) => return Some(ready),
            Ok(ready) => format!("session id {:?} cannot be used", ready.session_id),
            Err(error) => error.to_string(),
        };
        self.shared
            .metrics
            .frames_malformed
            .add(MalformedKind::MissingField);
        error!(shard = %session.shard(), problem, "READY cannot begin a session");
        None
    }

    fn note_ready(&mut self, ready: &control::Ready<'_>, session: &Session) {
        let shard = session.shard();
        if let Some(echoed) = ready.shard
            && echoed != <[u32; 2]>::from(shard)
        {
            warn!(%shard, ?echoed, "READY names another shard");
        }
        self.awaited = ready.guild_ids().into_iter().collect();
        let status = &self.parts.status;
        status.set_guilds(u32::try_from(ready.guilds).unwrap_or(u32::MAX));
        status.set_session(&ready.session_id, unix_ms());
        let known = session
            .resumable()
            .map(|known| (session.generation(), known));
        self.parts.session.set(known);
    }

    /// True for a GUILD_CREATE that READY announced.
    fn begins_guild(&self, name: &EventName<'_>, frame: &Frame<'_>) -> bool {
        matches!(name, EventName::Known(EventKind::GuildCreate))
            && frame
                .guild()
                .is_some_and(|guild| self.awaited.contains(&guild))
    }

    /// Keeps the number of guilds: joined, removed, gone in an outage, back from one.
    fn note_guild(&mut self, name: &EventName<'_>, frame: &Frame<'_>) {
        match name {
            EventName::Known(EventKind::GuildCreate) => {
                if let Some(guild) = frame.guild()
                    && !self.awaited.remove(&guild)
                {
                    self.parts.status.add_guilds(1);
                }
            }
            EventName::Known(EventKind::GuildDelete) => {
                let Some(guild) = frame.guild() else { return };
                if control::unavailable(frame.data).is_some() {
                    self.awaited.insert(guild);
                } else {
                    self.awaited.remove(&guild);
                    self.parts.status.add_guilds(-1);
                }
            }
            _ => {}
        }
    }

    /// The marker before the READY of a session that follows one that ended without RESUME.
    fn announce_gap(&self, ended: &Ended, session: &Session, now: Instant) {
        let Some(new_session) = session.id() else {
            return;
        };
        let reason = gap_reason(ended.reason);
        let now_ms = unix_ms();
        let unix_ms_of = |at: Instant| {
            let since = now.saturating_duration_since(at).as_millis();
            now_ms.saturating_sub(u64::try_from(since).unwrap_or(u64::MAX))
        };
        let ended_ms = unix_ms_of(ended.at);
        let last_event_ms = self.last_event.map_or(self.followed_ms, unix_ms_of);
        warn!(
            shard = %session.shard(),
            old_session = ended.session_id,
            last_seq = ended.last_seq,
            ?reason,
            "events between two sessions may be lost: gap announced"
        );
        let gap = ProxyGap {
            shard: session.shard(),
            old_session_id: ended.session_id.clone(),
            last_seq: ended.last_seq,
            new_session_id: new_session.to_owned(),
            lost: None,
            reason,
            from: Timestamp::from_unix_ms(last_event_ms.min(ended_ms)),
            to: Timestamp::from_unix_ms(now_ms),
        };
        let marker = Outbound::synthetic(
            &self.parts.lane,
            Some((&ended.session_id, ended.last_seq)),
            new_session,
            &ProxyEvent::Gap(gap),
            now,
        );
        self.shared.metrics.gaps.add(reason);
        self.parts.status.count_gap();
        self.parts.lane.add_gap();
        self.parts.publisher.hand_over(marker);
    }
}
