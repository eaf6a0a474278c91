//! Pulls interactions from one durable consumer, never more than there are free slots, and makes
//! the consumer again when it went away. Gives deliveries on; does not look into them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Batch;
use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer};
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::delivery;
use super::shared::Shared;
use crate::durable::{Durable, OpenError, Opened};
use crate::interaction::RESPONSE_WINDOW;

/// How long one pull request waits at the server. async-nats' batches miss messages that follow an
/// idle heartbeat, so a request that got lost without a trace (a stream leader that changed) is
/// noticed by its expiry: short, since an idle worker's requests are cheap.
const PULL_EXPIRES: Duration = Duration::from_secs(2);
/// Time after the expiry within which the server says that it is over.
const EXPIRY_MARGIN: Duration = Duration::from_millis(500);
/// Longest wait for a pull request to leave this process.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the consumer could not be opened; doubled up to [`REOPEN_PAUSE_MAX`].
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
/// Below Discord's 3 seconds, so that an interaction that arrives meanwhile can be answered.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// One puller.
#[derive(Debug)]
pub(crate) struct Puller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) durable: Durable,
    /// Deliveries handled at once.
    pub(crate) slots: usize,
    /// Where deliveries run; outlives the puller.
    pub(crate) deliveries: TaskTracker,
    pub(crate) stopping: CancellationToken,
    /// Cancelled when deliveries in flight must end where they stand.
    pub(crate) abandoned: CancellationToken,
}

/// Why one pull request is over.
enum End {
    /// Filled, expired, or the connection is a new one: pull again.
    Again,
    /// The consumer must be opened again.
    Reopen,
    Stopping,
}

impl Puller {
    /// Pulls until told to stop.
    pub(crate) async fn run(self, mut consumer: PullConsumer) {
        let slots = Arc::new(Semaphore::new(self.slots));
        loop {
            let end = tokio::select! {
                biased;
                () = self.stopping.cancelled() => End::Stopping,
                free = free_slots(&slots) => self.pull(&consumer, free).await,
            };
            match end {
                End::Again => {}
                End::Stopping => return,
                End::Reopen => match self.reopen().await {
                    Some(opened) => consumer = opened,
                    None => return,
                },
            }
        }
    }

    async fn pull(&self, consumer: &PullConsumer, mut free: OwnedSemaphorePermit) -> End {
        // A request sent while NATS is away would be repeated below as soon as it is back.
        let connected = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return End::Stopping,
            connection = self.shared.link.connected() => connection,
        };
        let Some(connection) = connected else {
            return End::Stopping;
        };
        let request = consumer
            .batch()
            .max_messages(free.num_permits())
            .expires(PULL_EXPIRES);
        let mut batch = match timeout(PULL_TIMEOUT, request.messages()).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return self.failed(&error.to_string()),
            Err(_) => return self.failed("the request could not be sent"),
        };
        let overdue = sleep(PULL_EXPIRES + EXPIRY_MARGIN);
        tokio::pin!(overdue);
        loop {
            let next = tokio::select! {
                biased;
                () = self.stopping.cancelled() => {
                    give_back(&mut batch).await;
                    return End::Stopping;
                }
                next = batch.next() => next,
                // The server has forgotten the request; what it had sent came before this.
                () = self.shared.link.replaced(connection) => return End::Again,
                () = &mut overdue => return End::Again,
            };
            match next {
                Some(Ok(message)) => self.start(message, &mut free),
                Some(Err(error)) => return self.failed(&error.to_string()),
                None => return End::Again,
            }
        }
    }

    fn start(&self, message: Message, free: &mut OwnedSemaphorePermit) {
        // A batch holds no more messages than were asked for, one per free slot.
        let slot = free.split(1);
        let shared = Arc::clone(&self.shared);
        let abandoned = self.abandoned.clone();
        self.deliveries.spawn(async move {
            let handling = async {
                let Some(deferred) = delivery::handle(&shared, message).await else {
                    return drop(slot);
                };
                // Deferred work takes minutes, while others wait for their first response.
                match shared.deferred.try_acquire() {
                    Ok(_place) => {
                        drop(slot);
                        deferred.finish(&shared).await;
                    }
                    Err(_) => {
                        deferred.finish(&shared).await;
                        drop(slot);
                    }
                }
            };
            abandoned.run_until_cancelled(handling).await;
        });
    }

    fn failed(&self, error: &str) -> End {
        self.shared.metrics.pull_failed();
        tracing::warn!(
            stream = self.durable.stream,
            error,
            "pulling failed, checking the consumer"
        );
        End::Reopen
    }

    /// Opens the consumer again, making it if it is gone; `None` when told to stop.
    async fn reopen(&self) -> Option<PullConsumer> {
        let Durable { stream, name, .. } = &self.durable;
        let mut pause = REOPEN_PAUSE;
        loop {
            // What arrived while there was no consumer can still be answered.
            let start_time = time::OffsetDateTime::now_utc() - RESPONSE_WINDOW;
            let start = DeliverPolicy::ByStartTime { start_time };
            let open = async {
                // Not while NATS is away: the request would only wait for its timeout.
                self.shared.link.connected().await;
                self.durable.open(&self.shared.link.jetstream, start).await
            };
            let opened = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                opened = open => opened,
            };
            match opened {
                Ok((consumer, how)) => {
                    if how == Opened::Created {
                        self.shared.metrics.consumer_recreated();
                        tracing::warn!(
                            stream,
                            consumer = name,
                            "the consumer was gone, made again"
                        );
                    }
                    self.shared.status.set_usable(stream, true);
                    return Some(consumer);
                }
                Err(error) => {
                    self.shared.status.set_usable(stream, false);
                    report(&error);
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
}

fn report(error: &OpenError) {
    match error {
        // A person must act; nothing is answered until then.
        OpenError::Differs { .. } | OpenError::Refused { .. } => {
            tracing::error!(%error, "the consumer cannot be used");
        }
        OpenError::NoStream(_) | OpenError::NoAnswer(_) => {
            tracing::warn!(%error, "the consumer cannot be used yet");
        }
    }
}

/// All free slots, at least one.
async fn free_slots(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let first = Arc::clone(slots).acquire_owned().await;
    let mut free = first.expect("the semaphore is never closed");
    // Nobody else takes slots, so what is available stays so.
    let more = u32::try_from(slots.available_permits()).unwrap_or(u32::MAX);
    if let Ok(more) = Arc::clone(slots).try_acquire_many_owned(more) {
        free.merge(more);
    }
    free
}

/// Hands back what has arrived and will not be started, so that another worker has it at once.
async fn give_back(batch: &mut Batch) {
    while let Some(Some(Ok(message))) = batch.next().now_or_never() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!(%error, "a delivery could not be given back");
        }
    }
}
