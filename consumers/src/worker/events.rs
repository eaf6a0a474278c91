//! Shared events: pulls from one durable that all workers of its name share, never more than there
//! are free slots, lets handlers try, and tells the stream about each event by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Message};
use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::begun::{Begun, Item, Together};
use super::settle::tell;
use super::shared::Shared;
use super::shared_event::{begin_shared, go_on, read};
use crate::durable::{Durable, Opened};
use crate::events::Events;
use crate::intake::{Arrival, Intake};
use crate::place::{Place, beginning};

/// How long a pull request waits at the server. Long, since one that got lost is noticed by a
/// connection or leader that changes; and short enough for the cases where neither shows.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
/// How often the consumer's place is remembered, in case somebody deletes it: what was acknowledged
/// since the last look is handled again then.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for one answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the consumer could not be opened; doubled up to [`REOPEN_PAUSE_MAX`].
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// One puller of shared events.
#[derive(Debug)]
pub(crate) struct EventPuller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<Events>,
    pub(crate) durable: Durable,
    /// Events handled at once.
    pub(crate) slots: usize,
    pub(crate) stopping: CancellationToken,
    pub(crate) paused: watch::Receiver<bool>,
}

/// Why pulling is over.
enum End {
    /// The connection is a new one: open the inbox again.
    Again,
    /// The consumer must be opened again.
    Reopen,
    Paused,
    Stopping,
}

/// Events in hand, and the tasks that see to them.
#[derive(Debug)]
struct InHand {
    tasks: JoinSet<(Begun, Places)>,
    taken: Arc<AtomicUsize>,
    together: Together,
}

/// Places that events take while they are in hand, whatever becomes of their task.
#[derive(Debug)]
struct Places {
    taken: Arc<AtomicUsize>,
    number: usize,
}

impl Places {
    fn take(taken: &Arc<AtomicUsize>, number: usize) -> Self {
        taken.fetch_add(number, Ordering::Relaxed);
        let taken = Arc::clone(taken);
        Self { taken, number }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.number, Ordering::Relaxed);
    }
}

