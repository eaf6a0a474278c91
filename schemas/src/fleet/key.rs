//! Keys of the fleet's bucket: built and parsed by one type, so that both directions agree.

use std::fmt;
use std::str::FromStr;

use crate::ids::canonical_u32;
use crate::{Prefix, ProxyId, ShardId};

/// A key of the fleet's bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FleetKey {
    /// `member.<proxy>`: a [`Member`](super::Member), with TTL.
    Member(ProxyId),
    /// `leader`: a [`Leader`](super::Leader), with TTL.
    Leader,
    /// `plan`: a [`Plan`](super::Plan).
    Plan,
    /// `shard.<count>.<id>`: a [`ShardRecord`](super::ShardRecord).
    Shard(ShardId),
    /// `identify`: an [`IdentifyState`](super::IdentifyState).
    Identify,
}

impl FleetKey {
    /// What to watch for all members.
    pub const ALL_MEMBERS: &'static str = "member.*";
    /// What to watch for the shards of every sharding.
    pub const ALL_SHARDS: &'static str = "shard.*.*";

    /// What to watch for the shards of one sharding: `shard.<count>.*`.
    #[must_use]
    pub fn shards_of(count: u32) -> String {
        format!("shard.{count}.*")
    }

    /// The subject JetStream stores the key under: `$KV.discord_fleet.leader`. Renewing a lease
    /// with its TTL needs a plain publish to it.
    #[must_use]
    pub fn subject(&self, prefix: &Prefix) -> String {
        format!("$KV.{}.{self}", prefix.fleet_bucket())
    }
}

impl fmt::Display for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(proxy) => write!(f, "member.{proxy}"),
            Self::Leader => f.write_str("leader"),
            Self::Plan => f.write_str("plan"),
            Self::Shard(shard) => write!(f, "shard.{}.{}", shard.count(), shard.id()),
            Self::Identify => f.write_str("identify"),
        }
    }
}

impl FromStr for FleetKey {
    type Err = FleetKeyError;

    fn from_str(text: &str) -> Result<Self, FleetKeyError> {
        let key = match text {
            "leader" => Some(Self::Leader),
            "plan" => Some(Self::Plan),
            "identify" => Some(Self::Identify),
            _ => parse_member(text).or_else(|| parse_shard(text)),
        };
        key.ok_or_else(|| FleetKeyError {
            text: text.to_owned(),
        })
    }
}

fn parse_member(text: &str) -> Option<FleetKey> {
    text.strip_prefix("member.")?
        .parse()
        .ok()
        .map(FleetKey::Member)
}

fn parse_shard(text: &str) -> Option<FleetKey> {
    let (count, id) = text.strip_prefix("shard.")?.split_once('.')?;
    ShardId::new(canonical_u32(id)?, canonical_u32(count)?)
        .ok()
        .map(FleetKey::Shard)
}

/// A key that the fleet does not use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is none of member.<proxy>, leader, plan, shard.<count>.<id> with id < count, identify"
)]
pub struct FleetKeyError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_spelled_as_documented_and_read_back() {
        let shard = FleetKey::Shard(ShardId::new(3, 16).unwrap());
        let keys = [
            (
                FleetKey::Member("proxy-1".parse().unwrap()),
                "member.proxy-1",
            ),
            (FleetKey::Leader, "leader"),
            (FleetKey::Plan, "plan"),
            (shard.clone(), "shard.16.3"),
            (FleetKey::Identify, "identify"),
        ];
        for (key, text) in keys {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key));
        }
        assert_eq!(FleetKey::shards_of(16), "shard.16.*");
        let prefix = "mybot".parse().unwrap();
        assert_eq!(shard.subject(&prefix), "$KV.mybot_fleet.shard.16.3");
    }

    #[test]
    fn keys_edited_by_hand_are_refused_by_name() {
        for text in [
            "",
            "member",
            "member.",
            "member.a.b",
            "member.a b",
            "leader.1",
            "shard.16",
            "shard.16.16",
            "shard.0.0",
            "shard.16.03",
            "shard.+16.3",
            "shard.16.3.1",
            "shard..3",
            "Plan",
        ] {
            let error = text.parse::<FleetKey>().unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{text:?} is none of")),
                "{error}"
            );
        }
    }
}
