//! Reads what the directory needs out of a dispatch frame, and skips the rest of it. Pure.

use std::collections::BTreeSet;

use schemas::{EventKind, GuildId, ProxyEvent, ProxyEventKind, ShardId, Snowflake, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The events the directory reads; those of threads change nothing it keeps.
pub(crate) const EVENTS: [EventKind; 12] = [
    EventKind::Ready,
    EventKind::GuildCreate,
    EventKind::GuildUpdate,
    EventKind::GuildDelete,
    EventKind::ChannelCreate,
    EventKind::ChannelUpdate,
    EventKind::ChannelDelete,
    EventKind::GuildRoleCreate,
    EventKind::GuildRoleUpdate,
    EventKind::GuildRoleDelete,
    EventKind::GuildMemberAdd,
    EventKind::GuildMemberRemove,
];

/// What a frame says about the shard's guilds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuildEvent {
    /// A new session, with every guild of the shard.
    Ready {
        shard: Option<ShardId>,
        guilds: BTreeSet<GuildId>,
    },
    /// Events of the shard may be missing.
    Gap { shard: ShardId },
    /// Everything about a guild.
    Created(Box<Facts>),
    /// A guild's own fields.
    Updated(Box<Facts>),
    /// The guild cannot be reached at Discord.
    Outage(GuildId),
    /// The bot is not in the guild any more.
    Removed(GuildId),
    /// A channel that is there.
    Channel { guild: GuildId, channel: Snowflake },
    /// A channel that is not there any more.
    ChannelGone { guild: GuildId, channel: Snowflake },
    /// A role that is there.
    Role { guild: GuildId, role: Snowflake },
    /// A role that is not there any more.
    RoleGone { guild: GuildId, role: Snowflake },
    /// One more member.
    Joined { guild: GuildId },
    /// One member fewer.
    Left { guild: GuildId },
    /// An event of the guild that cannot be read: whatever it said is missing.
    Unreadable { guild: GuildId },
}

/// A guild as GUILD_CREATE, GUILD_UPDATE and the REST API describe it; absent fields say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) id: GuildId,
    pub(crate) name: Option<String>,
    pub(crate) owner_id: Option<Snowflake>,
    pub(crate) member_count: Option<u64>,
    pub(crate) channels: Option<BTreeSet<Snowflake>>,
    pub(crate) roles: Option<BTreeSet<Snowflake>>,
    pub(crate) features: Option<Vec<String>>,
    pub(crate) joined_at: Option<Timestamp>,
}

/// A frame that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("the frame is no {event} the directory can read")]
pub(crate) struct UnreadableFrame {
    event: String,
    #[source]
    source: serde_json::Error,
}

/// Reads a frame; `None` for events that say nothing about guilds. `event` and `guild` are the
/// subject's.
///
/// # Errors
/// When the frame does not have the event's shape and no guild to blame: nothing can be marked.
pub(crate) fn read(
    event: &str,
    guild: Option<GuildId>,
    frame: &[u8],
) -> Result<Option<GuildEvent>, UnreadableFrame> {
    match (parse(event, frame), guild) {
        (Ok(read), _) => Ok(read),
        (Err(_), Some(guild)) => Ok(Some(GuildEvent::Unreadable { guild })),
        (Err(source), None) => {
            let event = event.to_owned();
            Err(UnreadableFrame { event, source })
        }
    }
}

fn parse(event: &str, frame: &[u8]) -> Result<Option<GuildEvent>, serde_json::Error> {
    if event == ProxyEventKind::Gap.name() {
        let event = ProxyEvent::from_frame(frame)?;
        let shard = event.shard();
        return Ok(Some(GuildEvent::Gap { shard }));
    }
    let Some(kind) = EventKind::from_name(event) else {
        return Ok(None);
    };
    let read = match kind {
        EventKind::Ready => ready(data(frame)?),
        EventKind::GuildCreate => {
            let d: RawGuild = data(frame)?;
            // Discord's stub of a guild in an outage has this shape too.
            if d.unavailable == Some(true) {
                GuildEvent::Outage(d.id.as_guild())
            } else {
                GuildEvent::Created(Box::new(d.into()))
            }
        }
        EventKind::GuildUpdate => GuildEvent::Updated(Box::new(data::<RawGuild>(frame)?.into())),
        EventKind::GuildDelete => {
            let d: Gone = data(frame)?;
            // Present, whatever its value: an outage. Absent: the bot was removed.
            if d.unavailable.is_some() {
                GuildEvent::Outage(d.id.as_guild())
            } else {
                GuildEvent::Removed(d.id.as_guild())
            }
        }
        EventKind::ChannelCreate | EventKind::ChannelUpdate => {
            let InGuild { guild, id } = data(frame)?;
            GuildEvent::Channel {
                guild: guild.as_guild(),
                channel: id,
            }
        }
        EventKind::ChannelDelete => {
            let InGuild { guild, id } = data(frame)?;
            GuildEvent::ChannelGone {
                guild: guild.as_guild(),
                channel: id,
            }
        }
        EventKind::GuildRoleCreate | EventKind::GuildRoleUpdate => {
            let d: RawRole = data(frame)?;
            GuildEvent::Role {
                guild: d.guild_id.as_guild(),
                role: d.role.id,
            }
        }
        EventKind::GuildRoleDelete => {
            let d: RawRoleGone = data(frame)?;
            GuildEvent::RoleGone {
                guild: d.guild_id.as_guild(),
                role: d.role_id,
            }
        }
        EventKind::GuildMemberAdd => GuildEvent::Joined {
            guild: data::<OfGuild>(frame)?.guild_id.as_guild(),
        },
        EventKind::GuildMemberRemove => GuildEvent::Left {
            guild: data::<OfGuild>(frame)?.guild_id.as_guild(),
        },
        _ => return Ok(None),
    };
    Ok(Some(read))
}

