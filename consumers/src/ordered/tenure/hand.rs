//! The events of a shard that its holder has in hand: which wait, which run, and what the server
//! must be told so that it does not deliver them again meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Message, Subject};
use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::job::Job;
use crate::durable::SHARD_ACK_WAIT;
use crate::events::Events;
use crate::metrics::EventOutcome;
use crate::ordered::by_sequence::BySequence;
use crate::ordered::lanes::{Lane, Lanes};
use crate::place::Place;
use crate::worker::{Begun, Item, Shared, Together, tell};

/// How often JetStream is told about what waits or runs.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(SHARD_ACK_WAIT.as_millis() as u64 / 3);

/// A task that is over: what became of its events, and the slots that they had.
type Ran = (Begun, Option<OwnedSemaphorePermit>);

pub(super) struct Hand {
    pub(super) lanes: Lanes<Item>,
    /// Where the server is told about each event that is not done.
    replies: BySequence<Subject>,
    /// Arrived while nothing may begin.
    waiting: BTreeMap<u64, Item>,
    running: JoinSet<Ran>,
    pub(super) together: Together,
    job: Arc<Job>,
    /// When the stream was made, and how far the consumer was then; once that is known.
    opened: Option<Place>,
    next_progress: Instant,
    /// What the server knows this holder by.
    pub(super) pin: Option<String>,
}

impl Hand {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self {
            lanes: Lanes::new(),
            replies: BySequence::new(),
            waiting: BTreeMap::new(),
            running: JoinSet::new(),
            together: Together::new(),
            job,
            opened: None,
            next_progress: Instant::now() + PROGRESS_INTERVAL,
            pin: None,
        }
    }

    /// How many events are not done.
    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    /// How far the shard is done, for making its consumer again.
    pub(super) fn place(&self) -> Option<Place> {
        let opened = self.opened?;
        let floor = opened.floor.max(self.lanes.floor());
        // A shard of which nothing was ever delivered begins where the group does.
        (floor > 0).then_some(Place { floor, ..opened })
    }

    /// When the stream was made that it all belongs to.
    pub(super) fn created(&self) -> Option<OffsetDateTime> {
        self.opened.map(|opened| opened.created)
    }

    pub(super) const fn set_opened(&mut self, opened: Place) {
        self.opened = Some(opened);
    }

    /// Forgets everything, handlers that run included: the stream is another one.
    pub(super) fn restart(&mut self) {
        *self = Self::new(Arc::clone(&self.job));
    }

    /// Takes a delivery. One that is in hand already needs no second place, and one that is done was
    /// acknowledged in vain and is so again.
    pub(super) async fn take(
        &mut self,
        shared: &Arc<Shared>,
        events: &Events,
        message: Message,
        begin: bool,
    ) {
        let context = match shared.context(&message) {
            Ok(context) => context,
            Err(error) => {
                tracing::warn!(%error, "a message has a subject that is not ours");
                tell(&shared.link.client, &message, AckKind::Term).await;
                events.count(&shared.metrics, EventOutcome::Foreign);
                return;
            }
        };
        let sequence = context.event.sequence;
        if let Some(reply) = self.replies.get_mut(sequence) {
            if let Some(newest) = message.reply.clone() {
                *reply = newest;
            }
            return;
        }
        if self.lanes.knows(sequence) {
            tell(&shared.link.client, &message, AckKind::Ack).await;
            events.count(&shared.metrics, EventOutcome::Repeated);
            return;
        }
        if sequence < self.lanes.highest() {
            tracing::warn!(sequence, "an event comes after later ones of its shard");
        }
        if let Some(reply) = message.reply.clone() {
            self.replies.insert(sequence, reply);
        }
        if begin {
            self.push(sequence, Item { message, context });
        } else {
            self.waiting.insert(sequence, Item { message, context });
        }
    }

    /// Everything that was on its way has arrived: what waited goes on in order.
    pub(super) fn recovered(&mut self) {
        for (sequence, item) in std::mem::take(&mut self.waiting) {
            self.push(sequence, item);
        }
    }

    fn push(&mut self, sequence: u64, item: Item) {
        let event = &item.context.event;
        let lane = Lane::of(&event.name, event.guild);
        self.lanes.push(sequence, lane, item);
    }

    /// Starts the task of events that begin together, with a slot for each.
    pub(super) fn begin(&mut self, items: Vec<Item>, slots: OwnedSemaphorePermit) {
        let job = Arc::clone(&self.job);
        let beginning = async move { (job.begin(items).await, Some(slots)) };
        self.running.spawn(beginning);
    }

    /// Waits for a task to end, and lets go on what is not over; returns the places of what is.
    /// `None` when no task runs. Cancel-safe.
    pub(super) async fn done(&mut self) -> Option<Vec<u64>> {
        loop {
            match self.running.join_next().await? {
                Ok((begun, slots)) => return Some(self.go_on(begun, slots)),
                // What handlers do is contained; only a mistake here could end a task so. Its events
                // are delivered again, to the next holder.
                Err(error) => tracing::error!(%error, "the task of an event ended"),
            }
        }
    }

    fn go_on(&mut self, begun: Begun, mut slots: Option<OwnedSemaphorePermit>) -> Vec<u64> {
        self.together.learn(&begun);
        for waiting in begun.waiting {
            // There was one for each.
            let slot = slots.as_mut().and_then(|slots| slots.split(1));
            let (job, span) = (Arc::clone(&self.job), waiting.span.clone());
            let going_on = async move { (job.go_on(waiting, slot).await, None) };
            self.running.spawn(going_on.instrument(span));
        }
        self.lanes
            .give_back(begun.left, |item| item.context.event.sequence);
        begun.ended
    }

    /// Waits for something else and sees to what is in hand meanwhile: a handler must not stand still
    /// because the stream is away.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                biased;
                output = &mut other => return output,
                Some(ended) = self.done() => self.finish(ended),
            }
        }
    }

    /// Sees to the tasks that have ended already.
    pub(super) fn see_done(&mut self) {
        while let Some(Some(ended)) = self.done().now_or_never() {
            self.finish(ended);
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Events are over; of those that are done the server knows.
    pub(super) fn finish(&mut self, ended: Vec<u64>) {
        for sequence in ended {
            self.replies.remove(sequence);
            self.lanes.finish(sequence);
        }
    }

    /// When the server must be told that events are still in hand.
    pub(super) const fn progress_due(&self) -> Instant {
        self.next_progress
    }

    pub(super) async fn tell_progress(&mut self, client: &Client) {
        self.next_progress = Instant::now() + PROGRESS_INTERVAL;
        self.tell_all(client, AckKind::Progress).await;
    }

    /// Tells the server the same about everything in hand.
    pub(super) async fn tell_all(&self, client: &Client, kind: AckKind) {
        for (_, reply) in self.replies.iter() {
            let told = client.publish(reply.clone(), kind.into()).await;
            if let Err(error) = told {
                tracing::debug!(%error, "the stream could not be told about events in hand");
                return;
            }
        }
    }
}
