//! The directory: what it keeps in NATS KV, what it is asked, and what it answers.
//!
//! Ids are JSON texts, as Discord writes them: 64 bits do not fit a number of JavaScript. Readers
//! ignore fields they do not know and have a default for each that is not essential.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ShardState, Snowflake, Timestamp};

mod key;

pub use key::{DirectoryKey, DirectoryKeyError, UserKey};

/// Guilds of one page, unless asked for fewer.
pub const PAGE_DEFAULT: u32 = 100;
/// Most lines of one page, whatever is asked for; a page also ends where the reply would exceed the
/// NATS server's `max_payload`.
pub const PAGE_MAX: u32 = 1000;

/// `discord.query.<what>`: what the directory can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryKind {
    /// `stats`: [`DirectoryStats`].
    Stats,
    /// `guilds`: a [`GuildsRequest`], answered by a [`GuildPage`].
    Guilds,
    /// `guild.<id>`: [`GuildInfo`].
    Guild,
    /// `user.<id>`: [`UserInfo`].
    User,
    /// `shards`: a [`ShardsRequest`], answered by a [`ShardPage`].
    Shards,
}

impl QueryKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Stats,
        Self::Guilds,
        Self::Guild,
        Self::User,
        Self::Shards,
    ];

    /// The token of the subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stats => "stats",
            Self::Guilds => "guilds",
            Self::Guild => "guild",
            Self::User => "user",
            Self::Shards => "shards",
        }
    }

    /// Whether the subject ends with an id.
    #[must_use]
    pub const fn takes_id(self) -> bool {
        matches!(self, Self::Guild | Self::User)
    }
}

/// What the directory keeps of a guild, under `guild.<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuildEntry {
    /// The guild.
    pub id: Snowflake,
    /// Shard its last event came in on.
    pub shard: u32,
    /// Its name; null while only its id is known (READY lists ids).
    #[serde(default)]
    pub name: Option<String>,
    /// Who owns it.
    #[serde(default)]
    pub owner_id: Option<Snowflake>,
    /// Members, as Discord counted them plus those who joined and left since.
    #[serde(default)]
    pub member_count: Option<u64>,
    /// Its channels, threads left out.
    #[serde(default)]
    pub channels: BTreeSet<Snowflake>,
    /// Its roles, `@everyone` included.
    #[serde(default)]
    pub roles: BTreeSet<Snowflake>,
    /// Features Discord gave it.
    #[serde(default)]
    pub features: Vec<String>,
    /// When the bot joined.
    #[serde(default)]
    pub joined_at: Option<Timestamp>,
    /// False in an outage, and between READY and the guild's own event.
    #[serde(default)]
    pub available: bool,
    /// Since when events of it may be missing, Unix milliseconds; null while nothing is.
    #[serde(default)]
    pub stale_since_unix_ms: Option<u64>,
    /// Which event stream `seq` counts in: a stream that is made again counts from 1.
    #[serde(default)]
    pub stream: String,
    /// Stream sequence of the last event that is in here; older ones must not be applied again.
    #[serde(default)]
    pub seq: u64,
}

impl GuildEntry {
    /// A guild of which only the id and the shard are known.
    #[must_use]
    pub const fn stub(id: Snowflake, shard: u32) -> Self {
        Self {
            id,
            shard,
            name: None,
            owner_id: None,
            member_count: None,
            channels: BTreeSet::new(),
            roles: BTreeSet::new(),
            features: Vec::new(),
            joined_at: None,
            available: false,
            stale_since_unix_ms: None,
            stream: String::new(),
            seq: 0,
        }
    }

    /// What a query answers.
    #[must_use]
    pub fn info(&self) -> GuildInfo {
        GuildInfo {
            id: self.id,
            shard: self.shard,
            name: self.name.clone(),
            owner_id: self.owner_id,
            member_count: self.member_count,
            channels: count(self.channels.len()),
            roles: count(self.roles.len()),
            features: self.features.clone(),
            joined_at: self.joined_at,
            available: self.available,
            stale: self.stale_since_unix_ms.is_some(),
        }
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// How far the directory has read a shard's events, under `position.<shard>`, and who reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShardPosition {
    /// The instance that reads the shard; null when none does.
    #[serde(default)]
    pub holder: Option<String>,
    /// Grows with every change of the holder.
    #[serde(default)]
    pub epoch: u64,
    /// Which event stream `seq` counts in.
    #[serde(default)]
    pub stream: String,
    /// Every event of the shard up to this stream sequence is in the entries.
    #[serde(default)]
    pub seq: u64,
    /// Shard count of the shard's last READY.
    #[serde(default)]
    pub shard_count: Option<u32>,
    /// Guilds of the shard may be unknown: since reading began no READY has listed them.
    #[serde(default)]
    pub incomplete: bool,
}

/// A running instance of the directory, under `instance.<name>`: gone when its TTL ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DirectoryInstance {
    /// Version of the program.
    #[serde(default)]
    pub version: String,
    /// When the process started, Unix milliseconds.
    #[serde(default)]
    pub started_at_unix_ms: u64,
}

