//! The comparison, and how it reads.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use schemas::subject::{event_root, push_event_subject};
use schemas::{GuildId, Prefix};
use serde_json::Value;

use super::reader::{SessionEvents, Stored, StoredEvent};
use crate::simulator::{Entry, LedgerSnapshot, Rule, SessionRecord, SessionState, Step};

/// Findings of one kind that are spelt out; the others are only counted.
const SPELT_OUT: usize = 20;

/// READY is stored at once. A connection that ended within this after READY was written may have ended
/// before the proxy read it, or the proxy died while NATS was away; later, the proxy must have known
/// its session.
const READY_STORED_WITHIN: Duration = Duration::from_secs(10);

/// How often something was found, and the first examples.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

impl Tally {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < SPELT_OUT {
            self.examples.push(example());
        }
    }
}

/// A `PROXY_GAP` in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Shard tuple.
    pub shard: (u32, u32),
    /// The session that ended.
    pub old_session: String,
    /// Its last stored `s`.
    pub last_seq: u64,
    /// The session that follows.
    pub new_session: String,
    /// Events lost, where that is known.
    pub lost: Option<u64>,
    /// Why.
    pub reason: String,
    /// Sequence in the stream.
    pub position: u64,
}

impl Gap {
    pub(super) fn parse(payload: &[u8], position: u64) -> Option<Self> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        let d = &value["d"];
        let shard = |n: usize| d["shard"][n].as_u64().and_then(|n| u32::try_from(n).ok());
        let text = |key: &str| d[key].as_str().unwrap_or_default().to_owned();
        Some(Self {
            shard: (shard(0)?, shard(1)?),
            old_session: text("old_session_id"),
            last_seq: d["last_seq"].as_u64().unwrap_or(0),
            new_session: text("new_session_id"),
            lost: d["lost"].as_u64(),
            reason: d["reason"].as_str()?.to_owned(),
            position,
        })
    }

    /// Whether it stands for an event of a session that is not stored.
    fn covers(&self, session: &str, seq: u64, oversized: bool) -> bool {
        if self.reason == "oversized_frame" {
            // It stands in the frame's place: behind the last stored event.
            return oversized && self.old_session == session && seq.abs_diff(self.last_seq) <= 1;
        }
        self.old_session == session && seq > self.last_seq
    }
}

/// What an audit found.
#[derive(Clone, Debug, Default)]
pub struct AuditReport {
    /// Dispatches in the ledger.
    pub events: u64,
    /// Of them in the stream, intact.
    pub stored: u64,
    /// In the ledger, not in the stream, and no `PROXY_GAP` says so.
    pub missing: Tally,
    /// In the stream more than once.
    pub duplicated: Tally,
    /// Behind a later event of the same session.
    pub out_of_order: Tally,
    /// With other bytes than the simulator sent.
    pub altered: Tally,
    /// On another subject than the grammar says.
    pub wrong_subject: Tally,
    /// In the stream, not in the ledger.
    pub unexpected: Tally,
    /// Not stored, and a `PROXY_GAP` says so.
    pub declared_lost: u64,
    /// Of ended sessions, never written to any socket.
    pub undelivered: u64,
    /// Sessions whose connection ended before READY was stored: nobody can know them, no
    /// `PROXY_GAP` is owed for them. The one of the session before stands ahead of the next READY.
    pub unknown_sessions: Tally,
    /// Dispatches of those sessions that were written to their sockets.
    pub unknown_events: u64,
    /// Injected frames that were stored though they are no events.
    pub injected_stored: u64,
    /// Ended sessions without the `PROXY_GAP` that is due before the next one's READY.
    pub gaps_owed: Tally,
    /// Every `PROXY_GAP`.
    pub gaps: Vec<Gap>,
    /// Other events the proxy added.
    pub synthetic: u64,
    /// IDENTIFYs.
    pub identifies: usize,
    /// Rules the client broke towards Discord.
    pub violations: BTreeMap<Rule, usize>,
}

