//! Reads where a shard may carry on: the last message of its subjects, beside the record it left in the
//! fleet bucket. What follows from them is `core::checkpoint`'s decision.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use gateway_proxy_core::checkpoint::{self, Decision, LastStored, ReadyFacts, Wanted};
use gateway_proxy_core::frame::{Frame, control};
use schemas::message::NATS_MSG_ID;
use schemas::{MessageId, Prefix, ShardId, ShardRecord, Subject};
use tracing::warn;

/// How long one look-up may take before it is tried again; a cluster may be electing a leader.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Why nothing can be said about a shard's checkpoint.
#[derive(Debug, thiserror::Error)]
#[error("the last event of shard {shard} cannot be read: {reason}")]
pub(crate) struct LookupError {
    shard: ShardId,
    reason: String,
}

/// Looks a shard up, trying again until the deadline while NATS does not answer: starting without the
/// checkpoint would spend an IDENTIFY and lose what Discord would replay. `record` is what the shard's
/// last owner left; `refused`: NATS said that we may not ask.
pub(crate) async fn find(
    wanted: &Wanted,
    record: Option<&ShardRecord>,
    stream: &Stream<()>,
    prefix: &Prefix,
    refused: impl Fn() -> bool,
    until: Instant,
) -> Result<Decision, LookupError> {
    loop {
        let lookup = look_up(wanted, record, stream, prefix);
        let error = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => LookupError {
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
    record: Option<&ShardRecord>,
    stream: &Stream<()>,
    prefix: &Prefix,
) -> Result<Decision, LookupError> {
    let last = last_message(
        wanted.shard,
        stream,
        &prefix.shard_events(wanted.shard.id()),
    )
    .await?;
    let Some(last) = last else {
        return Ok(checkpoint::start(wanted, None, record));
    };
    let id = match MessageId::parse(&last.id) {
        Ok(id) => id,
        Err(error) => {
            // Somebody else wrote to our subjects; the record is what there is.
            warn!(shard = %wanted.shard, %error, "the last message of the shard is not ours");
            return Ok(checkpoint::start(wanted, None, record));
        }
    };
    let known = record.and_then(|record| record.session_id.as_deref());
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
    Ok(checkpoint::start(wanted, Some(stored), record))
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
            return Err(LookupError {
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
