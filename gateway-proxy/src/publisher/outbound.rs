//! A message on its way to JetStream: subject, headers and payload in one place, kept as it is until
//! acknowledged, so that publishing it again sends the same bytes.
//!
//! Messages are stored and let go of in the same order, so they are laid one after the other into
//! chunks: an allocation for dozens of them, and nothing that fragments.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use gateway_proxy_core::ingest::Size;
use schemas::message::NATS_MSG_ID;
use schemas::subject::{push_decimal, push_event_subject};
use schemas::{EventName, GapReason, GuildId, MessageId, ProxyEvent, ProxyGap, Timestamp};

use super::Lane;
use crate::metrics::EventSlot;

/// What a message costs beside its bytes: this struct, queue slots, allocator overhead.
const OVERHEAD_BYTES: usize = 128;
/// Bytes of a chunk. Below what allocators hand to the operating system one by one.
const CHUNK: usize = 64 * 1024;
/// A message that takes a larger part of a chunk gets memory of its own, so that little of any chunk
/// stays unused.
const LARGE: usize = CHUNK / 8;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Where the messages of a thread are laid.
#[derive(Default)]
struct Memory {
    // The rest of the chunk that is being filled.
    chunk: BytesMut,
    // Subject and headers of the message that is being made.
    head: Vec<u8>,
}

impl Memory {
    fn lay(&mut self, payload: &[u8]) -> Bytes {
        let len = self.head.len() + payload.len();
        if len > LARGE {
            return Bytes::from([&self.head, payload].concat());
        }
        if self.chunk.capacity() < len {
            // What is left of the old one goes with the messages in it.
            self.chunk = BytesMut::with_capacity(CHUNK);
        }
        self.chunk.extend_from_slice(&self.head);
        self.chunk.extend_from_slice(payload);
        self.chunk.split().freeze()
    }
}

/// One message of one shard.
#[derive(Debug)]
pub(crate) struct Outbound {
    // subject, headers, payload
    bytes: Bytes,
    subject_len: u32,
    headers_len: u32,
    lane: Arc<Lane>,
    generation: u16,
    // What is acknowledged with this message; `None`: a synthetic event, which moves nothing.
    seq: Option<u64>,
    // This is the marker that stands for an oversized frame.
    stand_in: bool,
    // This marker was counted by `Lane::add_gap`.
    gap: bool,
    slot: EventSlot,
    handed_over: Instant,
}

/// The session a message belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionTag<'a> {
    /// Discord's id.
    pub(crate) id: &'a str,
    /// Its number in this process.
    pub(crate) generation: u16,
}

impl Outbound {
    /// A dispatch, exactly as Discord sent it.
    pub(crate) fn dispatch(
        lane: &Arc<Lane>,
        session: SessionTag<'_>,
        seq: u64,
        guild: Option<GuildId>,
        event: &EventName<'_>,
        payload: &[u8],
        now: Instant,
    ) -> Self {
        MEMORY.with_borrow_mut(|memory| {
            let head = &mut memory.head;
            head.clear();
            push_event_subject(head, lane.root(), guild, event.as_str());
            let subject_len = head.len();
            push_header_start(head);
            head.extend_from_slice(session.id.as_bytes());
            head.push(b':');
            push_decimal(head, seq);
            head.extend_from_slice(HEADERS_END);
            let headers_len = head.len() - subject_len;
            Self {
                bytes: memory.lay(payload),
                subject_len: len_u32(subject_len),
                headers_len: len_u32(headers_len),
                lane: Arc::clone(lane),
                generation: session.generation,
                seq: Some(seq),
                stand_in: false,
                gap: false,
                slot: EventSlot::of(event),
                handed_over: now,
            }
        })
    }

