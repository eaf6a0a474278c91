//! The bucket of the workers' leases: who holds which shard, share of the REST budget or singleton.
//! Reads, compare-and-set writes with TTL, and watches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, Operation, Store, Watch};
use bytes::Bytes;
use schemas::message::{KV_DELETED, KV_OPERATION};
use schemas::{Prefix, WorkerGroup, WorkersKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::time::timeout;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server keeps the mark of a key that ended: watchers see it at once.
const MARKER_TTL: Duration = Duration::from_secs(60);

/// The bucket, and in it the part that belongs to one group.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    jetstream: JetStream,
    bucket: Store,
    prefix: Prefix,
    pub(crate) group: String,
}

/// Why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// A person must act.
    #[error("the bucket {bucket} {problem}")]
    Unfit {
        bucket: String,
        problem: &'static str,
    },
    #[error("the bucket {bucket} cannot be opened: {error}")]
    NoAnswer { bucket: String, error: String },
}

/// Why a value was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// Somebody else wrote since, or the value has ended.
    #[error("the value is another one by now")]
    Conflict,
    /// Nobody knows whether it was written.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

impl Registry {
    /// Opens the bucket, or makes it with as many replicas as this stream has.
    pub(crate) async fn open(
        jetstream: &JetStream,
        prefix: &Prefix,
        events: &str,
    ) -> Result<Self, RegistryError> {
        let name = prefix.workers_bucket();
        let no_answer = |error: String| RegistryError::NoAnswer {
            bucket: name.clone(),
            error,
        };
        let bucket = match jetstream.get_key_value(&name).await {
            Ok(bucket) => bucket,
            Err(_) => {
                let stream = jetstream.get_stream(events).await;
                let stream = stream.map_err(|error| no_answer(error.to_string()))?;
                let config = kv::Config {
                    bucket: name.clone(),
                    description: "Leases of workers, and what they hold".to_owned(),
                    history: 1,
                    num_replicas: stream.cached_info().config.num_replicas,
                    limit_markers: Some(MARKER_TTL),
                    ..kv::Config::default()
                };
                // Making what another worker has made is no error.
                let made = jetstream.create_key_value(config).await;
                made.map_err(|error| no_answer(error.to_string()))?
            }
        };
        let status = bucket.status().await;
        let status = status.map_err(|error| no_answer(error.to_string()))?;
        if !status.info.config.allow_message_ttl {
            return Err(RegistryError::Unfit {
                bucket: name,
                problem: "has no TTL for single keys",
            });
        }
        Ok(Self {
            jetstream: jetstream.clone(),
            bucket,
            prefix: prefix.clone(),
            group: String::new(),
        })
    }

    /// The part of a group.
    pub(crate) fn of_group(&self, group: &str) -> Self {
        Self {
            group: group.to_owned(),
            ..self.clone()
        }
    }

    /// When the group began, by the server's clock: the first worker that asks decides it.
    pub(crate) async fn begin(&self) -> Result<OffsetDateTime, String> {
        let group = self.group.clone();
        let key = WorkersKey::Begin { group };
        let text = key.to_string();
        for _ in 0..2 {
            let entry = timeout(TIMEOUT, self.bucket.entry(text.clone())).await;
            let entry = entry.map_err(|_| "no answer in time".to_owned())?;
            let entry = entry.map_err(|error| error.to_string())?;
            if let Some(entry) = entry {
                return Ok(entry.created);
            }
            let version = env!("CARGO_PKG_VERSION").to_owned();
            match self.put(&key, &WorkerGroup { version }, 0, None).await {
                Ok(_) | Err(PutError::Conflict) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the group's beginning cannot be read".to_owned())
    }

    /// Writes a value if the key's last revision is still this one (0: there never was one);
    /// returns the new revision. async-nats' own functions lose the TTL.
    pub(crate) async fn put<T: Serialize + Sync>(
        &self,
        key: &WorkersKey,
        value: &T,
        revision: u64,
        ttl: Option<Duration>,
    ) -> Result<u64, PutError> {
        let value = serde_json::to_vec(value).expect("records hold only strings and numbers");
        let mut headers = HeaderMap::new();
        if let Some(ttl) = ttl {
            headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs()));
        }
        self.write(key, headers, value.into(), revision).await
    }

