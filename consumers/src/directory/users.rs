//! Users that events have shown, kept only if the operator wants it: a bucket of their own, since
//! they are many and no query needs all of them.
//!
//! Several shards see the same user; the last one to write wins, which costs at most a guild in the
//! list until the user is seen there again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{kv, stream};
use futures_util::StreamExt as _;
use schemas::{EventKind, Prefix, Snowflake, Timestamp, UserInfo, UserKey};
use serde::Deserialize;
use tokio::time::timeout;

use super::event::data;
use super::source::Stored;
use super::store::open_bucket;
use crate::nats::Link;

/// A user that nobody has seen for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// A user who is seen again and again is written once in this time.
const WRITTEN_EVERY_MS: u64 = 3_600_000;
/// Users remembered as written lately: about 200 bytes each. When they are too many, all are
/// forgotten, and written once more when seen.
const RECENT_MAX: usize = 100_000;
/// Users looked up and written at the same time.
const WRITES: usize = 64;
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// What an event tells about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    user: RawUser,
    guild: Option<Snowflake>,
    unix_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RawUser {
    id: Snowflake,
    username: String,
    #[serde(default)]
    global_name: Option<String>,
    #[serde(default)]
    bot: bool,
}

/// Users by where they were seen, with the time of the event, Unix milliseconds.
type Recent = BTreeMap<(Snowflake, Option<Snowflake>), (RawUser, u64)>;

/// The bucket of users.
#[derive(Debug)]
pub(crate) struct Users {
    bucket: kv::Store,
    // What was written last, and when.
    recent: Mutex<Recent>,
}

impl Users {
    /// Opens the bucket, or makes it.
    pub(crate) async fn open(
        link: &Link,
        prefix: &Prefix,
        replicas: usize,
    ) -> Result<Self, String> {
        let config = kv::Config {
            bucket: prefix.users_bucket(),
            description: "Users the directory has seen".to_owned(),
            history: 1,
            max_age: FORGOTTEN_AFTER,
            storage: stream::StorageType::File,
            num_replicas: replicas,
            ..kv::Config::default()
        };
        Ok(Self {
            bucket: open_bucket(&link.jetstream, config).await?,
            recent: Mutex::default(),
        })
    }

    /// How many there are.
    pub(crate) async fn count(&self) -> Option<u64> {
        let info = timeout(API_TIMEOUT, self.bucket.stream.get_info()).await;
        Some(info.ok()?.ok()?.state.messages)
    }

