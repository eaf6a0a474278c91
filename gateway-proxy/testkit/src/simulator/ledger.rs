//! The exact record of what was generated for whom, and of every rule a client broke.

mod hash;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use schemas::ShardId;
use serde::Serialize;

pub use self::hash::content_hash;

/// Most violations, lifecycle steps and identifies kept; later ones are only counted.
const RECORDS_MAX: usize = 200_000;

/// One dispatch of one session; its `s` is its position plus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The guild in its subject; 0 for none.
    pub guild: u64,
    /// [`content_hash`] of the frame; 0 until it was written.
    pub hash: u64,
    /// When it was generated, µs since the simulator started.
    pub queued_us: u64,
    /// When it was first written to a socket, µs since the start; 0 for never.
    pub written_us: u64,
    /// Length of the frame in bytes; 0 until it was written.
    pub len: u32,
    /// Number of its `t` in [`LedgerSnapshot::names`].
    pub name: u16,
    /// [`Entry::OVERSIZED`] or nothing.
    pub flags: u16,
}

impl Entry {
    /// Made large on purpose: a proxy may put a `PROXY_GAP` in its place.
    pub const OVERSIZED: u16 = 1;

    /// True when the frame was handed to a socket at least once.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.written_us != 0
    }
}

/// Whether a session can still be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// A socket is attached.
    Connected,
    /// No socket; RESUME is still possible.
    Disconnected,
    /// Gone for good.
    Ended,
}

/// One session and all its dispatches.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// Its id.
    pub id: String,
    /// Its shard tuple.
    pub shard: ShardId,
    /// Whether it lives.
    pub state: SessionState,
    /// Highest `s` the client named in a heartbeat.
    pub heartbeat_seq: u64,
    /// The last `s` the client resumed from.
    pub resumed_from: Option<u64>,
    /// Dispatches that left the replay buffer before a RESUME asked for them: first and last `s`.
    pub lost: Option<(u64, u64)>,
    /// All dispatches; position plus one is `s`.
    pub entries: Vec<Entry>,
}

/// A step in a session's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lifecycle {
    /// µs since the simulator started.
    pub at_us: u64,
    /// The session.
    pub session: String,
    /// Its shard tuple.
    pub shard: ShardId,
    /// What happened.
    #[serde(flatten)]
    pub step: Step,
}

/// What can happen to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// IDENTIFY was accepted.
    Identified,
    /// RESUME was accepted.
    Resumed {
        /// The client's `seq`.
        from: u64,
        /// Dispatches replayed.
        replayed: u64,
    },
    /// The socket is gone, the session stays.
    Disconnected {
        /// Code of the close frame, when there was one.
        code: Option<u16>,
    },
    /// Another socket resumed it.
    TakenOver,
    /// Op 9 was sent on the live session.
    Invalidated {
        /// Whether RESUME stays possible.
        resumable: bool,
    },
    /// A RESUME came too late: these dispatches had left the replay buffer.
    ReplayExceeded {
        /// First lost `s`.
        first: u64,
        /// Last lost `s`.
        last: u64,
    },
    /// The client closed with 1000 or 1001.
    Destroyed {
        /// The code.
        code: u16,
    },
    /// Nobody resumed it in time.
    Expired,
    /// The session budget was exceeded: everything ended.
    Revoked,
}

/// One IDENTIFY with a valid token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentifyRecord {
    /// µs since the simulator started.
    pub at_us: u64,
    /// Shard tuple.
    pub shard: ShardId,
    /// `shard_id % max_concurrency`.
    pub bucket: u32,
    /// False when it came too fast.
    pub accepted: bool,
}

/// A rule that a client broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// µs since the simulator started.
    pub at_us: u64,
    /// Which rule.
    pub rule: Rule,
    /// Shard tuple, where one is known.
    pub shard: Option<ShardId>,
    /// Particulars.
    pub detail: String,
}