    /// Deletes a key if its last revision is still this one; returns the revision of the mark that
    /// stays in its place.
    pub(crate) async fn delete(&self, key: &WorkersKey, revision: u64) -> Result<u64, PutError> {
        let mut headers = HeaderMap::new();
        headers.insert(KV_OPERATION, KV_DELETED);
        // The next claim of a shard builds upon the mark; nobody else needs it for long.
        if !matches!(key, WorkersKey::Shard { .. }) {
            headers.insert(NATS_MESSAGE_TTL, format!("{}s", MARKER_TTL.as_secs()));
        }
        self.write(key, headers, Bytes::new(), revision).await
    }

    async fn write(
        &self,
        key: &WorkersKey,
        mut headers: HeaderMap,
        value: Bytes,
        revision: u64,
    ) -> Result<u64, PutError> {
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
        let subject = key.subject(&self.prefix);
        let writing = async {
            let sent = self.jetstream.publish_with_headers(subject, headers, value);
            sent.await?.await
        };
        match timeout(TIMEOUT, writing).await {
            Ok(Ok(stored)) => Ok(stored.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Err(PutError::Conflict)
            }
            Ok(Err(error)) => Err(PutError::NoAnswer(error.to_string())),
            Err(_) => Err(PutError::NoAnswer("none in time".to_owned())),
        }
    }

    /// The value of a key and its revision, if there is one.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: &WorkersKey,
    ) -> Result<Option<(T, u64)>, String> {
        let entry = timeout(TIMEOUT, self.bucket.entry(key.to_string())).await;
        let entry = entry.map_err(|_| "no answer in time".to_owned())?;
        let Some(entry) = entry.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        if entry.operation != Operation::Put {
            return Ok(None);
        }
        let value = serde_json::from_slice(&entry.value).map_err(|error| error.to_string())?;
        Ok(Some((value, entry.revision)))
    }

    /// Where a key without a value stands: the revision its next value must expect. `None` while it
    /// has one.
    pub(crate) async fn vacant(&self, key: &WorkersKey) -> Result<Option<u64>, String> {
        let entry = timeout(TIMEOUT, self.bucket.entry(key.to_string())).await;
        let entry = entry.map_err(|_| "no answer in time".to_owned())?;
        match entry.map_err(|error| error.to_string())? {
            Some(entry) if entry.operation == Operation::Put => Ok(None),
            Some(entry) => Ok(Some(entry.revision)),
            None => Ok(Some(0)),
        }
    }

    /// Everything about the group, and then every change.
    pub(crate) async fn watch(&self) -> Result<Watch, String> {
        self.watch_keys(&WorkersKey::all_of(&self.group)).await
    }

    /// What stands under these keys, and then every change.
    pub(crate) async fn watch_keys(&self, keys: &str) -> Result<Watch, String> {
        let watch = timeout(TIMEOUT, self.bucket.watch_with_history(keys)).await;
        let watch = watch.map_err(|_| "no answer in time".to_owned())?;
        watch.map_err(|error| error.to_string())
    }

    pub(crate) fn member_key(&self, member: &str) -> WorkersKey {
        WorkersKey::Member {
            group: self.group.clone(),
            member: member.to_owned(),
        }
    }

    pub(crate) fn shard_key(&self, shard: u32) -> WorkersKey {
        WorkersKey::Shard {
            group: self.group.clone(),
            shard,
        }
    }
}

/// A name for one life of a worker, never used again.
pub(crate) fn member_name(worker: &str) -> String {
    static LIVES: AtomicU64 = AtomicU64::new(0);
    let life = LIVES.fetch_add(1, Ordering::Relaxed);
    format!("{worker}-{:x}-{life:x}", unix_ms())
}

/// The wall clock, Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