fn ready(d: Ready) -> GuildEvent {
    let guilds = d.guilds.into_iter().map(|guild| guild.id.as_guild());
    GuildEvent::Ready {
        shard: d.shard,
        guilds: guilds.collect(),
    }
}

/// The `d` of a frame.
pub(super) fn data<D: DeserializeOwned>(frame: &[u8]) -> Result<D, serde_json::Error> {
    #[derive(Deserialize)]
    struct Frame<D> {
        d: D,
    }
    serde_json::from_slice::<Frame<D>>(frame).map(|frame| frame.d)
}

/// A guild as the REST API returns it (Get Guild).
pub(crate) fn from_rest(body: &[u8]) -> Result<Facts, serde_json::Error> {
    serde_json::from_slice::<RawGuild>(body).map(Facts::from)
}

/// The channels of a guild as the REST API lists them (Get Guild Channels).
pub(crate) fn channels_from_rest(body: &[u8]) -> Result<BTreeSet<Snowflake>, serde_json::Error> {
    let channels: Vec<Id> = serde_json::from_slice(body)?;
    Ok(channels.into_iter().map(|channel| channel.id).collect())
}

#[derive(Deserialize)]
struct Ready {
    #[serde(default)]
    shard: Option<ShardId>,
    guilds: Vec<Id>,
}

#[derive(Deserialize)]
struct Id {
    id: Snowflake,
}

#[derive(Deserialize)]
struct RawGuild {
    id: Snowflake,
    #[serde(default)]
    unavailable: Option<bool>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    owner_id: Option<Snowflake>,
    #[serde(default, alias = "approximate_member_count")]
    member_count: Option<u64>,
    #[serde(default)]
    channels: Option<Vec<Id>>,
    #[serde(default)]
    roles: Option<Vec<Id>>,
    #[serde(default)]
    features: Option<Vec<String>>,
    #[serde(default)]
    joined_at: Option<String>,
}

impl From<RawGuild> for Facts {
    fn from(raw: RawGuild) -> Self {
        let ids = |list: Vec<Id>| list.into_iter().map(|item| item.id).collect();
        Self {
            id: raw.id.as_guild(),
            name: raw.name,
            owner_id: raw.owner_id,
            member_count: raw.member_count,
            channels: raw.channels.map(ids),
            roles: raw.roles.map(ids),
            features: raw.features,
            joined_at: raw.joined_at.and_then(|text| text.parse().ok()),
        }
    }
}

#[derive(Deserialize)]
struct Gone {
    id: Snowflake,
    #[serde(default)]
    unavailable: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct InGuild {
    #[serde(rename = "guild_id")]
    guild: Snowflake,
    id: Snowflake,
}

#[derive(Deserialize)]
struct RawRole {
    guild_id: Snowflake,
    role: Id,
}

#[derive(Deserialize)]
struct RawRoleGone {
    guild_id: Snowflake,
    role_id: Snowflake,
}

#[derive(Deserialize)]
struct OfGuild {
    guild_id: Snowflake,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guild(id: u64) -> GuildId {
        GuildId::new(id).unwrap()
    }

    fn id(id: u64) -> Snowflake {
        Snowflake::new(id).unwrap()
    }

