//! What stands around a payload: header names and the id that makes an event unique.
//!
//! The payload itself is Discord's dispatch frame, byte for byte; nothing here touches it.

use std::fmt;
use std::str::FromStr;

use crate::subject::push_decimal;

/// JetStream's deduplication header: `<session_id>:<s>` on every event.
pub const NATS_MSG_ID: &str = "Nats-Msg-Id";
/// W3C trace context, on sampled events only.
pub const TRACEPARENT: &str = "traceparent";

/// Why a worker gave an event up, on messages of the dead-letter stream.
pub const DEAD_REASON: &str = "Dead-Reason";
/// Subject the event had, on messages of the dead-letter stream.
pub const DEAD_SUBJECT: &str = "Dead-Subject";
/// The event's own [`NATS_MSG_ID`], on messages of the dead-letter stream: there that header begins
/// with the consumer's name, since several may give up on the same event.
pub const DEAD_MESSAGE_ID: &str = "Dead-Message-Id";
/// How often the event was delivered, on messages of the dead-letter stream.
pub const DEAD_DELIVERIES: &str = "Dead-Deliveries";
/// Place the event has in its stream, `<stream>@<sequence>`, on messages of the dead-letter stream.
pub const DEAD_PLACE: &str = "Dead-Place";

/// Set by a NATS service that answers with an error: the text (NATS micro, ADR-32).
pub const SERVICE_ERROR: &str = "Nats-Service-Error";
/// Set by a NATS service that answers with an error: the number (NATS micro, ADR-32).
pub const SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Name of the worker that answers a broadcast or a message to a shard's holder.
pub const WORKER: &str = "Worker";

/// What was done to a key of a KV bucket (NATS, ADR-8); absent on a value.
pub const KV_OPERATION: &str = "KV-Operation";
/// [`KV_OPERATION`] of a key that was deleted.
pub const KV_DELETED: &str = "DEL";

/// Set by JetStream on the live feed: the stream an event is stored in.
pub const LIVE_STREAM: &str = "Nats-Stream";
/// Set by JetStream on the live feed: the subject an event is stored under.
pub const LIVE_SUBJECT: &str = "Nats-Subject";
/// Set by JetStream on the live feed: the sequence in the stream.
pub const LIVE_SEQUENCE: &str = "Nats-Sequence";

/// True when a session id can stand in a [`MessageId`]: not empty, visible ASCII, no colon.
///
/// Discord's are 32 hexadecimal digits; anything else would make a header that cannot be read back.
#[must_use]
pub fn is_session_id(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// Appends the id of a dispatch: the hot path's form of [`MessageId::dispatch`], without formatting
/// machinery.
pub fn push_dispatch_id(out: &mut Vec<u8>, session: &str, seq: u64) {
    out.extend_from_slice(session.as_bytes());
    out.push(b':');
    push_decimal(out, seq);
}

/// The value of [`NATS_MSG_ID`]: which event of which session this is.
///
/// A dispatch has `<session_id>:<s>`; a synthetic `PROXY_*` event has
/// `<session_id>:<s>:<NAME>:<unique>`, where session and `s` are the shard's checkpoint when it was
/// made (`none:0` before the first).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageId<'a> {
    /// Session the event belongs to, or `none`.
    pub session: &'a str,
    /// Sequence within the session; for a synthetic event the checkpoint's.
    pub seq: u64,
    /// Name and unique part of a synthetic event.
    pub synthetic: Option<(&'a str, &'a str)>,
}

impl<'a> MessageId<'a> {
    /// Session of a synthetic event made before the shard had one.
    pub const NO_SESSION: &'static str = "none";

    /// The id of a dispatch.
    #[must_use]
    pub const fn dispatch(session: &'a str, seq: u64) -> Self {
        Self {
            session,
            seq,
            synthetic: None,
        }
    }

    /// The id of a synthetic event: `name` is its `t`, `unique` tells it from others made at the
    /// same checkpoint.
    #[must_use]
    pub const fn synthetic(session: &'a str, seq: u64, name: &'a str, unique: &'a str) -> Self {
        Self {
            session,
            seq,
            synthetic: Some((name, unique)),
        }
    }

    /// Reads an id back. Only the one spelling that building gives is accepted.
    ///
    /// # Errors
    /// [`MessageIdError`] when the text has another shape.
    pub fn parse(text: &'a str) -> Result<Self, MessageIdError> {
        let malformed = || MessageIdError {
            text: text.to_owned(),
        };
        let mut parts = text.splitn(4, ':');
        let (Some(session), Some(seq)) = (parts.next(), parts.next()) else {
            return Err(malformed());
        };
        let canonical = seq.bytes().all(|byte| byte.is_ascii_digit())
            && (seq.len() == 1 || !seq.starts_with('0'));
        if !canonical || !is_session_id(session) {
            return Err(malformed());
        }
        let seq = u64::from_str(seq).map_err(|_| malformed())?;
        match (parts.next(), parts.next()) {
            (None, _) => Ok(Self::dispatch(session, seq)),
            (Some(name), Some(unique)) if is_word(name) && is_word(unique) => {
                Ok(Self::synthetic(session, seq, name, unique))
            }
            (Some(_), _) => Err(malformed()),
        }
    }
}

/// The tail of a synthetic event's id; `unique` may hold colons.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for MessageId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.session, self.seq)?;
        match self.synthetic {
            Some((name, unique)) => write!(f, ":{name}:{unique}"),
            None => Ok(()),
        }
    }
}

/// A message id of another shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message id {text:?} is neither <session>:<s> nor <session>:<s>:<NAME>:<unique>")]
pub struct MessageIdError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spelled_as_documented_and_read_back() {
        let check = |id: MessageId<'_>, text: &str| {
            assert_eq!(id.to_string(), text);
            assert_eq!(MessageId::parse(text), Ok(id));
        };
        check(MessageId::dispatch("8f1c", 0), "8f1c:0");
        check(
            MessageId::dispatch("8f1c", u64::MAX),
            "8f1c:18446744073709551615",
        );
        check(
            MessageId::synthetic("8f1c", 42, "PROXY_GAP", "b:2"),
            "8f1c:42:PROXY_GAP:b:2",
        );
        let first = MessageId::synthetic(MessageId::NO_SESSION, 0, "PROXY_SHARD", "x");
        check(first, "none:0:PROXY_SHARD:x");
    }

    #[test]
    fn ids_of_another_shape_are_refused_by_name() {
        for text in [
            "",
            "abc",
            ":1",
            "abc:",
            "abc:x",
            "abc:-1",
            "abc:+1",
            "abc:01",
            "abc:1:",
            "abc:1:NAME",
            "abc:1::u",
            "abc:1:NAME:",
            "abc:18446744073709551616",
            "a b:1",
            "a\r\nX: 1:1",
            "é:1",
        ] {
            let error = MessageId::parse(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn the_pushed_id_equals_the_displayed_one() {
        for seq in [0, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut pushed = b"x".to_vec();
            push_dispatch_id(&mut pushed, "8f1c", seq);
            assert_eq!(
                pushed,
                format!("x{}", MessageId::dispatch("8f1c", seq)).into_bytes()
            );
        }
    }
}
