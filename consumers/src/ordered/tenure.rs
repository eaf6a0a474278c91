//! One shard while this worker holds it: opens its consumer, takes over what the last holder had in
//! hand, and lets handlers have the events in the order of the lanes.
//!
//! The order rests on one rule: nothing new begins while the server knows of deliveries that have
//! not arrived here. So a tenure begins, and begins again after every trouble on the way, with
//! [`Tenure::recover`].

mod hand;
mod job;
mod work;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use schemas::{ShardClaim, Subject};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::hand::Hand;
use self::job::Job;
use crate::durable::{Durable, HOLDER, Opened, SHARD_ACK_PENDING};
use crate::events::Events;
use crate::feed::Start;
use crate::intake::{Arrival, Intake};
use crate::lease::Lease;
use crate::messages::Address;
use crate::place::{Place, beginning};
use crate::registry::Registry;
use crate::worker::{Listener, Listening, Shared};

/// Longest wait for one answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request of the one pinned client waits at the server.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// The same as long as the server has pinned nobody: shorter than any lease, so that a request of a
/// holder that froze right after sending it is gone when the next one comes.
const FIRST_PULL_EXPIRES: Duration = Duration::from_millis(500);
/// How long one look for the last holder's deliveries takes.
const RECOVER_EXPIRES: Duration = Duration::from_millis(100);
/// Events of a shard in hand at most.
const WINDOW: usize = SHARD_ACK_PENDING as usize;
/// Pause after the consumer could not be opened; doubled up to [`REOPEN_PAUSE_MAX`].
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Everything a tenure needs.
pub(crate) struct Tenure {
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<Events>,
    pub(crate) durable: Durable,
    pub(crate) shard: u32,
    pub(crate) member: String,
    pub(crate) lease: Arc<Lease>,
    pub(crate) registry: Registry,
    /// Where the group's events begin, for a shard that has no consumer yet.
    pub(crate) begin: OffsetDateTime,
    /// Handlers of all shards of this worker together.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) release: CancellationToken,
    pub(crate) paused: watch::Receiver<bool>,
}

/// How a tenure ended by itself. One whose lease is lost is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TenureEnd {
    /// Everything in hand is done or given back.
    Released,
    /// Another worker holds the shard.
    Lost,
}

/// Why working at the consumer is over.
enum End {
    /// The way to it is a new one, or something was lost on it: recover.
    Again,
    /// It must be opened again.
    Reopen(String),
    Release,
    Lost,
}

impl Tenure {
    /// Holds the shard until told to release it.
    pub(crate) async fn run(self) -> TenureEnd {
        let _held = self.shared.metrics.shard_taken(&self.events.name);
        tracing::debug!(shard = self.shard, "shard taken");
        let mut hand = Hand::new(Arc::new(Job::of(&self)));
        let mut pause = REOPEN_PAUSE;
        let mut listening = None;
        let label = self.durable.label();
        loop {
            let end = match self.hold(&mut hand, &mut pause, &mut listening).await {
                Ok(end) => end,
                Err(error) => End::Reopen(error),
            };
            match end {
                End::Again => {}
                End::Release => break,
                End::Lost => {
                    tracing::warn!(shard = self.shard, "another worker holds the shard");
                    return TenureEnd::Lost;
                }
                End::Reopen(error) => {
                    self.shared.status.set_usable(&label, false);
                    self.shared.metrics.pull_failed();
                    tracing::warn!(consumer = label, error, "the shard cannot be read");
                    tokio::select! {
                        biased;
                        () = self.release.cancelled() => break,
                        () = hand.meanwhile(sleep(pause)) => {}
                    }
                    pause = (pause * 2).min(REOPEN_PAUSE_MAX);
                }
            }
        }
        self.shared.status.set_usable(&label, true);
        let silence = async {
            if let Some(listening) = listening {
                listening.stop(Instant::now() + self.events.timeout).await;
            }
        };
        tokio::join!(self.give_up(&mut hand), silence);
        tracing::debug!(shard = self.shard, "shard released");
        TenureEnd::Released
    }

