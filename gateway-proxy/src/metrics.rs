//! Every instrument, named once. Passed in, never global; labels are bounded: events, reasons, close
//! codes and shards, never a guild or a user.
//!
//! Counting costs one relaxed atomic addition. Names, labels and text are made when somebody asks
//! for `/metrics` ([`render`](Metrics::render)).

use std::fmt;
use std::sync::Arc;

use gateway_proxy_core::session::CloseReason;
use prometheus_client::registry::Registry;
use schemas::event::{EventKind, EventName, ProxyEventKind};
use schemas::{CommandOp, GapReason};

use crate::status::ProcessStatus;

mod collect;
mod instrument;

use collect::{Counts, Live};
pub use instrument::{Count, Label, Level, PerLabel, Timing};

/// All instruments; clones share them.
#[derive(Clone)]
pub struct Metrics {
    counts: Arc<Counts>,
    registry: Arc<Registry>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl std::ops::Deref for Metrics {
    type Target = Instruments;

    fn deref(&self) -> &Instruments {
        &self.counts.0
    }
}

impl Metrics {
    /// Instruments at zero; gauges about shards and the process come from `process`.
    #[must_use]
    pub fn new(process: Arc<ProcessStatus>) -> Self {
        let counts = Arc::new(Counts(Instruments::default()));
        let mut registry = Registry::with_prefix("gateway_proxy");
        registry.register_collector(Box::new(Arc::clone(&counts)));
        registry.register_collector(Box::new(Live(process)));
        Self {
            counts,
            registry: Arc::new(registry),
        }
    }

    /// The text of `/metrics`, in the OpenMetrics format.
    ///
    /// # Errors
    /// Only when a label cannot be written, which is a bug.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What is counted. Hot ones take an [`EventSlot`], made once per event.
#[derive(Debug, Default)]
pub struct Instruments {
    /// Dispatches that came in.
    pub events_received: PerLabel<EventSlot>,
    /// Dispatches handed to NATS.
    pub events_published: PerLabel<EventSlot>,
    /// Dispatches JetStream acknowledged.
    pub events_acknowledged: PerLabel<EventSlot>,
    /// Dispatches left out by `--publish-events` and `--drop-events`.
    pub events_filtered: PerLabel<EventSlot>,
    /// Dispatches that were there already: replayed after a RESUME, or known to JetStream.
    pub events_duplicate: PerLabel<EventSlot>,
    /// Bytes read from gateway sockets, compressed.
    pub received_bytes: Count,
    /// The same after decompression.
    pub inflated_bytes: Count,
    /// Payload bytes handed to NATS.
    pub published_bytes: Count,
    /// Frames that could not be used.
    pub frames_malformed: PerLabel<MalformedKind>,
    /// Connections after a shard's first, by what ended the one before.
    pub reconnects: PerLabel<ReconnectReason>,
    /// Closes received, by code.
    pub closes: PerLabel<CloseCode>,
    /// IDENTIFYs sent.
    pub identifies: Count,
    /// RESUMEs answered.
    pub resumes: PerLabel<ResumeOutcome>,
    /// Gaps announced.
    pub gaps: PerLabel<GapReason>,
    /// Shards that stopped delivering, and what was done about it.
    pub silences: PerLabel<SilenceStep>,
    /// Heartbeats sent and acknowledged.
    pub heartbeats: PerLabel<Heartbeat>,
    /// Users' gateway commands, by opcode and what became of them.
    pub commands: CommandCounts,
    /// Events that wait for an acknowledgement.
    pub window_messages: Level,
    /// Their bytes.
    pub window_bytes: Level,
    /// Bytes the window may hold.
    pub window_limit_bytes: Level,
    /// Times a socket was not read because the window was full.
    pub window_full: Count,
    /// From handing an event to NATS until its acknowledgement.
    pub ack_latency: Timing,
    /// Batches begun anew after trouble.
    pub publish_restarts: Count,
    /// Connections to NATS after the first.
    pub nats_reconnects: Count,
    /// Session starts Discord grants per day.
    pub session_starts_total: Level,
    /// Session starts left today.
    pub session_starts_remaining: Level,
    /// Shards that Discord recommends.
    pub shards_recommended: Level,
    /// Members of the fleet that live, this process included.
    pub fleet_members: Level,
    /// Epoch of the plan that is followed.
    pub fleet_plan_epoch: Level,
    /// 1 while this process coordinates.
    pub fleet_coordinates: Level,
    /// Shards this process took because the plan says so.
    pub fleet_moves: Count,
    /// Those of them whose owner was gone.
    pub fleet_takeovers: Count,
    /// Times the lease of this process ended, and it let go of everything.
    pub fleet_fenced: Count,
    /// Shards without a place, as the coordinator sees it.
    pub fleet_unplaced_shards: Level,
    /// IDENTIFYs granted by this process as the coordinator.
    pub fleet_identify_grants: Count,
}

/// Which counter an event belongs to: its own for documented and `PROXY_*` events, one for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSlot(u8);

// Slots are bytes.
const _: () = assert!(EventKind::COUNT + ProxyEventKind::ALL.len() < 256);

impl EventSlot {
    const PROXY: usize = EventKind::COUNT;
    const OTHER: usize = Self::PROXY + ProxyEventKind::ALL.len();

