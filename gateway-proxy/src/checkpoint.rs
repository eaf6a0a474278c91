//! Reads where a shard may carry on: the last message of its subjects and its record in the fleet
//! bucket. What follows from them is `core::checkpoint`'s decision.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use gateway_proxy_core::checkpoint::{self, Decision, LastStored, ReadyFacts, Wanted};
use gateway_proxy_core::frame::{Frame, control};
use schemas::message::NATS_MSG_ID;
use schemas::{FleetKey, MessageId, Prefix, ShardId, ShardRecord, Subject};
use tracing::warn;

/// How long one look-up may take before it is tried again; a cluster may be electing a leader.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// How one shard starts, with the record it left.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) decision: Decision,
    pub(crate) record: Option<ShardRecord>,
}

/// Why nothing can be said about a shard's checkpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("the last event of shard {shard} cannot be read: {reason}")]
    Stream { shard: ShardId, reason: String },
    #[error("the record of shard {shard} cannot be read: {reason}")]
    Record { shard: ShardId, reason: String },
}

/// Looks a shard up, trying again until the deadline while NATS does not answer: starting without the checkpoint would
/// spend an IDENTIFY and lose what Discord would replay. `refused`: NATS said that we may not ask.
pub(crate) async fn find(
    wanted: &Wanted,
    stream: &Stream<()>,
    bucket: &kv::Store,
    prefix: &Prefix,
    refused: impl Fn() -> bool,
    until: Instant,
) -> Result<Found, LookupError> {
    loop {
        let lookup = look_up(wanted, stream, bucket, prefix);
        let error = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => LookupError::Stream {
                shard: wanted.shard,
                reason: format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()),
            },
        };
        if refused() || Instant::now() >= until {
            return Err(error);
        }
        warn!(%error, "checkpoint look-up failed, trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look_up(
    wanted: &Wanted,
    stream: &Stream<()>,
    bucket: &kv::Store,
    prefix: &Prefix,
) -> Result<Found, LookupError> {
    let record = read_record(wanted.shard, bucket).await?;
    let last = last_message(
        wanted.shard,
        stream,
        &prefix.shard_events(wanted.shard.id()),
    )
    .await?;
    let Some(last) = last else {
        return Ok(Found {
            decision: checkpoint::start(wanted, None, record.as_ref()),
            record,
        });
    };
    let id = match MessageId::parse(&last.id) {
        Ok(id) => id,
        Err(error) => {
            // Somebody else wrote to our subjects; the record is what there is.
            warn!(shard = %wanted.shard, %error, "the last message of the shard is not ours");
            return Ok(Found {
                decision: checkpoint::start(wanted, None, record.as_ref()),
                record,
            });
        }
    };
    let known = record
        .as_ref()
        .and_then(|record| record.session_id.as_deref());
    let ready = if known == Some(id.session) {
        None
    } else {
        let event = Subject::Event {
            shard: wanted.shard.id(),
            guild: None,
            event: "READY",
        };
        last_message(wanted.shard, stream, &event.with_prefix(prefix)).await?
    };
    let facts = ready
        .as_ref()
        .and_then(|ready| read_ready(ready, id.session));
    let facts = facts.as_ref().map(|(shard, url)| ReadyFacts {
        shard: *shard,
        resume_url: url.as_deref(),
    });
    let stored = LastStored {
        id: &id,
        at_ms: last.at_ms,
        ready: facts,
    };
    Ok(Found {
        decision: checkpoint::start(wanted, Some(stored), record.as_ref()),
        record,
    })
}

struct Last {
    id: String,
    at_ms: u64,
    payload: bytes::Bytes,
}

/// The last message of a subject, read from the stream's leader: a replica may lag behind.
async fn last_message(
    shard: ShardId,
    stream: &Stream<()>,
    subject: &str,
) -> Result<Option<Last>, LookupError> {
    let message = match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => {
            return Err(LookupError::Stream {
                shard,
                reason: error.to_string(),
            });
        }
    };
    let id = message
        .headers
        .get(NATS_MSG_ID)
        .map(|id| id.as_str().to_owned());
    let at_ms = u64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    Ok(Some(Last {
        id: id.unwrap_or_default(),
        at_ms,
        payload: message.payload,
    }))
}

/// Which sharding a session belongs to, from its READY.
fn read_ready(ready: &Last, session: &str) -> Option<(ShardId, Option<String>)> {
    let frame = Frame::parse(&ready.payload).ok()?;
    let ready = control::ready(frame.data).ok()?;
    if ready.session_id != session {
        return None;
    }
    let shard = ShardId::try_from(ready.shard?).ok()?;
    Some((
        shard,
        ready.resume_gateway_url.map(std::borrow::Cow::into_owned),
    ))
}

async fn read_record(
    shard: ShardId,
    bucket: &kv::Store,
) -> Result<Option<ShardRecord>, LookupError> {
    let key = FleetKey::Shard(shard).to_string();
    let value = bucket
        .get(&key)
        .await
        .map_err(|error| LookupError::Record {
            shard,
            reason: error.to_string(),
        })?;
    let Some(value) = value else { return Ok(None) };
    match serde_json::from_slice(&value) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            warn!(%shard, key, %error, "the shard's record is not readable: ignored");
            Ok(None)
        }
    }
}
