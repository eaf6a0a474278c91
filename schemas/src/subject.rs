//! The subject grammar: built and parsed by one type, so that both directions agree.

use std::fmt;
use std::str::FromStr;

use crate::GuildId;
use crate::ids::canonical_u32;

/// `<guild>` of an event that belongs to no guild.
pub const NO_GUILD: &str = "none";

/// The first token of every subject; several bots share one NATS with different prefixes.
///
/// `[A-Za-z0-9_-]{1,32}`: one token, and usable in stream and bucket names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix used unless `--subject-prefix` says otherwise.
    pub const DEFAULT: &'static str = "discord";
    /// Longest prefix, so that stream names stay within NATS' limits.
    pub const MAX_LEN: usize = 32;

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the stream that holds the events: `DISCORD_EVENTS`; with `--event-streams K` > 1
    /// `DISCORD_EVENTS_0` … for the shards with `id mod K` = index.
    #[must_use]
    pub fn event_stream(&self, index: Option<u32>) -> String {
        let upper = self.0.to_ascii_uppercase();
        match index {
            None => format!("{upper}_EVENTS"),
            Some(index) => format!("{upper}_EVENTS_{index}"),
        }
    }

    /// Name of the stream of events that workers gave up on: `DISCORD_DEAD`.
    #[must_use]
    pub fn dead_stream(&self) -> String {
        format!("{}_DEAD", self.0.to_ascii_uppercase())
    }

    /// Name of the KV bucket of the fleet: `discord_fleet`.
    #[must_use]
    pub fn fleet_bucket(&self) -> String {
        format!("{}_fleet", self.0)
    }

    /// Subjects of all shards' events: `discord.shard.*.events.*.*`.
    #[must_use]
    pub fn all_events(&self) -> String {
        format!("{}.shard.*.events.*.*", self.0)
    }

    /// Subjects of one shard's events: `discord.shard.7.events.*.*`.
    #[must_use]
    pub fn shard_events(&self, shard: u32) -> String {
        format!("{}.shard.{shard}.events.*.*", self.0)
    }

    /// Subjects of one event of all shards: `discord.shard.*.events.*.INTERACTION_CREATE`.
    #[must_use]
    pub fn event_of_all_shards(&self, event: &str) -> String {
        format!("{}.shard.*.events.*.{}", self.0, EventToken(event))
    }

    /// Destination of the live feed in NATS' transform syntax:
    /// `discord.shard.{{wildcard(1)}}.events`.
    #[must_use]
    pub fn live_feed_transform(&self) -> String {
        format!("{}.shard.{{{{wildcard(1)}}}}.events", self.0)
    }

    /// Subject a core subscriber listens on for the live feed: `discord.shard.*.events`.
    #[must_use]
    pub fn live_feed(&self) -> String {
        format!("{}.shard.*.events", self.0)
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(is_plain) {
            return Err(PrefixError {
                text: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A prefix outside its rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("subject prefix {text:?} is not 1 to 32 characters of A-Z, a-z, 0-9, _ and -")]
pub struct PrefixError {
    /// What was given.
    pub text: String,
}

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
        let (root, rest) = text.split_once('.')?;
        match root {
            "shard" => Self::parse_shard(rest),
            "guild" => {
                let (guild, tail) = rest.split_once('.')?;
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
        let (shard, tail) = rest.split_once('.')?;
        let shard = canonical_u32(shard)?;
        match tail {
            "events" => return Some(Self::LiveFeed { shard }),
            "commands" => return Some(Self::ShardCommands { shard }),
            "messages" => return Some(Self::ShardMessages { shard }),
            _ => {}
        }
        let (guild, event) = tail.strip_prefix("events.")?.split_once('.')?;
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

/// Appends one event's subject: the hot path's form of [`Subject::Event`], without formatting
/// machinery. `shard_root` is what [`event_root`] made, once per shard.
pub fn push_event_subject(
    out: &mut Vec<u8>,
    shard_root: &str,
    guild: Option<GuildId>,
    event: &str,
) {
    out.extend_from_slice(shard_root.as_bytes());
    match guild {
        Some(guild) => push_decimal(out, guild.get()),
        None => out.extend_from_slice(NO_GUILD.as_bytes()),
    }
    out.push(b'.');
    if event.is_empty() {
        out.push(b'_');
    }
    out.extend(event.chars().map(plain_byte));
}

/// The part of an event subject that a shard's events share: `discord.shard.7.events.`.
#[must_use]
pub fn event_root(prefix: &Prefix, shard: u32) -> String {
    format!("{prefix}.shard.{shard}.events.")
}

/// Appends a number in decimal.
pub fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    // u64::MAX has 20 digits.
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// An event name as a subject token: other characters become `_`, an empty name is `_`.
struct EventToken<'a>(&'a str);

impl fmt::Display for EventToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("_");
        }
        if self.0.bytes().all(is_plain) {
            return f.write_str(self.0);
        }
        self.0
            .chars()
            .try_for_each(|c| fmt::Write::write_char(f, char::from(plain_byte(c))))
    }
}

fn plain_byte(c: char) -> u8 {
    match u8::try_from(c) {
        Ok(byte) if is_plain(byte) => byte,
        _ => b'_',
    }
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
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
