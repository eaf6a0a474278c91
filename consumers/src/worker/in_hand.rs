//! Shared events in hand: those that wait for a place, and the tasks of those that have one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use tokio::task::{JoinSet, coop};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ahead::Ahead;
use super::begun::{Begun, Item, Together};
use super::settle::tell;
use super::shared::Shared;
use super::shared_event::{begin_shared, go_on, read};
use crate::events::Events;
use crate::receipt::Receipt;

/// Events in hand, and the tasks that see to them.
#[derive(Debug)]
pub(super) struct InHand {
    shared: Arc<Shared>,
    events: Arc<Events>,
    hand: Hand,
    tasks: JoinSet<(Begun, Places)>,
}

/// What the puller and all its tasks share.
#[derive(Clone, Debug)]
struct Hand(Arc<Mutex<Turns>>);

/// Whose turn it is, and how many have it together.
#[derive(Debug)]
struct Turns {
    ahead: Ahead<Message>,
    together: Together,
}

impl Hand {
    fn new(places: usize) -> Self {
        let turns = Turns {
            ahead: Ahead::new(places, Instant::now()),
            together: Together::new(),
        };
        Self(Arc::new(Mutex::new(turns)))
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places for events that have some already.
    fn keep(&self, number: usize) -> Places {
        self.lock().ahead.keep(number);
        let hand = self.clone();
        Places { hand, number }
    }
}

/// Places that events take while they are in hand, whatever becomes of their task.
#[derive(Debug)]
struct Places {
    hand: Hand,
    number: usize,
}

impl Places {
    /// Learns from events that had these places.
    fn learn(&self, begun: &Begun) {
        let mut turns = self.hand.lock();
        turns.together.learn(begun);
        turns.ahead.handled(begun.ended.len(), Instant::now());
    }

    /// Gives them to events that wait.
    fn pass_on(&mut self) -> Vec<Message> {
        let mut turns = self.hand.lock();
        turns.ahead.free(self.number);
        let most = turns.together.most();
        let next = turns.ahead.take(most);
        self.number = next.len();
        next
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.hand.lock().ahead.free(self.number);
    }
}

/// Begins events and, while all are over at once, those that wait for their places: a task that
/// ends, and the puller that would have to start another one, cost more than most handlers.
async fn begin(
    shared: &Shared,
    events: &Events,
    mut items: Vec<Item>,
    mut places: Places,
) -> (Begun, Places) {
    loop {
        let begun = begin_shared(shared, events, items).await;
        places.learn(&begun);
        if !begun.waiting.is_empty() || !begun.left.is_empty() {
            return (begun, places);
        }
        let next = places.pass_on();
        if next.is_empty() {
            return (begun, places);
        }
        items = read(shared, events, next).await;
        coop::consume_budget().await;
    }
}

impl InHand {
    /// None yet, and `places` of them at most at once.
    pub(super) fn new(shared: Arc<Shared>, events: Arc<Events>, places: usize) -> Self {
        Self {
            shared,
            events,
            hand: Hand::new(places),
            tasks: JoinSet::new(),
        }
    }

    /// How many events have a place.
    pub(super) fn events(&self) -> usize {
        self.hand.lock().ahead.taken()
    }

    /// How many more to ask for, when so many were asked for and have not come.
    pub(super) fn wanted(&self, outstanding: usize) -> usize {
        self.hand.lock().ahead.wanted(outstanding)
    }

    /// Takes what came in together, and begins what has a place.
    pub(super) fn take(&mut self, messages: Vec<Message>) {
        let now = Instant::now();
        {
            let mut turns = self.hand.lock();
            for message in messages {
                turns.ahead.push(message, now);
            }
        }
        self.begin_waiting();
    }

    /// Begins those that have a place now.
    fn begin_waiting(&mut self) {
        loop {
            let together = {
                let mut turns = self.hand.lock();
                let most = turns.together.most();
                turns.ahead.take(most)
            };
            if together.is_empty() {
                return;
            }
            let (hand, number) = (self.hand.clone(), together.len());
            let places = Places { hand, number };
            let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
            self.tasks.spawn(async move {
                let items = read(&shared, &events, together).await;
                begin(&shared, &events, items, places).await
            });
        }
    }

    /// The same for events that had no turn yet.
    fn begin(&mut self, items: Vec<Item>) {
        let places = self.hand.keep(items.len());
        let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
        let beginning = async move { begin(&shared, &events, items, places).await };
        self.tasks.spawn(beginning);
    }

    /// Waits until a task is over, which frees places, and gives them to those that wait; `None`
    /// when there is no task. Cancel-safe.
    pub(super) async fn some_ended(&mut self) -> Option<()> {
        let mut ended = Some(self.tasks.join_next().await?);
        while let Some(result) = ended {
            match result {
                Ok((begun, places)) => {
                    self.go_on(begun);
                    drop(places);
                }
                // What handlers do is contained; only a mistake here could end a task so. Its events
                // are delivered again.
                Err(error) => tracing::error!(%error, "the task of events ended"),
            }
            ended = self.tasks.try_join_next();
        }
        self.begin_waiting();
        Some(())
    }

    fn go_on(&mut self, begun: Begun) {
        for waiting in begun.waiting {
            let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
            let place = self.hand.keep(1);
            let span = waiting.span.clone();
            let going_on = async move {
                let sequence = waiting.item.context.event.sequence;
                go_on(&shared, &events, waiting).await;
                place.learn(&Begun::ended(sequence));
                (Begun::default(), place)
            };
            self.tasks.spawn(going_on.instrument(span));
        }
        let most = self.hand.lock().together.most();
        let mut left = begun.left.into_iter().peekable();
        while left.peek().is_some() {
            let together = left.by_ref().take(most).collect();
            self.begin(together);
        }
    }

    /// Waits for something else and sees to what is in hand meanwhile: a handler must not stand still
    /// because the stream is away.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                biased;
                output = &mut other => return output,
                Some(()) = self.some_ended() => {}
            }
        }
    }

    /// Hands back what has waited too long for a place, so that another worker has it.
    pub(super) fn give_back_overdue(&mut self) {
        let now = Instant::now();
        let overdue = {
            let mut turns = self.hand.lock();
            turns.ahead.handled(0, now);
            turns.ahead.overdue(now)
        };
        let mut given_back = 0_usize;
        for message in overdue {
            // Once: each delivery counts, and an event that had many is given up.
            let first = Receipt::of(&message).is_some_and(|receipt| receipt.delivered == 1);
            if first {
                self.tell_or_not(&message, AckKind::Nak(None));
                given_back += 1;
            } else {
                self.tell_or_not(&message, AckKind::Progress);
                self.hand.lock().ahead.push(message, now);
            }
        }
        if given_back > 0 {
            let events = &self.events.name;
            tracing::info!(
                events,
                given_back,
                "handlers no longer end quickly, events that waited for them are given back"
            );
        }
    }

    /// Hands back all that wait for a place.
    pub(super) fn give_back(&mut self) {
        let all = self.hand.lock().ahead.all();
        for message in all {
            self.tell_or_not(&message, AckKind::Nak(None));
        }
    }

    /// Tells the stream without a wait: while NATS is away others must not wait for that, and what it
    /// is not told it finds out after `ack_wait`.
    pub(super) fn tell_or_not(&self, message: &Message, kind: AckKind) {
        let telling = coop::unconstrained(tell(&self.shared.link.client, message, kind));
        if telling.now_or_never().is_none() {
            tracing::debug!(subject = %message.subject, "the stream is not told about an event");
        }
    }
}
