//! The right to IDENTIFY, asked for and given: shards of this process ask the coordinator of all
//! processes, which may be this very one. What it grants is decided by `core::fleet::limiter`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use gateway_proxy_core::fleet::limiter::{GOOD_FOR, HELD_FOR, Permit};
use schemas::control::{
    FleetVerb, IdentifyOutcome, IdentifyPriority, IdentifyReply, IdentifyReport, IdentifyRequest,
    IdentifyStatus,
};
use schemas::{Prefix, ProxyId, ShardId};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, warn};

use crate::fleet::leadership::Leadership;

mod grants;

pub(crate) use grants::{Grants, GrantsMeans, SIGHTINGS_MAX, Sighting};

/// How long an answer is waited for: the coordinator holds a request for a while.
const ANSWER_TIMEOUT: Duration = HELD_FOR.saturating_add(Duration::from_secs(1));
/// After a request that nobody answered: there is no coordinator for the moment, or NATS is away.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// After a refusal: another process has the shard, and this one is about to find out.
const REFUSED_REST: Duration = Duration::from_secs(5);
/// Shortest and longest wait believed in.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// Attempts to say what became of a grant; unsaid, its bucket stays taken for some seconds longer.
const REPORT_ATTEMPTS: u32 = 3;
/// How long an IDENTIFY may be on its way to Discord, unless READY comes before.
const ON_THE_WAY: Duration = Duration::from_millis(300);
/// Asks that wait for the limiter: one per shard of a large process, and others' as NATS brings them.
pub(crate) const ASKS_MAX: usize = 4_096;

/// A request to the limiter of this process.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) request: IdentifyRequest,
    /// Dropped without an answer when this process does not coordinate.
    pub(crate) answer: oneshot::Sender<IdentifyReply>,
}

/// The asker's side, shared by all shards of the process.
#[derive(Debug)]
pub(crate) struct Identifies {
    client: Client,
    subject: String,
    proxy: ProxyId,
    leadership: Leadership,
    asks: mpsc::Sender<Ask>,
    // Highest epoch an answer came from: those of earlier ones are void.
    epoch: AtomicU64,
    // What the limiter saw last.
    above_reserve: AtomicBool,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

/// Who waits here, and what the coordinator said last.
#[derive(Clone, Debug, Default)]
struct Waiting {
    shards: BTreeSet<u32>,
    // Until when the budget's reserve holds everybody up, unix ms.
    reserve_until_ms: Option<u64>,
    remaining: Option<u32>,
}

/// A shard's place among those that wait.
struct Place<'a> {
    identifies: &'a Identifies,
    shard: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.identifies.waiting().shards.remove(&self.shard);
        self.identifies.changed.notify_one();
    }
}