/// The rules that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// More than 120 sends in 60 s.
    SendRate,
    /// More than 5 presence updates in 20 s.
    PresenceRate,
    /// More than 4096 bytes.
    PayloadTooLarge,
    /// Not a JSON object with an `op`, or a wrong `d`.
    Undecodable,
    /// An opcode nobody knows.
    UnknownOpcode,
    /// Something else before IDENTIFY.
    NotAuthenticated,
    /// A second IDENTIFY.
    AlreadyAuthenticated,
    /// A wrong token.
    BadToken,
    /// Shard out of range, or not a multiple of Discord's number.
    BadShard,
    /// Too many guilds on a shard.
    ShardingRequired,
    /// Not version 10.
    BadVersion,
    /// Not JSON encoding, or an unknown compression.
    BadEncoding,
    /// Unknown intents.
    BadIntents,
    /// Privileged intents that are not switched on.
    DisallowedIntents,
    /// Faster than `max_concurrency` allows.
    IdentifyTooFast,
    /// More session starts than allowed.
    SessionBudget,
    /// RESUME on the main URL though the session named another.
    ResumeOnMainUrl,
    /// IDENTIFY on the URL for resuming.
    IdentifyOnResumeUrl,
    /// RESUME with other query parameters.
    ResumeParams,
    /// RESUME of a session that was never there or is gone.
    UnknownSession,
    /// RESUME with a `seq` ahead of the session.
    InvalidSeq,
    /// A heartbeat naming an `s` that was never sent.
    HeartbeatSeq,
    /// No heartbeat in time.
    MissedHeartbeat,
    /// A requested heartbeat that did not come at once.
    HeartbeatRequest,
    /// Broken WebSocket framing.
    WebSocket,
    /// REST: above a rate limit.
    RestRateLimit,
    /// REST: no or a wrong token.
    RestUnauthorized,
}

/// A frame that is no event of any session: injected by a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Injected {
    /// µs since the simulator started.
    pub at_us: u64,
    /// Session on whose socket it was written.
    pub session: String,
    /// Its `s`, where it pretends to be a dispatch.
    pub seq: Option<u64>,
    /// Which fault.
    pub fault: String,
}

/// The whole ledger at one moment.
#[derive(Clone, Debug, Default)]
pub struct LedgerSnapshot {
    /// Every session ever, oldest first.
    pub sessions: Vec<SessionRecord>,
    /// Event names by [`Entry::name`].
    pub names: Vec<Arc<str>>,
    /// Steps of all sessions in order.
    pub lifecycle: Vec<Lifecycle>,
    /// Every IDENTIFY with a valid token.
    pub identifies: Vec<IdentifyRecord>,
    /// Every rule broken.
    pub violations: Vec<Violation>,
    /// Frames that are no events.
    pub injected: Vec<Injected>,
}

impl LedgerSnapshot {
    /// Dispatches over all sessions.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.sessions
            .iter()
            .map(|session| session.entries.len() as u64)
            .sum()
    }

    /// The session with this id.
    #[must_use]
    pub fn session(&self, id: &str) -> Option<&SessionRecord> {
        self.sessions.iter().find(|session| session.id == id)
    }

    /// How often a rule was broken.
    #[must_use]
    pub fn broken(&self, rule: Rule) -> usize {
        self.violations
            .iter()
            .filter(|violation| violation.rule == rule)
            .count()
    }

    /// The ledger as NDJSON: one line per record, `kind` names it.
    #[must_use]
    pub fn to_ndjson(&self) -> String {
        let mut out = String::new();
        for session in &self.sessions {
            self.write_session(session, &mut out);
        }
        write_records(&mut out, "lifecycle", &self.lifecycle);
        write_records(&mut out, "identify", &self.identifies);
        write_records(&mut out, "violation", &self.violations);
        write_records(&mut out, "injected", &self.injected);
        out
    }

    fn write_session(&self, session: &SessionRecord, out: &mut String) {
        let (id, shard) = (&session.id, [session.shard.id(), session.shard.count()]);
        let head = serde_json::json!({
            "kind": "session", "session": id, "shard": shard, "state": session.state,
            "events": session.entries.len(), "heartbeat_seq": session.heartbeat_seq,
            "resumed_from": session.resumed_from, "lost": session.lost,
        });
        push_line(out, format_args!("{head}"));
        for (index, entry) in session.entries.iter().enumerate() {
            let name = self
                .names
                .get(usize::from(entry.name))
                .map_or("", |name| name);
            let line = serde_json::json!({
                "kind": "event", "session": id, "shard": shard, "s": index + 1, "t": name,
                "guild": entry.guild.to_string(), "len": entry.len,
                "hash": format!("{:016x}", entry.hash), "queued_us": entry.queued_us,
                "written_us": entry.written_us, "oversized": entry.flags & Entry::OVERSIZED != 0,
            });
            push_line(out, format_args!("{line}"));
        }
    }
}