/// A user somebody of the bot's guilds saw, under `user.<id>` in a bucket of their own; kept only
/// when the operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserInfo {
    /// The user.
    pub id: Snowflake,
    /// Unique name.
    pub username: String,
    /// Displayed name.
    #[serde(default)]
    pub global_name: Option<String>,
    /// Whether it is a bot.
    #[serde(default)]
    pub bot: bool,
    /// Guilds it was seen in, the latest last, at most [`UserInfo::GUILDS_MAX`].
    #[serde(default)]
    pub guilds: Vec<Snowflake>,
    /// When it was last seen doing something, to within an hour.
    #[serde(default)]
    pub seen_at: Option<Timestamp>,
}

impl UserInfo {
    /// Guilds kept per user.
    pub const GUILDS_MAX: usize = 32;
}

/// Reply to `query.guild.<id>` and a line of `query.guilds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuildInfo {
    /// The guild.
    pub id: Snowflake,
    /// Shard its events come in on.
    pub shard: u32,
    /// Its name; null while only its id is known.
    #[serde(default)]
    pub name: Option<String>,
    /// Who owns it.
    #[serde(default)]
    pub owner_id: Option<Snowflake>,
    /// Members.
    #[serde(default)]
    pub member_count: Option<u64>,
    /// Number of channels, threads left out.
    #[serde(default)]
    pub channels: u32,
    /// Number of roles, `@everyone` included.
    #[serde(default)]
    pub roles: u32,
    /// Features Discord gave it.
    #[serde(default)]
    pub features: Vec<String>,
    /// When the bot joined.
    #[serde(default)]
    pub joined_at: Option<Timestamp>,
    /// False in an outage, and between READY and the guild's own event.
    #[serde(default)]
    pub available: bool,
    /// True while events of it may be missing.
    #[serde(default)]
    pub stale: bool,
}

/// Request of `query.guilds`; an empty body asks for the first page of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuildsRequest {
    /// Only guilds of this shard.
    #[serde(default)]
    pub shard: Option<u32>,
    /// Only guilds whose name holds this text, upper and lower case alike.
    #[serde(default)]
    pub name: Option<String>,
    /// Only guilds after this id: the `next` of the page before.
    #[serde(default)]
    pub after: Option<Snowflake>,
    /// Most guilds of the page, at most 1000.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Reply of `query.guilds`, in the order of the ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuildPage {
    /// The page.
    pub guilds: Vec<GuildInfo>,
    /// Where the next page begins; null when this is the last one.
    #[serde(default)]
    pub next: Option<Snowflake>,
}

/// Reply of `query.stats`: sums over all shards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DirectoryStats {
    /// Guilds the bot is in, available or not.
    pub guilds: u64,
    /// Of these, guilds in an outage or not yet sent by Discord.
    #[serde(default)]
    pub unavailable: u64,
    /// Of these, guilds of which events may be missing.
    #[serde(default)]
    pub stale: u64,
    /// Sum of the guilds' member counts; users in several guilds count several times.
    #[serde(default)]
    pub members: u64,
    /// Different users seen; null unless users are kept.
    #[serde(default)]
    pub users: Option<u64>,
    /// Sum of the guilds' channels.
    #[serde(default)]
    pub channels: u64,
    /// Shards the proxies speak of.
    #[serde(default)]
    pub shards: u32,
    /// Of these, shards that deliver events.
    #[serde(default)]
    pub shards_ready: u32,
    /// Last heartbeat round trip by shard, in milliseconds; cut to the first
    /// [`DirectoryStats::LATENCIES_MAX`] shards, `query.shards` has all.
    #[serde(default)]
    pub latency_ms: BTreeMap<u32, f64>,
}

impl DirectoryStats {
    /// Shards whose latency one reply names: about 100 kB.
    pub const LATENCIES_MAX: usize = 4096;
}

/// Request of `query.shards`; an empty body asks for the first page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShardsRequest {
    /// Only shards after this one: the `next` of the page before.
    #[serde(default)]
    pub after: Option<u32>,
    /// Most shards of the page, at most 1000.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Reply of `query.shards`, in the order of the numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShardPage {
    /// The page.
    pub shards: Vec<ShardLine>,
    /// Where the next page begins; null when this is the last one.
    #[serde(default)]
    pub next: Option<u32>,
}

/// One shard of `query.shards`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShardLine {
    /// Number of the shard.
    pub shard: u32,
    /// Shard count it belongs to; null while no proxy has said so.
    #[serde(default)]
    pub count: Option<u32>,
    /// What it is doing; null while no proxy has said so.
    #[serde(default)]
    pub state: Option<ShardState>,
    /// Last heartbeat round trip in milliseconds.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    /// Guilds the directory knows on it.
    #[serde(default)]
    pub guilds: u64,
    /// Sum of their member counts.
    #[serde(default)]
    pub members: u64,
    /// Instance of the directory that reads the shard's events.
    #[serde(default)]
    pub read_by: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_tells_what_is_unknown() {
        let info = GuildEntry::stub(Snowflake::new(7).unwrap(), 3).info();
        let text = serde_json::to_value(&info).unwrap();
        assert_eq!(text["id"], "7");
        assert_eq!(text["name"], serde_json::Value::Null);
        assert_eq!(text["available"], false);
    }

    #[test]
    fn the_least_request_is_empty() {
        let request: GuildsRequest = serde_json::from_str("{}").unwrap();
        assert_eq!(request, GuildsRequest::default());
        let page: GuildPage = serde_json::from_str(r#"{"guilds":[],"more":1}"#).unwrap();
        assert_eq!(page.next, None);
    }
}
