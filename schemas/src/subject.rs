//! The subject grammar: built and parsed by one type, so that both directions agree.

use std::fmt;

use crate::GuildId;
use crate::ids::canonical_u32;

mod bytes;
mod prefix;

pub use bytes::{EVENT_TOKEN_MAX, event_root, push_decimal, push_event_subject};
use bytes::{EventToken, is_plain};
pub use prefix::{Prefix, PrefixError};

/// `<guild>` of an event that belongs to no guild.
pub const NO_GUILD: &str = "none";

/// Every subject of the system, without its prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject<'a> {
    /// `shard.<shard>.events.<guild>.<EVENT>`: one dispatch, in JetStream.
    Event {
        /// Shard the event came in on.
        shard: u32,
        /// Guild it belongs to, `none` on the wire when absent.
        guild: Option<GuildId>,
        /// Discord's `t`; characters outside `[A-Za-z0-9_-]` are written as `_`.
        event: &'a str,
    },
    /// `shard.<shard>.events`: the live feed.
    LiveFeed {
        /// Shard the feed belongs to.
        shard: u32,
    },
    /// `shard.<shard>.commands`: gateway commands to send on that shard.
    ShardCommands {
        /// The shard.
        shard: u32,
    },
    /// `guild.<guild>.commands`: the same, by guild.
    GuildCommands {
        /// The guild.
        guild: GuildId,
    },
    /// `shard.<shard>.messages`: to the worker that holds the shard.
    ShardMessages {
        /// The shard.
        shard: u32,
    },
    /// `query.<what>[.<id>]`: the directory.
    Query {
        /// What is asked for.
        what: &'a str,
        /// Of which entity.
        id: Option<&'a str>,
    },
    /// `broadcast.<topic>`: to every worker.
    Broadcast {
        /// One or more tokens.
        topic: &'a str,
    },
    /// `fleet.<verb>`: the coordinator's service.
    Fleet {
        /// `identify`, `drain`, …
        verb: &'a str,
    },
    /// `dead.<consumer>`: events a worker gave up on.
    Dead {
        /// The consumer's name.
        consumer: &'a str,
    },
}

impl<'a> Subject<'a> {
    /// The subject as it goes on the wire.
    #[must_use]
    pub fn with_prefix(&self, prefix: &Prefix) -> String {
        format!("{prefix}.{self}")
    }

    /// The subject as it goes on the wire, if its words make a valid one: for topics, consumer
    /// names and ids that come from outside. An event's name is always valid.
    ///
    /// # Errors
    /// [`SubjectError`] when a word is empty or holds a dot, a wildcard, white space or a control
    /// character.
    pub fn checked(&self, prefix: &Prefix) -> Result<String, SubjectError> {
        let text = self.with_prefix(prefix);
        let same = Subject::parse(prefix, &text).is_ok_and(|parsed| parsed == *self);
        if same || matches!(self, Self::Event { .. }) {
            return Ok(text);
        }
        Err(SubjectError {
            text,
            prefix: prefix.clone(),
        })
    }

    /// Reads a subject of this prefix.
    ///
    /// # Errors
    /// [`SubjectError`] names the subject that has another prefix or shape.
    pub fn parse(prefix: &Prefix, text: &'a str) -> Result<Self, SubjectError> {
        let malformed = || SubjectError {
            text: text.to_owned(),
            prefix: prefix.clone(),
        };
        let rest = text
            .strip_prefix(prefix.as_str())
            .and_then(|rest| rest.strip_prefix('.'));
        rest.and_then(Self::parse_unprefixed).ok_or_else(malformed)
    }

    fn parse_unprefixed(text: &'a str) -> Option<Self> {
        let (root, rest) = cut(text)?;
        match root {
            "shard" => Self::parse_shard(rest),
            "guild" => {
                let (guild, tail) = cut(rest)?;
                let guild = canonical_guild(guild)?;
                (tail == "commands").then_some(Self::GuildCommands { guild })
            }
            "query" => match rest.split_once('.') {
                None => token(rest).map(|what| Self::Query { what, id: None }),
                Some((what, id)) => Some(Self::Query {
                    what: token(what)?,
                    id: Some(token(id)?),
                }),
            },
            "broadcast" => {
                rest.split('.')
                    .all(|part| token(part).is_some())
                    .then_some(())?;
                Some(Self::Broadcast { topic: rest })
            }
            "fleet" => token(rest).map(|verb| Self::Fleet { verb }),
            "dead" => token(rest).map(|consumer| Self::Dead { consumer }),
            _ => None,
        }
    }

    fn parse_shard(rest: &'a str) -> Option<Self> {
        let (shard, tail) = cut(rest)?;
        let shard = canonical_u32(shard)?;
        match tail {
            "events" => return Some(Self::LiveFeed { shard }),
            "commands" => return Some(Self::ShardCommands { shard }),
            "messages" => return Some(Self::ShardMessages { shard }),
            _ => {}
        }
        let (guild, event) = cut(tail.strip_prefix("events.")?)?;
        let guild = if guild == NO_GUILD {
            None
        } else {
            Some(canonical_guild(guild)?)
        };
        if event.is_empty() || !event.bytes().all(is_plain) {
            return None;
        }
        Some(Self::Event {
            shard,
            guild,
            event,
        })
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event {
                shard,
                guild: Some(guild),
                event,
            } => {
                write!(f, "shard.{shard}.events.{guild}.{}", EventToken(event))
            }
            Self::Event {
                shard,
                guild: None,
                event,
            } => {
                write!(f, "shard.{shard}.events.{NO_GUILD}.{}", EventToken(event))
            }
            Self::LiveFeed { shard } => write!(f, "shard.{shard}.events"),
            Self::ShardCommands { shard } => write!(f, "shard.{shard}.commands"),
            Self::GuildCommands { guild } => write!(f, "guild.{guild}.commands"),
            Self::ShardMessages { shard } => write!(f, "shard.{shard}.messages"),
            Self::Query { what, id: None } => write!(f, "query.{what}"),
            Self::Query { what, id: Some(id) } => write!(f, "query.{what}.{id}"),
            Self::Broadcast { topic } => write!(f, "broadcast.{topic}"),
            Self::Fleet { verb } => write!(f, "fleet.{verb}"),
            Self::Dead { consumer } => write!(f, "dead.{consumer}"),
        }
    }
}

