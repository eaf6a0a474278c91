//! One shared event on its way: what stands around it is read, its handler begins, and what is not
//! over then is seen through and told to the stream by itself.

use std::task::Poll;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Message};
use futures_util::poll;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::attempt::{Attempt, Signs};
use super::begun::{Begun, Item, Waiting, begin};
use super::settle::{Settled, settle, tell};
use super::shared::Shared;
use crate::context::Context;
use crate::durable::SHARED_ACK_WAIT;
use crate::events::Events;
use crate::metrics::EventOutcome;
use crate::verdict::{Ended, Next};

/// How often JetStream is told that an event is still being worked on.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(SHARED_ACK_WAIT.as_millis() as u64 / 3);
/// Deliveries for which an event that has no handler here is left to workers of another version:
/// enough for one newer worker among several older ones.
const FOREIGN_DELIVERIES: u64 = 20;
/// Pause before such an event is delivered again, longer each time.
const FOREIGN_PAUSE: Duration = Duration::from_millis(20);

/// Reads what stands around the events; what is none of ours is no longer there afterwards.
pub(super) async fn read(shared: &Shared, events: &Events, messages: Vec<Message>) -> Vec<Item> {
    let mut items = Vec::with_capacity(messages.len());
    for message in messages {
        match shared.context(&message) {
            Ok(context) => items.push(Item { message, context }),
            Err(error) => {
                tracing::warn!(%error, "a message has a subject that is not ours");
                tell(&shared.link.client, &message, AckKind::Term).await;
                events.count(&shared.metrics, EventOutcome::Foreign);
            }
        }
    }
    items
}

/// Begins what may: of an event that no handler is for, or that never came to an end, other things
/// become.
pub(super) async fn begin_shared(shared: &Shared, events: &Events, items: Vec<Item>) -> Begun {
    let may_begin = |context: &Context, _| {
        events.handles(&context.event.name)
            && context.event.deliveries <= events.attempts.deliveries_max()
    };
    begin(shared, events, items, may_begin).await
}

/// Sees an event through that was not over at once.
pub(super) async fn go_on(shared: &Shared, events: &Events, waiting: Waiting) {
    let _in_flight = shared.metrics.events_started(1);
    let (client, message) = (&shared.link.client, &waiting.item.message);
    let settled = work(shared, events, &waiting.item, waiting.attempt).await;
    if let Settled::Again(pause) = settled {
        tell(client, message, AckKind::Nak(Some(pause))).await;
    }
}

/// Tells the server that an event is being worked on, until it no longer is.
async fn while_alive<T>(client: &Client, message: &Message, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    // Most is done at once and needs no timer.
    if let Poll::Ready(done) = poll!(work.as_mut()) {
        return done;
    }
    let mut progress = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = progress.tick() => tell(client, message, AckKind::Progress).await,
        }
    }
}

/// An event that a worker of another version has asked for.
async fn foreign(
    shared: &Shared,
    events: &Events,
    message: &Message,
    context: &Context,
) -> Settled {
    let deliveries = context.event.deliveries;
    if deliveries < FOREIGN_DELIVERIES {
        events.count(&shared.metrics, EventOutcome::Unhandled);
        let times = u32::try_from(deliveries).unwrap_or(u32::MAX);
        return Settled::Again(FOREIGN_PAUSE.saturating_mul(times));
    }
    let event = &context.event.name;
    let reason = format!("no worker that was asked handles {event}");
    settle(shared, events, message, context, Next::Bury(reason)).await
}

async fn work(
    shared: &Shared,
    events: &Events,
    Item { message, context }: &Item,
    attempt: Option<Attempt>,
) -> Settled {
    let client = &shared.link.client;
    if !events.handles(&context.event.name) {
        let foreign = foreign(shared, events, message, context);
        return while_alive(client, message, foreign).await;
    }
    let deliveries = context.event.deliveries;
    let next = match attempt {
        Some(attempt) => {
            let signs = Signs {
                client,
                message,
                every: PROGRESS_INTERVAL,
            };
            let ended = attempt.finish(events.timeout, Some(signs)).await;
            if let Ended::Failed(reason) = &ended {
                let (event, id) = (&*context.event.name, context.message_id());
                tracing::warn!(event, id, deliveries, reason, "an attempt failed");
            }
            let number = u32::try_from(deliveries).unwrap_or(u32::MAX);
            events.attempts.next(ended, number)
        }
        None => Next::Bury(format!(
            "delivered {deliveries} times without an end: its workers went away with it"
        )),
    };
    while_alive(
        client,
        message,
        settle(shared, events, message, context, next),
    )
    .await
}