    /// Opens the consumer and works until something happens to the way there.
    async fn hold(
        &self,
        hand: &mut Hand,
        pause: &mut Duration,
        listening: &mut Option<Listening>,
    ) -> Result<End, String> {
        let opening = async {
            // Not while NATS is away: requests would only wait for their timeout.
            hand.meanwhile(self.shared.link.connected()).await;
            match timeout(API_TIMEOUT, self.open(hand)).await {
                Ok(opened) => opened,
                Err(_) => Err("JetStream does not answer".to_owned()),
            }
        };
        let mut intake = tokio::select! {
            biased;
            () = self.release.cancelled() => return Ok(End::Release),
            opened = opening => opened?,
        };
        let end = match self.recover(&mut intake, hand).await? {
            Some(end) => end,
            None => {
                self.shared.status.set_usable(&self.durable.label(), true);
                *pause = REOPEN_PAUSE;
                if listening.is_none() {
                    *listening = hand.meanwhile(self.listen()).await?;
                }
                self.work(&mut intake, hand).await?
            }
        };
        hand.pin = intake.pin();
        if matches!(end, End::Release) {
            self.leave(&mut intake, hand).await;
        }
        Ok(end)
    }

    async fn open(&self, hand: &mut Hand) -> Result<Intake, String> {
        let (link, durable) = (&self.shared.link, &self.durable);
        let start = match self.events.start {
            Start::New => Start::Time(self.begin),
            start => start,
        };
        let place = hand.place();
        let jetstream = &link.jetstream;
        let beginning = beginning(jetstream, &durable.stream, place, start);
        let (policy, created) = hand.meanwhile(beginning).await?;
        if hand.created().is_some_and(|known| known != created) {
            tracing::warn!(shard = self.shard, "the stream was made again");
            hand.restart();
        }
        let opened = hand.meanwhile(durable.open(jetstream, policy)).await;
        let (consumer, how) = opened.map_err(|error| error.to_string())?;
        if how == Opened::Created && place.is_some() {
            self.shared.metrics.consumer_recreated();
            let consumer = &durable.name;
            tracing::warn!(consumer, "the consumer was gone, made again");
        }
        let floor = consumer.cached_info().ack_floor.stream_sequence;
        hand.set_opened(Place { created, floor });
        let opening = Intake::open(link, &durable.stream, &durable.name);
        let mut intake = hand.meanwhile(opening).await?;
        if hand.pin.is_none() {
            hand.meanwhile(self.unpin()).await?;
        }
        intake.set_pin(hand.pin.clone());
        Ok(intake)
    }

    /// Listens to the shard's messages, if anybody here handles them.
    async fn listen(&self) -> Result<Option<Listening>, String> {
        let Some(handler) = &self.events.messages else {
            return Ok(None);
        };
        let listener = Listener {
            shared: Arc::clone(&self.shared),
            to: Address::Shard(self.shard),
            handler: Arc::clone(handler),
            lease: Some(Arc::clone(&self.lease)),
        };
        let shard = self.shard;
        let subject = Subject::ShardMessages { shard }.with_prefix(&self.shared.prefix);
        listener.listen(subject).await.map(Some)
    }

