//! Messages between workers: what both ends of a broadcast or of a message to a shard's holder see,
//! and the asking end of the latter. Plain NATS: who is not there at that moment never hears of it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use schemas::message::{SERVICE_ERROR, SERVICE_ERROR_CODE, WORKER};
use schemas::{Prefix, Subject, SubjectError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::context::WorkerContext;
use crate::router::HandlerError;

/// Longest wait for a message to leave this process: NATS is away then.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// What the headers of an answer take of NATS' `max_payload` at most: a worker's name has 64
/// characters.
const HEADERS_MAX: usize = 256;

/// Code of an answer that is longer than NATS takes.
pub(crate) const TOO_LARGE: u16 = 413;
/// Code of an answer that a handler failed to give.
pub(crate) const FAILED: u16 = 500;
/// Code of an answer of a worker that lets go of what the message is for.
pub(crate) const LEAVING: u16 = 503;

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Every worker that listens to this topic.
    Topic(Arc<str>),
    /// The worker that holds this shard.
    Shard(u32),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => write!(f, "the topic {topic}"),
            Self::Shard(shard) => write!(f, "shard {shard}"),
        }
    }
}

/// A message as a handler gets it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Whom it is for.
    pub to: Address,
    /// Bytes that sender and handler agree upon.
    pub payload: Bytes,
    /// Whether somebody waits for the answer.
    pub wants_answer: bool,
}

impl Message {
    /// The payload, read as JSON.
    ///
    /// # Errors
    /// When it is not JSON of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.payload)
    }
}

/// What a handler answers; `()` is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer(pub(crate) Option<Bytes>);

impl Answer {
    /// A value as JSON.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn json(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::to_vec(value).map(Self::from)
    }
}

impl From<()> for Answer {
    fn from((): ()) -> Self {
        Self(None)
    }
}

impl From<Bytes> for Answer {
    fn from(bytes: Bytes) -> Self {
        Self(Some(bytes))
    }
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(bytes.into()))
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self(Some(text.into()))
    }
}

/// What [`MessageHandler::handle`] returns.
pub type AnswerFuture = Pin<Box<dyn Future<Output = Result<Answer, HandlerError>> + Send>>;

/// Handles messages. Implemented by every
/// `async fn(WorkerContext, Message) -> Result<A, HandlerError>` whose `A` is `()`, a text, bytes or
/// an [`Answer`].
///
/// The messages of a topic, or of a shard, are handled one after the other in the order they came.
/// Each has 10 seconds. An error, a panic or the end of the time is answered as an error.
pub trait MessageHandler: Send + Sync + 'static {
    /// Starts handling.
    fn handle(&self, context: WorkerContext, message: Message) -> AnswerFuture;
}

impl<F, Fut, A> MessageHandler for F
where
    F: Fn(WorkerContext, Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<A, HandlerError>> + Send + 'static,
    A: Into<Answer>,
{
    fn handle(&self, context: WorkerContext, message: Message) -> AnswerFuture {
        let handling = self(context, message);
        Box::pin(async move { handling.await.map(Into::into) })
    }
}

/// Why a message was not sent, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not a topic: words of any characters but white space, `*` and `>`, with dots between them.
    #[error("{0} cannot be a subject")]
    Topic(#[source] SubjectError),
    /// NATS takes no message of this length.
    #[error("the message has {bytes} bytes, NATS takes {most} (max_payload)")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What the server takes.
        most: usize,
    },
    /// No worker holds the shard and handles messages.
    #[error("no worker that handles messages holds shard {0} at the moment")]
    NobodyHolds(u32),
    /// The holder did not answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The holder answers with an error.
    #[error("the worker has no answer: {text} ({code})")]
    Refused {
        /// 413: its answer is longer than NATS takes. 500: its handler failed.
        code: u16,
        /// Why, for people.
        text: String,
    },
    /// NATS does not do its part.
    #[error("the message could not be sent: {0}")]
    Unsent(String),
}

/// Reaches the worker that holds a shard, in ordered mode. Cheap to clone.
///
/// ```no_run
/// # async fn example(context: consumers::Context) -> Result<(), consumers::MessageError> {
/// use std::time::Duration;
///
/// let answer = context.messages().request(3, "how many?", Duration::from_secs(1)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ShardMessages {
    client: async_nats::Client,
    prefix: Prefix,
}

impl ShardMessages {
    /// On a connection; `prefix` is the bot's.
    #[must_use]
    pub const fn new(client: async_nats::Client, prefix: Prefix) -> Self {
        Self { client, prefix }
    }

    /// Tells the worker that holds the shard, if one does: nobody says whether it heard.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`], [`MessageError::Unsent`].
    pub async fn send(&self, shard: u32, payload: impl Into<Bytes>) -> Result<(), MessageError> {
        let subject = Subject::ShardMessages { shard }.with_prefix(&self.prefix);
        publish(&self.client, subject, None, payload.into()).await
    }

