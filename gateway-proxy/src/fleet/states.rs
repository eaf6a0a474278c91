//! The whole fleet as the bucket shows it: for `/cluster/state`, `discord.fleet.state` and operators'
//! tables. Reads everything once, decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use futures_util::StreamExt as _;
use gateway_proxy_core::checkpoint::SESSION_LIFE_MS;
use gateway_proxy_core::fleet::count::Found;
use schemas::health::{ClusterState, ClusterStatus, ProcessStatus, WorkerState};
use schemas::{FleetKey, Leader, Member, Plan, ProxyId, ShardId, ShardRecord};

use super::bucket::{Bucket, News, read_message};
use super::service::Refusal;

/// How long reading the whole bucket may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything the bucket says, as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) members: BTreeMap<ProxyId, Member>,
    pub(crate) leader: Option<Leader>,
    pub(crate) plan: Option<Plan>,
    pub(crate) records: BTreeMap<ShardId, ShardRecord>,
    /// Keys whose values nobody can read.
    pub(crate) unreadable: Vec<String>,
}

/// Reads the bucket.
#[derive(Clone, Debug)]
pub(crate) struct States(Bucket);

impl States {
    pub(crate) const fn new(bucket: Bucket) -> Self {
        Self(bucket)
    }

    /// What everybody does.
    pub(crate) async fn read(&self) -> Result<ClusterState, Refusal> {
        let snapshot = self.snapshot().await;
        snapshot
            .map(|snapshot| snapshot.cluster_state())
            .map_err(|reason| Refusal::new(503, format!("the bucket cannot be read: {reason}")))
    }

    /// Everything that stands in the bucket.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, String> {
        match tokio::time::timeout(READ_TIMEOUT, self.read_all()).await {
            Ok(snapshot) => snapshot,
            Err(_) => Err("no answer".to_owned()),
        }
    }

    async fn read_all(&self) -> Result<Snapshot, String> {
        let config = OrderedConfig {
            deliver_subject: self.0.new_inbox(),
            filter_subject: self.0.all_keys(),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let consumer = self.0.stream().create_consumer(config).await;
        let consumer = consumer.map_err(|error| error.to_string())?;
        let mut left = consumer.cached_info().num_pending;
        let mut snapshot = Snapshot::default();
        if left == 0 {
            return Ok(snapshot);
        }
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| error.to_string())?;
        while left > 0 {
            let message = messages.next().await.ok_or("the read ended")?;
            let message = message.map_err(|error| error.to_string())?;
            left = message.info().map_err(|error| error.to_string())?.pending;
            if let Some(News::Put { key, value, .. }) = read_message(&self.0, &message) {
                snapshot.take(key, &value);
            }
        }
        Ok(snapshot)
    }
}

impl Snapshot {
    fn take(&mut self, key: FleetKey, value: &[u8]) {
        let name = key.to_string();
        let read =
            match key {
                FleetKey::Member(proxy) => serde_json::from_slice(value)
                    .map(|member| drop(self.members.insert(proxy, member))),
                FleetKey::Leader => {
                    serde_json::from_slice(value).map(|leader| self.leader = Some(leader))
                }
                FleetKey::Plan => serde_json::from_slice(value).map(|plan| self.plan = Some(plan)),
                FleetKey::Shard(shard) => serde_json::from_slice(value)
                    .map(|record| drop(self.records.insert(shard, record))),
                FleetKey::Identify => Ok(()),
            };
        if read.is_err() {
            self.unreadable.push(name);
        }
    }

    /// The sharding that counts: the plan's while somebody follows it, else the largest there is.
    pub(crate) fn shard_count(&self) -> u32 {
        let follows = self.members.values().any(|member| member.fleet);
        let planned = self.plan.as_ref().map(|plan| plan.shard_count);
        let held = self.members.values().flat_map(|member| &member.shards);
        let held = held.map(|shard| shard.count()).max();
        match (follows, planned, held) {
            (true, Some(planned), _) | (false, Some(planned), None) => planned,
            (_, _, Some(held)) => held,
            (_, None, None) => self
                .records
                .keys()
                .map(|shard| shard.count())
                .max()
                .unwrap_or(0),
        }
    }