impl AuditReport {
    /// Every event of every session is in the stream exactly once, intact, in order and on the right
    /// subject, or a `PROXY_GAP` says that it is not.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.is_honest() && self.unknown_sessions.count == 0
    }

    /// As [`Self::is_clean`], but for sessions that ended before their READY was stored: kills and
    /// faults at random moments make some.
    #[must_use]
    pub const fn is_honest(&self) -> bool {
        self.missing.count == 0
            && self.duplicated.count == 0
            && self.out_of_order.count == 0
            && self.altered.count == 0
            && self.wrong_subject.count == 0
            && self.unexpected.count == 0
            && self.gaps_owed.count == 0
    }

    /// [`Self::is_clean`], and nothing was lost at all.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_clean() && self.declared_lost == 0 && self.undelivered == 0
    }

    const fn tallies(&self) -> [(&'static str, &Tally); 7] {
        [
            ("missing", &self.missing),
            ("duplicated", &self.duplicated),
            ("out of order", &self.out_of_order),
            ("altered", &self.altered),
            ("wrong subject", &self.wrong_subject),
            ("unexpected", &self.unexpected),
            ("gaps owed", &self.gaps_owed),
        ]
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.is_clean(), self.is_honest()) {
            (true, _) => "clean",
            (false, true) => "clean, but for sessions nobody could know",
            (false, false) => "NOT CLEAN",
        };
        writeln!(
            f,
            "audit: {verdict}, {} of {} events stored",
            self.stored, self.events
        )?;
        for (name, tally) in self.tallies() {
            writeln!(f, "  {name:<14} {:>9}", tally.count)?;
            for example in &tally.examples {
                writeln!(f, "    {example}")?;
            }
        }
        writeln!(f, "  {:<14} {:>9}", "declared lost", self.declared_lost)?;
        writeln!(f, "  {:<14} {:>9}", "undelivered", self.undelivered)?;
        if self.unknown_sessions.count > 0 {
            writeln!(
                f,
                "  {:<14} {:>9}  of {} sessions that ended before READY was stored",
                "unknown", self.unknown_events, self.unknown_sessions.count
            )?;
            for example in &self.unknown_sessions.examples {
                writeln!(f, "    {example}")?;
            }
        }
        writeln!(f, "  {:<14} {:>9}", "synthetic", self.synthetic)?;
        writeln!(f, "  {:<14} {:>9}", "identifies", self.identifies)?;
        for gap in &self.gaps {
            let (id, count) = gap.shard;
            writeln!(
                f,
                "  gap: shard {id}/{count}, {} behind s {} of session {}, lost {:?}",
                gap.reason, gap.last_seq, gap.old_session, gap.lost
            )?;
        }
        for (rule, count) in &self.violations {
            writeln!(f, "  rule broken: {rule:?} {count}×")?;
        }
        Ok(())
    }
}

/// Compares a ledger with what was read.
pub(super) fn compare(prefix: &Prefix, ledger: &LedgerSnapshot, stored: &Stored) -> AuditReport {
    let mut report = AuditReport {
        events: ledger.events(),
        gaps: stored.gaps.clone(),
        synthetic: stored.synthetic + stored.gaps.len() as u64,
        identifies: ledger.identifies.len(),
        ..AuditReport::default()
    };
    for violation in &ledger.violations {
        *report.violations.entry(violation.rule).or_default() += 1;
    }
    for message in &stored.unidentified {
        report.unexpected.add(|| message.clone());
    }
    let nothing = SessionEvents::default();
    for session in &ledger.sessions {
        let events = stored.sessions.get(&session.id).unwrap_or(&nothing);
        if let Some(lived) = unknown(ledger, session, events) {
            report.unknown_sessions.add(|| {
                let (shard, id) = (session.shard, &session.id);
                format!("session {id} of shard {shard}, {lived:.1?} behind its READY")
            });
            // The rest was kept for a RESUME that nobody could ask for.
            let written = session.entries.iter().filter(|e| e.is_written()).count() as u64;
            report.unknown_events += written;
            report.undelivered += session.entries.len() as u64 - written;
            continue;
        }
        compare_session(prefix, ledger, session, events, &mut report);
    }
    for (id, events) in &stored.sessions {
        if ledger.session(id).is_none() {
            for event in &events.events {
                report
                    .unexpected
                    .add(|| format!("{}: s {} of unknown session {id}", event.subject, event.seq));
            }
        }
    }
    owed_gaps(ledger, stored, &mut report);
    report
}

/// Whether nothing of a session is stored because it ended when it had hardly begun: how long after
/// its READY.
fn unknown(
    ledger: &LedgerSnapshot,
    session: &SessionRecord,
    stored: &SessionEvents,
) -> Option<Duration> {
    let ready = session.entries.first()?;
    if session.state != SessionState::Ended || !stored.events.is_empty() || !ready.is_written() {
        return None;
    }
    let mut steps = ledger
        .lifecycle
        .iter()
        .filter(|record| record.session == session.id && record.step != Step::Identified);
    // Its one connection ended: whoever resumes a session knows it.
    let end = steps.next()?;
    let lived = Duration::from_micros(end.at_us.saturating_sub(ready.written_us));
    let known = |step: &Step| matches!(step, Step::Resumed { .. } | Step::TakenOver);
    let is_known = known(&end.step) || steps.any(|record| known(&record.step));
    (lived < READY_STORED_WITHIN && !is_known).then_some(lived)
}