    /// Asks the worker that holds the shard.
    ///
    /// # Errors
    /// [`MessageError::NobodyHolds`] at once when nobody does.
    pub async fn request(
        &self,
        shard: u32,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Bytes, MessageError> {
        let payload = payload.into();
        check_length(&self.client, &payload)?;
        let subject = Subject::ShardMessages { shard }.with_prefix(&self.prefix);
        // Ours decides, also while NATS is away.
        let request = Request::new().payload(payload).timeout(None);
        let sent = timeout(within, self.client.send_request(subject, request)).await;
        let answer = match sent {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => MessageError::NobodyHolds(shard),
                    RequestErrorKind::TimedOut => MessageError::TimedOut(within),
                    _ => MessageError::Unsent(error.to_string()),
                });
            }
            Err(_) => return Err(MessageError::TimedOut(within)),
        };
        match refusal(answer.headers.as_ref()) {
            None => Ok(answer.payload),
            Some((LEAVING, _)) => Err(MessageError::NobodyHolds(shard)),
            Some((code, text)) => Err(MessageError::Refused { code, text }),
        }
    }
}

/// Publishes, and makes sure that it has left this process.
pub(crate) async fn publish(
    client: &async_nats::Client,
    subject: String,
    reply: Option<String>,
    payload: Bytes,
) -> Result<(), MessageError> {
    check_length(client, &payload)?;
    let unsent = |error: &dyn fmt::Display| MessageError::Unsent(error.to_string());
    let sent = match reply {
        Some(reply) => client.publish_with_reply(subject, reply, payload).await,
        None => client.publish(subject, payload).await,
    };
    sent.map_err(|error| match error.kind() {
        PublishErrorKind::InvalidSubject => unsent(&"the subject is not valid"),
        _ => unsent(&error),
    })?;
    match timeout(FLUSH_TIMEOUT, client.flush()).await {
        Ok(flushed) => flushed.map_err(|error| unsent(&error)),
        Err(_) => Err(unsent(&"NATS is away")),
    }
}

fn check_length(client: &async_nats::Client, payload: &Bytes) -> Result<(), MessageError> {
    let (bytes, most) = (payload.len(), client.server_info().max_payload);
    if bytes > most {
        return Err(MessageError::TooLarge { bytes, most });
    }
    Ok(())
}

/// The error in an answer's headers.
pub(crate) fn refusal(headers: Option<&HeaderMap>) -> Option<(u16, String)> {
    let headers = headers?;
    let text = headers.get(SERVICE_ERROR)?.to_string();
    let code = headers.get(SERVICE_ERROR_CODE);
    let code = code.and_then(|code| code.as_str().parse().ok());
    Some((code.unwrap_or(FAILED), text))
}

/// An answer as it goes on the wire; an answer that is too long becomes an error, and the number
/// says how long it was.
pub(crate) fn wire(
    worker: &str,
    answer: Result<Bytes, (u16, String)>,
    max_payload: usize,
) -> (HeaderMap, Bytes, Option<usize>) {
    let mut headers = HeaderMap::new();
    headers.insert(WORKER, worker);
    let most = max_payload.saturating_sub(HEADERS_MAX);
    let (answer, too_long) = match answer {
        Ok(bytes) if bytes.len() > most => {
            let length = bytes.len();
            let text = format!("the answer has {length} bytes, NATS takes {most}");
            (Err((TOO_LARGE, text)), Some(length))
        }
        answer => (answer, None),
    };
    match answer {
        Ok(bytes) => (headers, bytes, too_long),
        Err((code, text)) => {
            // A header is one line, and errors may be of any length.
            let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            headers.insert(SERVICE_ERROR, text);
            headers.insert(SERVICE_ERROR_CODE, code.to_string());
            (headers, Bytes::new(), too_long)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_worker_and_one_too_long_is_an_error() {
        let (headers, payload, too_long) = wire("w-1", Ok(Bytes::from_static(b"42")), 1024);
        assert_eq!(headers.get(WORKER).unwrap().as_str(), "w-1");
        assert_eq!((payload.as_ref(), too_long), (b"42".as_ref(), None));
        assert_eq!(refusal(Some(&headers)), None);

        let long = Bytes::from(vec![0; 1000]);
        let (headers, payload, too_long) = wire("w-1", Ok(long), 1024);
        assert_eq!((payload.len(), too_long), (0, Some(1000)));
        let (code, text) = refusal(Some(&headers)).unwrap();
        assert_eq!(code, TOO_LARGE);
        assert_eq!(text, "the answer has 1000 bytes, NATS takes 768");
    }

    #[test]
    fn an_error_of_any_text_fits_into_a_header() {
        let text = "line\r\nInjected: header".to_owned() + &"x".repeat(5000);
        let (headers, ..) = wire("w-1", Err((FAILED, text)), 1024);
        let (code, text) = refusal(Some(&headers)).unwrap();
        assert_eq!((code, text.len()), (FAILED, 200));
        assert!(text.starts_with("lineInjected: header"));
    }

    #[test]
    fn handlers_may_answer_with_anything_that_is_bytes() {
        assert_eq!(Answer::from(()), Answer(None));
        let bytes = Some(Bytes::from_static(b"[1]"));
        assert_eq!(Answer::json(&[1]).unwrap().0, bytes);
        assert_eq!(Answer::from("[1]".to_owned()).0, bytes);
    }
}
