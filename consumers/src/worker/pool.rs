//! All pullers of a worker and the deliveries they started: begun together, ended together.

use std::sync::Arc;

use async_nats::jetstream::consumer::PullConsumer;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::pull::Puller;
use super::shared::Shared;
use crate::durable::Durable;

/// Dropping it ends pullers and deliveries where they stand.
#[derive(Debug)]
pub(crate) struct Pool {
    pullers: Vec<AbortOnDropHandle<()>>,
    deliveries: TaskTracker,
    stopping: CancellationToken,
    abandoned: DropGuard,
}

impl Pool {
    /// Starts a puller per consumer; together they handle `concurrency` deliveries at once.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        opened: Vec<(Durable, PullConsumer)>,
        concurrency: usize,
    ) -> Self {
        let (deliveries, stopping) = (TaskTracker::new(), CancellationToken::new());
        let abandoned = CancellationToken::new();
        // The streams share the slots evenly: a quiet one must not hold those of a busy one.
        let slots = concurrency.div_ceil(opened.len().max(1));
        let pullers = opened.into_iter().map(|(durable, consumer)| {
            let puller = Puller {
                shared: Arc::clone(shared),
                durable,
                slots,
                deliveries: deliveries.clone(),
                stopping: stopping.clone(),
                abandoned: abandoned.clone(),
            };
            AbortOnDropHandle::new(tokio::spawn(puller.run(consumer)))
        });
        let pullers = pullers.collect();
        let abandoned = abandoned.drop_guard();
        Self {
            pullers,
            deliveries,
            stopping,
            abandoned,
        }
    }

    /// Stops pulling and lets the deliveries in flight finish; ends those that outlive `limit`.
    pub(crate) async fn stop(self, limit: Instant) {
        self.stopping.cancel();
        for puller in self.pullers {
            if timeout_at(limit, puller).await.is_err() {
                tracing::warn!("a puller outlived the grace period");
            }
        }
        self.deliveries.close();
        let in_flight = self.deliveries.len();
        tracing::info!(in_flight, "stopped pulling, finishing what is in flight");
        if timeout_at(limit, self.deliveries.wait()).await.is_err() {
            let left = self.deliveries.len();
            tracing::warn!(
                left,
                "interactions outlived the grace period, other workers get them"
            );
        }
        drop(self.abandoned);
    }
}
