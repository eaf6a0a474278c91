//! What goes into the session machine and what comes out of it.

use std::time::{Duration, Instant};

use schemas::ShardId;

use crate::close::FatalClose;

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
    /// We ended it: an operator asked for a fresh one, or it had stopped delivering.
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
    /// This process lets go of the shard, or of its session at an operator's word.
    Drain,
    /// The publish buffer is full for too long; Discord's replay buffer takes over.
    Overloaded,
    /// Heartbeats are acknowledged, but events stopped coming.
    Silent,
}

impl CloseReason {
    /// Every reason, for counters.
    pub const ALL: [Self; 11] = [
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
        Self::Silent,
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
            Self::Silent => "silent",
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
    /// Publish under [`Session::id`](super::Session::id) with this sequence; first the gap marker, if there is one.
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
