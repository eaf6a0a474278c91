//! Typed events: which type belongs to which of Discord's names, and how a frame becomes one. Pure.

use bytes::Bytes;
use schemas::{ProxyEvent, ProxyEventKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use twilight_model::gateway::payload::incoming;

use crate::feed::{Gap, Reshard, ShardChange};

/// An event that handlers can take typed: what `twilight-model` knows, and what a proxy adds.
///
/// Implement it for a type of your own to read an event that `twilight-model` does not know, or
/// only the part of a frame that you need; that also is faster than the whole.
///
/// ```
/// use consumers::event::{DecodeError, TypedEvent, data};
///
/// #[derive(serde::Deserialize)]
/// struct Typing {
///     user_id: String,
/// }
///
/// impl TypedEvent for Typing {
///     const NAME: &'static str = "TYPING_START";
///
///     fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
///         data(frame)
///     }
/// }
/// ```
pub trait TypedEvent: Sized + Send + 'static {
    /// Discord's `t`.
    const NAME: &'static str;

    /// Reads a frame `{"t","s","op","d"}`.
    ///
    /// # Errors
    /// [`DecodeError`] when the frame has another shape.
    fn decode(frame: &[u8]) -> Result<Self, DecodeError>;
}

/// A frame that is not what its name says.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or `d` has another shape.
    #[error("the frame is not a typed {event}: {error}")]
    Shape {
        /// Name of the type's event.
        event: &'static str,
        /// Where it went wrong.
        error: serde_json::Error,
    },
    /// Another marker under this marker's subject.
    #[error("the frame is another event than {0}")]
    Other(&'static str),
}

/// Reads the `d` of a frame.
///
/// # Errors
/// [`DecodeError::Shape`] when the frame is no JSON or its `d` is no `T`.
pub fn data<T: TypedEvent + DeserializeOwned>(frame: &[u8]) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Frame<D> {
        d: D,
    }
    let frame: Frame<T> = serde_json::from_slice(frame).map_err(|error| shape(T::NAME, error))?;
    Ok(frame.d)
}

const fn shape(event: &'static str, error: serde_json::Error) -> DecodeError {
    DecodeError::Shape { event, error }
}

/// A frame as it is, for handlers of events by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// `{"t","s","op","d"}` exactly as Discord sent it.
    pub frame: Bytes,
}

impl RawEvent {
    /// The frame read as any JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_slice(&self.frame)
    }
}

macro_rules! typed {
    ($($name:literal $type:ident)*) => {
        $(
            impl TypedEvent for incoming::$type {
                const NAME: &'static str = $name;

                fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
                    data(frame)
                }
            }
        )*

        /// The names of all events that `twilight-model` has a type for.
        pub const TYPED: &[&str] = &[$($name),*];
    };
}

