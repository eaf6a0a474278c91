//! Sends gateway commands to shards, through the proxies that hold them, and gathers what Discord
//! answers to requests for members.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use bytes::Bytes;
use futures_util::stream::{SelectAll, Stream, StreamExt as _};
use schemas::{
    CommandOp, CommandReply, CommandStatus, EventKind, GatewayCommand, GuildId, Prefix, Subject,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout, timeout_at};

use crate::metrics::{CommandMetrics, CommandOutcome};
use crate::streams;

/// Longest wait for a proxy's word: it answers at once, also when the command must wait.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for an answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Shards told of a presence at the same time.
const SHARDS_AT_ONCE: usize = 64;
/// Longest silence between two chunks of members; Discord sends them within seconds.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(15);
/// By how much the clocks of proxy, server and worker may differ when an earlier request's chunks
/// are looked for. Too early costs nothing: chunks are told by their nonce.
const CLOCK_MARGIN: Duration = Duration::from_secs(5);

/// Sends gateway commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CommandSender {
    client: async_nats::Client,
    prefix: Prefix,
    event_streams: u32,
    metrics: CommandMetrics,
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No proxy holds the shard. For a guild, whose proxies stay silent, the wait was in vain.
    #[error("no proxy holds this shard or guild at the moment")]
    NobodyHolds,
    /// The proxy will not send it.
    #[error("the command was rejected: {}", .0.error.as_deref().unwrap_or("no reason given"))]
    Rejected(CommandReply),
    /// It is longer than Discord takes.
    #[error("the command cannot be sent")]
    Invalid(#[source] schemas::control::CommandError),
    /// NATS does not do its part.
    #[error("NATS does not take part: {0}")]
    Nats(String),
    /// The reply is of another shape.
    #[error("the proxy's reply cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// Discord's answer, or a part of it, did not come in time.
    #[error("no further members came within {CHUNK_TIMEOUT:?}")]
    NoMembers,
}

/// Which members of a guild to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembersQuery {
    /// All; once per guild and 30 s, needs the intent `GUILD_MEMBERS`.
    All,
    /// Whose names begin with this, at most so many (Discord: 100).
    Names {
        /// Beginning of the name.
        prefix: String,
        /// Most members.
        limit: u32,
    },
    /// These users, at most 100.
    Users(Vec<u64>),
}

/// One GUILD_MEMBERS_CHUNK.
#[derive(Clone, Debug)]
pub struct MembersChunk {
    /// Its number, from 0; chunks may come twice or out of order after a gateway reconnect, but
    /// each is given once.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// The members as Discord describes them.
    pub members: Vec<Value>,
    /// Users asked for that are no members.
    pub not_found: Vec<String>,
}

impl CommandSender {
    /// A sender on a connection; `prefix` and `event_streams` are the proxy's.
    #[must_use]
    pub fn new(client: async_nats::Client, prefix: Prefix, event_streams: u32) -> Self {
        Self {
            client,
            prefix,
            event_streams,
            metrics: CommandMetrics::default(),
        }
    }

    /// Counted by these.
    pub(crate) fn counted(self, metrics: &CommandMetrics) -> Self {
        let metrics = metrics.clone();
        Self { metrics, ..self }
    }

    /// Sends a command on a shard.
    ///
    /// # Errors
    /// [`SendError`]; a command that only waits for its turn is no error.
    pub async fn to_shard(
        &self,
        shard: u32,
        command: &GatewayCommand,
    ) -> Result<CommandReply, SendError> {
        self.send(&Subject::ShardCommands { shard }, command).await
    }

    /// Sends a command on the shard of a guild.
    ///
    /// # Errors
    /// [`SendError`]; a command that only waits for its turn is no error.
    pub async fn to_guild(
        &self,
        guild: GuildId,
        command: &GatewayCommand,
    ) -> Result<CommandReply, SendError> {
        self.send(&Subject::GuildCommands { guild }, command).await
    }

    /// Sets the bot's presence, `d` of op 3, on these shards; what became of it on each.
    pub async fn set_presence(
        &self,
        shards: impl IntoIterator<Item = u32>,
        presence: Map<String, Value>,
    ) -> Vec<(u32, Result<CommandReply, SendError>)> {
        let command = GatewayCommand {
            op: CommandOp::PresenceUpdate,
            d: presence,
        };
        let command = &command;
        let sends = shards
            .into_iter()
            .map(|shard| async move { (shard, self.to_shard(shard, command).await) });
        let sends = futures_util::stream::iter(sends).buffered(SHARDS_AT_ONCE);
        sends.collect().await
    }

