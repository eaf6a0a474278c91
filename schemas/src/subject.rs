//! The subject grammar: built and parsed by one type, so that both directions agree.

use std::fmt;
use std::str::FromStr;

use crate::GuildId;
use crate::ids::canonical_u32;

/// `<guild>` of an event that belongs to no guild.
pub const NO_GUILD: &str = "none";

/// Longest `<EVENT>` token; of a longer name it holds the beginning. Discord's longest has 38
/// characters, but a NATS server closes the connection on a control line above 4096 bytes, and one
/// absurd frame must not do that.
pub const EVENT_TOKEN_MAX: usize = 256;

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
    out.reserve(shard_root.len() + DECIMAL_DIGITS_MAX + 1 + event.len().min(EVENT_TOKEN_MAX) + 1);
    out.extend_from_slice(shard_root.as_bytes());
    match guild {
        Some(guild) => push_decimal(out, guild.get()),
        None => out.extend_from_slice(NO_GUILD.as_bytes()),
    }
    out.push(b'.');
    if is_token(event) {
        out.extend_from_slice(event.as_bytes());
    } else {
        out.extend(token_bytes(event));
    }
}

/// The part of an event subject that a shard's events share: `discord.shard.7.events.`.
#[must_use]
pub fn event_root(prefix: &Prefix, shard: u32) -> String {
    format!("{prefix}.shard.{shard}.events.")
}

/// `u64::MAX` has 20 digits.
const DECIMAL_DIGITS_MAX: usize = 20;

/// Appends a number in decimal.
pub fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    // Two digits per division: a snowflake has 19, and a division waits for the one before it.
    let mut digits = [0_u8; DECIMAL_DIGITS_MAX];
    let mut at = digits.len();
    while number >= 100 {
        let pair = (number % 100) as u8;
        number /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    let rest = number as u8;
    at -= 1;
    digits[at] = b'0' + rest % 10;
    if rest >= 10 {
        at -= 1;
        digits[at] = b'0' + rest / 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// An event name as a subject token: other characters become `_`, an empty name is `_`.
struct EventToken<'a>(&'a str);

impl fmt::Display for EventToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_token(self.0) {
            return f.write_str(self.0);
        }
        token_bytes(self.0).try_for_each(|byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

/// True when the name is its own token.
fn is_token(event: &str) -> bool {
    (1..=EVENT_TOKEN_MAX).contains(&event.len()) && event.bytes().all(is_plain)
}

fn token_bytes(event: &str) -> impl Iterator<Item = u8> {
    let event = if event.is_empty() { "_" } else { event };
    event.chars().take(EVENT_TOKEN_MAX).map(plain_byte)
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
    fn stream_and_bucket_names_follow_the_prefix() {
        let prefix: Prefix = "mybot".parse().unwrap();
        assert_eq!(prefix.event_stream(None), "MYBOT_EVENTS");
        assert_eq!(prefix.event_stream(Some(3)), "MYBOT_EVENTS_3");
        assert_eq!(prefix.dead_stream(), "MYBOT_DEAD");
        assert_eq!(prefix.fleet_bucket(), "mybot_fleet");
        assert_eq!(prefix.all_events(), "mybot.shard.*.events.*.*");
        assert_eq!(prefix.shard_events(3), "mybot.shard.3.events.*.*");
        assert_eq!(
            prefix.event_of_all_shards("READY"),
            "mybot.shard.*.events.*.READY"
        );
        assert_eq!(prefix.live_feed(), "mybot.shard.*.events");
        assert_eq!(
            prefix.live_feed_transform(),
            "mybot.shard.{{wildcard(1)}}.events"
        );
    }

    #[test]
    fn prefixes_that_are_more_than_a_token_are_refused_by_name() {
        for text in ["", "a.b", "a b", "a*", ">", "é", "a\r\n", &"a".repeat(33)] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!("a".repeat(32).parse::<Prefix>().unwrap().as_str().len(), 32);
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

    #[test]
    fn event_names_become_one_token() {
        let check = |name: &str, expect: &str| {
            let mut out = Vec::new();
            push_event_subject(&mut out, &event_root(&Prefix::default(), 7), None, name);
            let expect = format!("discord.shard.7.events.none.{expect}");
            assert_eq!(String::from_utf8(out).unwrap(), expect);
            let subject = Subject::Event {
                shard: 7,
                guild: None,
                event: name,
            };
            assert_eq!(subject.with_prefix(&Prefix::default()), expect);
        };
        check("MESSAGE_CREATE", "MESSAGE_CREATE");
        check("lower-case-9", "lower-case-9");
        check("", "_");
        check("A.B*C>D E\tF", "A_B_C_D_E_F");
        check("A\r\nB", "A__B");
        check("É🦀x", "__x");
        check(&"A".repeat(256), &"A".repeat(256));
        check(&"A".repeat(257), &"A".repeat(256));
        check(&"é".repeat(5000), &"_".repeat(256));
    }

    #[test]
    fn decimals_of_every_length_are_written() {
        let mut number = 1_u64;
        let edges = std::iter::from_fn(|| {
            let this = number;
            number = number.checked_mul(10)?;
            Some([this - 1, this, this + 1])
        });
        for number in edges.flatten().chain([u64::MAX]) {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
