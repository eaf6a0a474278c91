//! What the stream is told about an event after an attempt, in both modes.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Message};
use tokio::time::Instant;

use super::shared::Shared;
use crate::context::Context;
use crate::dead;
use crate::events::Events;
use crate::metrics::EventOutcome;
use crate::verdict::Next;

/// Pause before an event is tried again that could not be stored as dead.
const BURY_PAUSE: Duration = Duration::from_secs(2);

/// What is to be done with an event besides what this module has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Nothing: the stream knows.
    Finished,
    /// Another attempt after this pause.
    Again(Duration),
}

/// Buries what must be, tells the stream about what is finished, and counts it.
pub(crate) async fn settle(
    shared: &Shared,
    events: &Events,
    message: &Message,
    context: &Context,
    next: Next,
) -> Settled {
    let count = |outcome| events.count(&shared.metrics, outcome);
    let client = &shared.link.client;
    match next {
        Next::Ack(finished) => {
            tell(client, message, AckKind::Ack).await;
            count(finished.into());
            Settled::Finished
        }
        Next::Again(pause) => {
            count(EventOutcome::Retried);
            Settled::Again(pause)
        }
        Next::Bury(reason) => {
            let id = context.message_id();
            let jetstream = &shared.link.jetstream;
            let buried = dead::bury(
                jetstream,
                &shared.prefix,
                &events.name,
                message,
                &reason,
                id,
            );
            if let Err(error) = buried.await {
                tracing::error!(id, reason, error, "an event could not be stored as dead");
                count(EventOutcome::Retried);
                return Settled::Again(BURY_PAUSE);
            }
            if let Some(more) = shared.warnings.dead.admit(Instant::now().into_std()) {
                let event = &*context.event.name;
                tracing::error!(event, id, reason, more, "an event is given up");
            }
            tell(client, message, AckKind::Term).await;
            count(EventOutcome::Dead);
            Settled::Finished
        }
    }
}

/// What does not reach the server leads to another delivery: events are handled at least once.
pub(crate) async fn tell(client: &Client, message: &Message, kind: AckKind) {
    let Some(reply) = message.reply.clone() else {
        return;
    };
    if let Err(error) = client.publish(reply, kind.into()).await {
        tracing::warn!(%error, "the stream could not be told about an event");
    }
}