typed! {
    "APPLICATION_COMMAND_PERMISSIONS_UPDATE" CommandPermissionsUpdate
    "AUTO_MODERATION_ACTION_EXECUTION" AutoModerationActionExecution
    "AUTO_MODERATION_RULE_CREATE" AutoModerationRuleCreate
    "AUTO_MODERATION_RULE_DELETE" AutoModerationRuleDelete
    "AUTO_MODERATION_RULE_UPDATE" AutoModerationRuleUpdate
    "CHANNEL_CREATE" ChannelCreate
    "CHANNEL_DELETE" ChannelDelete
    "CHANNEL_PINS_UPDATE" ChannelPinsUpdate
    "CHANNEL_UPDATE" ChannelUpdate
    "ENTITLEMENT_CREATE" EntitlementCreate
    "ENTITLEMENT_DELETE" EntitlementDelete
    "ENTITLEMENT_UPDATE" EntitlementUpdate
    "GUILD_AUDIT_LOG_ENTRY_CREATE" GuildAuditLogEntryCreate
    "GUILD_BAN_ADD" BanAdd
    "GUILD_BAN_REMOVE" BanRemove
    "GUILD_CREATE" GuildCreate
    "GUILD_DELETE" GuildDelete
    "GUILD_EMOJIS_UPDATE" GuildEmojisUpdate
    "GUILD_INTEGRATIONS_UPDATE" GuildIntegrationsUpdate
    "GUILD_MEMBERS_CHUNK" MemberChunk
    "GUILD_MEMBER_ADD" MemberAdd
    "GUILD_MEMBER_REMOVE" MemberRemove
    "GUILD_MEMBER_UPDATE" MemberUpdate
    "GUILD_ROLE_CREATE" RoleCreate
    "GUILD_ROLE_DELETE" RoleDelete
    "GUILD_ROLE_UPDATE" RoleUpdate
    "GUILD_SCHEDULED_EVENT_CREATE" GuildScheduledEventCreate
    "GUILD_SCHEDULED_EVENT_DELETE" GuildScheduledEventDelete
    "GUILD_SCHEDULED_EVENT_UPDATE" GuildScheduledEventUpdate
    "GUILD_SCHEDULED_EVENT_USER_ADD" GuildScheduledEventUserAdd
    "GUILD_SCHEDULED_EVENT_USER_REMOVE" GuildScheduledEventUserRemove
    "GUILD_STICKERS_UPDATE" GuildStickersUpdate
    "GUILD_UPDATE" GuildUpdate
    "INTEGRATION_CREATE" IntegrationCreate
    "INTEGRATION_DELETE" IntegrationDelete
    "INTEGRATION_UPDATE" IntegrationUpdate
    "INTERACTION_CREATE" InteractionCreate
    "INVITE_CREATE" InviteCreate
    "INVITE_DELETE" InviteDelete
    "MESSAGE_CREATE" MessageCreate
    "MESSAGE_DELETE" MessageDelete
    "MESSAGE_DELETE_BULK" MessageDeleteBulk
    "MESSAGE_POLL_VOTE_ADD" MessagePollVoteAdd
    "MESSAGE_POLL_VOTE_REMOVE" MessagePollVoteRemove
    "MESSAGE_REACTION_ADD" ReactionAdd
    "MESSAGE_REACTION_REMOVE" ReactionRemove
    "MESSAGE_REACTION_REMOVE_ALL" ReactionRemoveAll
    "MESSAGE_REACTION_REMOVE_EMOJI" ReactionRemoveEmoji
    "MESSAGE_UPDATE" MessageUpdate
    "PRESENCE_UPDATE" PresenceUpdate
    "RATE_LIMITED" RateLimited
    "READY" Ready
    "STAGE_INSTANCE_CREATE" StageInstanceCreate
    "STAGE_INSTANCE_DELETE" StageInstanceDelete
    "STAGE_INSTANCE_UPDATE" StageInstanceUpdate
    "SUBSCRIPTION_CREATE" SubscriptionCreate
    "SUBSCRIPTION_DELETE" SubscriptionDelete
    "SUBSCRIPTION_UPDATE" SubscriptionUpdate
    "THREAD_CREATE" ThreadCreate
    "THREAD_DELETE" ThreadDelete
    "THREAD_LIST_SYNC" ThreadListSync
    "THREAD_MEMBERS_UPDATE" ThreadMembersUpdate
    "THREAD_MEMBER_UPDATE" ThreadMemberUpdate
    "THREAD_UPDATE" ThreadUpdate
    "TYPING_START" TypingStart
    "USER_UPDATE" UserUpdate
    "VOICE_SERVER_UPDATE" VoiceServerUpdate
    "VOICE_STATE_UPDATE" VoiceStateUpdate
    "WEBHOOKS_UPDATE" WebhooksUpdate
}

macro_rules! markers {
    ($($kind:ident $type:ident)*) => {
        $(
            impl TypedEvent for $type {
                const NAME: &'static str = ProxyEventKind::$kind.name();

                fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
                    match ProxyEvent::from_frame(frame) {
                        Ok(ProxyEvent::$kind(body)) => Ok(body),
                        Ok(_) => Err(DecodeError::Other(Self::NAME)),
                        Err(error) => Err(shape(Self::NAME, error)),
                    }
                }
            }
        )*
    };
}

markers! {
    Gap Gap
    Shard ShardChange
    Reshard Reshard
}

#[cfg(test)]
mod tests {
    use schemas::{EventKind, EventName};

    use super::*;

    #[test]
    fn every_type_stands_under_a_documented_name() {
        for name in TYPED {
            assert!(EventKind::from_name(name).is_some(), "{name}");
        }
        assert!(TYPED.is_sorted(), "each name once, where it is looked for");
        for name in [Gap::NAME, ShardChange::NAME, Reshard::NAME] {
            assert!(matches!(EventName::parse(name), EventName::Proxy(_)));
        }
    }

    #[test]
    fn a_frame_becomes_its_type_whatever_stands_around_it() {
        let frame = br#"{"op":0,"x":1,"t":"MESSAGE_DELETE","d":{"channel_id":"2","id":"3"},"s":9}"#;
        let event = incoming::MessageDelete::decode(frame).unwrap();
        assert_eq!((event.channel_id.get(), event.id.get()), (2, 3));
        let frame = br#"{"t":"GUILD_DELETE","s":1,"op":0,"d":{"id":"4","unavailable":true}}"#;
        assert!(incoming::GuildDelete::decode(frame).is_ok());
    }

    #[test]
    fn a_frame_of_another_shape_is_refused_with_the_name() {
        for frame in [&b""[..], b"[]", b"{}", br#"{"d":{"id":"x"}}"#, b"\xff"] {
            let error = incoming::MessageDelete::decode(frame).err().unwrap();
            assert!(error.to_string().contains("MESSAGE_DELETE"), "{error}");
        }
        let shard = br#"{"t":"PROXY_GAP","s":null,"op":0,"d":{}}"#;
        assert!(matches!(
            ShardChange::decode(shard).err().unwrap(),
            DecodeError::Shape { .. }
        ));
    }
}
