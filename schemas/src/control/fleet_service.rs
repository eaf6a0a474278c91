//! Verbs of `discord.fleet.<verb>`, answered by the coordinator. A request it cannot serve is
//! answered with the NATS service error headers, not with these replies.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Prefix, ProxyId, ShardId, Subject};

/// What the coordinator can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FleetVerb {
    /// May this shard send IDENTIFY?
    Identify,
    /// Hand all shards of a proxy to others.
    Drain,
    /// Hand one shard to a certain proxy.
    Migrate,
    /// Change the shard count.
    Reshard,
    /// Reconnect one shard.
    Restart,
    /// Who holds what.
    State,
}

impl FleetVerb {
    /// Every verb.
    pub const ALL: [Self; 6] = [
        Self::Identify,
        Self::Drain,
        Self::Migrate,
        Self::Reshard,
        Self::Restart,
        Self::State,
    ];

    /// The verb as a token of the subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "identify",
            Self::Drain => "drain",
            Self::Migrate => "migrate",
            Self::Reshard => "reshard",
            Self::Restart => "restart",
            Self::State => "state",
        }
    }

    /// Its subject: `discord.fleet.identify`.
    #[must_use]
    pub fn subject(self, prefix: &Prefix) -> String {
        Subject::Fleet {
            verb: self.as_str(),
        }
        .with_prefix(prefix)
    }
}

impl fmt::Display for FleetVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FleetVerb {
    type Err = FleetVerbError;

    fn from_str(text: &str) -> Result<Self, FleetVerbError> {
        let named = |verb: &Self| verb.as_str() == text;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| FleetVerbError {
                text: text.to_owned(),
            })
    }
}

/// A word that is no verb of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is none of identify, drain, migrate, reshard, restart, state")]
pub struct FleetVerbError {
    /// What was given.
    pub text: String,
}

/// Asks for the right to send one IDENTIFY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentifyRequest {
    /// Who asks.
    pub proxy: ProxyId,
    /// For which shard, as [id, count].
    pub shard: ShardId,
    /// How urgent it is.
    #[serde(default)]
    pub priority: IdentifyPriority,
    /// Why the shard needs a new session, for logs.
    #[serde(default)]
    pub reason: Option<String>,
    /// What became of an earlier grant. A request with a report asks for nothing.
    #[serde(default)]
    pub report: Option<IdentifyReport>,
}

/// What became of a granted IDENTIFY: the bucket is free for the next as soon as this is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentifyReport {
    /// The grant's number.
    pub grant: u64,
    /// What became of it.
    pub outcome: IdentifyOutcome,
}

/// What became of a granted IDENTIFY, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentifyOutcome {
    /// It was not sent and never will be.
    Unused,
    /// It is sent.
    Sent,
    /// READY came.
    Ready,
    /// No READY came: op 9, a close, silence.
    Failed,
    /// A word that is newer than this reader. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// How urgent an IDENTIFY is. In order: the most urgent is the least.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum IdentifyPriority {
    /// A shard that delivered and lost its session.
    Failed,
    /// A shard that starts with its process.
    #[default]
    Start,
    /// A new shard of a growing bot; also what a reader takes for a word it does not know.
    #[serde(other)]
    Growth,
}

/// Answer to an [`IdentifyRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentifyReply {
    /// Granted, wait or refused.
    pub status: IdentifyStatus,
    /// Milliseconds: for a grant how long it is good for, otherwise when to ask again.
    #[serde(default)]
    pub wait_ms: Option<u64>,
    /// Why it is not granted: the bucket is taken, the day's budget is at its reserve, and so on.
    #[serde(default)]
    pub reason: Option<String>,
    /// Coordinator's epoch: an answer of an older epoch than one already seen is void.
    #[serde(default)]
    pub epoch: u64,
    /// Session starts left today, as far as the coordinator knows.
    #[serde(default)]
    pub remaining: Option<u32>,
    /// When the day's budget is refilled, Unix milliseconds.
    #[serde(default)]
    pub reset_at_unix_ms: Option<u64>,
    /// Number of the grant, to report what became of it.
    #[serde(default)]
    pub grant: Option<u64>,
}

/// Answer to an [`IdentifyRequest`], in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentifyStatus {
    /// Send IDENTIFY at once, once.
    Granted,
    /// This shard is not the asker's to identify.
    Refused,
    /// Ask again after `wait_ms`; also what a reader takes for a word it does not know.
    #[serde(other)]
    Wait,
}

/// Asks that all shards of a proxy go to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainRequest {
    /// The proxy to empty.
    pub proxy: ProxyId,
}

/// Asks that one shard goes to a certain proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrateRequest {
    /// Number of the shard in the current plan.
    pub shard: u32,
    /// Its new owner.
    pub to: ProxyId,
}

/// Asks for another shard count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReshardRequest {
    /// The count; null for the one Discord recommends.
    #[serde(default)]
    pub count: Option<u32>,
}

/// Asks that one shard reconnects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartRequest {
    /// Number of the shard in the current plan.
    pub shard: u32,
    /// True for a new session (IDENTIFY) instead of RESUME.
    #[serde(default)]
    pub fresh: bool,
}

/// Asks for the state of the fleet; the answer is a `ClusterState`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateRequest {}

/// Answer to drain, migrate, reshard and restart: the coordinator has taken the order.
///
/// What becomes of it stands in the plan and in the shards' records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetReply {
    /// False when there is nothing to do or it cannot be done; `detail` says why.
    pub accepted: bool,
    /// For people.
    #[serde(default)]
    pub detail: Option<String>,
    /// Epoch of the plan that carries the order out.
    #[serde(default)]
    pub epoch: u64,
    /// Shards that will move or reconnect.
    #[serde(default)]
    pub shards: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_its_subject() {
        let prefix = Prefix::default();
        for verb in FleetVerb::ALL {
            let subject = verb.subject(&prefix);
            assert_eq!(subject, format!("discord.fleet.{verb}"));
            assert_eq!(
                Subject::parse(&prefix, &subject),
                Ok(Subject::Fleet {
                    verb: verb.as_str()
                })
            );
            assert_eq!(verb.as_str().parse(), Ok(verb));
        }
        let error = "explode".parse::<FleetVerb>().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("\"explode\" is none of identify")
        );
    }

    #[test]
    fn failed_shards_come_before_growth() {
        let mut waiting = [
            IdentifyPriority::Growth,
            IdentifyPriority::Failed,
            IdentifyPriority::default(),
        ];
        waiting.sort();
        assert_eq!(
            waiting,
            [
                IdentifyPriority::Failed,
                IdentifyPriority::Start,
                IdentifyPriority::Growth
            ]
        );
    }

    #[test]
    fn words_of_a_newer_version_are_taken_the_careful_way() {
        let reply: IdentifyReply = serde_json::from_str(r#"{"status":"perhaps"}"#).unwrap();
        assert_eq!(reply.status, IdentifyStatus::Wait);
        let request = r#"{"proxy":"a","shard":[0,1],"priority":"soon","colour":"red"}"#;
        let request: IdentifyRequest = serde_json::from_str(request).unwrap();
        assert_eq!(request.priority, IdentifyPriority::Growth);
    }
}