/// A subject of another prefix or shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subject of the prefix {prefix}")]
pub struct SubjectError {
    /// What was given.
    pub text: String,
    /// The prefix it was read with.
    pub prefix: Prefix,
}

/// The first token and the rest. Tokens are short: looking at each byte is quicker than a search that
/// is made for long texts.
fn cut(text: &str) -> Option<(&str, &str)> {
    let dot = text.bytes().position(|byte| byte == b'.')?;
    Some((&text[..dot], &text[dot + 1..]))
}

/// A token of the kinds only we make; NATS forbids white space and the wildcards.
fn token(text: &str) -> Option<&str> {
    let bad = |c: char| c == '.' || c == '*' || c == '>' || c.is_whitespace() || c.is_control();
    (!text.is_empty() && !text.contains(bad)).then_some(text)
}

fn canonical_guild(text: &str) -> Option<GuildId> {
    (!text.starts_with('0'))
        .then(|| GuildId::from_digits(text.as_bytes()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guild(id: u64) -> GuildId {
        GuildId::new(id).unwrap()
    }

    #[test]
    fn every_row_of_the_contract_is_built_and_parsed() {
        let event = |guild, event| Subject::Event {
            shard: 7,
            guild,
            event,
        };
        let snowflake = guild(81_384_788_765_712_384);
        let rows = [
            (
                event(Some(snowflake), "MESSAGE_CREATE"),
                "discord.shard.7.events.81384788765712384.MESSAGE_CREATE",
            ),
            (event(None, "READY"), "discord.shard.7.events.none.READY"),
            (
                event(None, "PROXY_GAP"),
                "discord.shard.7.events.none.PROXY_GAP",
            ),
            (Subject::LiveFeed { shard: 7 }, "discord.shard.7.events"),
            (
                Subject::ShardCommands { shard: 7 },
                "discord.shard.7.commands",
            ),
            (
                Subject::GuildCommands { guild: snowflake },
                "discord.guild.81384788765712384.commands",
            ),
            (
                Subject::ShardMessages { shard: 7 },
                "discord.shard.7.messages",
            ),
            (
                Subject::Query {
                    what: "stats",
                    id: None,
                },
                "discord.query.stats",
            ),
            (
                Subject::Query {
                    what: "guild",
                    id: Some("42"),
                },
                "discord.query.guild.42",
            ),
            (
                Subject::Broadcast {
                    topic: "cache.guilds",
                },
                "discord.broadcast.cache.guilds",
            ),
            (
                Subject::Fleet { verb: "identify" },
                "discord.fleet.identify",
            ),
            (
                Subject::Dead {
                    consumer: "commands",
                },
                "discord.dead.commands",
            ),
        ];
        let prefix = Prefix::default();
        for (subject, text) in rows {
            assert_eq!(subject.with_prefix(&prefix), text);
            assert_eq!(subject.checked(&prefix).as_deref(), Ok(text));
            assert_eq!(Subject::parse(&prefix, text), Ok(subject));
        }
    }

    #[test]
    fn subjects_of_another_prefix_or_shape_are_refused() {
        let prefix = Prefix::default();
        for text in [
            "",
            "discord",
            "discord.",
            "discordshard.7.events",
            "mybot.shard.7.events",
            "discord.shard",
            "discord.shard.x.events",
            "discord.shard.07.events",
            "discord.shard.4294967296.events",
            "discord.shard.-1.events",
            "discord.shard.7.event",
            "discord.shard.7.events.none",
            "discord.shard.7.events.0.READY",
            "discord.shard.7.events.01.READY",
            "discord.shard.7.events.none.READY.x",
            "discord.shard.7.events.none.",
            "discord.shard.7.events.*.READY",
            "discord.guild.none.commands",
            "discord.guild.1.messages",
            "discord.query.",
            "discord.query.guild.",
            "discord.query.guild.1.2",
            "discord.broadcast.",
            "discord.broadcast.a..b",
            "discord.fleet.a.b",
            "discord.dead.*",
            "discord.other.x",
        ] {
            assert!(Subject::parse(&prefix, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn words_from_outside_that_make_no_subject_are_refused() {
        let prefix = Prefix::default();
        for word in ["", "a.b", "a b", "*", ">", "a\r\nPUB x 0", "\t"] {
            assert!(
                Subject::Query {
                    what: "guild",
                    id: Some(word)
                }
                .checked(&prefix)
                .is_err()
            );
            assert!(Subject::Dead { consumer: word }.checked(&prefix).is_err());
            assert!(Subject::Fleet { verb: word }.checked(&prefix).is_err());
        }
        assert!(
            Subject::Query {
                what: "guild.1",
                id: None
            }
            .checked(&prefix)
            .is_err()
        );
        assert!(
            Subject::Event {
                shard: 0,
                guild: None,
                event: "a.*\r\n"
            }
            .checked(&prefix)
            .is_ok()
        );
    }
}