impl InHand {
    fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            taken: Arc::default(),
            together: Together::new(),
        }
    }

    /// How many events are in hand.
    fn events(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// How far the consumer was when somebody looked.
#[derive(Debug)]
struct Known {
    created: OffsetDateTime,
    floor: AtomicU64,
}

impl EventPuller {
    /// Pulls until told to stop, then until what is in flight is done.
    pub(crate) async fn run(self, place: Place) {
        let mut in_hand = InHand::new();
        let mut known = Arc::new(Known {
            created: place.created,
            floor: AtomicU64::new(place.floor),
        });
        loop {
            let end = {
                let looking = look(
                    Arc::clone(&self.shared),
                    self.durable.clone(),
                    known.clone(),
                );
                let _looking = AbortOnDropHandle::new(tokio::spawn(looking));
                self.pull(&mut in_hand).await
            };
            match end {
                End::Again => {}
                End::Paused => self.wait_for_resume(&mut in_hand).await,
                End::Reopen => match self.meanwhile(&mut in_hand, self.reopen(&known)).await {
                    Some(opened) => known = opened,
                    None => break,
                },
                End::Stopping => break,
            }
        }
        let in_flight = in_hand.events();
        let consumer = &self.durable.name;
        tracing::info!(consumer, in_flight, "stopped pulling events, finishing");
        while self.some_ended(&mut in_hand).await.is_some() {}
    }

    /// Waits until a task is over, which frees places; `None` when there is none. Cancel-safe.
    async fn some_ended(&self, in_hand: &mut InHand) -> Option<()> {
        let (begun, places) = match in_hand.tasks.join_next().await? {
            Ok(ended) => ended,
            // What handlers do is contained; only a mistake here could end a task so. Its events
            // are delivered again.
            Err(error) => {
                tracing::error!(%error, "the task of events ended");
                return Some(());
            }
        };
        in_hand.together.learn(&begun);
        for waiting in begun.waiting {
            let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
            let place = Places::take(&in_hand.taken, 1);
            let span = waiting.span.clone();
            let going_on = async move {
                let sequence = waiting.item.context.event.sequence;
                go_on(&shared, &events, waiting).await;
                (Begun::ended(sequence), place)
            };
            in_hand.tasks.spawn(going_on.instrument(span));
        }
        let mut left = begun.left.into_iter().peekable();
        while left.peek().is_some() {
            let together = left.by_ref().take(in_hand.together.most()).collect();
            self.begin(together, in_hand);
        }
        drop(places);
        Some(())
    }

    /// Waits for something else and sees to what is in hand meanwhile: a handler must not stand still
    /// because the stream is away.
    async fn meanwhile<T>(&self, in_hand: &mut InHand, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                biased;
                output = &mut other => return output,
                Some(()) = self.some_ended(in_hand) => {}
            }
        }
    }

    async fn pull(&self, in_hand: &mut InHand) -> End {
        let (stopping, mut paused) = (self.stopping.clone(), self.paused.clone());
        let (link, durable) = (self.shared.link.clone(), self.durable.clone());
        let opening = Intake::open(&link, &durable.stream, &durable.name);
        let mut intake = tokio::select! {
            biased;
            () = stopping.cancelled() => return End::Stopping,
            opened = self.meanwhile(in_hand, opening) => match opened {
                Ok(intake) => intake,
                Err(error) => return self.failed(&error),
            },
        };
        let replaced = link.replaced(intake.connection());
        let stopped = stopping.cancelled();
        tokio::pin!(replaced, stopped);
        loop {
            if let Err(error) = self.ask(&mut intake, in_hand.events()).await {
                return self.failed(&error);
            }
            let waiting = intake.outstanding() > 0;
            let overdue = intake.overdue();
            tokio::select! {
                biased;
                () = &mut stopped => {
                    give_back(&self.shared.link.client, &mut intake).await;
                    return End::Stopping;
                }
                () = becomes(&mut paused, true) => {
                    give_back(&self.shared.link.client, &mut intake).await;
                    return End::Paused;
                }
                Some(()) = self.some_ended(in_hand) => {}
                () = &mut replaced => return End::Again,
                arrival = intake.next() => {
                    if let Some(end) = self.arrived(arrival, &mut intake, in_hand) {
                        return end;
                    }
                }
                () = sleep_until(overdue), if waiting => intake.forget(),
            }
        }
    }

    /// Asks for as many events as there are free slots, but not for each one that becomes free.
    async fn ask(&self, intake: &mut Intake, busy: usize) -> Result<(), String> {
        let free = self.slots.saturating_sub(busy + intake.outstanding());
        let enough = intake.outstanding() == 0 || free >= self.slots.div_ceil(4);
        if free == 0 || !enough {
            return Ok(());
        }
        intake.request(free, PULL_EXPIRES, false).await
    }

    /// Sees to what came in, and to what came in with it.
    fn arrived(
        &self,
        first: Option<Arrival>,
        intake: &mut Intake,
        in_hand: &mut InHand,
    ) -> Option<End> {
        let mut together = Vec::new();
        let mut next = Some(first);
        let mut end = None;
        while let Some(arrival) = next {
            match arrival {
                Some(Arrival::Message(message)) => together.push(message),
                Some(Arrival::Over | Arrival::Moved | Arrival::PinLost) => {}
                Some(Arrival::Gone(why) | Arrival::Refused(why)) => end = Some(self.failed(&why)),
                None => end = Some(End::Stopping),
            }
            if together.len() == in_hand.together.most() {
                self.start(std::mem::take(&mut together), in_hand);
            }
            next = match end {
                None => intake.next().now_or_never(),
                Some(_) => None,
            };
        }
        if !together.is_empty() {
            self.start(together, in_hand);
        }
        end
    }

    /// Starts a task for what came in together.
    fn start(&self, messages: Vec<Message>, in_hand: &mut InHand) {
        let places = Places::take(&in_hand.taken, messages.len());
        let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
        in_hand.tasks.spawn(async move {
            let items = read(&shared, &events, messages).await;
            (begin_shared(&shared, &events, items).await, places)
        });
    }

    /// The same for events that had no turn yet.
    fn begin(&self, items: Vec<Item>, in_hand: &mut InHand) {
        let places = Places::take(&in_hand.taken, items.len());
        let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
        in_hand.tasks.spawn(async move {
            let begun = begin_shared(&shared, &events, items).await;
            (begun, places)
        });
    }

    fn failed(&self, error: &str) -> End {
        self.shared.metrics.pull_failed();
        let consumer = &self.durable.name;
        tracing::warn!(
            consumer,
            error,
            "pulling events failed, checking the consumer"
        );
        End::Reopen
    }

    async fn wait_for_resume(&self, in_hand: &mut InHand) {
        let (stopping, mut paused) = (self.stopping.clone(), self.paused.clone());
        tracing::info!(consumer = self.durable.name, "paused");
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = becomes(&mut paused, false) => break,
                Some(()) = self.some_ended(in_hand) => {}
            }
        }
        tracing::info!(consumer = self.durable.name, "resumed");
    }

    /// Opens the consumer again, making it where it ended if it is gone; `None` when told to stop.
    async fn reopen(&self, known: &Known) -> Option<Arc<Known>> {
        let label = self.durable.label();
        let mut pause = REOPEN_PAUSE;
        loop {
            let opened = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                opened = self.open_again(known) => opened,
            };
            match opened {
                Ok(place) => {
                    self.shared.status.set_usable(&label, true);
                    return Some(Arc::new(Known {
                        created: place.created,
                        floor: AtomicU64::new(place.floor),
                    }));
                }
                Err(error) => {
                    self.shared.status.set_usable(&label, false);
                    tracing::warn!(error, "the consumer cannot be used yet");
                }
            }
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(REOPEN_PAUSE_MAX);
        }
    }

    async fn open_again(&self, known: &Known) -> Result<Place, String> {
        let link = &self.shared.link;
        // Not while NATS is away: the request would only wait for its timeout.
        link.connected().await;
        let place = Place {
            created: known.created,
            floor: known.floor.load(Ordering::Relaxed),
        };
        let opening = async {
            let jetstream = &link.jetstream;
            let stream = &self.durable.stream;
            let start = self.events.start;
            let (policy, created) = beginning(jetstream, stream, Some(place), start).await?;
            let opened = self.durable.open(jetstream, policy).await;
            let (consumer, how) = opened.map_err(|error| error.to_string())?;
            if how == Opened::Created {
                self.shared.metrics.consumer_recreated();
                let consumer = &self.durable.name;
                tracing::warn!(consumer, "the consumer was gone, made again");
            }
            let floor = consumer.cached_info().ack_floor.stream_sequence;
            Ok(Place { created, floor })
        };
        match timeout(API_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err("JetStream does not answer".to_owned()),
        }
    }
}

async fn becomes(paused: &mut watch::Receiver<bool>, wanted: bool) {
    if paused.wait_for(|paused| *paused == wanted).await.is_err() {
        // Nobody can change it any more.
        std::future::pending::<()>().await;
    }
}

/// Remembers the consumer's place now and then.
async fn look(shared: Arc<Shared>, durable: Durable, known: Arc<Known>) {
    loop {
        sleep(PLACE_INTERVAL).await;
        let jetstream = &shared.link.jetstream;
        let Ok(stream) = jetstream.get_stream_no_info(&durable.stream).await else {
            continue;
        };
        if let Ok(Ok(info)) = timeout(API_TIMEOUT, stream.consumer_info(&durable.name)).await {
            let floor = info.ack_floor.stream_sequence;
            known.floor.fetch_max(floor, Ordering::Relaxed);
            shared.metrics.backlog(&durable.name, info.num_pending);
        }
    }
}

/// Hands back what has arrived and will not be started, so that another worker has it at once.
async fn give_back(client: &Client, intake: &mut Intake) {
    while let Some(Some(arrival)) = intake.next().now_or_never() {
        if let Arrival::Message(message) = arrival {
            tell(client, &message, AckKind::Nak(None)).await;
        }
    }
}
