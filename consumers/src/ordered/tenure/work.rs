//! The steady part of a tenure: asks for events, lets handlers begin, and sees each event through
//! its attempts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::hand::{Ended, Hand, Item};
use super::{End, FIRST_PULL_EXPIRES, PULL_EXPIRES, Tenure, WINDOW};
use crate::events::Events;
use crate::intake::{Arrival, Intake};
use crate::lease::Lease;
use crate::verdict::{self, Next};
use crate::worker::{Settled, Shared, TOGETHER, attempt, begin, settle};

/// Pause before an event whose task could not begin is looked at again.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

impl Tenure {
    /// Works until something happens to the consumer, the way to it or the tenure.
    pub(super) async fn work(&self, intake: &mut Intake, hand: &mut Hand) -> Result<End, String> {
        let mut paused = self.paused.clone();
        let job = Arc::new(Job {
            shared: Arc::clone(&self.shared),
            events: Arc::clone(&self.events),
            lease: Arc::clone(&self.lease),
            slots: Arc::clone(&self.slots),
            release: self.release.clone(),
        });
        let released = self.release.cancelled();
        let replaced = self.shared.link.replaced(intake.connection());
        tokio::pin!(released, replaced);
        loop {
            let resting = *paused.borrow_and_update();
            if !resting {
                self.begin_ready(hand, &job);
                self.ask(intake, hand).await?;
            }
            let (asked, overdue) = (intake.outstanding() > 0, intake.overdue());
            let (busy, progress) = (hand.is_busy(), hand.progress_due());
            let ready = !resting && hand.lanes.has_ready();
            let may_begin = self.lease.is_valid();
            let look = if asked {
                progress.min(overdue)
            } else {
                progress
            };
            tokio::select! {
                biased;
                () = &mut released => return Ok(End::Release),
                // Before what comes in: a flood must not keep the server from hearing of events that
                // take long.
                () = sleep_until(look) => {
                    if look == progress {
                        hand.tell_progress(&self.shared.link.client).await;
                    } else {
                        // The server has forgotten the request, and perhaps what it answered.
                        intake.forget();
                        return Ok(End::Again);
                    }
                }
                Some(done) = hand.done(), if busy => {
                    hand.finish(done);
                    hand.see_done();
                }
                () = &mut replaced => return Ok(End::Again),
                slot = Arc::clone(&self.slots).acquire_owned(), if ready && may_begin => {
                    let slot = slot.expect("the semaphore is never closed");
                    begin_together(hand, slot, &job);
                }
                () = sleep(LEASE_PAUSE), if ready && !may_begin => {}
                arrival = intake.next() => {
                    if let Some(end) = self.all_arrived(arrival, intake, hand).await? {
                        return Ok(end);
                    }
                }
                () = changed(&mut paused) => {}
            }
        }
    }

    /// Takes what came in, and what came in with it.
    async fn all_arrived(
        &self,
        first: Option<Arrival>,
        intake: &mut Intake,
        hand: &mut Hand,
    ) -> Result<Option<End>, String> {
        let mut next = Some(first);
        while let Some(arrival) = next {
            if let Some(end) = self.arrived(arrival, intake, hand, true).await? {
                return Ok(Some(end));
            }
            next = intake.next().now_or_never();
        }
        Ok(None)
    }

    /// Asks for as much as there is room for, but not for each place that becomes free.
    async fn ask(&self, intake: &mut Intake, hand: &Hand) -> Result<(), String> {
        let room = WINDOW.saturating_sub(hand.len() + intake.outstanding());
        let enough = intake.outstanding() == 0 || room >= WINDOW / 4;
        if room == 0 || !enough || !self.lease.is_valid() {
            return Ok(());
        }
        let expires = match intake.is_pinned() {
            true => PULL_EXPIRES,
            false => FIRST_PULL_EXPIRES,
        };
        intake.request(room, expires, true).await
    }

    /// Lets begin what may, as long as there are free slots.
    fn begin_ready(&self, hand: &mut Hand, job: &Arc<Job>) {
        while hand.lanes.has_ready() && self.lease.is_valid() {
            let free = self.slots.available_permits();
            let together = hand.lanes.ready().min(TOGETHER).min(free);
            let wanted = u32::try_from(together).unwrap_or(1).max(1);
            let Ok(slots) = Arc::clone(&self.slots).try_acquire_many_owned(wanted) else {
                return;
            };
            begin_together(hand, slots, job);
        }
    }
}

/// Lets begin as many events as there are slots.
fn begin_together(hand: &mut Hand, mut slots: OwnedSemaphorePermit, job: &Arc<Job>) {
    let mut together = Vec::with_capacity(slots.num_permits());
    while slots.num_permits() > 0
        && let Some(event) = hand.lanes.next()
        && let Some(slot) = slots.split(1)
    {
        together.push((event, slot));
    }
    if together.is_empty() {
        return;
    }
    let job = Arc::clone(job);
    let handlings = together.into_iter().map(move |((sequence, item), slot)| {
        // Off by default: making a span, which is formatted and registered, is paid by every event.
        let span = tracing::debug_span!("event", subject = %item.0.subject);
        let job = Arc::clone(&job);
        let running = async move {
            let finished = job.run(item, slot).await;
            Ended { sequence, finished }
        };
        running.instrument(span)
    });
    hand.start(begin(handlings));
}

/// What it takes to see one event through.
struct Job {
    shared: Arc<Shared>,
    events: Arc<Events>,
    lease: Arc<Lease>,
    slots: Arc<Semaphore>,
    release: CancellationToken,
}

impl Job {
    /// Attempts until the event is handled or buried. Its guild waits meanwhile; the slot does not.
    /// False when the shard is released between two attempts: the next holder goes on.
    async fn run(&self, (message, context): Item, mut slot: OwnedSemaphorePermit) -> bool {
        let _in_flight = self.shared.metrics.event_started();
        let deliveries = context.event.deliveries;
        let mut number = 0;
        loop {
            let may_begin = self.lease.is_valid() && !self.release.is_cancelled();
            if !may_begin {
                let valid = self.release.run_until_cancelled(self.lease.valid());
                if valid.await.is_none() {
                    return false;
                }
            }
            number += 1;
            let next = if deliveries > self.events.attempts.deliveries_max() {
                Next::Bury(format!(
                    "delivered {deliveries} times without an end: its workers went away with it"
                ))
            } else {
                let ended = attempt(&self.shared, &self.events, &context).await;
                if let verdict::Ended::Failed(reason) = &ended {
                    let (event, id) = (&*context.event.name, context.message_id());
                    tracing::warn!(event, id, number, reason, "an attempt failed");
                }
                self.events.attempts.next(ended, number)
            };
            match settle(&self.shared, &self.events, &message, &context, next).await {
                Settled::Finished => return true,
                Settled::Again(pause) => {
                    drop(slot);
                    let again = async {
                        sleep(pause).await;
                        Arc::clone(&self.slots).acquire_owned().await
                    };
                    let Some(free) = self.release.run_until_cancelled(again).await else {
                        return false;
                    };
                    slot = free.expect("the semaphore is never closed");
                }
            }
        }
    }
}

async fn changed(paused: &mut watch::Receiver<bool>) {
    if paused.changed().await.is_err() {
        // Nobody can change it any more.
        std::future::pending::<()>().await;
    }
}