    /// Tells the server that whoever it delivers to is not the holder any more.
    async fn unpin(&self) -> Result<(), String> {
        let (jetstream, durable) = (&self.shared.link.jetstream, &self.durable);
        let stream = jetstream.get_stream_no_info(&durable.stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let unpinned = stream.unpin_consumer(&durable.name, HOLDER).await;
        unpinned.map_err(|error| error.to_string())
    }

    /// Waits until every delivery that the server waits for is in hand: those of the last holder,
    /// and those that were lost on the way. What arrives meanwhile waits, and goes on in order.
    async fn recover(&self, intake: &mut Intake, hand: &mut Hand) -> Result<Option<End>, String> {
        loop {
            let unacknowledged = hand.meanwhile(self.unacknowledged());
            let known = tokio::select! {
                biased;
                () = self.release.cancelled() => return Ok(Some(End::Release)),
                known = unacknowledged => known?,
            };
            // What the server has forgotten by now must not count as in hand.
            hand.see_done();
            if known <= hand.len() {
                hand.recovered();
                return Ok(None);
            }
            let room = WINDOW.saturating_sub(hand.len()).max(1);
            intake.request(room, RECOVER_EXPIRES, true).await?;
            while intake.outstanding() > 0 {
                let connection = intake.connection();
                let (overdue, progress) = (intake.overdue(), hand.progress_due());
                let arrival = tokio::select! {
                    biased;
                    () = self.release.cancelled() => return Ok(Some(End::Release)),
                    Some(done) = hand.done() => {
                        hand.finish(done);
                        continue;
                    }
                    () = self.shared.link.replaced(connection) => return Ok(Some(End::Again)),
                    arrival = intake.next() => arrival,
                    () = sleep_until(progress) => {
                        hand.tell_progress(&self.shared.link.client).await;
                        continue;
                    }
                    () = sleep_until(overdue) => {
                        intake.forget();
                        continue;
                    }
                };
                if let Some(end) = self.arrived(arrival, intake, hand, false).await? {
                    return Ok(Some(end));
                }
            }
        }
    }

    async fn unacknowledged(&self) -> Result<usize, String> {
        let (jetstream, durable) = (&self.shared.link.jetstream, &self.durable);
        let stream = jetstream.get_stream_no_info(&durable.stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        match timeout(API_TIMEOUT, stream.consumer_info(&durable.name)).await {
            Ok(Ok(info)) => Ok(info.num_ack_pending),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("JetStream does not answer".to_owned()),
        }
    }

    /// Takes what came in; `begin` says whether events may begin at once.
    async fn arrived(
        &self,
        arrival: Option<Arrival>,
        intake: &mut Intake,
        hand: &mut Hand,
        begin: bool,
    ) -> Result<Option<End>, String> {
        match arrival {
            Some(Arrival::Message(message)) => {
                hand.take(&self.shared, &self.events, message, begin).await;
                Ok(None)
            }
            Some(Arrival::Over) => Ok(None),
            Some(Arrival::Moved) => Ok(Some(End::Again)),
            Some(Arrival::Gone(why) | Arrival::Refused(why)) => Err(why),
            Some(Arrival::PinLost) => {
                let key = self.registry.shard_key(self.shard);
                let asking = self.registry.get::<ShardClaim>(&key);
                let claim = hand.meanwhile(asking).await?;
                let ours = claim.is_some_and(|(claim, _)| claim.member == self.member);
                if !ours || !self.lease.is_valid() {
                    return Ok(Some(End::Lost));
                }
                // The server forgot it, as a new leader does; the next request is pinned again.
                intake.set_pin(None);
                Ok(Some(End::Again))
            }
            None => Ok(Some(End::Release)),
        }
    }

    /// Lets go of the consumer: the server shall send nothing more, and what it has sent is given
    /// back below.
    async fn leave(&self, intake: &mut Intake, hand: &mut Hand) {
        if let Err(error) = hand.meanwhile(self.unpin()).await {
            tracing::debug!(error, "the shard's consumer could not be unpinned");
        }
        while let Some(Some(arrival)) = intake.next().now_or_never() {
            if let Arrival::Message(message) = arrival {
                hand.take(&self.shared, &self.events, message, false).await;
            }
        }
    }

    /// Waits for the handlers that run, then gives back what has not begun.
    async fn give_up(&self, hand: &mut Hand) {
        while hand.is_busy() {
            let progress = hand.progress_due();
            tokio::select! {
                biased;
                Some(done) = hand.done() => hand.finish(done),
                () = sleep_until(progress) => hand.tell_progress(&self.shared.link.client).await,
            }
        }
        hand.tell_all(&self.shared.link.client, AckKind::Nak(None))
            .await;
        if let Ok(Err(error)) = timeout(API_TIMEOUT, self.shared.link.client.flush()).await {
            tracing::debug!(%error, "the last words about a shard may be lost");
        }
    }
}
