//! What it takes to see the events of a shard through their attempts.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Tenure;
use crate::context::Context;
use crate::events::Events;
use crate::lease::Lease;
use crate::verdict::{self, Next};
use crate::worker::{Begun, Item, Settled, Shared, Waiting, attempt, begin, settle};

/// What all events of a shard that is held have in common.
pub(super) struct Job {
    shared: Arc<Shared>,
    events: Arc<Events>,
    lease: Arc<Lease>,
    slots: Arc<Semaphore>,
    release: CancellationToken,
}

impl Job {
    pub(super) fn of(tenure: &Tenure) -> Self {
        Self {
            shared: Arc::clone(&tenure.shared),
            events: Arc::clone(&tenure.events),
            lease: Arc::clone(&tenure.lease),
            slots: Arc::clone(&tenure.slots),
            release: tenure.release.clone(),
        }
    }

    /// Begins events that are not in each other's way.
    pub(super) async fn begin(&self, items: Vec<Item>) -> Begun {
        let released = self.release.is_cancelled();
        let may_begin = |context: &Context, now| {
            !released && self.lease.is_valid_at(now) && !self.is_hopeless(context)
        };
        begin(&self.shared, &self.events, items, may_begin).await
    }

    /// Attempts until the event is handled or buried. Its guild waits meanwhile; the slot does not.
    /// Without an end when the shard is released between two attempts: the next holder goes on.
    pub(super) async fn go_on(
        &self,
        waiting: Waiting,
        mut slot: Option<OwnedSemaphorePermit>,
    ) -> Begun {
        let _in_flight = self.shared.metrics.events_started(1);
        let Waiting {
            item: Item { message, context },
            attempt: mut begun,
            ..
        } = waiting;
        let mut number = 0;
        loop {
            if begun.is_none() && !self.may_begin() {
                let valid = self.release.run_until_cancelled(self.lease.valid());
                if valid.await.is_none() {
                    return Begun::default();
                }
            }
            number += 1;
            let next = if self.is_hopeless(&context) {
                let deliveries = context.event.deliveries;
                Next::Bury(format!(
                    "delivered {deliveries} times without an end: its workers went away with it"
                ))
            } else {
                let begun = match begun.take() {
                    Some(begun) => begun,
                    None => attempt(&self.shared, &self.events, &context).await,
                };
                // The shard's holder tells the server about all that is in hand.
                let ended = begun.finish(self.events.timeout, None).await;
                if let verdict::Ended::Failed(reason) = &ended {
                    let (event, id) = (&*context.event.name, context.message_id());
                    tracing::warn!(event, id, number, reason, "an attempt failed");
                }
                self.events.attempts.next(ended, number)
            };
            match settle(&self.shared, &self.events, &message, &context, next).await {
                Settled::Finished => return Begun::ended(context.event.sequence),
                Settled::Again(pause) => {
                    drop(slot);
                    let again = async {
                        sleep(pause).await;
                        Arc::clone(&self.slots).acquire_owned().await
                    };
                    let Some(free) = self.release.run_until_cancelled(again).await else {
                        return Begun::default();
                    };
                    slot = Some(free.expect("the semaphore is never closed"));
                }
            }
        }
    }

    fn may_begin(&self) -> bool {
        self.lease.is_valid() && !self.release.is_cancelled()
    }

    fn is_hopeless(&self, context: &Context) -> bool {
        context.event.deliveries > self.events.attempts.deliveries_max()
    }
}
