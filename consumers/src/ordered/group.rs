//! A worker's place in its group: joins, watches who else is there, takes and gives up shards as
//! the plan says, and begins anew when its lease was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation, Watch};
use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use schemas::{ShardClaim, WorkerMember, WorkersKey};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::assignment::{View, plan};
use super::tenure::{Tenure, TenureEnd};
use crate::durable::Durable;
use crate::events::Events;
use crate::lease::{Keeper, Lease};
use crate::registry::{PutError, Registry, member_name, unix_ms};
use crate::worker::Shared;

/// How often a worker looks for shards it does not know yet, and for what went wrong before.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before a worker joins again.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);
/// Pause before a watch that failed is opened again.
const WATCH_PAUSE: Duration = Duration::from_millis(250);
/// Claims on their way at once.
const CLAIMS_AT_ONCE: usize = 64;

/// A worker's part in one group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Arc<Events>,
    pub(crate) registry: Registry,
    /// Where the group's events begin.
    pub(crate) begin: OffsetDateTime,
    pub(crate) event_streams: u32,
    pub(crate) stopping: CancellationToken,
    pub(crate) paused: watch::Receiver<bool>,
}

/// Why a life in the group is over.
enum End {
    Stopped,
    Again(&'static str),
}

impl Group {
    /// Takes part until told to stop; then gives everything up in order.
    pub(crate) async fn run(self) {
        let slots = Arc::new(Semaphore::new(self.events.concurrency));
        let group = &self.registry.group;
        loop {
            let why = match self.live(&slots).await {
                End::Stopped => return,
                End::Again(why) => why,
            };
            self.shared.status.set_usable(&self.label(), false);
            tracing::warn!(group, why, "joining the group again");
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = sleep(REJOIN_PAUSE) => {}
            }
        }
    }

    fn label(&self) -> String {
        format!("the group {}", self.registry.group)
    }

    /// One life: from joining to leaving or to the loss of the lease.
    async fn live(&self, slots: &Arc<Semaphore>) -> End {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => return End::Stopped,
            _ = self.shared.link.connected() => {}
        }
        let member = member_name(&self.shared.worker.id);
        let key = self.registry.member_key(&member);
        let record = WorkerMember {
            worker: self.shared.worker.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since_unix_ms: unix_ms(),
            leaving: false,
        };
        let (sent, ttl) = (Instant::now(), self.events.lease);
        let joining = self.registry.put(&key, &record, 0, Some(ttl));
        let revision = match joining.await {
            Ok(revision) => revision,
            Err(error) => {
                tracing::debug!(%error, "joining failed");
                return End::Again("NATS did not take this worker's key");
            }
        };
        let lease = Arc::new(Lease::new(sent, ttl));
        let (record, kept) = watch::channel(record);
        let keeper = Keeper {
            lease: Arc::clone(&lease),
            registry: self.registry.clone(),
            key,
            value: kept,
            revision,
            ttl,
        };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        let life = Life {
            group: self,
            slots,
            member,
            lease,
            record,
            view: View::default(),
            revisions: BTreeMap::new(),
            loaded: false,
            tenures: JoinSet::new(),
            held: BTreeMap::new(),
        };
        let end = life.run().await;
        drop(keeper);
        end
    }
}

/// A shard in this worker's hands.
struct Held {
    release: CancellationToken,
    abort: AbortHandle,
}

struct Life<'a> {
    group: &'a Group,
    slots: &'a Arc<Semaphore>,
    member: String,
    lease: Arc<Lease>,
    record: watch::Sender<WorkerMember>,
    view: View,
    /// Last revision of each claim, deleted ones included.
    revisions: BTreeMap<u32, u64>,
    /// Whether the view is complete: before, the living look dead.
    loaded: bool,
    /// Dropping them ends every handler.
    tenures: JoinSet<(u32, TenureEnd)>,
    held: BTreeMap<u32, Held>,
}

/// What ended a watch.
enum WatchEnd {
    Left,
    LeaseLost,
    Again,
}

