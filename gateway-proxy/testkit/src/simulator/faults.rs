//! Everything that can go wrong on purpose, as data: the same shapes in a script, over HTTP and in
//! Rust.

use serde::{Deserialize, Serialize};

use super::config::Load;

/// Which connections a fault hits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Every connection, identified or not.
    All,
    /// Every session of this shard number, whatever the count.
    Shard(u32),
    /// Every session of this shard tuple.
    ShardOf([u32; 2]),
    /// One session.
    Session(String),
}

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The TCP connection is reset without a close frame.
    DropTcp,
    /// The server stops reading and/or writing, and keeps the socket open.
    HalfOpen {
        /// Stops reading: heartbeats go unseen.
        #[serde(default = "yes")]
        read: bool,
        /// Stops writing: no ACK, no dispatch.
        #[serde(default = "yes")]
        write: bool,
    },
    /// Op 7; the server closes by itself after the grace period.
    Reconnect,
    /// Op 9 on a live session.
    InvalidSession {
        /// False ends the session.
        resumable: bool,
    },
    /// A close frame with this code. The session ends with 4003, 4004, 4006, 4007 and 4010–4014.
    Close {
        /// The code.
        code: u16,
    },
    /// Heartbeat ACKs come late.
    DelayAcks {
        /// By this much.
        ms: u64,
    },
    /// Heartbeats are not acknowledged.
    SwallowAcks {
        /// So many of them; all when absent.
        count: Option<u32>,
    },
    /// Op 1: the client shall send a heartbeat at once.
    RequestHeartbeat,
    /// A message that the client's decompressor cannot read.
    CorruptCompression,
    /// Broken JSON in a sound message.
    MalformedJson,
    /// JSON with bytes that are no UTF-8.
    NonUtf8,
    /// The first half of a dispatch in a sound message.
    TruncatedJson,
    /// A WebSocket frame that ends in its middle, with the TCP connection.
    TruncatedFrame,
    /// A small message that inflates to this many bytes.
    DecompressionBomb {
        /// Bytes of JSON.
        bytes: usize,
    },
    /// A message with an opcode nobody knows.
    UnknownOpcode,
    /// A sound dispatch with a name nobody knows; it is in the ledger.
    UnknownEvent,
    /// A sound dispatch of this many bytes; it is in the ledger, marked oversized.
    OversizedEvent {
        /// Bytes of the frame.
        bytes: usize,
    },
    /// A dispatch whose `s` is this much below the last; it is no event.
    SeqBackwards {
        /// How far back.
        by: u64,
    },
    /// A dispatch without `s` and `t`.
    MissingFields,
    /// The server writes no faster than this.
    SlowWrites {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// The server reads no faster than this.
    SlowReads {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// No dispatch for this long; ACKs go on.
    Silent {
        /// Milliseconds.
        ms: u64,
    },
    /// ACKs go on, dispatches do not come.
    Withhold {
        /// What helps.
        until: Until,
    },
    /// A dispatch whose `s` is this much above the next one's; it is no event. A client that takes it
    /// for an answer to RESUME has to believe it, so it belongs on a live connection.
    SeqForwards {
        /// How far ahead.
        by: u64,
    },
    /// Ends every lasting fault of the connection, its session and its shard.
    Heal,
}

/// What ends [`Fault::Withhold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// RESUME: the session goes on meanwhile, and what was withheld is replayed.
    Resume,
    /// IDENTIFY: the session gets no events any more, and RESUME finds nothing to replay. They have
    /// no `s` in it, so they are not in the ledger; [`Progress::withheld`](super::Progress) counts
    /// them, and the gap between the sessions is owed as ever.
    NewSession,
    /// Nothing but [`Fault::Heal`]: later sessions of the shard number get READY and their guilds,
    /// and no more.
    Never,
}

/// When an ambush strikes: dispatches are counted from the answer's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// RESUME was accepted, and so many dispatches of its answer are written.
    Resume(u64),
    /// IDENTIFY was accepted, and so many dispatches are written: READY is the first.
    Identify(u64),
    /// Within the next dispatch that takes more than one WebSocket message, after its first. The rest
    /// never comes if the fault ends the connection; what other faults write comes behind it.
    Message,
}

impl Fault {
    /// The name it has in scripts.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value["kind"].as_str().unwrap_or("fault").to_owned()
    }
}

