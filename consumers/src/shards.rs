//! What is known of the shards: a copy of the fleet's shard records, kept up to date by watching
//! their bucket. Without the bucket (no proxy has run yet) everything is simply unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::kv::{Entry, Operation};
use futures_util::StreamExt as _;
use schemas::{FleetKey, GuildId, Prefix, ShardId, ShardRecord};
use tokio::time::{sleep, timeout};

use crate::nats::Link;

/// Pause before the bucket is looked for again: it appears when the first proxy starts, and until
/// then answers merely say "unknown".
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for NATS when the bucket is opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Most records kept: Discord's largest bots have some thousand shards; a reshard doubles them.
const RECORDS_MAX: usize = 65_536;

/// A shard as a handler sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardInfo {
    /// Number of the shard.
    pub id: u32,
    /// How many shards the bot has; `None` while no proxy has said so.
    pub total: Option<u32>,
    /// Guilds on the shard.
    pub guilds: Option<u32>,
    /// Last heartbeat round trip of the shard's gateway connection.
    pub latency: Option<Duration>,
}

/// The records of all shards; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shards {
    records: Arc<Mutex<BTreeMap<ShardId, ShardRecord>>>,
}

impl Shards {
    /// What is known of the shard with this number, which delivered an event of `guild`.
    pub(crate) fn info(&self, id: u32, guild: Option<GuildId>) -> ShardInfo {
        let records = self.lock();
        // Ordered by number, then count; no sharding with this number is smaller.
        let first = ShardId::new(id, id.saturating_add(1)).ok();
        let of_number = first
            .into_iter()
            .flat_map(|first| records.range(first..))
            .take_while(|(shard, _)| shard.id() == id);
        // Two shardings stand side by side during a reshard. The one that places the guild on this
        // shard is the event's; if that does not decide it, the one that changed last.
        let record = of_number.map(|(_, record)| record).max_by_key(|record| {
            let places = guild.is_some_and(|guild| guild.shard(record.shard.count()) == id);
            (record.state.is_ready(), places, record.changed_at_unix_ms)
        });
        ShardInfo {
            id,
            total: record.map(|record| record.shard.count()),
            guilds: record.and_then(|record| record.guilds),
            latency: record
                .and_then(|record| record.latency_ms)
                .and_then(milliseconds),
        }
    }

    /// The numbers of all shards there are records of.
    pub(crate) fn numbers(&self) -> BTreeSet<u32> {
        self.lock().keys().map(|shard| shard.id()).collect()
    }

    /// Everything that is known.
    pub(crate) fn records(&self) -> Vec<ShardRecord> {
        self.lock().values().cloned().collect()
    }

    /// Shard counts of the shardings that have a shard of this number.
    pub(crate) fn counts(&self, id: u32) -> Vec<u32> {
        let records = self.lock();
        let same = records.keys().filter(|shard| shard.id() == id);
        same.map(|shard| shard.count()).collect()
    }

    /// Follows the bucket until dropped.
    pub(crate) async fn follow(self, link: Link, prefix: Prefix) {
        while let Some(connection) = link.connected().await {
            tokio::select! {
                () = self.watch_bucket(&link.jetstream, &prefix) => sleep(RETRY_PAUSE).await,
                // A watch would notice only after a while that the server has forgotten it.
                () = link.replaced(connection) => {}
            }
        }
    }

    async fn watch_bucket(&self, jetstream: &JetStream, prefix: &Prefix) {
        match timeout(OPEN_TIMEOUT, jetstream.get_key_value(prefix.fleet_bucket())).await {
            Ok(Ok(bucket)) => self.watch(&bucket).await,
            Ok(Err(error)) => tracing::debug!(%error, "no fleet bucket, shards are unknown"),
            Err(_) => tracing::debug!("NATS does not answer, shards may be out of date"),
        }
    }