    /// A user by id.
    pub(crate) async fn find(&self, id: Snowflake) -> Result<Option<UserInfo>, String> {
        match timeout(API_TIMEOUT, self.bucket.get(UserKey(id).to_string())).await {
            Ok(Ok(value)) => Ok(value.and_then(|value| serde_json::from_slice(&value).ok())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Keeps the users that the events show.
    pub(crate) async fn see(&self, events: &[Stored]) -> Result<(), String> {
        let mut sights: BTreeMap<Snowflake, Vec<Sight>> = BTreeMap::new();
        for sight in events.iter().flat_map(sights_in) {
            if self.is_news(&sight) {
                sights.entry(sight.user.id).or_default().push(sight);
            }
        }
        let writes = sights
            .into_iter()
            .map(|(id, sights)| self.write(id, sights));
        let mut writes = futures_util::stream::iter(writes).buffer_unordered(WRITES);
        while let Some(written) = writes.next().await {
            written?;
        }
        Ok(())
    }

    /// Whether the user differs from what was written within the hour.
    fn is_news(&self, sight: &Sight) -> bool {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent
            .get(&(sight.user.id, sight.guild))
            .is_none_or(|(user, written)| {
                *user != sight.user || sight.unix_ms.saturating_sub(*written) >= WRITTEN_EVERY_MS
            })
    }

    async fn write(&self, id: Snowflake, sights: Vec<Sight>) -> Result<(), String> {
        let mut known = self.find(id).await?;
        for sight in &sights {
            known = Some(merged(known, sight));
        }
        let Some(known) = known else { return Ok(()) };
        let value = serde_json::to_vec(&known).map_err(|error| error.to_string())?;
        let put = self.bucket.put(UserKey(id).to_string(), value.into());
        match timeout(API_TIMEOUT, put).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT_MAX {
            recent.clear();
        }
        for sight in sights {
            recent.insert((id, sight.guild), (sight.user, sight.unix_ms));
        }
        Ok(())
    }
}

fn merged(known: Option<UserInfo>, sight: &Sight) -> UserInfo {
    let (mut guilds, seen_before) =
        known.map_or((Vec::new(), None), |known| (known.guilds, known.seen_at));
    if let Some(guild) = sight.guild {
        guilds.retain(|known| *known != guild);
        guilds.push(guild);
        let over = guilds.len().saturating_sub(UserInfo::GUILDS_MAX);
        guilds.drain(..over);
    }
    let seen_at = Timestamp::from_unix_ms(sight.unix_ms);
    UserInfo {
        id: sight.user.id,
        username: sight.user.username.clone(),
        global_name: sight.user.global_name.clone(),
        bot: sight.user.bot,
        guilds,
        seen_at: Some(seen_before.map_or(seen_at, |before| before.max(seen_at))),
    }
}

/// The users an event names; one that cannot be read names nobody.
fn sights_in(stored: &Stored) -> Vec<Sight> {
    let guild = stored.guild.map(Snowflake::from);
    let users = match EventKind::from_name(&stored.event) {
        Some(EventKind::GuildMemberAdd | EventKind::GuildMemberUpdate) => {
            let member = data::<Member>(&stored.frame).ok();
            member.map(|member| vec![member.user])
        }
        // A webhook's author is no user.
        Some(EventKind::MessageCreate) => data::<Message>(&stored.frame).ok().map(|message| {
            let is_user = message.webhook_id.is_none();
            Vec::from_iter(is_user.then_some(message.author))
        }),
        Some(EventKind::GuildCreate) => data::<Guild>(&stored.frame).ok().map(|guild| {
            guild
                .members
                .into_iter()
                .map(|member| member.user)
                .collect()
        }),
        _ => None,
    };
    let sight = |user| Sight {
        user,
        guild,
        unix_ms: stored.unix_ms,
    };
    users.unwrap_or_default().into_iter().map(sight).collect()
}

#[derive(Deserialize)]
struct Member {
    user: RawUser,
}

#[derive(Deserialize)]
struct Message {
    author: RawUser,
    #[serde(default)]
    webhook_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Guild {
    #[serde(default)]
    members: Vec<Member>,
}

#[cfg(test)]
mod tests {
    use schemas::GuildId;

    use super::*;

    fn stored(event: &str, d: &str) -> Stored {
        Stored {
            event: event.to_owned(),
            guild: GuildId::new(7),
            seq: 1,
            unix_ms: 5000,
            frame: format!(r#"{{"t":"{event}","s":1,"op":0,"d":{d}}}"#).into(),
        }
    }

    fn names(event: &str, d: &str) -> Vec<String> {
        let sights = sights_in(&stored(event, d));
        sights
            .into_iter()
            .map(|sight| sight.user.username)
            .collect()
    }

    #[test]
    fn members_and_authors_are_seen() {
        let user = r#"{"id":"3","username":"ann","global_name":null}"#;
        let member = format!(r#"{{"user":{user},"guild_id":"7"}}"#);
        assert_eq!(names("GUILD_MEMBER_ADD", &member), ["ann"]);
        assert_eq!(names("GUILD_MEMBER_UPDATE", &member), ["ann"]);
        assert_eq!(
            names("MESSAGE_CREATE", &format!(r#"{{"author":{user}}}"#)),
            ["ann"]
        );
        let hook = format!(r#"{{"author":{user},"webhook_id":"9"}}"#);
        assert_eq!(names("MESSAGE_CREATE", &hook), Vec::<String>::new());
        let guild = format!(r#"{{"id":"7","members":[{member},{member}]}}"#);
        assert_eq!(names("GUILD_CREATE", &guild), ["ann", "ann"]);
        assert_eq!(names("GUILD_MEMBER_REMOVE", &member), Vec::<String>::new());
        assert_eq!(names("MESSAGE_CREATE", "{}"), Vec::<String>::new());
    }

    #[test]
    fn a_user_keeps_the_latest_guilds_and_the_latest_time() {
        let member = r#"{"user":{"id":"3","username":"ann","bot":true}}"#;
        let mut sight = sights_in(&stored("GUILD_MEMBER_ADD", member)).remove(0);
        let mut user = None;
        for guild in 1..=40 {
            sight.guild = Snowflake::new(guild);
            sight.unix_ms = 1000 * guild;
            user = Some(merged(user, &sight));
        }
        sight.guild = Snowflake::new(20);
        sight.unix_ms = 1;
        let user = merged(user, &sight);
        assert_eq!(user.guilds.len(), UserInfo::GUILDS_MAX);
        assert_eq!(user.guilds.last(), Snowflake::new(20).as_ref());
        assert_eq!(user.guilds.first(), Snowflake::new(9).as_ref());
        assert_eq!(user.seen_at.unwrap().unix_ms(), 40_000);
        assert!(user.bot);
    }
}