    /// An event the proxy adds. `checkpoint` is session and sequence at this moment, `unique` tells
    /// it from others of the same name there.
    pub(crate) fn synthetic(
        lane: &Arc<Lane>,
        checkpoint: Option<(&str, u64)>,
        unique: &str,
        event: &ProxyEvent,
        now: Instant,
    ) -> Self {
        let name = event.kind().name();
        let (session, seq) = checkpoint.unwrap_or((MessageId::NO_SESSION, 0));
        let id = MessageId {
            session,
            seq,
            synthetic: Some((name, unique)),
        };
        let mut bytes = Vec::new();
        push_event_subject(&mut bytes, lane.root(), None, name);
        let subject_len = bytes.len();
        push_header_start(&mut bytes);
        bytes.extend_from_slice(id.to_string().as_bytes());
        bytes.extend_from_slice(HEADERS_END);
        let headers_len = bytes.len() - subject_len;
        bytes.extend_from_slice(&event.frame());
        Self {
            bytes: Bytes::from(bytes),
            subject_len: len_u32(subject_len),
            headers_len: len_u32(headers_len),
            lane: Arc::clone(lane),
            generation: 0,
            seq: None,
            stand_in: false,
            gap: matches!(event, ProxyEvent::Gap(_)),
            slot: EventSlot::of(&EventName::Proxy(event.kind())),
            handed_over: now,
        }
    }

    pub(super) fn subject(&self) -> &[u8] {
        &self.bytes[..self.subject_len as usize]
    }

    pub(super) fn headers(&self) -> &[u8] {
        &self.bytes[self.subject_len as usize..self.payload_start()]
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_start()..]
    }

    /// What counts against the server's `max_payload`.
    pub(super) fn wire_payload_len(&self) -> usize {
        self.bytes.len() - self.subject_len as usize
    }

    pub(super) const fn kept_bytes(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }

    pub(super) const fn handed_over(&self) -> Instant {
        self.handed_over
    }

    pub(super) const fn slot(&self) -> EventSlot {
        self.slot
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(super) fn shard(&self) -> schemas::ShardId {
        self.lane.shard()
    }

    /// The whole `Nats-Msg-Id`.
    pub(super) fn message_id(&self) -> &str {
        let headers = std::str::from_utf8(self.headers()).unwrap_or_default();
        let value = headers.rsplit_once(": ").map_or("", |(_, value)| value);
        value.trim_end()
    }

    /// True for an event of the proxy's own, which has no sequence of its own.
    pub(super) const fn is_synthetic(&self) -> bool {
        self.seq.is_none()
    }

    /// Every subject of the shard: `discord.shard.7.events.*.*`.
    pub(super) fn subjects_of_shard(&self) -> String {
        format!("{}*.*", self.lane.root())
    }

    pub(super) fn acknowledge(&self) {
        if self.gap {
            self.lane.gap_stored();
        }
        if let Some(seq) = self.seq {
            self.lane.set_acked((self.generation, seq));
        }
    }

    /// The marker that takes this frame's place when NATS does not take it. It carries the frame's
    /// own sequence, so that a resume does not ask for the frame again. `None` for a message that is
    /// itself a marker.
    pub(super) fn oversized_marker(&self, at: Timestamp) -> Option<Self> {
        let seq = self.seq.filter(|_| !self.stand_in)?;
        let session = self.session_id();
        let gap = ProxyGap {
            shard: self.lane.shard(),
            old_session_id: session.to_owned(),
            last_seq: seq.saturating_sub(1),
            new_session_id: session.to_owned(),
            lost: Some(1),
            reason: GapReason::OversizedFrame,
            from: at,
            to: at,
        };
        let marker = Self::synthetic(
            &self.lane,
            Some((session, seq)),
            "oversized",
            &ProxyEvent::Gap(gap),
            self.handed_over,
        );
        Some(Self {
            generation: self.generation,
            seq: Some(seq),
            stand_in: true,
            gap: false,
            ..marker
        })
    }

    fn session_id(&self) -> &str {
        let id = self.message_id();
        id.split_once(':')
            .map_or(MessageId::NO_SESSION, |(session, _)| session)
    }

    const fn payload_start(&self) -> usize {
        (self.subject_len + self.headers_len) as usize
    }
}

