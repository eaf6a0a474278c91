//! Asks the directory: `discord.query.*` as typed calls.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use schemas::{
    DirectoryStats, GuildId, GuildInfo, GuildPage, GuildsRequest, Prefix, QueryKind, ShardPage,
    ShardsRequest, Snowflake, Subject, UserInfo,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::messages::refusal;

/// Longest wait for an answer, well within the 3 seconds an interaction has.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A client of the directory (`consumers directory`). Cheap to clone.
///
/// ```no_run
/// # async fn example(client: async_nats::Client) -> Result<(), consumers::QueryError> {
/// let directory = consumers::Directory::new(client, schemas::Prefix::default());
/// let stats = directory.aggregate_stats().await?;
/// println!("{} guilds with {} members", stats.guilds, stats.members);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Directory {
    client: async_nats::Client,
    prefix: Prefix,
}

/// Why the directory did not answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No directory runs, or none has loaded what it knows.
    #[error("no directory answers; start `consumers directory`")]
    NoDirectory,
    /// A directory is there, but did not answer in time.
    #[error("the directory did not answer within {ANSWER_TIMEOUT:?}")]
    TimedOut,
    /// The directory says no.
    #[error("the directory refuses the question: {text} ({code})")]
    Refused {
        /// As in HTTP: 400 for a question that cannot be read, 413 for an answer that is too long,
        /// 501 for users that are not kept.
        code: u16,
        /// Why, for people.
        text: String,
    },
    /// The question could not be sent.
    #[error("the question could not be sent: {0}")]
    Unsent(String),
    /// The answer is of another shape.
    #[error("the directory's answer cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

impl Directory {
    /// A client on a connection; `prefix` is the bot's.
    #[must_use]
    pub const fn new(client: async_nats::Client, prefix: Prefix) -> Self {
        Self { client, prefix }
    }

    /// Sums over all shards.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn aggregate_stats(&self) -> Result<DirectoryStats, QueryError> {
        self.ask(QueryKind::Stats, None, &()).await
    }

    /// A guild by its id; `None` when the bot is not in it.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn find_guild(&self, id: GuildId) -> Result<Option<GuildInfo>, QueryError> {
        found(self.ask(QueryKind::Guild, Some(id.into()), &()).await)
    }

    /// A user by its id; `None` when no event has shown it.
    ///
    /// # Errors
    /// [`QueryError::Refused`] with 501 when the directory keeps no users.
    pub async fn find_user(&self, id: Snowflake) -> Result<Option<UserInfo>, QueryError> {
        found(self.ask(QueryKind::User, Some(id), &()).await)
    }

    /// A page of guilds, in the order of their ids; ask again with `after` set to the page's `next`.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn guilds(&self, request: &GuildsRequest) -> Result<GuildPage, QueryError> {
        self.ask(QueryKind::Guilds, None, request).await
    }

    /// A page of shards, in the order of their numbers.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn shards(&self, request: &ShardsRequest) -> Result<ShardPage, QueryError> {
        self.ask(QueryKind::Shards, None, request).await
    }

    async fn ask<Answer: DeserializeOwned>(
        &self,
        kind: QueryKind,
        id: Option<Snowflake>,
        request: &impl Serialize,
    ) -> Result<Answer, QueryError> {
        let (what, id) = (kind.as_str(), id.map(String::from));
        let subject = Subject::Query {
            what,
            id: id.as_deref(),
        };
        let request = serde_json::to_vec(request).map_err(QueryError::Unreadable)?;
        // Nothing to narrow down: the subject says it all.
        let request = if request == b"null" {
            Bytes::new()
        } else {
            request.into()
        };
        let sent = self
            .client
            .request(subject.with_prefix(&self.prefix), request);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => QueryError::NoDirectory,
                    RequestErrorKind::TimedOut => QueryError::TimedOut,
                    _ => QueryError::Unsent(error.to_string()),
                });
            }
            Err(_) => return Err(QueryError::TimedOut),
        };
        if let Some((code, text)) = refusal(answer.headers.as_ref()) {
            return Err(QueryError::Refused { code, text });
        }
        serde_json::from_slice(&answer.payload).map_err(QueryError::Unreadable)
    }
}

fn found<T>(answer: Result<T, QueryError>) -> Result<Option<T>, QueryError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(QueryError::Refused { code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
