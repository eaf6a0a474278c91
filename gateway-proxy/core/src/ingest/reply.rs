//! The server's answers on a batch's inbox, from their JSON.

use serde::Deserialize;

/// What the server answered on the batch's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `{"type":"ack"}`: stored up to `seq` of the batch; it wants `messages` between two of these.
    Flow {
        /// Batch sequence.
        seq: u64,
        /// Messages per acknowledgement.
        messages: u16,
    },
    /// `{"type":"gap"}`: informational; the batch's final answer follows.
    Gap,
    /// `{"type":"err"}`: informational, names the message that was refused.
    Error {
        /// Batch sequence of the refused message.
        seq: u64,
        /// The server's words.
        error: ApiError,
    },
    /// The batch ended with `count` messages stored.
    Done {
        /// Batch sequence of the last stored message.
        count: u64,
        /// It was a single message that had been stored before.
        duplicate: bool,
    },
    /// A message was refused, and with it the batch. Which message, the answer does not say.
    Refused(ApiError),
}

/// An error of JetStream's API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description} ({err_code})")]
pub struct ApiError {
    /// HTTP-like class.
    pub code: u16,
    /// JetStream's own number.
    pub err_code: u32,
    /// Its words.
    pub description: String,
}

impl ApiError {
    /// True when the same message will be refused again: it alone is at fault.
    #[must_use]
    pub fn blames_message(&self) -> bool {
        match self.err_code {
            // Above the stream's max_msg_size; headers above 64 KiB.
            10_054 | 10_097 => true,
            // A failed store, with the reason in words: above the file store's record size.
            10_077 => self.description == "message too large",
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: Option<String>,
    seq: Option<u64>,
    msgs: Option<u16>,
    count: Option<u64>,
    duplicate: Option<bool>,
    stream: Option<String>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

impl Reply {
    /// Reads an answer. `single` tells that the batch is one message that committed at once, which is
    /// answered like an ordinary publish, without a count.
    ///
    /// # Errors
    /// [`ReplyError`] for anything else than the five answers there are.
    pub fn parse(payload: &[u8], single: bool) -> Result<Self, ReplyError> {
        let unknown = || ReplyError {
            payload: String::from_utf8_lossy(payload).into_owned(),
        };
        let wire: Wire = serde_json::from_slice(payload).map_err(|_| unknown())?;
        match (wire.kind.as_deref(), wire.error, wire.seq) {
            (Some("ack"), _, Some(seq)) => Ok(Self::Flow {
                seq,
                messages: wire.msgs.unwrap_or(1),
            }),
            (Some("gap"), _, _) => Ok(Self::Gap),
            (Some("err"), Some(error), Some(seq)) => Ok(Self::Error {
                seq,
                error: error.into(),
            }),
            (None, Some(error), _) => Ok(Self::Refused(error.into())),
            (None, None, Some(_)) if wire.stream.is_some() => {
                let count = wire.count.unwrap_or(u64::from(single));
                Ok(Self::Done {
                    count,
                    duplicate: wire.duplicate.unwrap_or(false),
                })
            }
            _ => Err(unknown()),
        }
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        Self {
            code: error.code,
            err_code: error.err_code,
            description: error.description,
        }
    }
}

/// An answer this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("jetstream answered {payload:?}")]
pub struct ReplyError {
    /// What it said.
    pub payload: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_answers_are_told_apart() {
        let parse = |text: &str| Reply::parse(text.as_bytes(), false).unwrap();
        assert_eq!(
            parse(r#"{"type":"ack","seq":10,"msgs":15}"#),
            Reply::Flow {
                seq: 10,
                messages: 15
            }
        );
        assert_eq!(
            parse(r#"{"type":"gap","last_seq":10,"seq":15}"#),
            Reply::Gap
        );
        let error = ApiError {
            code: 400,
            err_code: 10071,
            description: "wrong last sequence: 1".into(),
        };
        assert_eq!(
            parse(
                r#"{"type":"err","seq":10,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}"#
            ),
            Reply::Error {
                seq: 10,
                error: error.clone()
            }
        );
        assert_eq!(
            parse(r#"{"stream":"DISCORD_EVENTS","seq":77,"batch":"x","count":12}"#),
            Reply::Done {
                count: 12,
                duplicate: false
            }
        );
        assert_eq!(
            parse(
                r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"},"stream":"S","seq":0}"#
            ),
            Reply::Refused(error)
        );
    }

    #[test]
    fn a_lone_message_is_answered_without_a_count() {
        let plain = br#"{"stream":"S","seq":5}"#;
        assert_eq!(
            Reply::parse(plain, true),
            Ok(Reply::Done {
                count: 1,
                duplicate: false
            })
        );
        let again = br#"{"stream":"S","seq":5,"duplicate":true}"#;
        assert_eq!(
            Reply::parse(again, true),
            Ok(Reply::Done {
                count: 1,
                duplicate: true
            })
        );
    }

    #[test]
    fn anything_else_is_an_error_that_shows_it() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"type":"new"}"#,
            r#"{"type":"ack"}"#,
            "\u{ff}",
        ] {
            assert!(Reply::parse(text.as_bytes(), false).is_err(), "{text}");
        }
    }
}