impl Identifies {
    pub(crate) fn new(
        client: Client,
        prefix: &Prefix,
        proxy: ProxyId,
        leadership: Leadership,
        asks: mpsc::Sender<Ask>,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            subject: FleetVerb::Identify.subject(prefix),
            proxy,
            leadership,
            asks,
            epoch: AtomicU64::new(0),
            above_reserve: AtomicBool::new(false),
            waiting: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Waits for this shard's turn. Dropping the future gives the place up.
    pub(crate) async fn grant(
        self: &Arc<Self>,
        shard: ShardId,
        priority: IdentifyPriority,
    ) -> Permit {
        self.waiting().shards.insert(shard.id());
        self.changed.notify_one();
        let _place = Place {
            identifies: self,
            shard: shard.id(),
        };
        let request = IdentifyRequest {
            proxy: self.proxy.clone(),
            shard,
            priority,
            reason: None,
            report: None,
        };
        loop {
            let asked_at = Instant::now();
            let pause = match self.ask(&request).await {
                Ok(reply) => match self.judge(&reply, shard, asked_at) {
                    Ok(permit) => return permit,
                    Err(pause) => pause,
                },
                Err(reason) => {
                    debug!(%shard, reason, "nobody says who may identify");
                    ASK_AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// What an answer permits, or how long to wait before asking again.
    fn judge(
        self: &Arc<Self>,
        reply: &IdentifyReply,
        shard: ShardId,
        asked_at: Instant,
    ) -> Result<Permit, Duration> {
        let known = self.epoch.fetch_max(reply.epoch, Ordering::AcqRel);
        if reply.epoch < known {
            return Err(ASK_AGAIN);
        }
        self.note(reply);
        if let Some(permit) = Permit::of(reply, asked_at) {
            if permit.is_good(Instant::now()) {
                return Ok(permit);
            }
            self.report(shard, permit.grant, IdentifyOutcome::Unused);
            return Err(ASK_AGAIN);
        }
        match reply.status {
            IdentifyStatus::Refused => {
                warn!(%shard, reason = reply.reason, "this process may not identify the shard");
                Err(REFUSED_REST)
            }
            IdentifyStatus::Wait | IdentifyStatus::Granted => {
                let wait = Duration::from_millis(reply.wait_ms.unwrap_or(0));
                Err(wait.clamp(WAIT.0, WAIT.1))
            }
        }
    }

    /// Keeps what the coordinator says about the day, for people.
    fn note(&self, reply: &IdentifyReply) {
        let held = reply.status == IdentifyStatus::Wait
            && reply
                .reason
                .as_ref()
                .is_some_and(|reason| reason.contains("reserve"));
        let mut waiting = self.waiting();
        waiting.remaining = reply.remaining.or(waiting.remaining);
        let until = reply.reset_at_unix_ms.filter(|_| held);
        if waiting.reserve_until_ms != until {
            waiting.reserve_until_ms = until;
            drop(waiting);
            self.changed.notify_one();
        }
    }

    async fn ask(&self, request: &IdentifyRequest) -> Result<IdentifyReply, String> {
        if self.leadership.epoch().is_some() {
            let (answer, answered) = oneshot::channel();
            let ask = Ask {
                request: request.clone(),
                answer,
            };
            let sent = self.asks.send(ask).await;
            sent.map_err(|_| "the limiter of this process ended".to_owned())?;
            return tokio::time::timeout(ANSWER_TIMEOUT, answered)
                .await
                .map_err(|_| "no answer".to_owned())?
                .map_err(|_| "this process coordinates no longer".to_owned());
        }
        let payload = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        let asked = self.client.request(self.subject.clone(), payload.into());
        let reply = tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&reply.payload).map_err(|error| error.to_string())
    }

    /// Whether the day's budget is above its reserve, as far as this process knows: a session that
    /// could go on is given up for a new one only then.
    pub(crate) fn has_budget(&self) -> bool {
        self.above_reserve.load(Ordering::Relaxed)
    }

    /// Says what became of a grant.
    pub(crate) fn report(self: &Arc<Self>, shard: ShardId, grant: u64, outcome: IdentifyOutcome) {
        let identifies = Arc::clone(self);
        // Bounded by its attempts.
        drop(tokio::spawn(async move {
            let request = IdentifyRequest {
                proxy: identifies.proxy.clone(),
                shard,
                priority: IdentifyPriority::default(),
                reason: None,
                report: Some(IdentifyReport { grant, outcome }),
            };
            for _ in 0..REPORT_ATTEMPTS {
                match identifies.ask(&request).await {
                    Ok(_) => return,
                    Err(reason) => debug!(%shard, reason, "the fate of a grant was not told"),
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }));
    }

    /// Says that the IDENTIFY of a grant is on its way. Not at once: Discord counts from when it arrives, and
    /// READY, which comes sooner as a rule, proves that it has.
    pub(crate) fn report_sent(self: &Arc<Self>, shard: ShardId, grant: u64) {
        let identifies = Arc::clone(self);
        // Ends after its one sleep.
        drop(tokio::spawn(async move {
            tokio::time::sleep(ON_THE_WAY).await;
            identifies.report(shard, grant, IdentifyOutcome::Sent);
        }));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A grant must outlive the way of its answer.
const _: () = assert!(GOOD_FOR.as_millis() > HELD_FOR.as_millis());
