//! The steady part of a tenure: asks for events, lets handlers begin, and sees each event through
//! its attempts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::hand::{Ended, Hand, Item};
use super::{End, FIRST_PULL_EXPIRES, PULL_EXPIRES, Tenure, WINDOW};
use crate::events::Events;
use crate::intake::Intake;
use crate::lease::Lease;
use crate::verdict::{self, Next};
use crate::worker::{Settled, Shared, attempt, settle};

/// Pause before an event whose task could not begin is looked at again.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

impl Tenure {
    /// Works until something happens to the consumer, the way to it or the tenure.
    pub(super) async fn work(&self, intake: &mut Intake, hand: &mut Hand) -> Result<End, String> {
        let mut paused = self.paused.clone();
        let connection = intake.connection();
        loop {
            let resting = *paused.borrow_and_update();
            if !resting {
                self.begin_ready(hand);
                self.ask(intake, hand).await?;
            }
            let (asked, overdue) = (intake.outstanding() > 0, intake.overdue());
            let (busy, progress) = (hand.is_busy(), hand.progress_due());
            let ready = !resting && hand.lanes.has_ready();
            let (may_begin, must_wait) = (self.lease.is_valid(), !self.lease.is_valid());
            tokio::select! {
                biased;
                () = self.release.cancelled() => return Ok(End::Release),
                Some(done) = hand.done(), if busy => hand.finish(done),
                () = self.shared.link.replaced(connection) => return Ok(End::Again),
                slot = Arc::clone(&self.slots).acquire_owned(), if ready && may_begin => {
                    let slot = slot.expect("the semaphore is never closed");
                    self.begin_next(hand, slot);
                }
                () = sleep(LEASE_PAUSE), if ready && must_wait => {}
                arrival = intake.next() => {
                    if let Some(end) = self.arrived(arrival, intake, hand, true).await? {
                        return Ok(end);
                    }
                }
                () = sleep_until(progress) => hand.tell_progress(&self.shared.link.client).await,
                () = changed(&mut paused) => {}
                // The server has forgotten the request, and perhaps what it answered.
                () = sleep_until(overdue), if asked => {
                    intake.forget();
                    return Ok(End::Again);
                }
            }
        }
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
    fn begin_ready(&self, hand: &mut Hand) {
        while hand.lanes.has_ready() && self.lease.is_valid() {
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                return;
            };
            self.begin_next(hand, slot);
        }
    }

    fn begin_next(&self, hand: &mut Hand, slot: OwnedSemaphorePermit) {
        let Some((sequence, item)) = hand.lanes.next() else {
            return;
        };
        let span = tracing::info_span!("event", subject = %item.0.subject);
        let job = Job {
            shared: Arc::clone(&self.shared),
            events: Arc::clone(&self.events),
            lease: Arc::clone(&self.lease),
            slots: Arc::clone(&self.slots),
        };
        let release = self.release.clone();
        let running = async move {
            let finished = job.run(item, slot, &release).await;
            Ended { sequence, finished }
        };
        hand.start(running.instrument(span));
    }
}

/// One event until it is done.
struct Job {
    shared: Arc<Shared>,
    events: Arc<Events>,
    lease: Arc<Lease>,
    slots: Arc<Semaphore>,
}

impl Job {
    /// Attempts until the event is handled or buried. Its guild waits meanwhile; the slot does not.
    /// False when the shard is released between two attempts: the next holder goes on.
    async fn run(
        self,
        (message, context): Item,
        mut slot: OwnedSemaphorePermit,
        release: &CancellationToken,
    ) -> bool {
        let _in_flight = self.shared.metrics.event_started();
        let deliveries = context.event.deliveries;
        let mut number = 0;
        loop {
            if release
                .run_until_cancelled(self.lease.valid())
                .await
                .is_none()
            {
                return false;
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
                    let Some(free) = release.run_until_cancelled(again).await else {
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
