//! Tells all workers of a bot something at once, and gathers what they answer.

use std::pin::pin;
use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use schemas::message::WORKER;
use schemas::{Prefix, Subject};
use tokio::time::sleep;

use crate::messages::{MessageError, publish, refusal};

/// Reaches every worker of every kind that listens to a topic. Cheap to clone.
///
/// Workers listen with [`Router::on_broadcast`](crate::Router::on_broadcast). A message is heard by
/// those that are there at that moment, in the order one sender sent it; nothing is kept.
///
/// ```no_run
/// # async fn example(context: consumers::Context) -> Result<(), consumers::MessageError> {
/// use std::time::Duration;
///
/// context.broadcast().publish("cache.forget", "81384788765712384").await?;
/// let answers = context.broadcast().gather("uptime", "", Duration::from_millis(500), 100).await?;
/// for answer in answers {
///     println!("{}: {:?}", answer.worker, answer.result);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Broadcast {
    client: async_nats::Client,
    prefix: Prefix,
}

/// What one worker answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerAnswer {
    /// Name of the worker.
    pub worker: String,
    /// Its answer, or why it has none.
    pub result: Result<Bytes, WorkerRefusal>,
}

/// Why a worker has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct WorkerRefusal {
    /// 413: the answer is longer than NATS takes. 500: the handler failed. 503: it is stopping.
    pub code: u16,
    /// Why, for people.
    pub text: String,
}

impl Broadcast {
    /// On a connection; `prefix` is the bot's.
    #[must_use]
    pub const fn new(client: async_nats::Client, prefix: Prefix) -> Self {
        Self { client, prefix }
    }

    /// Tells everybody who listens. Nobody may: that is no error.
    ///
    /// # Errors
    /// [`MessageError`] when the topic is none, or the message is too large or cannot be sent.
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), MessageError> {
        publish(&self.client, self.subject(topic)?, None, payload.into()).await
    }

    /// Asks everybody who listens, and gathers the answers of up to `most` workers that come within
    /// this time. Empty at once when nobody listens.
    ///
    /// # Errors
    /// As [`Broadcast::publish`]; workers that do not answer are missing, not an error.
    pub async fn gather(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        within: Duration,
        most: usize,
    ) -> Result<Vec<WorkerAnswer>, MessageError> {
        // Not a moment: there is none so late that a patient program could not ask for a later one.
        let mut over = pin!(sleep(within));
        let subject = self.subject(topic)?;
        let inbox = self.client.new_inbox();
        let subscribing = self.client.subscribe(inbox.clone());
        let mut answers = subscribing
            .await
            .map_err(|error| MessageError::Unsent(error.to_string()))?;
        publish(&self.client, subject, Some(inbox), payload.into()).await?;
        let mut gathered = Vec::new();
        while gathered.len() < most {
            let answer = tokio::select! {
                biased;
                answer = answers.next() => answer,
                () = &mut over => None,
            };
            let Some(answer) = answer else { break };
            if answer.status == Some(StatusCode::NO_RESPONDERS) {
                break;
            }
            let headers = answer.headers.as_ref();
            let worker = headers.and_then(|headers| headers.get(WORKER));
            let worker = worker.map_or_else(String::new, ToString::to_string);
            let result = match refusal(headers) {
                None => Ok(answer.payload),
                Some((code, text)) => Err(WorkerRefusal { code, text }),
            };
            gathered.push(WorkerAnswer { worker, result });
        }
        // Dropping the subscription takes back the interest.
        Ok(gathered)
    }

    fn subject(&self, topic: &str) -> Result<String, MessageError> {
        let subject = Subject::Broadcast { topic };
        subject.checked(&self.prefix).map_err(MessageError::Topic)
    }
}
