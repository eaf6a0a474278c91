//! Takes a shard: names this process in the shard's record, by compare-and-set, before anything of the
//! shard is looked up or started. An earlier owner that still runs finds the name there and lets go.

use std::time::{Duration, Instant};

use schemas::{FleetKey, ProxyId, ShardId, ShardRecord, ShardState};
use tracing::warn;

use crate::fleet::bucket::{Bucket, WriteError};
use crate::ownership::Ownership;
use crate::recorder::{Common, encode};
use crate::status::unix_ms;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts; a cluster may be electing a leader, which takes seconds.
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
    /// Another process holds it, or nobody.
    #[error("shard {shard} is held by {owner}")]
    Held { shard: ShardId, owner: String },
    /// NATS does not let us write.
    #[error("the record of shard {shard} cannot be written: {reason}")]
    Unanswered { shard: ShardId, reason: String },
}

/// Takes the shard, whoever has it: this process was started to hold it.
///
/// What the earlier owner wrote about the session stays in the record, so that a process that ends
/// right after this leaves nothing worse behind than it found. NATS that does not answer is asked again
/// `until` then.
pub(crate) async fn claim(
    shard: ShardId,
    bucket: &Bucket,
    ownership: &Ownership,
    common: &Common,
    until: Instant,
) -> Result<Claimed, ClaimError> {
    let key = FleetKey::Shard(shard);
    let mut conflicts = 0;
    loop {
        let attempt = attempt(shard, &key, bucket, ownership, common);
        let reason = match attempt.await {
            Ok(Attempt::Done(claimed)) => return Ok(*claimed),
            Ok(Attempt::Conflict) if conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_PAUSE).await;
                continue;
            }
            Ok(Attempt::Conflict) => "somebody else writes it all the time".to_owned(),
            Err(reason) => reason,
        };
        if Instant::now() >= until {
            return Err(ClaimError::Unanswered { shard, reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A shard that was claimed at a certain revision.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The record's revision with our name.
    pub(crate) revision: u64,
    /// Who stood there before.
    pub(crate) from: Option<ProxyId>,
}

/// Why a shard was not claimed at a certain revision.
#[derive(Debug)]
pub(crate) enum ClaimAtError {
    /// The record has another revision; this is what stands there.
    Refused {
        revision: u64,
        record: Option<Box<ShardRecord>>,
    },
    /// It may have been written or not.
    Failed(String),
}

/// Takes the shard if its record has this revision (0: there is none).
pub(crate) async fn claim_at(
    shard: ShardId,
    expected_revision: u64,
    bucket: &Bucket,
    ownership: &Ownership,
    common: &Common,
) -> Result<Claim, ClaimAtError> {
    let key = FleetKey::Shard(shard);
    let entry = bucket.read(&key, REQUEST_TIMEOUT).await;
    let entry = entry.map_err(ClaimAtError::Failed)?;
    let earlier = entry
        .value
        .and_then(|value| read(shard, &key.to_string(), &value));
    let refused = |revision, record: Option<ShardRecord>| ClaimAtError::Refused {
        revision,
        record: record.map(Box::new),
    };
    if entry.revision != expected_revision {
        return Err(refused(entry.revision, earlier));
    }
    let record = taken(shard, earlier.as_ref(), ownership, common);
    let write = bucket.write(
        &key,
        encode(&record),
        expected_revision,
        None,
        REQUEST_TIMEOUT,
    );
    match write.await {
        Ok(revision) => Ok(Claim {
            revision,
            from: earlier.and_then(|earlier| earlier.owner),
        }),
        Err(WriteError::Refused) => {
            let entry = bucket.read(&key, REQUEST_TIMEOUT).await;
            let entry = entry.map_err(ClaimAtError::Failed)?;
            let record = entry
                .value
                .and_then(|value| read(shard, &key.to_string(), &value));
            Err(refused(entry.revision, record))
        }
        Err(WriteError::Failed(reason)) => Err(ClaimAtError::Failed(reason)),
    }
}

/// The record of a shard that is ours already.
pub(crate) async fn ours(
    shard: ShardId,
    bucket: &Bucket,
    ownership: &Ownership,
) -> Result<Claimed, ClaimError> {
    let key = FleetKey::Shard(shard);
    let unanswered = |reason| ClaimError::Unanswered { shard, reason };
    let entry = bucket.read(&key, REQUEST_TIMEOUT).await;
    let entry = entry.map_err(unanswered)?;
    let record = entry
        .value
        .and_then(|value| read(shard, &key.to_string(), &value));
    let owner = record.as_ref().and_then(|record| record.owner.as_ref());
    let owner = owner.map_or("nobody", |owner| owner.as_str()).to_owned();
    match record {
        Some(record) if record.owner_instance.as_deref() == Some(&*ownership.instance()) => {
            Ok(Claimed {
                earlier: Some(record.clone()),
                written: record,
                revision: entry.revision,
            })
        }
        _ => Err(ClaimError::Held { shard, owner }),
    }
}

/// Takes our name out of the record of a shard that is not running here.
pub(crate) async fn disown(
    shard: ShardId,
    bucket: &Bucket,
    ownership: &Ownership,
) -> Result<u64, ClaimError> {
    let Claimed {
        written, revision, ..
    } = ours(shard, bucket, ownership).await?;
    let record = ShardRecord {
        owner: None,
        owner_instance: None,
        state: ShardState::Disconnected,
        changed_at_unix_ms: unix_ms(),
        ..written
    };
    let key = FleetKey::Shard(shard);
    let write = bucket.write(&key, encode(&record), revision, None, REQUEST_TIMEOUT);
    write.await.map_err(|error| ClaimError::Unanswered {
        shard,
        reason: error.to_string(),
    })
}

/// A record that names us, everything else as it was.
fn taken(
    shard: ShardId,
    earlier: Option<&ShardRecord>,
    ownership: &Ownership,
    common: &Common,
) -> ShardRecord {
    let mut record = earlier.cloned().unwrap_or_else(|| ShardRecord::new(shard));
    record.owner = Some(common.owner.clone());
    record.owner_instance = Some(ownership.instance().to_string());
    record.state = ShardState::Disconnected;
    record.changed_at_unix_ms = unix_ms();
    record
}

enum Attempt {
    Done(Box<Claimed>),
    Conflict,
}

async fn attempt(
    shard: ShardId,
    key: &FleetKey,
    bucket: &Bucket,
    ownership: &Ownership,
    common: &Common,
) -> Result<Attempt, String> {
    let entry = bucket.read(key, REQUEST_TIMEOUT).await?;
    let revision = entry.revision;
    let earlier = entry
        .value
        .and_then(|value| read(shard, &key.to_string(), &value));
    let written = taken(shard, earlier.as_ref(), ownership, common);
    let write = bucket.write(key, encode(&written), revision, None, REQUEST_TIMEOUT);
    match write.await {
        Ok(revision) => Ok(Attempt::Done(Box::new(Claimed {
            earlier,
            written,
            revision,
        }))),
        Err(WriteError::Refused) => Ok(Attempt::Conflict),
        Err(WriteError::Failed(reason)) => Err(reason),
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