impl Size for Outbound {
    fn size(&self) -> usize {
        self.bytes.len()
    }
}

const HEADERS_END: &[u8] = b"\r\n\r\n";

fn push_header_start(bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"NATS/1.0\r\n");
    bytes.extend_from_slice(NATS_MSG_ID.as_bytes());
    bytes.extend_from_slice(b": ");
}

/// Subjects and headers are at most a few hundred bytes.
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Prefix, ShardId};

    fn lane() -> Arc<Lane> {
        Lane::new(&Prefix::default(), ShardId::new(7, 16).unwrap(), (0, 0))
    }

    #[test]
    fn a_dispatch_carries_subject_id_and_the_bytes_of_discord() {
        let session = SessionTag {
            id: "abc",
            generation: 3,
        };
        let frame = br#"{"t":"MESSAGE_CREATE","s":9,"op":0,"d":{}}"#;
        let lane = lane();
        let message = Outbound::dispatch(
            &lane,
            session,
            9,
            GuildId::new(42),
            &EventName::parse("MESSAGE_CREATE"),
            frame,
            Instant::now(),
        );
        assert_eq!(
            message.subject(),
            b"discord.shard.7.events.42.MESSAGE_CREATE"
        );
        assert_eq!(message.headers(), b"NATS/1.0\r\nNats-Msg-Id: abc:9\r\n\r\n");
        assert_eq!(message.payload(), frame);
        message.acknowledge();
        lane.set_published((3, 9));
        assert_eq!(lane.checkpoint(), (3, 9));
    }

    #[test]
    fn an_oversized_frame_becomes_a_marker_with_its_sequence() {
        let session = SessionTag {
            id: "abc",
            generation: 1,
        };
        let lane = lane();
        let message = Outbound::dispatch(
            &lane,
            session,
            12,
            None,
            &EventName::parse("READY"),
            b"{}",
            Instant::now(),
        );
        let marker = message
            .oversized_marker(Timestamp::from_unix_ms(0))
            .unwrap();
        assert_eq!(marker.subject(), b"discord.shard.7.events.none.PROXY_GAP");
        assert_eq!(
            std::str::from_utf8(marker.headers()).unwrap(),
            "NATS/1.0\r\nNats-Msg-Id: abc:12:PROXY_GAP:oversized\r\n\r\n"
        );
        let ProxyEvent::Gap(gap) = ProxyEvent::from_frame(marker.payload()).unwrap() else {
            panic!("not a gap");
        };
        assert_eq!((gap.last_seq, gap.lost), (11, Some(1)));
        marker.acknowledge();
        lane.set_published((1, 12));
        assert_eq!(lane.checkpoint(), (1, 12));
        assert!(
            marker
                .oversized_marker(Timestamp::from_unix_ms(0))
                .is_none()
        );
    }

    #[test]
    fn messages_share_chunks_and_keep_their_bytes() {
        let session = SessionTag {
            id: "abc",
            generation: 1,
        };
        let lane = lane();
        let payload = |seq: u64| vec![seq as u8; (seq as usize * 37) % (2 * LARGE)];
        let make = |seq| {
            let name = EventName::parse("MESSAGE_CREATE");
            let guild = GuildId::new(seq);
            Outbound::dispatch(
                &lane,
                session,
                seq,
                guild,
                &name,
                &payload(seq),
                Instant::now(),
            )
        };
        let messages: Vec<_> = (1..2_000).map(make).collect();
        for (message, seq) in messages.iter().zip(1..) {
            let subject = format!("discord.shard.7.events.{seq}.MESSAGE_CREATE");
            assert_eq!(message.subject(), subject.as_bytes());
            assert_eq!(message.message_id(), format!("abc:{seq}"));
            assert_eq!(message.payload(), payload(seq));
        }
    }
}