/// What happens to connections that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectFault {
    /// Op 7 in HELLO's place.
    ReconnectInsteadOfHello,
    /// Op 7, then HELLO.
    ReconnectBeforeHello,
    /// The socket opens and nothing comes.
    NoHello,
    /// The HTTP upgrade is answered with 503.
    Unavailable,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// A fault, now.
    Fault {
        /// Where.
        target: Target,
        /// Which.
        fault: Fault,
    },
    /// A fault that waits for its moment, and strikes once.
    Ambush {
        /// Where.
        target: Target,
        /// When.
        moment: Moment,
        /// Which.
        fault: Fault,
    },
    /// The same fault on every target, spread evenly over a time.
    Wave {
        /// Where.
        target: Target,
        /// Which.
        fault: Fault,
        /// From the first to the last.
        over_ms: u64,
    },
    /// New connections are reset for this long.
    RefuseConnects {
        /// Milliseconds.
        ms: u64,
    },
    /// The next connections meet a fault.
    Connects {
        /// Which.
        fault: ConnectFault,
        /// How many connections.
        count: u32,
    },
    /// So many guilds fall into an outage and come back.
    Outage {
        /// How many, the busiest first.
        guilds: usize,
        /// Until they come back; never when absent.
        ms: Option<u64>,
    },
    /// Another load.
    Load {
        /// It.
        load: Load,
    },
    /// One event for each guild, all at once.
    Burst {
        /// Key of a template: an event name, or one with its variant.
        event: String,
        /// How often per guild.
        #[serde(default = "one")]
        per_guild: u32,
    },
    /// One dispatch with a payload of one's own, for every session it is routed to.
    Dispatch {
        /// Event name.
        t: String,
        /// Its `d`.
        d: serde_json::Value,
    },
    /// Somebody types a slash command.
    Command {
        /// As its user sees it: `/find guild query:7`.
        text: String,
        /// Number of the guild, the busiest first.
        #[serde(default)]
        guild: u32,
    },
    /// The next REST requests fail.
    RestFault {
        /// HTTP status: 429 comes with `Retry-After`.
        status: u16,
        /// How many requests.
        count: u32,
        /// `Retry-After` of a 429.
        #[serde(default)]
        retry_after_ms: u64,
    },
    /// Ends sessions that no socket holds: their RESUME gets op 9 false.
    ExpireSessions,
    /// Sets what is left of the session budget, and undoes a revoked token.
    SetRemaining {
        /// IDENTIFYs left.
        remaining: u32,
    },
}

/// An action and when it happens. With neither moment it happens at the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScriptStep {
    /// Milliseconds after the start.
    #[serde(default)]
    pub at_ms: Option<u64>,
    /// Once so many dispatches were written in total.
    #[serde(default)]
    pub after_events: Option<u64>,
    /// What to do.
    #[serde(flatten)]
    pub action: Action,
}

const fn yes() -> bool {
    true
}

const fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: &Action) {
        let step: ScriptStep = serde_json::from_str(json).unwrap();
        assert_eq!(&step.action, expect, "{json}");
        let again: Action = serde_json::from_value(serde_json::json!(step.action)).unwrap();
        assert_eq!(&again, expect);
    }

    #[test]
    fn a_script_is_readable_json() {
        check(
            r#"{"at_ms":500,"action":"fault","target":{"shard":3},"fault":{"kind":"close","code":4000}}"#,
            &Action::Fault {
                target: Target::Shard(3),
                fault: Fault::Close { code: 4000 },
            },
        );
        check(
            r#"{"action":"command","text":"/find guild query:7"}"#,
            &Action::Command {
                text: "/find guild query:7".to_owned(),
                guild: 0,
            },
        );
        check(
            r#"{"action":"wave","target":"all","fault":{"kind":"reconnect"},"over_ms":1000}"#,
            &Action::Wave {
                target: Target::All,
                fault: Fault::Reconnect,
                over_ms: 1000,
            },
        );
        check(
            r#"{"after_events":9,"action":"fault","target":{"shard_of":[1,4]},"fault":{"kind":"half_open"}}"#,
            &Action::Fault {
                target: Target::ShardOf([1, 4]),
                fault: Fault::HalfOpen {
                    read: true,
                    write: true,
                },
            },
        );
        check(
            r#"{"action":"ambush","target":{"shard":3},"moment":{"resume":5},"fault":{"kind":"withhold","until":"new_session"}}"#,
            &Action::Ambush {
                target: Target::Shard(3),
                moment: Moment::Resume(5),
                fault: Fault::Withhold {
                    until: Until::NewSession,
                },
            },
        );
        check(
            r#"{"action":"load","load":{"pace":{"kind":"flood","events_per_shard":null}}}"#,
            &Action::Load {
                load: Load::flood(None),
            },
        );
    }
}
