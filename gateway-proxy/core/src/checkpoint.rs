//! Where a shard carries on when a process takes it: from the last message in the stream and the
//! shard's record in the fleet bucket.

use schemas::{Intents, MessageId, ShardId, ShardRecord};

use crate::session::{EndReason, Resumable};

/// A session nobody was connected to for so long is not asked for any more. Discord keeps sessions
/// "a few minutes"; a refused RESUME costs only seconds, so the bound is generous.
pub const SESSION_LIFE_MS: u64 = 60 * 60 * 1_000;

/// What a session must have been made with to be resumed by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The shard; a session belongs to number and count.
    pub shard: ShardId,
    /// Intents of this process.
    pub intents: Intents,
    /// Gateway version of this process.
    pub api_version: u8,
    /// Now, unix ms.
    pub now_ms: u64,
    /// An operator wants a new session.
    pub fresh: bool,
}

/// The last message of the shard's subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastStored<'a> {
    /// Its `Nats-Msg-Id`.
    pub id: &'a MessageId<'a>,
    /// When it was stored, unix ms.
    pub at_ms: u64,
    /// What the READY of that session said, if it is in the stream. Subjects name no shard count, so
    /// without record and READY nobody knows which sharding the session belongs to.
    pub ready: Option<ReadyFacts<'a>>,
}

/// What a READY says about its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyFacts<'a> {
    /// `d.shard`.
    pub shard: ShardId,
    /// `d.resume_gateway_url`.
    pub resume_url: Option<&'a str>,
}

/// How a shard starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It never had a session that anybody knows of.
    New,
    /// RESUME this.
    Resume(Resumable),
    /// IDENTIFY; the session before it is announced as ended.
    After {
        /// The session before.
        old: Resumable,
        /// Why it is not resumed.
        reason: EndReason,
    },
}

/// How a shard starts, and since when its events are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How it starts.
    pub start: Start,
    /// When its session was last known to be followed, unix ms: where a gap begins if it is lost.
    pub alive_ms: Option<u64>,
}

/// Decides how a shard starts.
///
/// The stream leads, since nothing is known to be stored beyond it. The record adds the resume url
/// and a later sequence if it speaks of the same session (events that are filtered out advance only
/// the record), and stands in for a stream that holds nothing newer (purged, or all filtered).
#[must_use]
pub fn start(
    wanted: &Wanted,
    stored: Option<LastStored<'_>>,
    record: Option<&ShardRecord>,
) -> Decision {
    let record = record.filter(|record| record.shard == wanted.shard);
    let from_record = record.and_then(|record| {
        let session_id = record.session_id.clone()?;
        let resume_url = record.resume_gateway_url.clone();
        let known = Resumable {
            session_id,
            resume_url,
            seq: record.sequence?,
        };
        Some((known, record.sequence_at_unix_ms.unwrap_or(0)))
    });
    let from_stream =
        stored.filter(|last| last.id.session != MessageId::NO_SESSION && last.id.seq > 0);
    let (known, alive_ms, of_this_sharding) = match (from_stream, from_record) {
        (None, None) => {
            return Decision {
                start: Start::New,
                alive_ms: None,
            };
        }
        (None, Some((known, at_ms))) => (known, at_ms, true),
        (Some(last), Some((known, at_ms))) if known.session_id == last.id.session => {
            let seq = known.seq.max(last.id.seq);
            (Resumable { seq, ..known }, at_ms.max(last.at_ms), true)
        }
        // The record was written after the last message: a session whose events are all filtered, its
        // READY too. With a READY in the stream the clocks, which differ, are not asked.
        (Some(last), Some((known, at_ms))) if last.ready.is_none() && at_ms > last.at_ms => {
            (known, at_ms, true)
        }
        (Some(last), _) => {
            let ready = last.ready.filter(|ready| ready.shard == wanted.shard);
            (resumable(&last, ready), last.at_ms, ready.is_some())
        }
    };
    let refusal = if of_this_sharding {
        refusal(wanted, record, &known, alive_ms)
    } else {
        Some(EndReason::Forced)
    };
    let start = match refusal {
        Some(reason) => Start::After { old: known, reason },
        None => Start::Resume(known),
    };
    Decision {
        start,
        alive_ms: Some(alive_ms),
    }
}

fn resumable(last: &LastStored<'_>, ready: Option<ReadyFacts<'_>>) -> Resumable {
    Resumable {
        session_id: last.id.session.to_owned(),
        resume_url: ready.and_then(|ready| ready.resume_url).map(str::to_owned),
        seq: last.id.seq,
    }
}