impl Life<'_> {
    async fn run(mut self) -> End {
        let link = self.group.shared.link.clone();
        let lease = Arc::clone(&self.lease);
        loop {
            self.loaded = false;
            let opening = async {
                let connection = link.connected().await;
                (connection, self.group.registry.watch().await)
            };
            let (connection, opened) = tokio::select! {
                biased;
                () = lease.lost() => return End::Again("its lease was lost"),
                opened = opening => opened,
            };
            let end = match (connection, opened) {
                (Some(connection), Ok(watch)) => {
                    let replaced = link.replaced(connection);
                    tokio::pin!(replaced);
                    self.follow(watch, replaced).await
                }
                (None, _) => return End::Stopped,
                (_, Err(error)) => {
                    tracing::warn!(error, "the group cannot be watched");
                    sleep(WATCH_PAUSE).await;
                    WatchEnd::Again
                }
            };
            match end {
                WatchEnd::Left => {
                    self.say_goodbye().await;
                    return End::Stopped;
                }
                WatchEnd::LeaseLost => return End::Again("its lease was lost"),
                WatchEnd::Again => {}
            }
        }
    }

    async fn follow(
        &mut self,
        mut watch: Watch,
        mut replaced: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> WatchEnd {
        // What was deleted while nobody watched is not told again.
        self.view = View::default();
        let stopping = self.group.stopping.clone();
        let lease = Arc::clone(&self.lease);
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let leaving = self.record.borrow().leaving;
            if leaving && self.held.is_empty() {
                return WatchEnd::Left;
            }
            tokio::select! {
                biased;
                () = lease.lost() => return WatchEnd::LeaseLost,
                () = stopping.cancelled(), if !leaving => self.begin_to_leave(),
                Some(ended) = self.tenures.join_next_with_id() => self.ended(ended).await,
                entry = watch.next() => match entry {
                    Some(Ok(entry)) => {
                        let mut changed = self.apply(&entry);
                        // A group's whole state, or a burst of changes, is one thing to think about.
                        while let Some(Some(Ok(entry))) = watch.next().now_or_never() {
                            changed |= self.apply(&entry);
                        }
                        if changed {
                            self.follow_plan().await;
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "watching the group ended");
                        return WatchEnd::Again;
                    }
                    None => return WatchEnd::Again,
                },
                () = &mut replaced => return WatchEnd::Again,
                _ = look.tick() => {
                    self.unclaim_unheld().await;
                    self.follow_plan().await;
                }
            }
        }
    }

    fn begin_to_leave(&mut self) {
        self.record.send_modify(|record| record.leaving = true);
        self.view.members.insert(self.member.clone(), true);
        for held in self.held.values() {
            held.release.cancel();
        }
    }

    /// Takes one entry into the view; false if it changes nothing that matters.
    fn apply(&mut self, entry: &Entry) -> bool {
        let loaded_now = entry.seen_current && !self.loaded;
        self.loaded |= entry.seen_current;
        let put = entry.operation == Operation::Put;
        let changed = match entry.key.parse::<WorkersKey>() {
            Ok(WorkersKey::Member { member, .. }) => {
                let record = serde_json::from_slice::<WorkerMember>(&entry.value).ok();
                match record.filter(|_| put) {
                    Some(record) => {
                        let before = self.view.members.insert(member, record.leaving);
                        before != Some(record.leaving)
                    }
                    None => self.view.members.remove(&member).is_some(),
                }
            }
            Ok(WorkersKey::Shard { shard, .. }) => {
                let claim = serde_json::from_slice::<ShardClaim>(&entry.value).ok();
                self.claimed(shard, entry.revision, claim.filter(|_| put))
            }
            // The group's beginning, or something of all workers together.
            Ok(_) | Err(_) => false,
        };
        changed || loaded_now
    }

    fn claimed(&mut self, shard: u32, revision: u64, claim: Option<ShardClaim>) -> bool {
        // Our own writes are known before the watch tells of them, and of older ones.
        let newest = self.revisions.get(&shard).copied().unwrap_or(0);
        if revision < newest {
            return false;
        }
        self.revisions.insert(shard, revision);
        let holder = claim.map(|claim| claim.member);
        if holder.as_ref() != Some(&self.member)
            && let Some(held) = self.held.get(&shard)
            && !held.release.is_cancelled()
        {
            tracing::warn!(shard, "another worker took this shard");
            held.abort.abort();
        }
        match holder {
            Some(holder) => {
                let before = self.view.holders.insert(shard, holder.clone());
                before != Some(holder)
            }
            None => self.view.holders.remove(&shard).is_some(),
        }
    }

    /// Does what the plan says, once the view is complete.
    async fn follow_plan(&mut self) {
        if !self.loaded || !self.lease.is_valid() {
            return;
        }
        if self.record.borrow().leaving {
            // The watch may still tell of a time before.
            self.view.members.insert(self.member.clone(), true);
        }
        let known = self.group.shared.shards.numbers();
        self.view.shards.extend(known);
        self.view.shards.extend(&self.group.events.shards);
        let claimed: Vec<u32> = self.view.holders.keys().copied().collect();
        self.view.shards.extend(claimed);
        let plan = plan(&self.member, &self.view);
        for shard in plan.release {
            if let Some(held) = self.held.get(&shard) {
                held.release.cancel();
            }
        }
        for shards in plan.take.chunks(CLAIMS_AT_ONCE) {
            self.take(shards).await;
        }
        let label = self.group.label();
        self.group.shared.status.set_usable(&label, true);
    }

    async fn take(&mut self, shards: &[u32]) {
        // One that is not given up entirely cannot be taken again yet.
        let shards = shards.iter().filter(|shard| !self.held.contains_key(shard));
        let registry = &self.group.registry;
        let claims = shards.map(|&shard| {
            let key = registry.shard_key(shard);
            let revision = self.revisions.get(&shard).copied().unwrap_or(0);
            let claim = ShardClaim {
                member: self.member.clone(),
                since_unix_ms: unix_ms(),
            };
            async move {
                let put = registry.put(&key, &claim, revision, None);
                (shard, put.await)
            }
        });
        let claimed = join_all(claims).await;
        for (shard, put) in claimed {
            match put {
                Ok(revision) => {
                    self.revisions.insert(shard, revision);
                    self.view.holders.insert(shard, self.member.clone());
                    self.hold(shard);
                }
                // Another worker was faster; the watch will tell.
                Err(PutError::Conflict) => {}
                Err(error) => tracing::warn!(shard, %error, "a shard could not be claimed"),
            }
        }
    }

    fn hold(&mut self, shard: u32) {
        let group = self.group;
        let release = CancellationToken::new();
        let tenure = Tenure {
            shared: Arc::clone(&group.shared),
            events: Arc::clone(&group.events),
            durable: Durable::shard(
                &group.shared.prefix,
                group.event_streams,
                &group.events,
                shard,
            ),
            shard,
            member: self.member.clone(),
            lease: Arc::clone(&self.lease),
            registry: group.registry.clone(),
            begin: group.begin,
            slots: Arc::clone(self.slots),
            release: release.clone(),
            paused: group.paused.clone(),
        };
        let running = async move { (shard, tenure.run().await) };
        let abort = self.tenures.spawn(running);
        self.held.insert(shard, Held { release, abort });
    }

    /// A tenure is over: others may have the shard.
    async fn ended(&mut self, ended: Result<(Id, (u32, TenureEnd)), JoinError>) {
        let (id, end) = match ended {
            Ok((id, (_, end))) => (id, Some(end)),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "the task of a shard panicked");
                }
                (error.id(), None)
            }
        };
        let held = self.held.iter().find(|(_, held)| held.abort.id() == id);
        let Some((&shard, _)) = held else {
            return;
        };
        self.held.remove(&shard);
        match end {
            Some(TenureEnd::Released) => self.unclaim(shard).await,
            // The claim is somebody else's, or will be looked at with the next look.
            Some(TenureEnd::Lost) | None => {}
        }
    }

    /// Gives up the claims of shards that nobody here works at.
    async fn unclaim_unheld(&mut self) {
        let mine = self.view.holders.iter();
        let unheld = mine
            .filter(|(shard, holder)| **holder == self.member && !self.held.contains_key(shard));
        let unheld: Vec<u32> = unheld.map(|(shard, _)| *shard).collect();
        for shard in unheld {
            self.unclaim(shard).await;
        }
    }

    async fn unclaim(&mut self, shard: u32) {
        if self.view.holders.get(&shard) != Some(&self.member) {
            return;
        }
        let key = self.group.registry.shard_key(shard);
        let revision = self.revisions.get(&shard).copied().unwrap_or(0);
        match self.group.registry.delete(&key, revision).await {
            Ok(revision) => {
                self.revisions.insert(shard, revision);
                self.view.holders.remove(&shard);
            }
            Err(error) => tracing::debug!(shard, %error, "a claim could not be given up yet"),
        }
    }

    /// Ends this member's key at once, rather than with its TTL.
    async fn say_goodbye(self) {
        let key = self.group.registry.member_key(&self.member);
        if let Ok(Some((_, revision))) = self.group.registry.get::<WorkerMember>(&key).await
            && let Err(error) = self.group.registry.delete(&key, revision).await
        {
            tracing::debug!(%error, "the group learns of this worker's end by its lease");
        }
    }
}
