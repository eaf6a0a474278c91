//! The giver's side: one limiter per process, which grants while the process coordinates and watches
//! while another does. It stores before it answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gateway_proxy_core::fleet::limiter::{Action, Hold, Limiter, Ticket};
use schemas::control::{IdentifyOutcome, IdentifyReply, IdentifyReport, IdentifyStatus};
use schemas::{FleetKey, IdentifyState, SessionBudget, ShardId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::{Ask, Identifies};
use crate::discord_api::{DiscordApi, SessionStartLimit};
use crate::fleet::bucket::{Bucket, WriteError};
use crate::fleet::leadership::Leadership;
use crate::metrics::Metrics;
use crate::status::{Hold as ReadinessHold, ProcessStatus, unix_ms};

/// How long a write or a read of the last grants may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// The limiter is looked at at least this often, so that `/health` shows how long a start still takes.
const TICK: Duration = Duration::from_secs(1);
/// What ran beside and is over: one write and one question at a time.
const DONE_MAX: usize = 8;
/// Sightings of the key that wait; a missed one is read when a write is refused.
pub(crate) const SIGHTINGS_MAX: usize = 64;

/// The key `identify` as a watch shows it; `None`: gone or unreadable.
pub(crate) type Sighting = (u64, Option<IdentifyState>);

/// What Discord said at this moment.
fn budget(limit: &SessionStartLimit, asked_unix_ms: u64) -> SessionBudget {
    SessionBudget {
        total: limit.total,
        remaining: limit.remaining,
        reset_at_unix_ms: asked_unix_ms.saturating_add(limit.reset_after),
    }
}

/// What ran beside and is over.
enum Done {
    /// The write of this number.
    Store(u64, Stored),
    Budget {
        limit: SessionStartLimit,
        asked_at: Instant,
        asked_unix_ms: u64,
    },
}

/// How a write of the key ended.
enum Stored {
    Done(u64),
    Refused(Option<Sighting>),
    Failed(String),
}

/// Who waits for an answer.
struct Asker {
    shard: ShardId,
    answer: oneshot::Sender<IdentifyReply>,
}

/// The driver of the limiter.
pub(crate) struct Grants {
    limiter: Limiter,
    identifies: Arc<Identifies>,
    leadership: Leadership,
    bucket: Bucket,
    api: DiscordApi,
    metrics: Metrics,
    status: Arc<ProcessStatus>,
    asks: mpsc::Receiver<Ask>,
    sightings: mpsc::Receiver<Sighting>,
    // By ticket; at most one per shard that waits, and those on their way.
    askers: HashMap<Ticket, Asker>,
    tickets: u64,
    // Writes begun; what an earlier one says is void.
    stores: u64,
    holding: Option<ReadinessHold>,
}

/// What the limiter works with.
pub(crate) struct GrantsMeans {
    pub(crate) identifies: Arc<Identifies>,
    pub(crate) leadership: Leadership,
    pub(crate) bucket: Bucket,
    pub(crate) api: DiscordApi,
    pub(crate) metrics: Metrics,
    pub(crate) status: Arc<ProcessStatus>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    pub(crate) sightings: mpsc::Receiver<Sighting>,
}

impl Grants {
    /// `limit` is what Discord said at the start of the process, at `asked_unix_ms`, which was just now.
    pub(crate) fn new(
        means: GrantsMeans,
        reserve_percent: u8,
        limit: &SessionStartLimit,
        asked_unix_ms: u64,
    ) -> Self {
        let mut limiter = Limiter::new(reserve_percent);
        let asked_at = Instant::now();
        limiter.handle_budget(
            budget(limit, asked_unix_ms),
            limit.max_concurrency,
            asked_at,
        );
        Self {
            limiter,
            identifies: means.identifies,
            leadership: means.leadership,
            bucket: means.bucket,
            api: means.api,
            metrics: means.metrics,
            status: means.status,
            asks: means.asks,
            sightings: means.sightings,
            askers: HashMap::new(),
            tickets: 0,
            stores: 0,
            holding: None,
        }
    }

    /// Grants and watches until dropped.
    pub(crate) async fn run(mut self) {
        let (done, mut reports) = mpsc::channel(DONE_MAX);
        let leadership = self.leadership.clone();
        loop {
            let led = leadership.epoch();
            match led {
                Some(epoch) => self.limiter.lead(epoch),
                // Whoever waits asks again, elsewhere.
                None => self.limiter.resign(),
            }
            while let Some(action) = self.limiter.poll_action(Instant::now(), unix_ms()) {
                self.act(action, led, &done);
            }
            self.show();
            let now = Instant::now();
            let wait = self.limiter.poll_timeout(now);
            let wait = wait.map_or(now + TICK, |at| at.min(now + TICK));
            let identifies = Arc::clone(&self.identifies);
            tokio::select! {
                Some(done) = reports.recv() => self.hear(done),
                Some(sighting) = self.sightings.recv() => self.see(sighting),
                Some(ask) = self.asks.recv() => self.take(ask),
                () = leadership.changed(led) => {}
                () = identifies.changed.notified() => {}
                () = tokio::time::sleep_until(wait.into()) => {}
            }
        }
    }

    fn see(&mut self, (revision, state): Sighting) {
        let now = Instant::now();
        self.limiter.handle_state(revision, state, now, unix_ms());
    }

    fn take(&mut self, Ask { request, answer }: Ask) {
        if self.leadership.epoch().is_none() {
            // Another process answers; the asker hears nothing from this one.
            return;
        }
        let now = Instant::now();
        if let Some(report) = request.report {
            self.limiter.handle_report(report, now);
            // Who reported may not wait for this.
            drop(answer.send(self.acknowledged()));
            return;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let shard = request.shard;
        self.askers.insert(ticket, Asker { shard, answer });
        self.limiter.handle_request(ticket, &request, now);
    }

    /// The answer to a report, which asks for nothing.
    fn acknowledged(&self) -> IdentifyReply {
        IdentifyReply {
            status: IdentifyStatus::Wait,
            wait_ms: None,
            reason: None,
            epoch: self.leadership.epoch().unwrap_or(0),
            remaining: self.limiter.budget().map(|budget| budget.remaining),
            reset_at_unix_ms: None,
            grant: None,
        }
    }

    fn act(&mut self, action: Action, led: Option<u64>, done: &mpsc::Sender<Done>) {
        match action {
            Action::Store {
                expected_revision,
                state,
            } => {
                let (bucket, done) = (self.bucket.clone(), done.clone());
                self.stores += 1;
                let number = self.stores;
                // One at a time: the limiter waits for its end, unless it resigned meanwhile.
                drop(tokio::spawn(async move {
                    let outcome = store(&bucket, expected_revision, &state).await;
                    drop(done.send(Done::Store(number, outcome)).await);
                }));
            }
            Action::Answer { ticket, reply } => self.answer(ticket, reply, led),
            Action::AskDiscord => {
                let (api, done) = (self.api.clone(), done.clone());
                drop(tokio::spawn(async move {
                    let (asked_at, asked_unix_ms) = (Instant::now(), unix_ms());
                    match api.gateway_bot().await {
                        Ok(answer) => {
                            let limit = answer.session_start_limit;
                            let budget = Done::Budget {
                                limit,
                                asked_at,
                                asked_unix_ms,
                            };
                            drop(done.send(budget).await);
                        }
                        Err(error) => warn!(%error, "the session budget could not be read again"),
                    }
                }));
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, reply: IdentifyReply, led: Option<u64>) {
        let Some(asker) = self.askers.remove(&ticket) else {
            return;
        };
        let grant = reply.grant;
        if grant.is_some() && (led.is_none() || self.leadership.epoch() != led) {
            // Whoever coordinates by now counts it as given, which is the safe side.
            return;
        }
        if let Some(grant) = grant {
            debug!(shard = %asker.shard, grant, "identify granted");
            self.metrics.fleet_identify_grants.increment();
        }
        if asker.answer.send(reply).is_err()
            && let Some(grant) = grant
        {
            // It came, but nobody looked any more.
            let outcome = IdentifyOutcome::Unused;
            let report = IdentifyReport { grant, outcome };
            self.limiter.handle_report(report, Instant::now());
        }
    }

    fn hear(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Store(number, _) if number != self.stores => {}
            Done::Store(_, Stored::Done(revision)) => self.limiter.handle_stored(revision, now),
            Done::Store(_, Stored::Refused(sighting)) => {
                if let Some(sighting) = sighting {
                    self.see(sighting);
                }
                self.limiter.handle_store_refused(now);
            }
            Done::Store(_, Stored::Failed(reason)) => {
                warn!(
                    reason,
                    "the last identifies were not stored: none is granted"
                );
                self.limiter.handle_store_failed(now);
            }
            Done::Budget {
                limit,
                asked_at,
                asked_unix_ms,
            } => {
                let max_concurrency = limit.max_concurrency;
                if max_concurrency != self.limiter.max_concurrency() {
                    info!(
                        max_concurrency,
                        "Discord grants another number of identifies at once"
                    );
                }
                self.limiter.handle_budget(
                    budget(&limit, asked_unix_ms),
                    max_concurrency,
                    asked_at,
                );
            }
        }
    }

    /// Shows how far a start is and what holds it up.
    fn show(&mut self) {
        let now = Instant::now();
        if let Some(budget) = self.limiter.budget() {
            let metrics = &self.metrics;
            let above =
                budget.remaining > self.limiter.reserve() || unix_ms() >= budget.reset_at_unix_ms;
            self.identifies
                .above_reserve
                .store(above, Ordering::Relaxed);
            metrics.session_starts_total.set(budget.total.into());
            metrics
                .session_starts_remaining
                .set(budget.remaining.into());
        }
        let waiting = self.identifies.waiting().clone();
        if let Some(remaining) = waiting.remaining.filter(|_| !self.limiter.is_leading()) {
            self.metrics.session_starts_remaining.set(remaining.into());
        }
        let reserve = match self.limiter.hold(now) {
            _ if waiting.shards.is_empty() => None,
            Hold::Reserve(until) => Some(until),
            Hold::NotCoordinating => waiting.reserve_until_ms,
            Hold::None | Hold::BudgetUnknown | Hold::Failing(_) | Hold::Buckets(_) => None,
        };
        let end = (!waiting.shards.is_empty() && reserve.is_none()).then(|| {
            let time = self.limiter.time_for(waiting.shards.iter().copied(), now);
            unix_ms() + u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        });
        self.status.set_startup_end(end);
        self.report(reserve);
    }

    fn report(&mut self, reserve_until: Option<u64>) {
        self.status.set_budget_reset(reserve_until);
        let Some(until) = reserve_until else {
            if self.holding.take().is_some() {
                info!("new sessions may start again");
            }
            return;
        };
        let until = Timestamp::from_unix_ms(until);
        let text =
            format!("new sessions wait until {until}: the identify budget is down to its reserve");
        match &self.holding {
            Some(hold) => hold.set_reason(text),
            None => {
                warn!(%until, "the identify budget is down to its reserve; new sessions wait, resumes go on");
                self.holding = Some(self.status.hold(text));
            }
        }
    }
}

async fn store(bucket: &Bucket, expected_revision: u64, state: &IdentifyState) -> Stored {
    let value = serde_json::to_vec(state).expect("numbers always serialise");
    let key = FleetKey::Identify;
    let write = bucket.write(&key, value.into(), expected_revision, None, STORE_TIMEOUT);
    match write.await {
        Ok(revision) => Stored::Done(revision),
        Err(WriteError::Refused) => {
            let entry = bucket.read(&key, STORE_TIMEOUT).await.ok();
            Stored::Refused(entry.map(|entry| {
                let state = entry
                    .value
                    .and_then(|value| serde_json::from_slice(&value).ok());
                (entry.revision, state)
            }))
        }
        Err(WriteError::Failed(reason)) => Stored::Failed(reason),
    }
}
