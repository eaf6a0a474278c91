//! The events a proxy adds to a shard's own, in order with them: same subjects, same frame, `s`
//! null. A consumer reads them like any dispatch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ProxyId, ShardId, ShardState, Timestamp};

/// Which synthetic event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyEventKind {
    /// `PROXY_GAP`
    Gap,
    /// `PROXY_SHARD`
    Shard,
    /// `PROXY_RESHARD`
    Reshard,
}

impl ProxyEventKind {
    /// Every synthetic event.
    pub const ALL: [Self; 3] = [Self::Gap, Self::Shard, Self::Reshard];

    /// The name as it stands in `t`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gap => "PROXY_GAP",
            Self::Shard => "PROXY_SHARD",
            Self::Reshard => "PROXY_RESHARD",
        }
    }

    /// The event of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A synthetic event with its body.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "t", content = "d")]
pub enum ProxyEvent {
    /// Events were lost, or may have been.
    #[serde(rename = "PROXY_GAP")]
    Gap(ProxyGap),
    /// A shard changed its state.
    #[serde(rename = "PROXY_SHARD")]
    Shard(ProxyShard),
    /// The fleet changes its shard count.
    #[serde(rename = "PROXY_RESHARD")]
    Reshard(ProxyReshard),
}

impl ProxyEvent {
    /// Which event it is.
    #[must_use]
    pub const fn kind(&self) -> ProxyEventKind {
        match self {
            Self::Gap(_) => ProxyEventKind::Gap,
            Self::Shard(_) => ProxyEventKind::Shard,
            Self::Reshard(_) => ProxyEventKind::Reshard,
        }
    }

    /// The shard in whose subjects it stands.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        match self {
            Self::Gap(gap) => gap.shard,
            Self::Shard(change) => change.shard,
            Self::Reshard(reshard) => reshard.shard,
        }
    }

    /// The whole frame: `{"t":"PROXY_GAP","s":null,"op":0,"d":{…}}`.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        match self {
            Self::Gap(gap) => frame(self.kind(), gap),
            Self::Shard(change) => frame(self.kind(), change),
            Self::Reshard(reshard) => frame(self.kind(), reshard),
        }
    }

    /// Reads a frame back; keys in any order, unknown ones ignored.
    ///
    /// # Errors
    /// When the bytes are no JSON, another event, or lack a field.
    pub fn from_frame(frame: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(frame)
    }
}

fn frame<Body: Serialize>(kind: ProxyEventKind, body: &Body) -> Vec<u8> {
    let frame = Dispatch {
        t: kind.name(),
        s: None,
        op: 0,
        d: body,
    };
    serde_json::to_vec(&frame).expect("bodies hold only strings, numbers and lists")
}

/// A dispatch frame as it lies in the stream: Discord's own, byte for byte, or a synthetic one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{Body}Frame")]
pub struct Dispatch<Name, Body> {
    /// Name of the event.
    pub t: Name,
    /// Sequence within the session; null for the events a proxy adds.
    pub s: Option<u64>,
    /// Opcode, 0 for every dispatch.
    pub op: u8,
    /// The event's own data.
    pub d: Body,
}

/// Body of `PROXY_GAP`: between two points of a shard's stream events are missing or may be.
///
/// Whenever a session ends without RESUME and another begins, it stands directly before the new
/// session's READY, also when nothing is provably lost. For a frame above the NATS server's
/// `max_payload` it stands in that frame's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyGap {
    /// Shard, as [id, count].
    pub shard: ShardId,
    /// Session before the gap.
    pub old_session_id: String,
    /// Sequence of the last event stored before the gap, in the old session.
    pub last_seq: u64,
    /// Session after the gap; the old one when the session went on.
    pub new_session_id: String,
    /// How many events are lost, null when nobody can know.
    #[serde(default)]
    pub lost: Option<u64>,
    /// Why.
    pub reason: GapReason,
    /// When the last event before the gap was received.
    pub from: Timestamp,
    /// When the first event after the gap was received.
    pub to: Timestamp,
}