    #[track_caller]
    fn check(event: &str, d: &str, expect: GuildEvent) {
        let frame = format!(r#"{{"t":"{event}","s":1,"op":0,"d":{d}}}"#);
        let read = read(event, Some(guild(7)), frame.as_bytes()).unwrap();
        assert_eq!(read, Some(expect), "{event}");
    }

    #[test]
    fn sessions_and_guilds_that_go_are_read() {
        let g = guild(7);
        check(
            "READY",
            r#"{"v":10,"shard":[1,4],"guilds":[{"unavailable":true,"id":"7"},{"id":"9"}]}"#,
            GuildEvent::Ready {
                shard: ShardId::new(1, 4).ok(),
                guilds: [g, guild(9)].into(),
            },
        );
        check(
            "GUILD_DELETE",
            r#"{"id":"7","unavailable":true}"#,
            GuildEvent::Outage(g),
        );
        check(
            "GUILD_DELETE",
            r#"{"id":"7","unavailable":false}"#,
            GuildEvent::Outage(g),
        );
        check("GUILD_DELETE", r#"{"id":"7"}"#, GuildEvent::Removed(g));
        check(
            "GUILD_CREATE",
            r#"{"id":"7","unavailable":true}"#,
            GuildEvent::Outage(g),
        );
    }

    #[test]
    fn what_is_in_a_guild_is_read() {
        let g = guild(7);
        let channel = r#"{"id":"8","type":0,"guild_id":"7"}"#;
        let there = GuildEvent::Channel {
            guild: g,
            channel: id(8),
        };
        check("CHANNEL_CREATE", channel, there.clone());
        check("CHANNEL_UPDATE", channel, there);
        check(
            "CHANNEL_DELETE",
            channel,
            GuildEvent::ChannelGone {
                guild: g,
                channel: id(8),
            },
        );
        let role = r#"{"role":{"id":"8","name":"x"},"guild_id":"7"}"#;
        check(
            "GUILD_ROLE_CREATE",
            role,
            GuildEvent::Role {
                guild: g,
                role: id(8),
            },
        );
        check(
            "GUILD_ROLE_UPDATE",
            role,
            GuildEvent::Role {
                guild: g,
                role: id(8),
            },
        );
        let gone = r#"{"role_id":"8","guild_id":"7"}"#;
        check(
            "GUILD_ROLE_DELETE",
            gone,
            GuildEvent::RoleGone {
                guild: g,
                role: id(8),
            },
        );
        check(
            "GUILD_MEMBER_ADD",
            r#"{"user":{},"guild_id":"7"}"#,
            GuildEvent::Joined { guild: g },
        );
        check(
            "GUILD_MEMBER_REMOVE",
            r#"{"guild_id":"7"}"#,
            GuildEvent::Left { guild: g },
        );
    }

    #[test]
    fn a_guild_is_read_with_what_is_kept_of_it() {
        let d = r#"{"id":"7","name":"A \"b\"","owner_id":"3","member_count":5,"large":true,
            "channels":[{"id":"11","name":"x"},{"id":"12"}],"roles":[{"id":"7"}],
            "threads":[{"id":"99"}],"features":["COMMUNITY"],"members":[{"user":{"id":"1"}}],
            "joined_at":"2026-08-06T12:34:56.789000+00:00"}"#;
        let facts = Facts {
            id: guild(7),
            name: Some("A \"b\"".to_owned()),
            owner_id: Some(id(3)),
            member_count: Some(5),
            channels: Some([id(11), id(12)].into()),
            roles: Some([id(7)].into()),
            features: Some(vec!["COMMUNITY".to_owned()]),
            joined_at: Some("2026-08-06T12:34:56.789Z".parse().unwrap()),
        };
        check("GUILD_CREATE", d, GuildEvent::Created(Box::new(facts)));
    }

    #[test]
    fn what_cannot_be_read_is_blamed_on_its_guild() {
        for frame in ["", "{", r#"{"d":{}}"#, r#"{"d":{"id":7,"guild_id":"x"}}"#] {
            let read = read("CHANNEL_CREATE", Some(guild(7)), frame.as_bytes()).unwrap();
            assert_eq!(read, Some(GuildEvent::Unreadable { guild: guild(7) }));
        }
        assert!(read("READY", None, b"{}").is_err());
        assert!(read("PROXY_GAP", None, b"{}").is_err());
    }

    #[test]
    fn other_events_say_nothing() {
        for event in ["MESSAGE_CREATE", "PROXY_SHARD", "NEWER_THAN_US", "RESUMED"] {
            assert_eq!(read(event, None, b"{\"d\":{}}").unwrap(), None);
        }
    }

    #[test]
    fn a_guild_from_rest_has_its_approximate_count() {
        let facts = from_rest(br#"{"id":"7","name":"x","approximate_member_count":9}"#).unwrap();
        assert_eq!((facts.member_count, facts.channels), (Some(9), None));
        let channels = channels_from_rest(br#"[{"id":"1","type":0},{"id":"2"}]"#).unwrap();
        assert_eq!(channels, [id(1), id(2)].into());
    }
}