    /// The slot of an event.
    #[must_use]
    pub fn of(event: &EventName<'_>) -> Self {
        let slot = match event {
            EventName::Known(kind) => kind.index(),
            EventName::Proxy(ProxyEventKind::Gap) => Self::PROXY,
            EventName::Proxy(ProxyEventKind::Shard) => Self::PROXY + 1,
            EventName::Proxy(ProxyEventKind::Reshard) => Self::PROXY + 2,
            EventName::Other(_) => Self::OTHER,
        };
        // Below 256, see above.
        Self(slot as u8)
    }
}

impl Label for EventSlot {
    const KEY: &'static str = "event";
    const COUNT: usize = Self::OTHER + 1;

    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn value(index: usize) -> &'static str {
        match index.checked_sub(Self::PROXY) {
            None => EventKind::ALL[index].name(),
            Some(proxy) => ProxyEventKind::ALL
                .get(proxy)
                .map_or("other", |kind| kind.name()),
        }
    }
}

/// An enum whose variants are label values.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident, $key:literal, { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl Label for $name {
            const KEY: &'static str = $key;
            const COUNT: usize = [$($value),*].len();

            fn index(self) -> usize {
                self as usize
            }

            fn value(index: usize) -> &'static str {
                [$($value),*][index]
            }
        }
    };
}

labels! {
    /// Why a frame could not be used.
    MalformedKind, "kind", {
        /// Not JSON, or not an object with an `op`.
        Json = "json",
        /// Not UTF-8.
        Utf8 = "utf8",
        /// The compressed stream is broken.
        Compression = "compression",
        /// Larger than the limit after decompression.
        TooLarge = "too_large",
        /// An opcode nobody documents.
        UnknownOpcode = "unknown_opcode",
        /// A field that the opcode needs is missing or of another type.
        MissingField = "missing_field",
        /// A dispatch whose sequence is not the next one.
        Sequence = "sequence",
        /// Larger than NATS' `max_payload`; announced as a gap.
        AboveMaxPayload = "above_max_payload",
    }
}

labels! {
    /// What ended the connection before.
    ReconnectReason, "reason", {
        /// We closed: no HELLO in time.
        HelloTimeout = "hello_timeout",
        /// We closed: no READY or RESUMED in time.
        StartTimeout = "start_timeout",
        /// We closed: nothing came in any more.
        Zombie = "zombie",
        /// Discord asked for it (op 7).
        Reconnect = "reconnect",
        /// Discord voided the session (op 9).
        InvalidSession = "invalid_session",
        /// We closed: bytes that are no frame.
        Undecodable = "undecodable",
        /// We closed: sequences skipped.
        SequenceJump = "sequence_jump",
        /// We closed: READY lacked what a session needs.
        BadReady = "bad_ready",
        /// We let the shard go and took it again.
        Drain = "drain",
        /// We closed: the publish window was full for too long.
        Overloaded = "overloaded",
        /// We closed: heartbeats were acknowledged, but events had stopped coming.
        Silent = "silent",
        /// Discord closed; the code is counted too.
        ServerClosed = "server_closed",
        /// The connection broke without a close.
        ConnectionLost = "connection_lost",
        /// The connection could not be made.
        ConnectFailed = "connect_failed",
    }
}

impl From<CloseReason> for ReconnectReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::HelloTimeout => Self::HelloTimeout,
            CloseReason::StartTimeout => Self::StartTimeout,
            CloseReason::Zombie => Self::Zombie,
            CloseReason::Reconnect => Self::Reconnect,
            CloseReason::InvalidSession => Self::InvalidSession,
            CloseReason::Undecodable => Self::Undecodable,
            CloseReason::SequenceJump => Self::SequenceJump,
            CloseReason::BadReady => Self::BadReady,
            CloseReason::Drain => Self::Drain,
            CloseReason::Overloaded => Self::Overloaded,
            CloseReason::Silent => Self::Silent,
        }
    }
}

