//! Listens to one subject of messages between workers: lets the handler have them one after the
//! other, and answers who asked.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::attempt::panic_text;
use super::shared::Shared;
use crate::lease::Lease;
use crate::messages::{Address, FAILED, LEAVING, Message, MessageHandler, wire};
use crate::metrics::MessageOutcome;

/// Longest time for one message. Others of the same subject wait behind it.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(10);

/// Who handles the messages of one subject.
pub(crate) struct Listener {
    pub(crate) shared: Arc<Shared>,
    pub(crate) to: Address,
    pub(crate) handler: Arc<dyn MessageHandler>,
    /// Messages are for others while this is not valid.
    pub(crate) lease: Option<Arc<Lease>>,
}

/// A subject being listened to. Dropping it ends the handler where it stands.
#[derive(Debug)]
pub(crate) struct Listening {
    stopping: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Listening {
    /// Hears no more, and lets the handler finish until `limit`.
    pub(crate) async fn stop(self, limit: Instant) {
        self.stopping.cancel();
        if timeout_at(limit, self.task).await.is_err() {
            tracing::warn!("a handler of messages outlived the grace period");
        }
    }
}

impl Listener {
    /// Subscribes; from then on messages arrive.
    pub(crate) async fn listen(self, subject: String) -> Result<Listening, String> {
        let client = &self.shared.link.client;
        let subscriber = client.subscribe(subject).await;
        let subscriber = subscriber.map_err(|error| error.to_string())?;
        let stopping = CancellationToken::new();
        let task = tokio::spawn(self.run(subscriber, stopping.clone()));
        Ok(Listening {
            stopping,
            task: AbortOnDropHandle::new(task),
        })
    }

    async fn run(self, mut subscriber: Subscriber, stopping: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                message = subscriber.next() => message,
            };
            // The connection is closed for good.
            let Some(message) = message else { return };
            let handling = self.handle(message);
            tokio::pin!(handling);
            tokio::select! {
                () = &mut handling => {}
                () = stopping.cancelled() => {
                    self.leave(&mut subscriber).await;
                    handling.await;
                    return;
                }
            }
        }
        self.leave(&mut subscriber).await;
    }

    /// Takes back the interest, and tells who asked meanwhile to look elsewhere.
    async fn leave(&self, subscriber: &mut Subscriber) {
        if let Err(error) = subscriber.unsubscribe().await {
            tracing::debug!(%error, "NATS learns only later that nobody listens here");
        }
        while let Some(Some(message)) = subscriber.next().now_or_never() {
            let text = "the worker lets go of it".to_owned();
            self.answer(message.reply, Err((LEAVING, text))).await;
            self.count(MessageOutcome::Refused);
        }
    }

    async fn handle(&self, message: async_nats::Message) {
        let lease = self.lease.as_ref();
        if lease.is_some_and(|lease| !lease.is_valid()) {
            // Whoever holds it by now hears the same message.
            self.count(MessageOutcome::Refused);
            return;
        }
        let asked = Message {
            to: self.to.clone(),
            payload: message.payload.clone(),
            wants_answer: message.reply.is_some(),
        };
        let context = self.shared.tools.clone();
        // The handler's own code may panic before its future exists.
        let handling = AssertUnwindSafe(async { self.handler.handle(context, asked).await });
        let answer = match timeout(HANDLER_TIMEOUT, handling.catch_unwind()).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(panic)) => Err(format!("the handler panicked: {}", panic_text(&*panic))),
            Err(_) => Err(format!("the handler took longer than {HANDLER_TIMEOUT:?}")),
        };
        match answer {
            Ok(answer) => {
                self.count(MessageOutcome::Handled);
                if let Some(bytes) = answer.0 {
                    self.answer(message.reply, Ok(bytes)).await;
                }
            }
            Err(problem) => {
                self.count(MessageOutcome::Failed);
                tracing::warn!(to = %self.to, problem, "a message was not handled");
                self.answer(message.reply, Err((FAILED, problem))).await;
            }
        }
    }

    async fn answer(
        &self,
        reply: Option<async_nats::Subject>,
        answer: Result<Bytes, (u16, String)>,
    ) {
        let Some(reply) = reply else { return };
        let client = &self.shared.link.client;
        let max_payload = client.server_info().max_payload;
        let (headers, payload, too_long) = wire(&self.shared.worker.id, answer, max_payload);
        if let Some(bytes) = too_long {
            self.count(MessageOutcome::TooLarge);
            tracing::error!(to = %self.to, bytes, max_payload, "an answer is too long for NATS");
        }
        let sent = client.publish_with_headers(reply, headers, payload).await;
        if let Err(error) = sent {
            tracing::warn!(to = %self.to, %error, "an answer could not be sent");
        }
    }

    fn count(&self, outcome: MessageOutcome) {
        self.shared.metrics.among().message(&self.to, outcome);
    }
}
