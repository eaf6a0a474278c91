//! Requests and replies: gateway commands sent on a shard, and the coordinator's service.
//!
//! Readers ignore fields they do not know, and every field added after the first version has a
//! default, so that proxies of two versions understand each other.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod fleet_service;

pub use fleet_service::{
    DrainRequest, FleetReply, FleetVerb, FleetVerbError, IdentifyOutcome, IdentifyPriority,
    IdentifyReply, IdentifyReport, IdentifyRequest, IdentifyStatus, MigrateRequest, ReshardRequest,
    RestartRequest, StateRequest,
};

/// A gateway payload to send on a shard: the body of a request to `….commands`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayCommand {
    /// Which command.
    pub op: CommandOp,
    /// Its data, as Discord documents it for the opcode.
    pub d: Map<String, Value>,
}

impl GatewayCommand {
    /// Largest payload Discord accepts (Gateway, Sending Events): above it, close code 4002.
    pub const MAX_BYTES: usize = 4096;

    /// Reads and checks a request.
    ///
    /// # Errors
    /// [`CommandError`] says what is wrong, in words fit for [`CommandReply::error`].
    pub fn parse(request: &[u8]) -> Result<Self, CommandError> {
        #[derive(Deserialize)]
        struct Raw {
            op: u64,
            #[serde(default)]
            d: Value,
        }
        if request.len() > Self::MAX_BYTES {
            return Err(CommandError::TooLarge {
                bytes: request.len(),
            });
        }
        let raw: Raw = serde_json::from_slice(request).map_err(CommandError::Malformed)?;
        let op = CommandOp::from_number(raw.op).ok_or(CommandError::Opcode { op: raw.op })?;
        match raw.d {
            Value::Object(d) => Ok(Self { op, d }),
            _ => Err(CommandError::NoObject { op }),
        }
    }

    /// The payload to send: `{"op","d"}`.
    ///
    /// # Errors
    /// [`CommandError::TooLarge`] above [`GatewayCommand::MAX_BYTES`].
    pub fn payload(&self) -> Result<Vec<u8>, CommandError> {
        let payload = serde_json::to_vec(self).expect("a map of JSON values is JSON");
        if payload.len() > Self::MAX_BYTES {
            return Err(CommandError::TooLarge {
                bytes: payload.len(),
            });
        }
        Ok(payload)
    }
}

/// The opcodes a client of a shard may send; all others are the session's own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum CommandOp {
    /// 3: the bot's presence on this shard.
    PresenceUpdate,
    /// 4: join, move in or leave a voice channel.
    VoiceStateUpdate,
    /// 8: members of a guild, answered by `GUILD_MEMBERS_CHUNK`.
    RequestGuildMembers,
    /// 31: soundboard sounds of guilds, answered by `SOUNDBOARD_SOUNDS`.
    RequestSoundboardSounds,
    /// 43: channel facts of a guild, answered by `CHANNEL_INFO`.
    RequestChannelInfo,
}

impl CommandOp {
    /// Every allowed opcode.
    pub const ALL: [Self; 5] = [
        Self::PresenceUpdate,
        Self::VoiceStateUpdate,
        Self::RequestGuildMembers,
        Self::RequestSoundboardSounds,
        Self::RequestChannelInfo,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::PresenceUpdate => 3,
            Self::VoiceStateUpdate => 4,
            Self::RequestGuildMembers => 8,
            Self::RequestSoundboardSounds => 31,
            Self::RequestChannelInfo => 43,
        }
    }

    /// The opcode of this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.number() == number)
    }
}

impl TryFrom<u64> for CommandOp {
    type Error = CommandError;

    fn try_from(op: u64) -> Result<Self, CommandError> {
        Self::from_number(op).ok_or(CommandError::Opcode { op })
    }
}

impl From<CommandOp> for u64 {
    fn from(op: CommandOp) -> Self {
        op.number()
    }
}

impl fmt::Display for CommandOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl JsonSchema for CommandOp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CommandOp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Opcode: 3 presence, 4 voice state, 8 request guild members, \
                31 request soundboard sounds, 43 request channel info.",
            "type": "integer",
            "enum": Self::ALL.map(Self::number),
        })
    }
}

/// A request to `….commands` that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Longer than Discord accepts.
    #[error("payload of {bytes} bytes is above Discord's limit of 4096")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// No JSON object with a numeric `op`.
    #[error("request is not {{\"op\":<number>,\"d\":{{…}}}}")]
    Malformed(#[source] serde_json::Error),
    /// An opcode that is not for clients.
    #[error("op {op} is not one of 3, 4, 8, 31, 43")]
    Opcode {
        /// The number.
        op: u64,
    },
    /// `d` is missing or no object.
    #[error("d of op {op} is no object")]
    NoObject {
        /// The opcode.
        op: CommandOp,
    },
}

/// What became of a gateway command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandReply {
    /// Sent, queued or rejected.
    pub status: CommandStatus,
    /// Milliseconds: for a queued command until it is sent, for a rejected one until it may be
    /// tried again; null when neither applies.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// Why it was rejected, for people; null otherwise.
    #[serde(default)]
    pub error: Option<String>,
    /// Only when an equal member request was sent before this one or waits already, and this one is
    /// not sent: the nonce that the chunks carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_with_nonce: Option<String>,
    /// With a merged request that was sent: milliseconds since; chunks may have come already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_ms_ago: Option<u64>,
}