    /// Asks for members of a guild and gathers the chunks as they come.
    ///
    /// An equal request in flight is joined: its chunks are given from the first on.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn request_members(
        &self,
        guild: GuildId,
        query: &MembersQuery,
        presences: bool,
    ) -> Result<Members, SendError> {
        let own = self.client.new_inbox();
        // The last token is unique; Discord takes 32 bytes.
        let own = own.rsplit('.').next().unwrap_or_default();
        let own: String = own.chars().take(32).collect();
        let command = members_command(guild, query, presences, &own);
        // Before the request: no chunk may come earlier.
        let ends = self.stream_ends().await?;
        let reply = self.to_guild(guild, &command).await?;
        let nonce = reply.merged_with_nonce.clone().unwrap_or(own);
        let back = reply.sent_ms_ago.map(Duration::from_millis);
        let chunk = EventKind::GuildMembersChunk.name();
        let filter = self.prefix.event_of_guild(guild, chunk);
        let mut chunks = SelectAll::new();
        for (name, last) in ends {
            let deliver_policy = match back {
                Some(back) => DeliverPolicy::ByStartTime {
                    start_time: time::OffsetDateTime::now_utc() - back - CLOCK_MARGIN,
                },
                None => DeliverPolicy::ByStartSequence {
                    start_sequence: last + 1,
                },
            };
            chunks.push(self.follow(&name, &filter, deliver_policy).await?);
        }
        let wait = reply.retry_after_ms.unwrap_or_default();
        Ok(Members {
            chunks,
            nonce,
            seen: BTreeSet::new(),
            count: None,
            deadline: Instant::now() + CHUNK_TIMEOUT + Duration::from_millis(wait),
        })
    }

    /// The event streams with their last sequences.
    async fn stream_ends(&self) -> Result<Vec<(String, u64)>, SendError> {
        let jetstream = jetstream::new(self.client.clone());
        let mut ends = Vec::new();
        for name in streams::all(&self.prefix, self.event_streams) {
            let stream = match timeout(API_TIMEOUT, jetstream.get_stream(&name)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(SendError::Nats(format!("{name}: {error}"))),
                Err(_) => return Err(SendError::Nats(format!("{name}: no answer"))),
            };
            ends.push((name, stream.cached_info().state.last_sequence));
        }
        Ok(ends)
    }

    async fn follow(
        &self,
        stream: &str,
        filter: &str,
        deliver_policy: DeliverPolicy,
    ) -> Result<Payloads, SendError> {
        let config = pull::OrderedConfig {
            deliver_policy,
            filter_subject: filter.to_owned(),
            ..pull::OrderedConfig::default()
        };
        let failed = |error: &dyn std::fmt::Display| SendError::Nats(format!("{stream}: {error}"));
        let open = async {
            let jetstream = jetstream::new(self.client.clone());
            let stream = jetstream.get_stream_no_info(stream).await;
            let stream = stream.map_err(|error| failed(&error))?;
            let consumer = stream.create_consumer(config).await;
            let consumer = consumer.map_err(|error| failed(&error))?;
            consumer.messages().await.map_err(|error| failed(&error))
        };
        match timeout(API_TIMEOUT, open).await {
            Ok(messages) => Ok(Box::pin(messages?.map(|message| {
                message
                    .map(|message| message.payload.clone())
                    .map_err(|error| SendError::Nats(error.to_string()))
            }))),
            Err(_) => Err(failed(&"no answer")),
        }
    }

    async fn send(
        &self,
        subject: &Subject<'_>,
        command: &GatewayCommand,
    ) -> Result<CommandReply, SendError> {
        let sent = self.request(subject, command).await;
        self.metrics.count(match &sent {
            Ok(reply) if reply.status == CommandStatus::Queued => CommandOutcome::Queued,
            Ok(_) => CommandOutcome::Sent,
            Err(SendError::Rejected(_)) => CommandOutcome::Rejected,
            Err(SendError::NobodyHolds) => CommandOutcome::NobodyHolds,
            Err(_) => CommandOutcome::Failed,
        });
        sent
    }

    async fn request(
        &self,
        subject: &Subject<'_>,
        command: &GatewayCommand,
    ) -> Result<CommandReply, SendError> {
        let payload = command.payload().map_err(SendError::Invalid)?;
        let subject = subject.with_prefix(&self.prefix);
        let request = self.client.request(subject, payload.into());
        let answer = match timeout(REPLY_TIMEOUT, request).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders | RequestErrorKind::TimedOut => {
                        SendError::NobodyHolds
                    }
                    _ => SendError::Nats(error.to_string()),
                });
            }
            Err(_) => return Err(SendError::NobodyHolds),
        };
        let reply: CommandReply =
            serde_json::from_slice(&answer.payload).map_err(SendError::Unreadable)?;
        match reply.status {
            CommandStatus::Sent | CommandStatus::Queued => Ok(reply),
            // A word newer than this reader is no promise.
            CommandStatus::Rejected | CommandStatus::Unknown => Err(SendError::Rejected(reply)),
        }
    }
}

type Payloads = Pin<Box<dyn Stream<Item = Result<Bytes, SendError>> + Send>>;

