//! The driver of the identify limiter inside one process: shards ask, the limiter of `core::identify`
//! decides, Discord is asked again for the day's budget.
//!
//! The fleet's limiter takes this one's place later: a shard only knows [`IdentifyQueue::grant`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv;
use gateway_proxy_core::identify::{Budget, Hold, Limiter, Priority};
use schemas::{FleetKey, IdentifyState, SessionBudget, ShardId, Timestamp};
use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};

use crate::discord_api::{DiscordApi, GatewayBot};
use crate::metrics::Metrics;
use crate::status::{Hold as ReadinessHold, ProcessStatus, unix_ms};

/// How long reading or writing the last grants may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often Discord is asked for the budget while shards wait: other processes spend it too.
const REFRESH_EVERY: Duration = Duration::from_secs(60);

/// Shards that wait for their turn.
#[derive(Debug)]
pub(crate) struct IdentifyQueue {
    inner: Mutex<Inner>,
    bucket: kv::Store,
    changed: Notify,
    metrics: Metrics,
    status: Arc<ProcessStatus>,
}

#[derive(Debug)]
struct Inner {
    limiter: Limiter,
    // At most one per shard of this process.
    waiters: HashMap<u32, oneshot::Sender<()>>,
}

/// Leaves the queue when dropped, unless the grant came.
struct Place<'a> {
    queue: &'a IdentifyQueue,
    shard: ShardId,
    granted: bool,
    receiver: oneshot::Receiver<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        let mut inner = self.queue.lock();
        if self.receiver.try_recv().is_ok() {
            // It came, but nobody looked any more.
            inner.limiter.give_back();
        }
        inner.limiter.cancel(self.shard);
        inner.waiters.remove(&self.shard.id());
        drop(inner);
        self.queue.changed.notify_one();
    }
}

/// What Discord said, as the limiter keeps it.
pub(crate) fn budget(answer: &GatewayBot) -> Budget {
    let limit = &answer.session_start_limit;
    Budget {
        total: limit.total,
        remaining: limit.remaining,
        reset_at_ms: unix_ms().saturating_add(limit.reset_after),
        max_concurrency: limit.max_concurrency,
    }
}

impl IdentifyQueue {
    pub(crate) fn new(
        budget: Budget,
        reserve_percent: u8,
        bucket: kv::Store,
        metrics: Metrics,
        status: Arc<ProcessStatus>,
    ) -> Arc<Self> {
        let limiter = Limiter::new(budget, reserve_percent);
        let inner = Mutex::new(Inner {
            limiter,
            waiters: HashMap::new(),
        });
        Arc::new(Self {
            inner,
            bucket,
            changed: Notify::new(),
            metrics,
            status,
        })
    }

