//! The directory's bucket: opened or made, followed into the [`View`], written with compare-and-set.
//!
//! Every write expects the revision this instance knows, so that of two instances that both believe
//! they read a shard one finds out at its next write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::{Context as JetStream, stream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use schemas::message::{KV_DELETED, KV_OPERATION};
use schemas::{DirectoryInstance, DirectoryKey, GuildId, Prefix, ShardPosition};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::batch::{Changes, Revised};
use super::view::View;
use crate::nats::Link;

/// Entries on their way to the bucket at the same time, over all shards: enough to fill the connection's
/// round trip. A server takes what a connection sends one after the other, some 0.1 ms for an entry, so
/// more would only let everything else on it wait: what asks for events, and the signs of life.
const WRITES: usize = 128;
/// How long the marker of a removed guild stays, so that instances which were away learn of it; a
/// longer absence than this ends with a new look at the whole bucket.
const REMOVED_TTL: Duration = Duration::from_secs(3600);
/// How long the server keeps its own marker of an instance whose TTL ended.
const MARKER_TTL: Duration = Duration::from_secs(60);
/// Longest wait for an answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a watch that failed is opened again.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// A write that did not happen, or of which nobody knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Somebody else wrote the key: this instance's knowledge is old.
    #[error("{key} was written by another instance")]
    Conflict { key: String },
    /// NATS did not confirm it.
    #[error("{key} was not confirmed: {problem}")]
    Unconfirmed { key: String, problem: String },
}

/// The bucket.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    bucket: kv::Store,
    jetstream: JetStream,
    prefix: Prefix,
    writes: Arc<Semaphore>,
}

impl Store {
    /// Opens the bucket; makes it, as durable as the stream of events, if it is missing.
    pub(crate) async fn open(
        link: &Link,
        prefix: &Prefix,
        replicas: usize,
    ) -> Result<Self, String> {
        let name = prefix.directory_bucket();
        let config = kv::Config {
            bucket: name.clone(),
            description: "What the directory knows of guilds, and how far it has read".to_owned(),
            history: 1,
            storage: stream::StorageType::File,
            num_replicas: replicas,
            limit_markers: Some(MARKER_TTL),
            ..kv::Config::default()
        };
        let bucket = open_bucket(&link.jetstream, config).await?;
        Ok(Self {
            bucket,
            jetstream: link.jetstream.clone(),
            prefix: prefix.clone(),
            writes: Arc::new(Semaphore::new(WRITES)),
        })
    }

    /// Copies the bucket into the view, for ever; `loaded` is told once everything was there.
    pub(crate) async fn follow(&self, link: &Link, view: &View, mut loaded: impl FnMut()) {
        let mut known_since: Option<Instant> = None;
        while let Some(connection) = link.connected().await {
            if known_since.is_some_and(|since| since.elapsed() >= REMOVED_TTL) {
                view.clear();
            }
            tokio::select! {
                problem = self.watch(view, &mut loaded) => {
                    tracing::warn!(problem, "the directory's bucket cannot be followed, trying again");
                    sleep(WATCH_PAUSE).await;
                }
                // A watch would notice only after a while that the server has forgotten it.
                () = link.replaced(connection) => {}
            }
            known_since = Some(Instant::now());
        }
    }