fn write_records<T: Serialize>(out: &mut String, kind: &str, records: &[T]) {
    for record in records {
        let mut value = serde_json::json!(record);
        value["kind"] = kind.into();
        push_line(out, format_args!("{value}"));
    }
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to a string");
}

/// The records that belong to no single session.
#[derive(Default)]
pub(crate) struct Log {
    inner: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    lifecycle: Vec<Lifecycle>,
    identifies: Vec<IdentifyRecord>,
    violations: Vec<Violation>,
    injected: Vec<Injected>,
    dropped: u64,
}

impl Log {
    pub(crate) fn step(&self, at_us: u64, session: &str, shard: ShardId, step: Step) {
        let record = Lifecycle {
            at_us,
            session: session.to_owned(),
            shard,
            step,
        };
        self.keep(record, |records| &mut records.lifecycle);
    }

    pub(crate) fn identify(&self, record: IdentifyRecord) {
        self.keep(record, |records| &mut records.identifies);
    }

    pub(crate) fn violation(&self, at_us: u64, rule: Rule, shard: Option<ShardId>, detail: String) {
        tracing::debug!(?rule, ?shard, detail, "client broke a rule");
        let record = Violation {
            at_us,
            rule,
            shard,
            detail,
        };
        self.keep(record, |records| &mut records.violations);
    }

    pub(crate) fn injected(&self, record: Injected) {
        self.keep(record, |records| &mut records.injected);
    }

    fn keep<T>(&self, record: T, list: impl FnOnce(&mut Records) -> &mut Vec<T>) {
        let mut records = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let list = list(&mut records);
        if list.len() < RECORDS_MAX {
            list.push(record);
        } else {
            records.dropped += 1;
        }
    }

    pub(crate) fn violations(&self) -> u64 {
        let records = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        records.violations.len() as u64 + records.dropped
    }

    pub(crate) fn copy_into(&self, snapshot: &mut LedgerSnapshot) {
        let records = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.lifecycle.clone_from(&records.lifecycle);
        snapshot.identifies.clone_from(&records.identifies);
        snapshot.violations.clone_from(&records.violations);
        snapshot.injected.clone_from(&records.injected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_stays_small() {
        assert!(size_of::<Entry>() <= 64);
    }

    #[test]
    fn the_ledger_is_one_json_object_per_line() {
        let shard = ShardId::new(1, 4).unwrap();
        let log = Log::default();
        log.step(
            5,
            "abc",
            shard,
            Step::Resumed {
                from: 3,
                replayed: 2,
            },
        );
        log.violation(6, Rule::SendRate, None, "121 in 60 s".to_owned());
        let session = SessionRecord {
            id: "abc".to_owned(),
            shard,
            state: SessionState::Connected,
            heartbeat_seq: 0,
            resumed_from: Some(3),
            lost: None,
            entries: vec![Entry {
                guild: 9,
                len: 7,
                written_us: 1,
                ..Entry::default()
            }],
        };
        let mut snapshot = LedgerSnapshot {
            sessions: vec![session],
            names: vec![Arc::from("READY")],
            ..LedgerSnapshot::default()
        };
        log.copy_into(&mut snapshot);
        let lines: Vec<serde_json::Value> = snapshot
            .to_ndjson()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let kinds: Vec<_> = lines
            .iter()
            .map(|line| line["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["session", "event", "lifecycle", "violation"]);
        assert_eq!(lines[1]["t"], "READY");
        assert_eq!(lines[1]["s"], 1);
        assert_eq!(lines[2]["replayed"], 2);
        assert_eq!(lines[3]["rule"], "send_rate");
    }
}