fn refusal(
    wanted: &Wanted,
    record: Option<&ShardRecord>,
    known: &Resumable,
    alive_ms: u64,
) -> Option<EndReason> {
    if wanted.fresh {
        return Some(EndReason::Forced);
    }
    let same_session =
        record.filter(|record| record.session_id.as_deref() == Some(&known.session_id));
    if let Some(record) = same_session {
        let other_intents = record
            .intents
            .is_some_and(|intents| intents != wanted.intents);
        let other_version = record
            .api_version
            .is_some_and(|used| used != wanted.api_version);
        if other_intents || other_version {
            return Some(EndReason::Forced);
        }
    }
    (wanted.now_ms.saturating_sub(alive_ms) > SESSION_LIFE_MS).then_some(EndReason::SessionExpired)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn wanted() -> Wanted {
        Wanted {
            shard: ShardId::new(3, 16).unwrap(),
            intents: Intents::UNPRIVILEGED,
            api_version: 10,
            now_ms: NOW,
            fresh: false,
        }
    }

    fn record(session: &str, seq: u64, age_ms: u64) -> ShardRecord {
        ShardRecord {
            session_id: Some(session.to_owned()),
            resume_gateway_url: Some("wss://resume".to_owned()),
            sequence: Some(seq),
            sequence_at_unix_ms: Some(NOW - age_ms),
            intents: Some(Intents::UNPRIVILEGED),
            api_version: Some(10),
            ..ShardRecord::new(ShardId::new(3, 16).unwrap())
        }
    }

    fn check(stored: Option<(&str, u64)>, record: Option<&ShardRecord>, expect: &Start) {
        check_with(wanted().shard, stored, record, expect);
    }

    fn check_with(
        ready: ShardId,
        stored: Option<(&str, u64)>,
        record: Option<&ShardRecord>,
        expect: &Start,
    ) {
        let ready = Some(ReadyFacts {
            shard: ready,
            resume_url: Some("wss://ready"),
        });
        let id = stored.map(|(id, age)| (MessageId::parse(id).unwrap(), age));
        let last = id.as_ref().map(|(id, age)| LastStored {
            id,
            at_ms: NOW - age,
            ready,
        });
        assert_eq!(&start(&wanted(), last, record).start, expect);
    }

    fn resume(session: &str, seq: u64, url: &str) -> Start {
        Start::Resume(Resumable {
            session_id: session.to_owned(),
            resume_url: Some(url.to_owned()),
            seq,
        })
    }

    #[test]
    fn a_shard_nobody_knows_is_new() {
        check(None, None, &Start::New);
        check(None, Some(&ShardRecord::new(wanted().shard)), &Start::New);
        check(Some(("none:0:PROXY_SHARD:x", 10)), None, &Start::New);
    }

    #[test]
    fn the_newer_of_stream_and_record_counts_within_one_session() {
        check(
            Some(("a:100", 10)),
            Some(&record("a", 90, 20)),
            &resume("a", 100, "wss://resume"),
        );
        check(
            Some(("a:100", 10)),
            Some(&record("a", 120, 5)),
            &resume("a", 120, "wss://resume"),
        );
        check(
            Some(("a:100:PROXY_GAP:oversized", 10)),
            None,
            &resume("a", 100, "wss://ready"),
        );
    }

    #[test]
    fn of_two_sessions_the_later_one_counts() {
        check(
            Some(("b:7", 10)),
            Some(&record("a", 900, 5_000)),
            &resume("b", 7, "wss://ready"),
        );
        // READY and all events of the later one are left out: only the record knows it.
        let id = MessageId::parse("a:900").unwrap();
        let last = LastStored {
            id: &id,
            at_ms: NOW - 5_000,
            ready: None,
        };
        let decision = start(&wanted(), Some(last), Some(&record("b", 7, 10)));
        assert_eq!(decision.start, resume("b", 7, "wss://resume"));
    }

    #[test]
    fn a_clock_ahead_of_the_servers_does_not_bring_a_dead_session_back() {
        check(
            Some(("b:1", 10)),
            Some(&record("a", 900, 5)),
            &resume("b", 1, "wss://ready"),
        );
    }

    #[test]
    fn a_purged_stream_leaves_the_record() {
        check(
            None,
            Some(&record("a", 90, 20)),
            &resume("a", 90, "wss://resume"),
        );
    }

    #[test]
    fn another_shard_count_is_another_shard() {
        let other = ShardRecord {
            shard: ShardId::new(3, 8).unwrap(),
            ..record("a", 90, 20)
        };
        check(None, Some(&other), &Start::New);
    }

    #[test]
    fn a_session_of_the_same_number_in_another_sharding_is_not_resumed() {
        let old = Resumable {
            session_id: "b".to_owned(),
            resume_url: None,
            seq: 7,
        };
        let expect = Start::After {
            old,
            reason: EndReason::Forced,
        };
        check_with(
            ShardId::new(3, 8).unwrap(),
            Some(("b:7", 10)),
            None,
            &expect,
        );
    }

    #[test]
    fn other_intents_force_a_new_session_that_announces_the_old_one() {
        let other = ShardRecord {
            intents: Some(Intents::NONE),
            ..record("a", 90, 20)
        };
        let Start::After { old, reason } = start(&wanted(), None, Some(&other)).start else {
            panic!("resumed with other intents");
        };
        assert_eq!((old.seq, reason), (90, EndReason::Forced));
        let version = ShardRecord {
            api_version: Some(9),
            ..record("a", 90, 20)
        };
        assert!(matches!(
            start(&wanted(), None, Some(&version)).start,
            Start::After { .. }
        ));
    }

    #[test]
    fn a_session_older_than_its_life_is_not_asked_for() {
        let old = record("a", 90, SESSION_LIFE_MS + 1);
        let Start::After { reason, .. } = start(&wanted(), None, Some(&old)).start else {
            panic!("resumed an expired session");
        };
        assert_eq!(reason, EndReason::SessionExpired);
    }

    #[test]
    fn a_fresh_start_ends_what_there_is() {
        let fresh = Wanted {
            fresh: true,
            ..wanted()
        };
        let known = record("a", 90, 20);
        assert!(matches!(
            start(&fresh, None, Some(&known)).start,
            Start::After { .. }
        ));
        assert_eq!(start(&fresh, None, None).start, Start::New);
    }
}