impl CommandReply {
    /// The command went out on the socket.
    #[must_use]
    pub const fn sent() -> Self {
        Self {
            status: CommandStatus::Sent,
            retry_after_ms: None,
            error: None,
            merged_with_nonce: None,
            sent_ms_ago: None,
        }
    }

    /// The command waits for the send budget (120 payloads per 60 s).
    #[must_use]
    pub const fn queued(retry_after_ms: u64) -> Self {
        Self {
            status: CommandStatus::Queued,
            retry_after_ms: Some(retry_after_ms),
            error: None,
            merged_with_nonce: None,
            sent_ms_ago: None,
        }
    }

    /// An equal member request, sent so long ago, answers this one too.
    #[must_use]
    pub const fn joined_sent(nonce: Option<String>, sent_ms_ago: u64) -> Self {
        Self {
            status: CommandStatus::Sent,
            retry_after_ms: None,
            error: None,
            merged_with_nonce: nonce,
            sent_ms_ago: Some(sent_ms_ago),
        }
    }

    /// An equal member request that waits answers this one too.
    #[must_use]
    pub const fn joined_queued(nonce: Option<String>, retry_after_ms: u64) -> Self {
        Self {
            status: CommandStatus::Queued,
            retry_after_ms: Some(retry_after_ms),
            error: None,
            merged_with_nonce: nonce,
            sent_ms_ago: None,
        }
    }

    /// The command will not be sent.
    #[must_use]
    pub fn rejected(error: impl fmt::Display, retry_after_ms: Option<u64>) -> Self {
        Self {
            status: CommandStatus::Rejected,
            retry_after_ms,
            error: Some(error.to_string()),
            ..Self::sent()
        }
    }
}

/// What became of a gateway command, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandStatus {
    /// It went out on the socket.
    Sent,
    /// It waits for the send budget and will go out.
    Queued,
    /// It will not be sent.
    Rejected,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(request: &[u8]) -> String {
        GatewayCommand::parse(request).unwrap_err().to_string()
    }

    #[test]
    fn the_five_allowed_opcodes_are_read_and_written() {
        for number in [3, 4, 8, 31, 43] {
            let text = format!(r#"{{"op":{number},"d":{{"guild_id":"1"}}}}"#);
            let command = GatewayCommand::parse(text.as_bytes()).unwrap();
            assert_eq!(command.op.number(), number);
            assert_eq!(String::from_utf8(command.payload().unwrap()).unwrap(), text);
            assert_eq!(
                serde_json::from_str::<GatewayCommand>(&text).unwrap(),
                command
            );
        }
    }

    #[test]
    fn a_request_that_cannot_be_sent_says_why() {
        assert_eq!(
            error(br#"{"op":2,"d":{}}"#),
            "op 2 is not one of 3, 4, 8, 31, 43"
        );
        assert_eq!(
            error(br#"{"op":6,"d":{}}"#),
            "op 6 is not one of 3, 4, 8, 31, 43"
        );
        assert_eq!(error(br#"{"op":3}"#), "d of op 3 is no object");
        assert_eq!(error(br#"{"op":3,"d":[]}"#), "d of op 3 is no object");
        for malformed in [
            "",
            "[]",
            "{}",
            r#"{"op":"3","d":{}}"#,
            r#"{"op":-3,"d":{}}"#,
            "{\"op\"",
        ] {
            assert_eq!(
                error(malformed.as_bytes()),
                r#"request is not {"op":<number>,"d":{…}}"#
            );
        }
        assert!(serde_json::from_str::<GatewayCommand>(r#"{"op":1,"d":{}}"#).is_err());
    }

    #[test]
    fn a_payload_above_4096_bytes_is_refused_both_ways() {
        let command = |text_bytes: usize| {
            let mut d = Map::new();
            d.insert("x".to_owned(), Value::String("a".repeat(text_bytes)));
            GatewayCommand {
                op: CommandOp::PresenceUpdate,
                d,
            }
        };
        let overhead = command(0).payload().unwrap().len();
        let largest = command(GatewayCommand::MAX_BYTES - overhead)
            .payload()
            .unwrap();
        assert_eq!(largest.len(), GatewayCommand::MAX_BYTES);
        assert!(GatewayCommand::parse(&largest).is_ok());
        assert!(
            command(GatewayCommand::MAX_BYTES - overhead + 1)
                .payload()
                .is_err()
        );
        let padded = [largest.as_slice(), b" "].concat();
        assert_eq!(
            error(&padded),
            "payload of 4097 bytes is above Discord's limit of 4096"
        );
    }

    #[test]
    fn replies_always_carry_their_three_fields() {
        let text = |reply| serde_json::to_string(&reply).unwrap();
        assert_eq!(
            text(CommandReply::sent()),
            r#"{"status":"sent","retry_after_ms":null,"error":null}"#
        );
        assert_eq!(
            text(CommandReply::queued(1500)),
            r#"{"status":"queued","retry_after_ms":1500,"error":null}"#
        );
        assert_eq!(
            text(CommandReply::rejected("no", None)),
            r#"{"status":"rejected","retry_after_ms":null,"error":"no"}"#
        );
    }
}
