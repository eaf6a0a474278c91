//! Keys of the directory's buckets: built and parsed by one type, so that both directions agree.

use std::fmt;
use std::str::FromStr;

use crate::ids::canonical_u32;
use crate::{GuildId, Prefix, Snowflake};

/// A key of the directory's bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DirectoryKey {
    /// `guild.<id>`: a [`GuildEntry`](super::GuildEntry).
    Guild(GuildId),
    /// `position.<shard>`: a [`ShardPosition`](super::ShardPosition).
    Position(u32),
    /// `instance.<name>`: a [`DirectoryInstance`](super::DirectoryInstance), with TTL.
    Instance(String),
}

impl DirectoryKey {
    /// The subject JetStream stores the key under: `$KV.discord_directory.guild.7`.
    #[must_use]
    pub fn subject(&self, prefix: &Prefix) -> String {
        format!("$KV.{}.{self}", prefix.directory_bucket())
    }
}

impl fmt::Display for DirectoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guild(guild) => write!(f, "guild.{guild}"),
            Self::Position(shard) => write!(f, "position.{shard}"),
            Self::Instance(name) => write!(f, "instance.{name}"),
        }
    }
}

impl FromStr for DirectoryKey {
    type Err = DirectoryKeyError;

    fn from_str(text: &str) -> Result<Self, DirectoryKeyError> {
        let key = text.split_once('.').and_then(|(kind, rest)| match kind {
            "guild" if !rest.starts_with('0') => {
                GuildId::from_digits(rest.as_bytes()).map(Self::Guild)
            }
            "position" => canonical_u32(rest).map(Self::Position),
            "instance" if is_name(rest) => Some(Self::Instance(rest.to_owned())),
            _ => None,
        });
        key.ok_or_else(|| DirectoryKeyError {
            text: text.to_owned(),
        })
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.bytes().all(plain)
}

/// A key of the bucket of users: `user.<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserKey(pub Snowflake);

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user.{}", self.0)
    }
}

/// A key that the directory does not use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is none of guild.<id>, position.<shard>, instance.<name>")]
pub struct DirectoryKeyError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_spelled_as_documented_and_read_back() {
        let keys = [
            (DirectoryKey::Guild(GuildId::new(7).unwrap()), "guild.7"),
            (DirectoryKey::Position(12), "position.12"),
            (
                DirectoryKey::Instance("host-1".to_owned()),
                "instance.host-1",
            ),
        ];
        let prefix = "mybot".parse().unwrap();
        for (key, text) in keys {
            assert_eq!(key.to_string(), text);
            assert_eq!(key.subject(&prefix), format!("$KV.mybot_directory.{text}"));
            assert_eq!(text.parse(), Ok(key));
        }
        assert_eq!(UserKey(Snowflake::new(5).unwrap()).to_string(), "user.5");
    }

    #[test]
    fn keys_edited_by_hand_are_refused_by_name() {
        for text in [
            "",
            "guild",
            "guild.",
            "guild.x",
            "guild.0",
            "guild.07",
            "position.-1",
            "position.01",
            "instance.",
            "instance.a.b",
            "other.1",
        ] {
            let error = text.parse::<DirectoryKey>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
