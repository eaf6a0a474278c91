//! The steady part of a tenure: asks for events and lets handlers begin.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, sleep_until};

use super::hand::Hand;
use super::{End, FIRST_PULL_EXPIRES, PULL_EXPIRES, Tenure, WINDOW};
use crate::intake::{Arrival, Intake};
use crate::lease::changed;

/// Pause before an event whose task could not begin is looked at again.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

impl Tenure {
    /// Works until something happens to the consumer, the way to it or the tenure.
    pub(super) async fn work(&self, intake: &mut Intake, hand: &mut Hand) -> Result<End, String> {
        let mut paused = self.paused.clone();
        let released = self.release.cancelled();
        let replaced = self.shared.link.replaced(intake.connection());
        tokio::pin!(released, replaced);
        loop {
            let resting = *paused.borrow_and_update();
            if !resting {
                self.begin_ready(hand);
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
                    begin_together(hand, slot);
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
    fn begin_ready(&self, hand: &mut Hand) {
        while hand.lanes.has_ready() && self.lease.is_valid() {
            let free = self.slots.available_permits();
            let together = hand.lanes.ready().min(hand.together.most()).min(free);
            let wanted = u32::try_from(together).unwrap_or(1).max(1);
            let Ok(slots) = Arc::clone(&self.slots).try_acquire_many_owned(wanted) else {
                return;
            };
            begin_together(hand, slots);
        }
    }
}

/// Lets begin as many events as there are slots.
fn begin_together(hand: &mut Hand, slots: OwnedSemaphorePermit) {
    let mut together = Vec::with_capacity(slots.num_permits());
    while together.len() < slots.num_permits()
        && let Some((_, item)) = hand.lanes.next()
    {
        together.push(item);
    }
    if !together.is_empty() {
        hand.begin(together, slots);
    }
}