    async fn watch(&self, view: &View, loaded: &mut impl FnMut()) -> String {
        let info = match timeout(API_TIMEOUT, self.bucket.stream.get_info()).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer".to_owned(),
        };
        if info.state.last_sequence < view.revision() {
            tracing::warn!("the directory's bucket was made again");
            view.clear();
        }
        let from = view.revision() + 1;
        let opening = self.bucket.watch_all_from_revision(from);
        let mut watch = match timeout(API_TIMEOUT, opening).await {
            Ok(Ok(watch)) => watch,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer".to_owned(),
        };
        if info.state.messages == 0 || info.state.last_sequence < from {
            loaded();
        }
        while let Some(entry) = watch.next().await {
            match entry {
                Ok(entry) => {
                    apply(view, &entry);
                    view.advance(entry.revision);
                    if entry.delta == 0 {
                        loaded();
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
        "the watch ended".to_owned()
    }

    /// Writes changed guilds, removes those without an entry, and shows both in the view.
    ///
    /// # Errors
    /// The first write that failed; others may have succeeded, which is what entries carry their
    /// sequence for.
    pub(crate) async fn write_guilds(
        &self,
        view: &View,
        changes: Changes,
    ) -> Result<(), WriteError> {
        let writes = changes
            .into_iter()
            .map(|(guild, change)| self.write_guild(view, guild, change));
        let mut writes = futures_util::stream::iter(writes).buffer_unordered(WRITES);
        let mut outcome = Ok(());
        while let Some(written) = writes.next().await {
            outcome = outcome.and(written);
        }
        outcome
    }

    /// Writes one guild in place of what has the revision, or removes it.
    ///
    /// # Errors
    /// [`WriteError`], a conflict when somebody has written it since.
    pub(crate) async fn write_guild(
        &self,
        view: &View,
        guild: GuildId,
        Revised {
            entry,
            revision: expected,
        }: Revised,
    ) -> Result<(), WriteError> {
        let key = DirectoryKey::Guild(guild);
        if entry.is_none() && expected == 0 {
            // Nothing to remove, unless somebody has made it since.
            return match view.revision_of(guild) {
                0 => Ok(()),
                _ => Err(WriteError::Conflict {
                    key: key.to_string(),
                }),
            };
        }
        let _place = self.writes.acquire().await;
        let mut written = self.write(&key, entry.as_ref(), expected).await;
        if expected == 0 && matches!(written, Err(WriteError::Conflict { .. })) {
            // The marker of an earlier removal stands in its place.
            if let Some(revision) = self.removed_at(&key).await {
                written = self.write(&key, entry.as_ref(), revision).await;
            }
        }
        view.set_guild(guild, entry, written?);
        Ok(())
    }

    /// Writes a shard's position; the new revision.
    pub(crate) async fn write_position(
        &self,
        shard: u32,
        position: &ShardPosition,
        expected: u64,
    ) -> Result<u64, WriteError> {
        let key = DirectoryKey::Position(shard);
        self.write(&key, Some(position), expected).await
    }

    /// A shard's position with its revision, straight from the bucket.
    pub(crate) async fn read_position(&self, shard: u32) -> Result<(ShardPosition, u64), String> {
        let key = DirectoryKey::Position(shard).to_string();
        let entry = match timeout(API_TIMEOUT, self.bucket.entry(key)).await {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        };
        let Some(entry) = entry else {
            return Ok((ShardPosition::default(), 0));
        };
        let position = match entry.operation {
            // A position that cannot be read is none: the events lead to the same entries again.
            Operation::Put => serde_json::from_slice(&entry.value).unwrap_or_default(),
            Operation::Delete | Operation::Purge => ShardPosition::default(),
        };
        Ok((position, entry.revision))
    }

    /// A sign of life.
    pub(crate) async fn beat(
        &self,
        name: &str,
        instance: &DirectoryInstance,
        ttl: Duration,
    ) -> Result<(), WriteError> {
        let key = DirectoryKey::Instance(name.to_owned());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_TTL, ttl.as_secs().max(1).to_string());
        let value = serde_json::to_vec(instance).expect("two plain fields");
        self.publish(&key, headers, value.into()).await.map(drop)
    }

    /// The last sign: others need not wait.
    pub(crate) async fn leave(&self, name: &str) -> Result<(), WriteError> {
        let key = DirectoryKey::Instance(name.to_owned());
        self.publish(&key, deletion(), Bytes::new()).await.map(drop)
    }

    async fn removed_at(&self, key: &DirectoryKey) -> Option<u64> {
        let entry = timeout(API_TIMEOUT, self.bucket.entry(key.to_string())).await;
        let entry = entry.ok()?.ok()??;
        (entry.operation != Operation::Put).then_some(entry.revision)
    }

    async fn write<V: Serialize>(
        &self,
        key: &DirectoryKey,
        value: Option<&V>,
        expected: u64,
    ) -> Result<u64, WriteError> {
        let mut headers = if value.is_some() {
            HeaderMap::new()
        } else {
            deletion()
        };
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        let payload = match value {
            Some(value) => serde_json::to_vec(value).map_err(|error| WriteError::Unconfirmed {
                key: key.to_string(),
                problem: error.to_string(),
            })?,
            None => Vec::new(),
        };
        self.publish(key, headers, payload.into()).await
    }

    async fn publish(
        &self,
        key: &DirectoryKey,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, WriteError> {
        let subject = key.subject(&self.prefix);
        let publish = async {
            let answer = self
                .jetstream
                .publish_with_headers(subject, headers, payload);
            answer.await?.await
        };
        match publish.await {
            Ok(ack) => Ok(ack.sequence),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                let key = key.to_string();
                Err(WriteError::Conflict { key })
            }
            Err(error) => Err(WriteError::Unconfirmed {
                key: key.to_string(),
                problem: error.to_string(),
            }),
        }
    }
}

/// Opens a bucket, or makes it as configured.
pub(crate) async fn open_bucket(
    jetstream: &JetStream,
    config: kv::Config,
) -> Result<kv::Store, String> {
    let name = config.bucket.clone();
    match timeout(API_TIMEOUT, jetstream.get_key_value(&name)).await {
        Ok(Ok(bucket)) => return Ok(bucket),
        Ok(Err(_)) => {}
        Err(_) => return Err(format!("bucket {name}: no answer")),
    }
    match timeout(API_TIMEOUT, jetstream.create_key_value(config)).await {
        Ok(Ok(bucket)) => Ok(bucket),
        Ok(Err(error)) => Err(format!("bucket {name}: {error}")),
        Err(_) => Err(format!("bucket {name}: no answer")),
    }
}

fn deletion() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(KV_OPERATION, KV_DELETED);
    headers.insert(NATS_MESSAGE_TTL, REMOVED_TTL.as_secs().to_string());
    headers
}

fn apply(view: &View, entry: &kv::Entry) {
    let Ok(key) = entry.key.parse::<DirectoryKey>() else {
        return;
    };
    let put = entry.operation == Operation::Put;
    match key {
        // Most are our own.
        DirectoryKey::Guild(guild) if view.knows(guild, entry.revision) => {}
        DirectoryKey::Guild(guild) => {
            let value = put.then(|| serde_json::from_slice(&entry.value));
            match value.transpose() {
                Ok(value) => view.set_guild(guild, value, entry.revision),
                // Kept as it was: the next event of the guild writes it anew.
                Err(error) => tracing::warn!(key = entry.key, %error, "an entry cannot be read"),
            }
        }
        DirectoryKey::Position(shard) => {
            let value = put.then(|| serde_json::from_slice(&entry.value).unwrap_or_default());
            view.set_position(shard, value, entry.revision);
        }
        DirectoryKey::Instance(name) => view.set_instance(&name, put.then(Instant::now)),
    }
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