    /// The shard counts that plan, processes and sessions have.
    pub(crate) fn shardings(&self, now_ms: u64) -> Found {
        let follows = self.members.values().any(|member| member.fleet);
        let plan = self.plan.as_ref().filter(|_| follows);
        let held = self.members.values().flat_map(|member| &member.shards);
        let alive = |record: &&ShardRecord| {
            record.session_id.is_some()
                && record
                    .sequence_at_unix_ms
                    .is_some_and(|at| now_ms.saturating_sub(at) <= SESSION_LIFE_MS)
        };
        let sessions = self.records.values().filter(alive);
        let newest = sessions.max_by_key(|record| record.sequence_at_unix_ms);
        Found {
            followed: plan.map(|plan| plan.shard_count),
            held: held.map(|shard| shard.count()).max(),
            resumable: newest.map(|record| record.shard.count()),
        }
    }

    /// Whether a shard delivers: ready, and its owner lives.
    pub(crate) fn is_ready(&self, shard: ShardId) -> bool {
        self.records.get(&shard).is_some_and(|record| {
            let owner = record.owner.as_ref();
            let lives = owner.is_some_and(|owner| self.members.contains_key(owner));
            record.state.is_ready() && lives
        })
    }

    /// Shards of the sharding that counts.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        let count = self.shard_count();
        (0..count).filter_map(move |id| ShardId::new(id, count).ok())
    }

    pub(crate) fn cluster_state(&self) -> ClusterState {
        let shards: Vec<ShardId> = self.shards().collect();
        let ready = shards.iter().filter(|shard| self.is_ready(**shard)).count();
        let held: BTreeMap<&ProxyId, Vec<ShardId>> = self
            .members
            .iter()
            .map(|(proxy, member)| (proxy, self.held_by(proxy, member)))
            .collect();
        let somewhere: BTreeSet<ShardId> = held.values().flatten().copied().collect();
        let unplaced = shards.iter().filter(|shard| !somewhere.contains(shard));
        let workers = self.members.iter().map(|(proxy, member)| WorkerState {
            proxy: proxy.clone(),
            status: self.status_of(member, &held[proxy]),
            version: Some(member.version.clone()),
            zone: member.zone.clone(),
            shards: held[proxy].iter().map(|shard| shard.id()).collect(),
            cpu_percent: member.load.cpu_percent,
            memory_bytes: member.load.memory_bytes,
            latency_ms: member.load.latency_ms,
            events_per_second: member.load.events_per_second,
            http: member.http.clone(),
        });
        let workers: Vec<WorkerState> = workers.collect();
        ClusterState {
            status: self.cluster_status(&workers, shards.len(), ready),
            coordinator: self.leader.as_ref().map(|leader| leader.proxy.clone()),
            epoch: self.plan.as_ref().map_or(0, |plan| plan.epoch),
            // At most as many as fit a u32: they are numbered by one.
            total_shards: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            ready_shards: u32::try_from(ready).unwrap_or(u32::MAX),
            unplaced_shards: unplaced.map(|shard| shard.id()).collect(),
            workers,
        }
    }

    /// The shards whose records name this very process. Heartbeats say the same, a little later.
    fn held_by(&self, proxy: &ProxyId, member: &Member) -> Vec<ShardId> {
        let held = |record: &&ShardRecord| {
            record.owner.as_ref() == Some(proxy)
                && (member.instance.is_none() || record.owner_instance == member.instance)
        };
        let records = self.records.values().filter(held);
        records.map(|record| record.shard).collect()
    }

    /// What a member that holds these is doing. One that was started for certain shards is not ready
    /// without them, as after another process took them.
    fn status_of(&self, member: &Member, held: &[ShardId]) -> ProcessStatus {
        let count = self.shard_count();
        let pinned = member.pinned.iter().flatten();
        let pinned = pinned.filter_map(|id| ShardId::new(*id, count).ok());
        let missing: Vec<ShardId> = pinned.filter(|shard| !held.contains(shard)).collect();
        let never = |shard: &ShardId| {
            let record = self.records.get(shard);
            record.is_none_or(|record| record.session_id.is_none())
        };
        if member.draining {
            ProcessStatus::Draining
        } else if missing.is_empty() && held.iter().all(|shard| self.is_ready(*shard)) {
            ProcessStatus::Ready
        } else if held.iter().chain(&missing).any(never) {
            ProcessStatus::Starting
        } else {
            ProcessStatus::Degraded
        }
    }

    fn cluster_status(&self, workers: &[WorkerState], total: usize, ready: usize) -> ClusterStatus {
        let starting = |worker: &WorkerState| worker.status == ProcessStatus::Starting;
        match (total, ready) {
            (1.., ready) if ready == total && self.leader.is_some() => ClusterStatus::Healthy,
            _ if workers.iter().any(starting) => ClusterStatus::Starting,
            (_, 0) => ClusterStatus::Down,
            _ => ClusterStatus::Degraded,
        }
    }
}
