//! The dead-letter stream: where events go that a worker gives up on, with the reason. Made if
//! missing, compared otherwise, never changed.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context as JetStream, ErrorCode};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use schemas::message::{
    DEAD_DELIVERIES, DEAD_MESSAGE_ID, DEAD_PLACE, DEAD_REASON, DEAD_SUBJECT, NATS_MSG_ID,
};
use schemas::{Prefix, Subject};
use tokio::time::timeout;

use crate::receipt::Receipt;

/// Time to look at what failed, over a long weekend.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A mistake that kills every event must not fill the disk the events need.
const MAX_BYTES: i64 = 1 << 30;
/// How long the server remembers ids: an event whose burial is repeated stands there once.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Longest wait for the server to store one.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest reason in a header; the log has the whole.
const REASON_MAX: usize = 1000;

/// Why the dead-letter stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeadError {
    /// A person must act.
    #[error("the stream {stream} exists with other settings: {differences}")]
    Differs { stream: String, differences: String },
    /// JetStream says no.
    #[error("JetStream refuses the stream {stream}: {error}")]
    Refused { stream: String, error: String },
    #[error("JetStream does not answer about the stream {stream}: {error}")]
    NoAnswer { stream: String, error: String },
}

/// Opens the stream, or makes it with as many replicas as the stream of the events has.
pub(crate) async fn open(
    jetstream: &JetStream,
    prefix: &Prefix,
    events: &str,
) -> Result<(), DeadError> {
    let stream = prefix.dead_stream();
    match jetstream.get_stream(&stream).await {
        Ok(found) => check(&stream, prefix, &found.cached_info().config),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(problem)
                if problem.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                create(jetstream, prefix, stream, events).await
            }
            GetStreamErrorKind::JetStream(problem) => Err(DeadError::Refused {
                stream,
                error: problem.to_string(),
            }),
            _ => Err(DeadError::NoAnswer {
                stream,
                error: error.to_string(),
            }),
        },
    }
}

async fn create(
    jetstream: &JetStream,
    prefix: &Prefix,
    stream: String,
    events: &str,
) -> Result<(), DeadError> {
    let replicas = match jetstream.get_stream(events).await {
        Ok(events) => events.cached_info().config.num_replicas,
        Err(error) => {
            let error = error.to_string();
            return Err(DeadError::NoAnswer { stream, error });
        }
    };
    match jetstream.create_stream(config(prefix, replicas)).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            // Another worker was faster, and makes the same.
            CreateStreamErrorKind::JetStream(problem)
                if problem.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                Ok(())
            }
            CreateStreamErrorKind::JetStream(problem) => Err(DeadError::Refused {
                stream,
                error: problem.to_string(),
            }),
            _ => Err(DeadError::NoAnswer {
                stream,
                error: error.to_string(),
            }),
        },
    }
}

fn subjects(prefix: &Prefix) -> String {
    Subject::Dead { consumer: "*" }.with_prefix(prefix)
}

fn config(prefix: &Prefix, num_replicas: usize) -> stream::Config {
    stream::Config {
        name: prefix.dead_stream(),
        description: Some("Events that workers gave up on, with the reason".to_owned()),
        subjects: vec![subjects(prefix)],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        num_replicas,
        ..stream::Config::default()
    }
}

/// Limits are an operator's choice; what would lose events is not.
fn check(name: &str, prefix: &Prefix, have: &stream::Config) -> Result<(), DeadError> {
    let want = subjects(prefix);
    let mut differences = Vec::new();
    if !have.subjects.contains(&want) {
        differences.push(format!("subjects are {:?}, without {want}", have.subjects));
    }
    if have.sealed || have.no_ack {
        differences.push("it takes no messages or acknowledges none".to_owned());
    }
    if have.retention != RetentionPolicy::Limits {
        differences.push(format!("retention is {:?}, not Limits", have.retention));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(DeadError::Differs {
        stream: name.to_owned(),
        differences: differences.join(", "),
    })
}

/// Stores an event with the reason and waits until that is certain.
pub(crate) async fn bury(
    jetstream: &JetStream,
    prefix: &Prefix,
    consumer: &str,
    message: &Message,
    reason: &str,
    message_id: &str,
) -> Result<(), String> {
    let subject = Subject::Dead { consumer }.with_prefix(prefix);
    let receipt = Receipt::of(message).ok_or("it is no delivery")?;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MSG_ID, format!("{consumer}/{message_id}"));
    headers.insert(DEAD_MESSAGE_ID, message_id);
    headers.insert(DEAD_REASON, header_text(reason));
    headers.insert(DEAD_SUBJECT, message.subject.as_str());
    headers.insert(DEAD_DELIVERIES, receipt.delivered.to_string());
    let place = format!("{}@{}", receipt.stream, receipt.sequence);
    headers.insert(DEAD_PLACE, place);
    match store(
        jetstream,
        &subject,
        headers.clone(),
        message.payload.clone(),
    )
    .await
    {
        Ok(()) => Ok(()),
        Err(error) => {
            // With our headers a frame can exceed what the server takes; its place tells where the
            // frame itself still lies.
            let room = jetstream.client().server_info().max_payload;
            if message.payload.len() + HEADERS_ROOM < room {
                return Err(error);
            }
            store(jetstream, &subject, headers, Bytes::new()).await
        }
    }
}

/// More than our headers take.
const HEADERS_ROOM: usize = 4096;

async fn store(
    jetstream: &JetStream,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<(), String> {
    let storing = async {
        let published = jetstream
            .publish_with_headers(subject.to_owned(), headers, payload)
            .await;
        let acknowledged = published.map_err(|error| error.to_string())?.await;
        acknowledged.map(drop).map_err(|error| error.to_string())
    };
    match timeout(STORE_TIMEOUT, storing).await {
        Ok(stored) => stored,
        Err(_) => Err("no acknowledgement in time".to_owned()),
    }
}

/// A text that fits a header: one line, bounded.
fn header_text(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text = text.chars().take(REASON_MAX).map(plain);
    text.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_of_a_header() {
        assert_eq!(header_text("no\r\nluck: 1\n"), "no  luck: 1");
        assert_eq!(header_text(&"x".repeat(5000)).len(), REASON_MAX);
    }

    #[test]
    fn an_operators_limits_are_kept_and_other_subjects_are_not() {
        let prefix = Prefix::default();
        let mut have = config(&prefix, 3);
        have.max_age = Duration::from_secs(60);
        assert!(check("DISCORD_DEAD", &prefix, &have).is_ok());
        have.subjects = vec!["discord.other".to_owned()];
        let error = check("DISCORD_DEAD", &prefix, &have).err().unwrap();
        assert!(error.to_string().contains("discord.dead.*"), "{error}");
    }
}