/// Why a `PROXY_GAP` stands in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Discord answered RESUME, or a live session, with op 9 false.
    InvalidSession,
    /// More events passed than Discord keeps for a replay.
    ReplayExceeded,
    /// The session is older than Discord keeps one.
    SessionExpired,
    /// One frame is larger than the NATS server's `max_payload`.
    OversizedFrame,
    /// An operator, or other settings, asked for a new session, or the old one had stopped delivering and a
    /// RESUME did not mend it.
    Forced,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Body of `PROXY_SHARD`: a shard changed its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyShard {
    /// Shard, as [id, count].
    pub shard: ShardId,
    /// State it has since `at`.
    pub state: ShardState,
    /// State it had before.
    pub previous: ShardState,
    /// Why, for people: a close code, an operator's request.
    pub reason: String,
    /// Proxy that holds the shard.
    #[serde(default)]
    pub proxy: Option<ProxyId>,
    /// When.
    pub at: Timestamp,
}

/// Body of `PROXY_RESHARD`: the fleet changes its shard count. It stands in the subjects of every
/// shard of both shardings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyReshard {
    /// Shard in whose subjects this event stands, as [id, count].
    pub shard: ShardId,
    /// Shard count before.
    pub old_count: u32,
    /// Shard count after.
    pub new_count: u32,
    /// How far the change is.
    pub phase: ReshardPhase,
    /// When.
    pub at: Timestamp,
}

/// How far a change of the shard count is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReshardPhase {
    /// The new shards connect; events still come from the old ones.
    Started,
    /// From here on events come from the new shards.
    Switched,
    /// The old shards are closed.
    Finished,
    /// The change was given up; the old shards stay.
    Abandoned,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(lost: Option<u64>) -> ProxyEvent {
        ProxyEvent::Gap(ProxyGap {
            shard: ShardId::new(3, 16).unwrap(),
            old_session_id: "abc".to_owned(),
            last_seq: 41,
            new_session_id: "def".to_owned(),
            lost,
            reason: GapReason::InvalidSession,
            from: Timestamp::from_unix_ms(0),
            to: Timestamp::from_unix_ms(1500),
        })
    }

    #[test]
    fn a_gap_frame_is_spelled_to_the_letter() {
        let expect = r#"{"t":"PROXY_GAP","s":null,"op":0,"d":{"shard":[3,16],"old_session_id":"abc","last_seq":41,"new_session_id":"def","lost":null,"reason":"invalid_session","from":"1970-01-01T00:00:00.000Z","to":"1970-01-01T00:00:01.500Z"}}"#;
        assert_eq!(String::from_utf8(gap(None).frame()).unwrap(), expect);
        let known = String::from_utf8(gap(Some(1)).frame()).unwrap();
        assert_eq!(known, expect.replace(r#""lost":null"#, r#""lost":1"#));
    }

    #[test]
    fn every_frame_is_read_back() {
        let shard = ShardId::new(0, 1).unwrap();
        let at = Timestamp::from_unix_ms(7);
        let change = ProxyEvent::Shard(ProxyShard {
            shard,
            state: ShardState::Resuming,
            previous: ShardState::Ready,
            reason: "close 4000 \"quoted\" \u{1f980}".to_owned(),
            proxy: Some("a".parse().unwrap()),
            at,
        });
        let reshard = ProxyEvent::Reshard(ProxyReshard {
            shard,
            old_count: 1,
            new_count: 2,
            phase: ReshardPhase::Started,
            at,
        });
        for (event, kind) in [gap(Some(9)), change, reshard]
            .into_iter()
            .zip(ProxyEventKind::ALL)
        {
            assert_eq!(event.kind(), kind);
            assert_eq!(ProxyEvent::from_frame(&event.frame()).unwrap(), event);
        }
    }

    #[test]
    fn every_reason_has_its_word() {
        let words = [
            (GapReason::InvalidSession, "invalid_session"),
            (GapReason::ReplayExceeded, "replay_exceeded"),
            (GapReason::SessionExpired, "session_expired"),
            (GapReason::OversizedFrame, "oversized_frame"),
            (GapReason::Forced, "forced"),
        ];
        for (reason, word) in words {
            assert_eq!(serde_json::to_value(reason).unwrap(), word);
            assert_eq!(
                serde_json::from_value::<GapReason>(word.into()).unwrap(),
                reason
            );
        }
        assert_eq!(
            serde_json::from_str::<GapReason>("\"new\"").unwrap(),
            GapReason::Unknown
        );
    }

    #[test]
    fn another_event_is_no_proxy_event() {
        let frame = br#"{"t":"RESUMED","s":2,"op":0,"d":{}}"#;
        assert!(ProxyEvent::from_frame(frame).is_err());
        assert!(ProxyEvent::from_frame(b"").is_err());
    }
}