labels! {
    /// How a RESUME ended.
    ResumeOutcome, "outcome", {
        /// RESUMED came.
        Resumed = "resumed",
        /// Discord refused it (op 9 false, or a close).
        Refused = "refused",
    }
}

labels! {
    /// What became of a shard's silence.
    SilenceStep, "step", {
        /// Its length became improbable.
        Suspected = "suspected",
        /// Resumed because of it.
        Resumed = "resumed",
        /// Given a new session because of it.
        Reidentified = "reidentified",
        /// Nothing done: most shards were silent.
        Outage = "outage",
        /// Nothing done for now: helped not long ago, or the identify budget is at its reserve.
        Waiting = "waiting",
        /// Events came again after a step.
        Recovered = "recovered",
        /// As silent in a new session: nothing to deliver.
        Quiet = "quiet",
    }
}

labels! {
    /// A heartbeat's way.
    Heartbeat, "direction", {
        /// Op 1 went out.
        Sent = "sent",
        /// Op 11 came in.
        Acknowledged = "acknowledged",
    }
}

labels! {
    /// What became of a user's gateway command.
    CommandOutcome, "outcome", {
        /// Went out to Discord, at once or after waiting.
        Sent = "sent",
        /// Waits for the budget or a limit of its own; counted again when that is over.
        Queued = "queued",
        /// Not sent: an equal member request waits or is being answered.
        Merged = "merged",
        /// Not sent, and its asker was told why.
        Rejected = "rejected",
        /// Waited and was never sent: too long without a connection, or a newer presence came.
        Dropped = "dropped",
    }
}

/// Gateway commands by opcode and outcome.
#[derive(Debug, Default)]
pub struct CommandCounts([PerLabel<CommandOutcome>; CommandOp::ALL.len() + 1]);

impl CommandCounts {
    /// So many more; `None` is what is no command.
    pub fn add(&self, op: Option<CommandOp>, outcome: CommandOutcome, count: u64) {
        let of_op = CommandOp::ALL.iter().position(|known| Some(*known) == op);
        self.0[of_op.unwrap_or(CommandOp::ALL.len())].add_many(outcome, count);
    }

    /// Opcode (`other` for what is none that may be sent), outcome and number, of what was ever counted.
    fn counted(&self) -> impl Iterator<Item = (String, &'static str, u64)> {
        self.0.iter().enumerate().flat_map(|(index, of_op)| {
            let op = CommandOp::ALL.get(index);
            let op = op.map_or_else(|| "other".to_owned(), CommandOp::to_string);
            let counted = of_op.counted();
            counted.map(move |(outcome, count)| (op.clone(), outcome, count))
        })
    }
}

/// The code of a close that came in; codes Discord does not use share one label value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u8);

/// The codes with a label value of their own, and its text.
const CODES: [(u16, &str); 18] = [
    (1000, "1000"),
    (1001, "1001"),
    (1006, "1006"),
    (4000, "4000"),
    (4001, "4001"),
    (4002, "4002"),
    (4003, "4003"),
    (4004, "4004"),
    (4005, "4005"),
    (4006, "4006"),
    (4007, "4007"),
    (4008, "4008"),
    (4009, "4009"),
    (4010, "4010"),
    (4011, "4011"),
    (4012, "4012"),
    (4013, "4013"),
    (4014, "4014"),
];

impl CloseCode {
    /// The label of a code; `None`: the connection ended without one, which WebSocket calls 1006.
    #[must_use]
    pub fn of(code: Option<u16>) -> Self {
        let code = code.unwrap_or(1006);
        let found = CODES.iter().position(|(known, _)| *known == code);
        // Far fewer than 256 codes.
        Self(found.unwrap_or(CODES.len()) as u8)
    }
}

impl Label for CloseCode {
    const KEY: &'static str = "code";
    const COUNT: usize = CODES.len() + 1;

    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn value(index: usize) -> &'static str {
        CODES.get(index).map_or("other", |(_, text)| text)
    }
}

impl Label for GapReason {
    const KEY: &'static str = "reason";
    const COUNT: usize = 6;

    fn index(self) -> usize {
        match self {
            Self::InvalidSession => 0,
            Self::ReplayExceeded => 1,
            Self::SessionExpired => 2,
            Self::OversizedFrame => 3,
            Self::Forced => 4,
            Self::Unknown => 5,
        }
    }

