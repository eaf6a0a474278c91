//! The prefix, and the names that follow it: streams, buckets, subject filters.

use std::fmt;
use std::str::FromStr;

use super::{EventToken, is_plain};

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

    /// Name of the KV bucket of the directory: `discord_directory`.
    #[must_use]
    pub fn directory_bucket(&self) -> String {
        format!("{}_directory", self.0)
    }

    /// Name of the KV bucket of users the directory has seen: `discord_users`.
    #[must_use]
    pub fn users_bucket(&self) -> String {
        format!("{}_users", self.0)
    }

    /// Subjects of one event of one shard: `discord.shard.7.events.*.GUILD_CREATE`.
    #[must_use]
    pub fn event_of_shard(&self, shard: u32, event: &str) -> String {
        format!("{}.shard.{shard}.events.*.{}", self.0, EventToken(event))
    }

    /// Subjects of one event of one guild, whatever its shard:
    /// `discord.shard.*.events.7.GUILD_MEMBERS_CHUNK`.
    #[must_use]
    pub fn event_of_guild(&self, guild: crate::GuildId, event: &str) -> String {
        format!("{}.shard.*.events.{guild}.{}", self.0, EventToken(event))
    }

    /// Subject that a service answers a query by id on: `discord.query.guild.*`.
    #[must_use]
    pub fn query_by_any_id(&self, what: &str) -> String {
        format!("{}.query.{what}.*", self.0)
    }

    /// Subject of the commands of all guilds: `discord.guild.*.commands`.
    #[must_use]
    pub fn all_guild_commands(&self) -> String {
        format!("{}.guild.*.commands", self.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_and_bucket_names_follow_the_prefix() {
        let prefix: Prefix = "mybot".parse().unwrap();
        assert_eq!(prefix.event_stream(None), "MYBOT_EVENTS");
        assert_eq!(prefix.event_stream(Some(3)), "MYBOT_EVENTS_3");
        assert_eq!(prefix.dead_stream(), "MYBOT_DEAD");
        assert_eq!(prefix.fleet_bucket(), "mybot_fleet");
        assert_eq!(prefix.directory_bucket(), "mybot_directory");
        assert_eq!(prefix.users_bucket(), "mybot_users");
        assert_eq!(
            prefix.event_of_shard(7, "READY"),
            "mybot.shard.7.events.*.READY"
        );
        assert_eq!(prefix.query_by_any_id("guild"), "mybot.query.guild.*");
        assert_eq!(prefix.all_guild_commands(), "mybot.guild.*.commands");
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
}