fn compare_session(
    prefix: &Prefix,
    ledger: &LedgerSnapshot,
    session: &SessionRecord,
    stored: &SessionEvents,
    report: &mut AuditReport,
) {
    let root = event_root(prefix, session.shard.id());
    let mut found = vec![false; session.entries.len()];
    let (mut last, mut subject) = (0, Vec::new());
    for event in &stored.events {
        let what = || {
            format!(
                "{} s {} of session {}",
                event.subject, event.seq, session.id
            )
        };
        let index = event.seq.checked_sub(1).map(|index| index as usize);
        let entry = index.and_then(|index| session.entries.get(index).map(|e| (index, e)));
        let Some((index, entry)) = entry else {
            report.unexpected.add(what);
            continue;
        };
        if std::mem::replace(&mut found[index], true) {
            report.duplicated.add(what);
            continue;
        }
        if event.seq < last {
            report
                .out_of_order
                .add(|| format!("{} behind s {last}", what()));
        }
        last = last.max(event.seq);
        subject.clear();
        let name = ledger
            .names
            .get(usize::from(entry.name))
            .map_or("", |name| name);
        push_event_subject(&mut subject, &root, GuildId::new(entry.guild), name);
        let subject_fits = subject == event.subject.as_bytes();
        if !subject_fits {
            let expected = String::from_utf8_lossy(&subject).into_owned();
            report
                .wrong_subject
                .add(|| format!("{}, expected {expected}", what()));
        }
        if entry.hash != event.hash || u64::from(entry.len) != event.len {
            altered(ledger, session, event, report);
        } else if subject_fits {
            report.stored += 1;
        }
    }
    for (index, entry) in session.entries.iter().enumerate() {
        if !found[index] {
            absent(session, index as u64 + 1, entry, report);
        }
    }
}

/// An injected frame with the same `s` may have taken an event's place.
fn altered(
    ledger: &LedgerSnapshot,
    session: &SessionRecord,
    event: &StoredEvent,
    report: &mut AuditReport,
) {
    let injected = ledger.injected.iter();
    let mut same = injected.filter(|i| i.session == session.id && i.seq == Some(event.seq));
    if same.next().is_some() {
        report.injected_stored += 1;
    }
    report.altered.add(|| {
        format!(
            "{} s {} of session {}",
            event.subject, event.seq, session.id
        )
    });
}

fn absent(session: &SessionRecord, seq: u64, entry: &Entry, report: &mut AuditReport) {
    let oversized = entry.flags & Entry::OVERSIZED != 0;
    if report
        .gaps
        .iter()
        .any(|gap| gap.covers(&session.id, seq, oversized))
    {
        report.declared_lost += 1;
    } else if session.state == SessionState::Ended && !entry.is_written() {
        report.undelivered += 1;
    } else {
        report
            .missing
            .add(|| format!("shard {} s {seq} of session {}", session.shard, session.id));
    }
}