    fn value(index: usize) -> &'static str {
        let values = [
            "invalid_session",
            "replay_exceeded",
            "session_expired",
            "oversized_frame",
            "forced",
            "unknown",
        ];
        values[index]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use schemas::{ShardId, ShardState};

    use super::*;

    fn metrics() -> (Arc<ProcessStatus>, Metrics) {
        let process = ProcessStatus::new("p-1".parse().unwrap());
        (Arc::clone(&process), Metrics::new(process))
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        let line = text
            .lines()
            .find(|line| line.rsplit_once(' ').is_some_and(|l| l.0 == series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    #[test]
    fn events_are_counted_by_name_and_unknown_ones_together() {
        let (_, metrics) = metrics();
        for name in [
            "MESSAGE_CREATE",
            "MESSAGE_CREATE",
            "PROXY_GAP",
            "NEW_ONE",
            "NEWER_ONE",
        ] {
            metrics
                .events_received
                .add(EventSlot::of(&EventName::parse(name)));
        }
        let text = metrics.render().unwrap();
        let count = |event: &str| {
            value(
                &text,
                &format!("gateway_proxy_events_received_total{{event=\"{event}\"}}"),
            )
        };
        assert_eq!(count("MESSAGE_CREATE"), Some(2.0));
        assert_eq!(count("PROXY_GAP"), Some(1.0));
        assert_eq!(count("other"), Some(2.0));
        assert_eq!(
            count("TYPING_START"),
            None,
            "a series appears with its first event"
        );
    }

    #[test]
    fn every_event_has_a_slot_of_its_own() {
        let slots: BTreeSet<_> = EventKind::ALL
            .iter()
            .map(|kind| EventSlot::of(&EventName::Known(*kind)).0)
            .collect();
        assert_eq!(slots.len(), EventKind::COUNT);
        let values: BTreeSet<_> = (0..EventSlot::COUNT).map(EventSlot::value).collect();
        assert_eq!(values.len(), EventSlot::COUNT);
    }

    #[test]
    fn close_codes_of_discord_have_their_own_series() {
        let label = |code| CloseCode::value(CloseCode::of(code).index());
        assert_eq!(label(Some(4004)), "4004");
        assert_eq!(label(Some(4014)), "4014");
        assert_eq!(label(None), "1006");
        assert_eq!(label(Some(4999)), "other");
    }

    #[test]
    fn commands_are_counted_by_opcode_and_outcome() {
        let (_, metrics) = metrics();
        let all = CommandOp::ALL.map(Some);
        for op in all.into_iter().chain([None]) {
            metrics.commands.add(op, CommandOutcome::Rejected, 2);
        }
        let text = metrics.render().unwrap();
        for op in ["3", "4", "8", "31", "43", "other"] {
            let series =
                format!("gateway_proxy_gateway_commands_total{{op=\"{op}\",outcome=\"rejected\"}}");
            assert_eq!(value(&text, &series), Some(2.0), "{text}");
        }
    }

    #[test]
    fn reasons_follow_the_words_of_the_core() {
        for reason in CloseReason::ALL {
            let label = ReconnectReason::value(ReconnectReason::from(reason).index());
            assert_eq!(label, reason.as_str());
        }
    }

    #[test]
    fn shards_and_process_are_read_when_asked() {
        let (process, metrics) = metrics();
        let shard = process.add_shard(ShardId::new(3, 4).unwrap());
        shard.set_state(ShardState::Ready);
        shard.set_latency(Duration::from_millis(42));
        let text = metrics.render().unwrap();
        assert_eq!(
            value(&text, "gateway_proxy_shard_ready{shard=\"3\"}"),
            Some(1.0)
        );
        let latency = value(&text, "gateway_proxy_gateway_latency_seconds{shard=\"3\"}");
        assert_eq!(latency, Some(0.042));
        assert_eq!(value(&text, "gateway_proxy_nats_connected"), Some(0.0));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let (_, metrics) = metrics();
        metrics.ack_latency.record(Duration::from_micros(700));
        metrics.ack_latency.record(Duration::from_secs(100));
        let text = metrics.render().unwrap();
        let bucket = |le: &str| {
            value(
                &text,
                &format!("gateway_proxy_ack_latency_seconds_bucket{{le=\"{le}\"}}"),
            )
        };
        assert_eq!((bucket("0.0005"), bucket("0.001")), (Some(0.0), Some(1.0)));
        assert_eq!(bucket("+Inf"), Some(2.0));
        assert_eq!(
            value(&text, "gateway_proxy_ack_latency_seconds_count"),
            Some(2.0)
        );
    }
}