    async fn watch(&self, bucket: &async_nats::jetstream::kv::Store) {
        let opening = bucket.watch_with_history(FleetKey::ALL_SHARDS);
        let mut watch = match timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok(watch)) => watch,
            Ok(Err(error)) => return tracing::debug!(%error, "the fleet bucket cannot be watched"),
            Err(_) => return tracing::debug!("NATS does not answer, shards may be out of date"),
        };
        // What was deleted while nobody watched is not told again.
        self.lock().clear();
        tracing::debug!("watching the fleet's shards");
        while let Some(entry) = watch.next().await {
            match entry {
                Ok(entry) => self.apply(&entry),
                Err(error) => return tracing::debug!(%error, "watching the fleet bucket ended"),
            }
        }
    }

    fn apply(&self, entry: &Entry) {
        let Ok(FleetKey::Shard(shard)) = entry.key.parse::<FleetKey>() else {
            return;
        };
        let record = match entry.operation {
            Operation::Put => serde_json::from_slice::<ShardRecord>(&entry.value).ok(),
            Operation::Delete | Operation::Purge => None,
        };
        self.set(shard, record);
    }

    fn set(&self, shard: ShardId, record: Option<ShardRecord>) {
        let mut records = self.lock();
        match record {
            Some(record) if records.len() < RECORDS_MAX || records.contains_key(&shard) => {
                records.insert(shard, record);
            }
            Some(_) => tracing::warn!(%shard, "too many shard records, one is left out"),
            None => drop(records.remove(&shard)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, ShardRecord>> {
        // Every change is one insert or remove, so a panic elsewhere leaves no half of one.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A latency a proxy wrote; nonsense counts as unknown.
fn milliseconds(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use schemas::ShardState;

    use super::*;

    fn record(id: u32, count: u32, state: ShardState, changed_at_unix_ms: u64) -> ShardRecord {
        let shard = ShardId::new(id, count).unwrap();
        let latency_ms = Some(41.5);
        ShardRecord {
            state,
            changed_at_unix_ms,
            latency_ms,
            ..ShardRecord::new(shard)
        }
    }

    fn shards(records: impl IntoIterator<Item = ShardRecord>) -> Shards {
        let shards = Shards::default();
        for record in records {
            shards.set(record.shard, Some(record));
        }
        shards
    }

    #[test]
    fn a_shard_nobody_speaks_of_is_unknown() {
        let info = Shards::default().info(3, None);
        assert_eq!(
            info,
            ShardInfo {
                id: 3,
                total: None,
                guilds: None,
                latency: None
            }
        );
        assert_eq!(
            shards([record(2, 4, ShardState::Ready, 1)])
                .info(3, None)
                .total,
            None
        );
    }

    #[test]
    fn a_record_tells_total_and_latency() {
        let info = shards([record(3, 16, ShardState::Ready, 1)]).info(3, None);
        assert_eq!(info.total, Some(16));
        assert_eq!(info.latency, Some(Duration::from_micros(41_500)));
    }

    #[test]
    fn the_shardings_of_a_shard_are_its_counts() {
        let state = ShardState::Ready;
        let shards = shards([
            record(1, 4, state, 1),
            record(1, 8, state, 1),
            record(2, 4, state, 1),
        ]);
        assert_eq!(shards.counts(1), [4, 8]);
        assert!(shards.counts(9).is_empty());
        assert_eq!(shards.records().len(), 3);
    }

    #[test]
    fn nonsense_for_a_latency_is_unknown() {
        for ms in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(milliseconds(ms), None, "{ms}");
        }
    }

    #[test]
    fn during_a_reshard_the_ready_sharding_that_places_the_guild_is_meant() {
        // (1 << 22) lies on shard 1 of 4 and of 8, (5 << 22) on shard 1 of 4 but 5 of 8.
        let (both, four_only) = (GuildId::new(1 << 22), GuildId::new(5 << 22));
        let two = shards([
            record(1, 4, ShardState::Ready, 10),
            record(1, 8, ShardState::Ready, 20),
        ]);
        assert_eq!(two.info(1, both).total, Some(8));
        assert_eq!(two.info(1, four_only).total, Some(4));
        assert_eq!(two.info(1, None).total, Some(8));
        let starting = shards([
            record(1, 4, ShardState::Ready, 10),
            record(1, 8, ShardState::Queued, 20),
        ]);
        assert_eq!(starting.info(1, both).total, Some(4));
    }

    #[test]
    fn a_record_that_is_deleted_is_forgotten() {
        let shards = shards([record(1, 4, ShardState::Ready, 10)]);
        shards.set(ShardId::new(1, 4).unwrap(), None);
        assert_eq!(shards.info(1, None).total, None);
    }
}