/// Looks for the `PROXY_GAP` between a session that ended, or that nobody resumed, and the next one
/// of its shard tuple. None is due where READY of either was never stored: nobody can know that
/// session.
fn owed_gaps(ledger: &LedgerSnapshot, stored: &Stored, report: &mut AuditReport) {
    let ready = |session: &SessionRecord| {
        let events = &stored.sessions.get(&session.id)?.events;
        let first = events.iter().find(|event| event.seq == 1);
        first.map(|event| event.position)
    };
    let mut begun = HashMap::new();
    let mut ended = HashMap::new();
    for record in &ledger.lifecycle {
        let session = record.session.as_str();
        match record.step {
            Step::Identified => drop(begun.insert(session, record.at_us)),
            Step::Resumed { .. } => drop(ended.remove(session)),
            Step::TakenOver | Step::Invalidated { resumable: true } => {}
            Step::Disconnected { .. }
            | Step::Invalidated { resumable: false }
            | Step::ReplayExceeded { .. }
            | Step::Destroyed { .. }
            | Step::Expired
            | Step::Revoked => drop(ended.entry(session).or_insert(record.at_us)),
        }
    }
    for (at, session) in ledger.sessions.iter().enumerate() {
        let (Some(end_us), Some(_)) = (ended.get(session.id.as_str()), ready(session)) else {
            continue;
        };
        let next = ledger.sessions[at + 1..].iter().find(|next| {
            next.shard == session.shard && begun.get(next.id.as_str()) >= Some(end_us)
        });
        let Some((next, position)) = next.and_then(|next| Some((next, ready(next)?))) else {
            continue;
        };
        let declared = stored
            .gaps
            .iter()
            .any(|gap| gap.old_session == session.id && gap.position < position);
        if !declared {
            report.gaps_owed.add(|| {
                format!(
                    "shard {}: between {} and {}",
                    session.shard, session.id, next.id
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::Lifecycle;

    fn gap(reason: &str, last_seq: u64) -> Gap {
        Gap {
            shard: (0, 1),
            old_session: "abc".to_owned(),
            last_seq,
            new_session: "def".to_owned(),
            lost: None,
            reason: reason.to_owned(),
            position: 9,
        }
    }

    #[test]
    fn a_gap_covers_what_comes_behind_it() {
        let gap = gap("invalid_session", 7);
        assert!(gap.covers("abc", 8, false));
        assert!(!gap.covers("abc", 7, false));
        assert!(!gap.covers("xyz", 8, false));
    }

    /// A ledger with one ended session: READY was written, and the connection ended `lived_us` later.
    fn ended_session(lived_us: u64, steps: &[Step]) -> (LedgerSnapshot, SessionRecord) {
        let shard = schemas::ShardId::new(0, 1).unwrap();
        let written = Entry {
            written_us: 5_000,
            ..Entry::default()
        };
        let session = SessionRecord {
            id: "abc".to_owned(),
            shard,
            state: SessionState::Ended,
            heartbeat_seq: 0,
            resumed_from: None,
            lost: None,
            entries: vec![written; 3],
        };
        let record = |(index, step): (usize, &Step)| Lifecycle {
            at_us: 5_000 + lived_us * (index as u64).min(1),
            session: "abc".to_owned(),
            shard,
            step: step.clone(),
        };
        let lifecycle = steps.iter().enumerate().map(record).collect();
        let ledger = LedgerSnapshot {
            lifecycle,
            sessions: vec![session.clone()],
            ..LedgerSnapshot::default()
        };
        (ledger, session)
    }

    #[test]
    fn a_session_that_ended_before_ready_was_stored_is_unknown() {
        let lost = Step::Disconnected { code: None };
        let resumed = Step::Resumed {
            from: 1,
            replayed: 2,
        };
        let none = SessionEvents::default();
        let unknown = |lived_us, steps: &[Step]| {
            let (ledger, session) = ended_session(lived_us, steps);
            unknown(&ledger, &session, &none).is_some()
        };
        let ended = [Step::Identified, lost.clone(), Step::Expired];
        assert!(unknown(63_000, &ended));
        assert!(!unknown(10_000_000, &ended), "READY had time to be stored");
        let resumed = [Step::Identified, lost, resumed, Step::Expired];
        assert!(!unknown(63_000, &resumed), "who resumes it knows it");
        assert!(!unknown(63_000, &[Step::Identified]), "it never ended");
    }

    #[test]
    fn unknown_sessions_are_honest_but_not_clean() {
        let (ledger, _) = ended_session(
            63_000,
            &[Step::Identified, Step::Disconnected { code: None }],
        );
        let report = compare(&Prefix::default(), &ledger, &Stored::default());
        assert_eq!(
            (report.unknown_sessions.count, report.unknown_events),
            (1, 3)
        );
        assert!(report.is_honest() && !report.is_clean(), "{report}");
    }

    #[test]
    fn an_oversized_gap_covers_one_oversized_frame() {
        let gap = gap("oversized_frame", 7);
        assert!(gap.covers("abc", 8, true));
        assert!(!gap.covers("abc", 8, false));
        assert!(!gap.covers("abc", 9, true));
    }

    #[test]
    fn a_gap_is_read_as_the_contract_writes_it() {
        let payload =
            br#"{"t":"PROXY_GAP","s":null,"op":0,"d":{"shard":[3,16],"old_session_id":"abc",
            "last_seq":7,"new_session_id":"def","lost":null,"reason":"invalid_session",
            "from":"2026-11-20T07:00:00Z","to":"2026-11-20T07:00:05Z"}}"#;
        let expect = Gap {
            shard: (3, 16),
            ..gap("invalid_session", 7)
        };
        assert_eq!(Gap::parse(payload, 9), Some(expect));
        assert_eq!(Gap::parse(b"{}", 9), None);
    }
}
