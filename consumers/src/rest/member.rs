//! A worker among those that share the REST budget: states its claim, reads what all claim, and
//! tells the gate what holds. What to claim is decided in `shares`.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation, Watch};
use futures_util::StreamExt as _;
use schemas::{ShareClaim, WorkersKey};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::gate::Gate;
use super::metrics::RestMetrics;
use super::shares::Shares;
use crate::lease::{Keeper, Lease};
use crate::nats::Link;
use crate::registry::{Registry, member_name, unix_ms};

/// After this time a dead worker's share is the others'. Every worker hears every renewal of every
/// other one, four in this time, so it is not shorter.
const LEASE: Duration = Duration::from_secs(5);
/// Pause before a worker that lost its lease, or the way to NATS, begins anew.
const AGAIN_PAUSE: Duration = Duration::from_millis(250);

/// A worker's part in the budget. Dropping it ends it without notice to the others.
#[derive(Debug)]
pub(crate) struct Membership {
    stopping: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Membership {
    /// Gives the share back.
    pub(crate) async fn stop(self) {
        self.stopping.cancel();
        if self.task.await.is_err() {
            tracing::warn!("the task of the REST budget panicked");
        }
    }
}

/// What takes part.
pub(crate) struct Member {
    pub(crate) link: Link,
    pub(crate) registry: Registry,
    pub(crate) worker: String,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: RestMetrics,
}

/// Why a life is over.
enum End {
    Stopped,
    Again(String),
}

/// One life, from the first claim to the end of the lease.
struct Life {
    name: String,
    key: WorkersKey,
    lease: Arc<Lease>,
    claim: watch::Sender<ShareClaim>,
    shares: Shares,
    /// When somebody else was last seen to have less than before.
    freed: Option<Instant>,
    loaded: bool,
}

impl Member {
    /// Begins to take part; `None` without a budget.
    pub(crate) fn start(self) -> Option<Membership> {
        let budget = self.gate.budget()?;
        let stopping = CancellationToken::new();
        let task = tokio::spawn(self.run(budget, stopping.clone()));
        let task = AbortOnDropHandle::new(task);
        Some(Membership { stopping, task })
    }

    async fn run(self, budget: u32, stopping: CancellationToken) {
        loop {
            match self.live(budget, &stopping).await {
                End::Stopped => return,
                End::Again(why) => tracing::warn!(why, "claiming a share of the REST budget anew"),
            }
            self.gate.set_share(0, None);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(AGAIN_PAUSE) => {}
            }
        }
    }

    async fn live(&self, budget: u32, stopping: &CancellationToken) -> End {
        tokio::select! {
            biased;
            () = stopping.cancelled() => return End::Stopped,
            connected = self.link.connected() => if connected.is_none() { return End::Stopped },
        }
        let name = member_name(&self.worker);
        let key = WorkersKey::Share {
            member: name.clone(),
        };
        let claim = ShareClaim {
            worker: self.worker.clone(),
            share: 0,
            since_unix_ms: unix_ms(),
        };
        let sent = Instant::now();
        let revision = match self.registry.put(&key, &claim, 0, Some(LEASE)).await {
            Ok(revision) => revision,
            Err(error) => return End::Again(error.to_string()),
        };
        let lease = Arc::new(Lease::new(sent, LEASE));
        self.gate.begin(Arc::clone(&lease));
        let (claim, kept) = watch::channel(claim);
        let keeper = Keeper {
            lease: Arc::clone(&lease),
            registry: self.registry.clone(),
            key: key.clone(),
            value: kept,
            revision,
            ttl: LEASE,
        };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        let mut life = Life {
            shares: Shares::new(name.clone(), budget),
            name,
            key,
            lease,
            claim,
            freed: None,
            loaded: false,
        };
        let end = self.follow(&mut life, stopping).await;
        self.gate.set_share(0, None);
        drop(keeper);
        // A life that is over has no share; unless NATS is away, in which case the TTL ends it.
        if self.link.state.borrow().connected {
            self.leave(&life.key).await;
        }
        end
    }

    /// Reads what all claim, over as many connections as it takes.
    async fn follow(&self, life: &mut Life, stopping: &CancellationToken) -> End {
        let lease = Arc::clone(&life.lease);
        loop {
            let opening = async {
                let connection = self.link.connected().await;
                (
                    connection,
                    self.registry.watch_keys(WorkersKey::ALL_SHARES).await,
                )
            };
            let opened = tokio::select! {
                biased;
                () = stopping.cancelled() => return End::Stopped,
                () = lease.lost() => return End::Again("the lease was lost".to_owned()),
                opened = opening => opened,
            };
            let (Some(connection), watch) = opened else {
                return End::Stopped;
            };
            let mut watch = match watch {
                Ok(watch) => watch,
                Err(error) => return End::Again(error),
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => return End::Stopped,
                () = lease.lost() => return End::Again("the lease was lost".to_owned()),
                () = self.link.replaced(connection) => {}
                problem = self.read(life, &mut watch) => {
                    tracing::debug!(problem, "the shares are read anew");
                    sleep(AGAIN_PAUSE).await;
                }
            }
            // Who left meanwhile is not told again, but what it had may just have been used.
            life.shares.reread();
            life.freed = Some(Instant::now());
            life.loaded = false;
        }
    }

    async fn read(&self, life: &mut Life, watch: &mut Watch) -> String {
        while let Some(entry) = watch.next().await {
            match entry {
                Ok(entry) => self.take(life, &entry),
                Err(error) => return error.to_string(),
            }
        }
        "the watch ended".to_owned()
    }

    fn take(&self, life: &mut Life, entry: &Entry) {
        let Ok(WorkersKey::Share { member }) = entry.key.parse::<WorkersKey>() else {
            return;
        };
        let put = entry.operation == Operation::Put;
        let claim = put.then(|| serde_json::from_slice::<ShareClaim>(&entry.value));
        // A claim that cannot be read is one of everything: better nobody sends than too many.
        let claim = claim.map(|claim| claim.map_or(u32::MAX, |claim| claim.share));
        let other = member != life.name;
        let less = life.shares.read(&member, claim);
        // What others had right before they were seen for the first time nobody can tell.
        if less || (other && !life.loaded) {
            life.freed = Some(Instant::now());
        }
        life.loaded |= entry.seen_current;
        if !life.loaded {
            return;
        }
        let share = life.shares.grant();
        let wanted = life.shares.wanted();
        // Less is used before it is said.
        let usable = wanted.map_or(share, |wanted| wanted.min(share));
        if self.gate.set_share(usable, life.freed) {
            let (worker, workers) = (&life.name, life.shares.members());
            tracing::info!(worker, share = usable, workers, "share of the REST budget");
        }
        self.metrics.workers(life.shares.members());
        if let Some(wanted) = wanted {
            life.claim.send_if_modified(|claim| {
                let other = claim.share != wanted;
                claim.share = wanted;
                other
            });
        }
    }

    async fn leave(&self, key: &WorkersKey) {
        let left = match self.registry.get::<ShareClaim>(key).await {
            Ok(Some((_, revision))) => self.registry.delete(key, revision).await.map(drop),
            Ok(None) | Err(_) => return,
        };
        if let Err(error) = left {
            tracing::debug!(%error, "the others learn of this worker's end by its lease");
        }
    }
}
