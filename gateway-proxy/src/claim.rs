//! Takes a shard: names this process in the shard's record, by compare-and-set, before anything of the
//! shard is looked up or started. An earlier owner that still runs finds the name there and lets go.

use std::time::Duration;

use async_nats::jetstream::kv::{self, UpdateErrorKind};
use schemas::{FleetKey, ShardId, ShardRecord, ShardState};
use tracing::warn;

use crate::ownership::Ownership;
use crate::recorder::{Common, encode};
use crate::status::unix_ms;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts before NATS counts as away; a cluster may be electing a leader.
const ATTEMPTS: u32 = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(500);
/// Attempts lost against somebody who writes the same record; each of them read anew.
const CONFLICTS_MAX: u32 = 20;
/// A replica that answers reads may lag behind the leader that refuses the write.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

/// A shard that is ours now.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// What the owner before left; `None`: nothing readable.
    pub(crate) earlier: Option<ShardRecord>,
    /// What stands there now.
    pub(crate) written: ShardRecord,
    /// Its revision.
    pub(crate) revision: u64,
}

/// Why a shard is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// Another process holds it, and we may not take it from there.
    #[error("shard {shard} is held by {owner}")]
    Held { shard: ShardId, owner: String },
    /// NATS does not let us write.
    #[error("the record of shard {shard} cannot be written: {reason}")]
    Unanswered { shard: ShardId, reason: String },
}

/// Takes the shard if `may_take` says so of the record that stands there.
///
/// What the earlier owner wrote about the session stays in the record, so that a process that ends
/// right after this leaves nothing worse behind than it found.
pub(crate) async fn claim(
    shard: ShardId,
    bucket: &kv::Store,
    ownership: &Ownership,
    common: &Common,
    may_take: impl Fn(&ShardRecord) -> bool,
) -> Result<Claimed, ClaimError> {
    let key = FleetKey::Shard(shard).to_string();
    let (mut failures, mut conflicts) = (0, 0);
    loop {
        let attempt = attempt(shard, &key, bucket, ownership, common, &may_take);
        let outcome = tokio::time::timeout(2 * REQUEST_TIMEOUT, attempt).await;
        let reason = match outcome {
            Ok(Ok(Attempt::Done(claimed))) => return Ok(*claimed),
            Ok(Ok(Attempt::Held(owner))) => return Err(ClaimError::Held { shard, owner }),
            Ok(Ok(Attempt::Conflict)) if conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_PAUSE).await;
                continue;
            }
            Ok(Ok(Attempt::Conflict)) => "somebody else writes it all the time".to_owned(),
            Ok(Err(reason)) => reason,
            Err(_) => "no answer".to_owned(),
        };
        failures += 1;
        if failures == ATTEMPTS {
            return Err(ClaimError::Unanswered { shard, reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Attempt {
    Done(Box<Claimed>),
    Held(String),
    Conflict,
}

async fn attempt(
    shard: ShardId,
    key: &str,
    bucket: &kv::Store,
    ownership: &Ownership,
    common: &Common,
    may_take: &impl Fn(&ShardRecord) -> bool,
) -> Result<Attempt, String> {
    let entry = bucket.entry(key).await.map_err(|error| error.to_string())?;
    let revision = entry.as_ref().map_or(0, |entry| entry.revision);
    let live = entry.filter(|entry| entry.operation == kv::Operation::Put);
    let earlier = live.and_then(|entry| read(shard, key, &entry.value));
    if let Some(record) = &earlier
        && !may_take(record)
    {
        let owner = record.owner.as_ref();
        let owner = owner.map_or("somebody", |owner| owner.as_str()).to_owned();
        return Ok(Attempt::Held(owner));
    }
    let mut written = earlier
        .clone()
        .unwrap_or_else(|| ShardRecord::new(shard));
    written.owner = Some(common.owner.clone());
    written.owner_instance = Some(ownership.instance().to_owned());
    written.state = ShardState::Disconnected;
    written.changed_at_unix_ms = unix_ms();
    let update = bucket.update(key, encode(&written), revision);
    match update.await {
        Ok(revision) => Ok(Attempt::Done(Box::new(Claimed {
            earlier,
            written,
            revision,
        }))),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(Attempt::Conflict),
        Err(error) => Err(error.to_string()),
    }
}

/// Somebody may have edited the record beyond reading; the stream still knows the session.
fn read(shard: ShardId, key: &str, value: &[u8]) -> Option<ShardRecord> {
    match serde_json::from_slice::<ShardRecord>(value) {
        Ok(record) if record.shard == shard => Some(record),
        Ok(record) => {
            warn!(key, speaks_of = %record.shard, "the shard's record speaks of another shard: ignored");
            None
        }
        Err(error) => {
            warn!(key, %error, "the shard's record is not readable: ignored");
            None
        }
    }
}
