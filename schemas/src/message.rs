//! What stands around a payload: header names and the id that makes an event unique.
//!
//! The payload itself is Discord's dispatch frame, byte for byte; nothing here touches it.

use std::fmt;
use std::str::FromStr;

/// JetStream's deduplication header: `<session_id>:<s>` on every event.
pub const NATS_MSG_ID: &str = "Nats-Msg-Id";
/// W3C trace context, on sampled events only.
pub const TRACEPARENT: &str = "traceparent";

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

    /// Reads an id back.
    ///
    /// # Errors
    /// [`MessageIdError`] when the text has another shape.
    pub fn parse(text: &'a str) -> Result<Self, MessageIdError> {
        let malformed = || MessageIdError {
            text: text.to_owned(),
        };
        let (session, rest) = text.split_once(':').ok_or_else(malformed)?;
        let (seq, synthetic) = match rest.split_once(':') {
            None => (rest, None),
            Some((seq, tail)) => (seq, Some(tail.split_once(':').ok_or_else(malformed)?)),
        };
        let plain = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        if session.is_empty() || !plain {
            return Err(malformed());
        }
        let seq = u64::from_str(seq).map_err(|_| malformed())?;
        Ok(Self {
            session,
            seq,
            synthetic,
        })
    }
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
