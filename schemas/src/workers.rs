//! KV values of workers: who is alive and holds which shard, who may send how many requests to
//! Discord, and who runs what only one may run. Not written by proxies, and nothing but the workers'
//! library need read them.
//!
//! A group is all workers that consume under one name. A shard belongs to the member that its claim
//! names for as long as that member's own key is there: the key has a TTL and is its lease. Shares
//! and singletons belong to all workers of a bot together, whatever their group.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Prefix;
use crate::ids::canonical_u32;

impl Prefix {
    /// Name of the KV bucket of workers and what they hold: `discord_workers`.
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
    /// `rest.share.<member>`: a [`ShareClaim`], with TTL.
    Share {
        /// One life of one worker: never used again.
        member: String,
    },
    /// `singleton.lease.<name>`: a [`SingletonLease`], with TTL.
    SingletonLease {
        /// Name of the task.
        name: String,
    },
    /// `singleton.run.<name>`: a [`SingletonRun`].
    SingletonRun {
        /// Name of the task.
        name: String,
    },
}

impl WorkersKey {
    /// What to watch for everybody's share of the REST budget.
    pub const ALL_SHARES: &'static str = "rest.share.*";

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
            Self::Share { member } => write!(f, "rest.share.{member}"),
            Self::SingletonLease { name } => write!(f, "singleton.lease.{name}"),
            Self::SingletonRun { name } => write!(f, "singleton.run.{name}"),
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
    // No kind of key of a group has these names, so groups may be called anything.
    match (group.as_str(), rest.split_once('.')?) {
        ("rest", ("share", member)) => {
            let member = name(member)?;
            return Some(WorkersKey::Share { member });
        }
        ("singleton", ("lease", task)) => {
            let name = name(task)?;
            return Some(WorkersKey::SingletonLease { name });
        }
        ("singleton", ("run", task)) => {
            let name = name(task)?;
            return Some(WorkersKey::SingletonRun { name });
        }
        _ => {}
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

/// Value of `rest.share.<member>`: how much of the bot's REST budget a worker claims.
///
/// A claim holds once the claims of all keys that are there, read in the order of the bucket's
/// revisions, add up to no more than the budget; until then what the worker had before holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareClaim {
    /// Name of the worker.
    pub worker: String,
    /// Requests per second.
    pub share: u32,
    /// When it joined.
    pub since_unix_ms: u64,
}

/// Value of `singleton.lease.<name>`: who runs the task, while the key is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SingletonLease {
    /// One life of one worker.
    pub member: String,
    /// Name of the worker.
    pub worker: String,
    /// Since when.
    pub since_unix_ms: u64,
}

/// Value of `singleton.run.<name>`: the task's last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SingletonRun {
    /// Name of the worker that runs or ran it.
    pub worker: String,
    /// Grows with every holder of the lease.
    pub token: u64,
    /// When it began.
    pub started_unix_ms: u64,
    /// When it ended, whatever came of it; absent while it runs, and if it never came to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_unix_ms: Option<u64>,
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
            (
                WorkersKey::Share {
                    member: "host-1-a".to_owned(),
                },
                "rest.share.host-1-a",
            ),
            (
                WorkersKey::SingletonLease {
                    name: "digest".to_owned(),
                },
                "singleton.lease.digest",
            ),
            (
                WorkersKey::SingletonRun {
                    name: "digest".to_owned(),
                },
                "singleton.run.digest",
            ),
            (
                WorkersKey::Begin {
                    group: "rest".to_owned(),
                },
                "rest.begin",
            ),
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
            "rest.share.a.b",
            "cache.share.a",
            "singleton.lease.",
            "singleton.other.x",
        ] {
            assert!(text.parse::<WorkersKey>().is_err(), "{text:?}");
        }
    }
}
