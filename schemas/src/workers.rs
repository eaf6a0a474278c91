//! KV values of workers that handle shards in order: who is alive, and who holds which shard. Not
//! written by proxies, and nothing but the workers' library need read them.
//!
//! A group is all workers that consume under one name. A shard belongs to the member that its claim
//! names for as long as that member's own key is there: the key has a TTL and is its lease.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Prefix;
use crate::ids::canonical_u32;

impl Prefix {
    /// Name of the KV bucket of workers that hold shards: `discord_workers`.
    #[must_use]
    pub fn workers_bucket(&self) -> String {
        format!("{self}_workers")
    }
}

/// A key of the workers' bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkersKey {
    /// `<group>.begin`: a [`WorkerGroup`]. When it was stored is where the group's events begin.
    Begin {
        /// Name of the group.
        group: String,
    },
    /// `<group>.member.<member>`: a [`WorkerMember`], with TTL.
    Member {
        /// Name of the group.
        group: String,
        /// One life of one worker: never used again.
        member: String,
    },
    /// `<group>.shard.<shard>`: a [`ShardClaim`].
    Shard {
        /// Name of the group.
        group: String,
        /// Number of the shard.
        shard: u32,
    },
}

impl WorkersKey {
    /// What to watch for everything about a group: `<group>.>`.
    #[must_use]
    pub fn all_of(group: &str) -> String {
        format!("{group}.>")
    }

    /// The subject JetStream stores the key under: `$KV.discord_workers.<group>.shard.7`. Renewing
    /// a lease with its TTL needs a plain publish to it.
    #[must_use]
    pub fn subject(&self, prefix: &Prefix) -> String {
        format!("$KV.{}.{self}", prefix.workers_bucket())
    }
}

impl fmt::Display for WorkersKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin { group } => write!(f, "{group}.begin"),
            Self::Member { group, member } => write!(f, "{group}.member.{member}"),
            Self::Shard { group, shard } => write!(f, "{group}.shard.{shard}"),
        }
    }
}

impl FromStr for WorkersKey {
    type Err = WorkersKeyError;

    fn from_str(text: &str) -> Result<Self, WorkersKeyError> {
        parse(text).ok_or_else(|| WorkersKeyError {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<WorkersKey> {
    let (group, rest) = text.split_once('.')?;
    let group = name(group)?;
    if rest == "begin" {
        return Some(WorkersKey::Begin { group });
    }
    match rest.split_once('.')? {
        ("member", member) => Some(WorkersKey::Member {
            group,
            member: name(member)?,
        }),
        ("shard", shard) => Some(WorkersKey::Shard {
            group,
            shard: canonical_u32(shard)?,
        }),
        _ => None,
    }
}

fn name(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (!text.is_empty() && text.bytes().all(plain)).then(|| text.to_owned())
}

/// A key of another shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a key of the workers' bucket")]
pub struct WorkersKeyError {
    /// What was given.
    pub text: String,
}

/// Value of `<group>.begin`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerGroup {
    /// Version of the worker that was first.
    #[serde(default)]
    pub version: String,
}

/// Value of `<group>.member.<member>`: a worker is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerMember {
    /// Name of the worker.
    pub worker: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// When it joined.
    pub since_unix_ms: u64,
    /// It gives its shards up and takes no more.
    #[serde(default)]
    pub leaving: bool,
}

/// Value of `<group>.shard.<shard>`: who holds it, while that member lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShardClaim {
    /// The member.
    pub member: String,
    /// Since when.
    pub since_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelled_as_documented_and_read_back() {
        let group = "cache".to_owned();
        let rows = [
            (
                WorkersKey::Begin {
                    group: group.clone(),
                },
                "cache.begin",
            ),
            (
                WorkersKey::Member {
                    group: group.clone(),
                    member: "host-1-a".to_owned(),
                },
                "cache.member.host-1-a",
            ),
            (WorkersKey::Shard { group, shard: 7 }, "cache.shard.7"),
        ];
        for (key, text) in rows {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key.clone()));
            let subject = key.subject(&Prefix::default());
            assert_eq!(subject, format!("$KV.discord_workers.{text}"));
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for text in [
            "",
            "cache",
            "cache.",
            ".begin",
            "cache.end",
            "cache.begin.x",
            "cache.shard.07",
            "cache.shard.x",
            "cache.member.",
            "cache.member.a.b",
            "ca che.begin",
        ] {
            assert!(text.parse::<WorkersKey>().is_err(), "{text:?}");
        }
    }
}