/// The chunks of one request for members.
pub struct Members {
    chunks: SelectAll<Payloads>,
    nonce: String,
    seen: BTreeSet<u32>,
    count: Option<u32>,
    deadline: Instant,
}

impl Members {
    /// The nonce the chunks carry.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The next chunk; `None` after the last one.
    ///
    /// # Errors
    /// [`SendError::NoMembers`] when it does not come in time.
    pub async fn next(&mut self) -> Result<Option<MembersChunk>, SendError> {
        loop {
            if self
                .count
                .is_some_and(|count| self.seen.len() >= count as usize)
            {
                return Ok(None);
            }
            let payload = match timeout_at(self.deadline, self.chunks.next()).await {
                Ok(Some(payload)) => payload?,
                Ok(None) | Err(_) => return Err(SendError::NoMembers),
            };
            if let Some(chunk) = read_chunk(&payload, &self.nonce)
                && self.seen.insert(chunk.index)
            {
                self.count = Some(chunk.count);
                self.deadline = Instant::now() + CHUNK_TIMEOUT;
                return Ok(Some(chunk));
            }
        }
    }

    /// All members, once the last chunk is here.
    ///
    /// # Errors
    /// As [`Members::next`].
    pub async fn collect(mut self) -> Result<Vec<Value>, SendError> {
        let mut members = Vec::new();
        while let Some(chunk) = self.next().await? {
            members.extend(chunk.members);
        }
        Ok(members)
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members")
            .field("nonce", &self.nonce)
            .field("seen", &self.seen.len())
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

fn members_command(
    guild: GuildId,
    query: &MembersQuery,
    presences: bool,
    nonce: &str,
) -> GatewayCommand {
    let mut d = Map::new();
    d.insert("guild_id".to_owned(), guild.to_string().into());
    match query {
        MembersQuery::All => {
            d.insert("query".to_owned(), "".into());
            d.insert("limit".to_owned(), 0.into());
        }
        MembersQuery::Names { prefix, limit } => {
            d.insert("query".to_owned(), prefix.as_str().into());
            // 0 would ask for all.
            d.insert("limit".to_owned(), (*limit).max(1).into());
        }
        MembersQuery::Users(users) => {
            let users: Vec<String> = users.iter().map(u64::to_string).collect();
            d.insert("user_ids".to_owned(), users.into());
        }
    }
    if presences {
        d.insert("presences".to_owned(), true.into());
    }
    d.insert("nonce".to_owned(), nonce.into());
    let op = CommandOp::RequestGuildMembers;
    GatewayCommand { op, d }
}

/// The chunk in a frame, if it is one of the request with this nonce.
fn read_chunk(frame: &[u8], nonce: &str) -> Option<MembersChunk> {
    #[derive(Deserialize)]
    struct Frame {
        d: Chunk,
    }
    #[derive(Deserialize)]
    struct Chunk {
        chunk_index: u32,
        chunk_count: u32,
        #[serde(default)]
        nonce: Option<String>,
        members: Vec<Value>,
        #[serde(default)]
        not_found: Vec<Value>,
    }
    let Frame { d } = serde_json::from_slice(frame).ok()?;
    let text = |id: Value| match id {
        Value::String(id) => id,
        other => other.to_string(),
    };
    (d.nonce.as_deref() == Some(nonce)).then(|| MembersChunk {
        index: d.chunk_index,
        count: d.chunk_count,
        members: d.members,
        not_found: d.not_found.into_iter().map(text).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_discord_needs() {
        let guild = GuildId::new(7).unwrap();
        let d = |query| Value::Object(members_command(guild, &query, false, "n").d);
        let all = serde_json::json!({"guild_id": "7", "query": "", "limit": 0, "nonce": "n"});
        assert_eq!(d(MembersQuery::All), all);
        let prefix = "a".to_owned();
        assert_eq!(d(MembersQuery::Names { prefix, limit: 0 })["limit"], 1);
        let users = d(MembersQuery::Users(vec![1, 2]));
        assert_eq!(users["user_ids"], serde_json::json!(["1", "2"]));
        assert_eq!(users.get("query"), None);
    }

    #[test]
    fn chunks_of_others_are_left_alone() {
        let frame =
            br#"{"t":"GUILD_MEMBERS_CHUNK","s":1,"op":0,"d":{"guild_id":"7","chunk_index":1,
            "chunk_count":3,"nonce":"n","members":[{"user":{}}],"not_found":["5",6]}}"#;
        let chunk = read_chunk(frame, "n").unwrap();
        assert_eq!((chunk.index, chunk.count, chunk.members.len()), (1, 3, 1));
        assert_eq!(chunk.not_found, ["5", "6"]);
        assert!(read_chunk(frame, "m").is_none());
        assert!(read_chunk(b"{}", "n").is_none());
    }
}