    /// Waits for this shard's turn. Dropping the future leaves the queue.
    pub(crate) async fn grant(&self, shard: ShardId, priority: Priority) {
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lock();
            inner.limiter.request(shard, priority);
            inner.waiters.insert(shard.id(), sender);
        }
        self.changed.notify_one();
        let mut place = Place {
            queue: self,
            shard,
            granted: false,
            receiver,
        };
        // The sender is dropped only with the queue itself.
        if (&mut place.receiver).await.is_ok() {
            place.granted = true;
        }
    }

    /// A grant was not used.
    pub(crate) fn give_back(&self) {
        self.lock().limiter.give_back();
    }

    /// Grants while the process runs.
    pub(crate) async fn run(self: Arc<Self>, api: DiscordApi) {
        let mut holding: Option<ReadinessHold> = None;
        let mut refreshed = tokio::time::Instant::now();
        self.take_up_earlier_grants().await;
        loop {
            let (granted, hold) = self.grant_what_is_possible();
            if granted {
                self.store_grants().await;
            }
            self.report(hold, &mut holding);
            let waiting = !matches!(hold, Hold::Idle);
            if waiting && refreshed.elapsed() >= REFRESH_EVERY {
                refreshed = tokio::time::Instant::now();
                self.refresh(&api).await;
                continue;
            }
            let wait = match hold {
                Hold::Idle => REFRESH_EVERY * 60,
                Hold::Bucket(at) | Hold::Reserve(at) => {
                    Duration::from_millis(at.saturating_sub(unix_ms()).max(1)).min(REFRESH_EVERY)
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// A process that ended a moment ago may have granted within the window.
    async fn take_up_earlier_grants(&self) {
        match self.stored().await {
            Ok(Some(earlier)) if earlier.max_concurrency == self.budget().max_concurrency => {
                self.lock().limiter.restore(earlier.last_grant_unix_ms);
            }
            Ok(_) => {}
            Err(error) => warn!(error, "the last identifies cannot be read"),
        }
    }

    /// Leaves the grants to whoever grants next, together with those of others.
    async fn store_grants(&self) {
        let budget = self.budget();
        let mut state = IdentifyState {
            epoch: 0,
            max_concurrency: budget.max_concurrency,
            last_grant_unix_ms: self.lock().limiter.last_grants().collect(),
            budget: Some(SessionBudget {
                total: budget.total,
                remaining: budget.remaining,
                reset_at_unix_ms: budget.reset_at_ms,
            }),
            ..IdentifyState::default()
        };
        if let Ok(Some(stored)) = self.stored().await
            && stored.max_concurrency == state.max_concurrency
        {
            for (bucket, at) in stored.last_grant_unix_ms {
                let known = state.last_grant_unix_ms.entry(bucket).or_default();
                *known = at.max(*known);
            }
        }
        let value = serde_json::to_vec(&state).expect("numbers always serialise");
        let put = self
            .bucket
            .put(FleetKey::Identify.to_string(), value.into());
        if !matches!(tokio::time::timeout(STORE_TIMEOUT, put).await, Ok(Ok(_))) {
            warn!("the last identifies were not stored");
        }
    }

    async fn stored(&self) -> Result<Option<IdentifyState>, String> {
        let get = self.bucket.get(FleetKey::Identify.to_string());
        let value = tokio::time::timeout(STORE_TIMEOUT, get)
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        // What somebody edited beyond reading is as good as nothing.
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    fn budget(&self) -> Budget {
        self.lock().limiter.budget()
    }

    /// True: something was granted.
    fn grant_what_is_possible(&self) -> (bool, Hold) {
        let now = unix_ms();
        let mut granted = false;
        let mut inner = self.lock();
        while let Some(shard) = inner.limiter.poll(now) {
            granted = true;
            let waiter = inner.waiters.remove(&shard.id());
            if waiter.is_none_or(|waiter| waiter.send(()).is_err()) {
                inner.limiter.give_back();
            }
        }
        let budget = inner.limiter.budget();
        self.metrics
            .session_starts_total
            .set(u64::from(budget.total));
        self.metrics
            .session_starts_remaining
            .set(u64::from(budget.remaining));
        let waiting = inner.limiter.waiting() as u64;
        let hold = inner.limiter.hold(now);
        drop(inner);
        let end = match hold {
            Hold::Idle | Hold::Reserve(_) => None,
            Hold::Bucket(at) => {
                let waves = waiting.div_ceil(u64::from(budget.max_concurrency.max(1)));
                let pace = gateway_proxy_core::identify::WINDOW_MS;
                Some(at + waves.saturating_sub(1) * pace)
            }
        };
        self.status.set_startup_end(end);
        (granted, hold)
    }

    fn report(&self, hold: Hold, holding: &mut Option<ReadinessHold>) {
        let Hold::Reserve(until) = hold else {
            if holding.take().is_some() {
                self.status.set_budget_reset(None);
                info!("new sessions may start again");
            }
            return;
        };
        let until_text = Timestamp::from_unix_ms(until);
        let text = format!(
            "new sessions wait until {until_text}: the identify budget is down to its reserve"
        );
        match holding {
            Some(hold) => hold.set_reason(text),
            None => {
                warn!(until = %until_text, "the identify budget is down to its reserve; new sessions wait, resumes go on");
                *holding = Some(self.status.hold(text));
            }
        }
        self.status.set_budget_reset(Some(until));
    }

    async fn refresh(&self, api: &DiscordApi) {
        match api.gateway_bot().await {
            Ok(answer) => self.lock().limiter.set_budget(budget(&answer)),
            Err(error) => warn!(%error, "the session budget could not be read again"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
