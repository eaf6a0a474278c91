//! Shared events: pulls from one durable that all workers of its name share, as many as there are
//! free places and, while handlers end quickly, some ahead; lets handlers try, and tells the stream
//! about each event by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::in_hand::InHand;
use super::shared::Shared;
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
/// How often requests that got lost and events that wait for a place are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
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

/// How far the consumer was when somebody looked.
#[derive(Debug)]
struct Known {
    created: OffsetDateTime,
    floor: AtomicU64,
}

impl EventPuller {
    /// Pulls until told to stop, then until what is in flight is done.
    pub(crate) async fn run(self, place: Place) {
        let (shared, events) = (Arc::clone(&self.shared), Arc::clone(&self.events));
        let mut in_hand = InHand::new(shared, events, self.slots);
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
                End::Reopen => match in_hand.meanwhile(self.reopen(&known)).await {
                    Some(opened) => known = opened,
                    None => break,
                },
                End::Stopping => break,
            }
        }
        in_hand.give_back();
        let in_flight = in_hand.events();
        let consumer = &self.durable.name;
        tracing::info!(consumer, in_flight, "stopped pulling events, finishing");
        while in_hand.some_ended().await.is_some() {}
    }

    async fn pull(&self, in_hand: &mut InHand) -> End {
        let (stopping, mut paused) = (self.stopping.clone(), self.paused.clone());
        let (link, durable) = (self.shared.link.clone(), self.durable.clone());
        let opening = Intake::open(&link, &durable.stream, &durable.name);
        let mut intake = tokio::select! {
            biased;
            () = stopping.cancelled() => return End::Stopping,
            opened = in_hand.meanwhile(opening) => match opened {
                Ok(intake) => intake,
                Err(error) => return self.failed(&error),
            },
        };
        let replaced = link.replaced(intake.connection());
        let stopped = stopping.cancelled();
        tokio::pin!(replaced, stopped);
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = in_hand.wanted(intake.outstanding());
            if wanted > 0
                && let Err(error) = intake.request(wanted, PULL_EXPIRES, false).await
            {
                return self.failed(&error);
            }
            tokio::select! {
                biased;
                () = &mut stopped => {
                    give_back(&mut intake, in_hand);
                    return End::Stopping;
                }
                () = becomes(&mut paused, true) => {
                    give_back(&mut intake, in_hand);
                    return End::Paused;
                }
                Some(()) = in_hand.some_ended() => {}
                () = &mut replaced => return End::Again,
                arrival = intake.next() => {
                    if let Some(end) = self.arrived(arrival, &mut intake, in_hand) {
                        return end;
                    }
                }
                _ = look.tick() => {
                    if intake.outstanding() > 0 && Instant::now() >= intake.overdue() {
                        intake.forget();
                    }
                    in_hand.give_back_overdue();
                }
            }
        }
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
            next = match end {
                None => intake.next().now_or_never(),
                Some(_) => None,
            };
        }
        if !together.is_empty() {
            in_hand.take(together);
        }
        end
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
                Some(()) = in_hand.some_ended() => {}
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
fn give_back(intake: &mut Intake, in_hand: &mut InHand) {
    in_hand.give_back();
    while let Some(Some(arrival)) = intake.next().now_or_never() {
        if let Arrival::Message(message) = arrival {
            in_hand.tell_or_not(&message, AckKind::Nak(None));
        }
    }
}
