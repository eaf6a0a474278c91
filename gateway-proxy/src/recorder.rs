//! Writes each shard's record into the fleet bucket: on change, and every few seconds while the
//! sequence moves. Never per event, and never over a record that another process wrote since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::{self, UpdateErrorKind};
use schemas::{Compression, FleetKey, Intents, ProxyId, ShardRecord, ShardState};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::ownership::{Owner, Ownership};
use crate::shard::ShardParts;
use crate::status::{rounded, unix_ms};
use crate::transport::API_VERSION;

/// How often shards are looked at for a change of state or session.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a record is written while only its sequence and its measures move.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// Such writes per second that a process with very many shards makes do with: at 60 µs each they would
/// cost as much as its events.
const WRITES_PER_SECOND: u64 = 100;
/// The longest such interval.
const WRITE_EVERY_MAX: Duration = Duration::from_secs(20);
/// How often records that cannot be written are reported.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long one write may take; the next look tries again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts to say that a shard is let go of.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

/// What stands in every record of this process.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) owner: ProxyId,
    pub(crate) intents: Intents,
    pub(crate) compression: Compression,
}

/// The records of this process' shards. Shards come and go while it runs.
#[derive(Debug)]
pub(crate) struct Recorder {
    bucket: kv::Store,
    ownership: Ownership,
    common: Common,
    // By number; at most one per shard this process holds.
    shards: Mutex<BTreeMap<u32, Arc<Entry>>>,
    trouble: Mutex<Option<Trouble>>,
}

/// Records that cannot be written: said once, and again from time to time.
#[derive(Debug)]
struct Trouble {
    said_at: Instant,
    failed: u64,
}

#[derive(Debug)]
struct Entry {
    parts: ShardParts,
    // Held over the write, so that the last word on a shard is said once.
    written: tokio::sync::Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    record: ShardRecord,
    at: Instant,
    // What an update must find.
    revision: u64,
    // The last attempt, which may have failed.
    attempted_at: Option<Instant>,
    // Nothing is written any more.
    over: bool,
}

impl Recorder {
    /// Writes nothing before a shard is added.
    pub(crate) fn new(bucket: kv::Store, ownership: Ownership, common: Common) -> Arc<Self> {
        Arc::new(Self {
            bucket,
            ownership,
            common,
            shards: Mutex::default(),
            trouble: Mutex::default(),
        })
    }

    /// What stands in every record.
    pub(crate) const fn common(&self) -> &Common {
        &self.common
    }

    /// Takes on a shard whose record, as it stands, has this revision.
    pub(crate) fn add(&self, parts: ShardParts, record: ShardRecord, revision: u64) {
        let entry = Entry {
            parts,
            written: tokio::sync::Mutex::new(Written {
                record,
                at: Instant::now(),
                revision,
                attempted_at: None,
                over: false,
            }),
        };
        let id = entry.parts.status.shard().id();
        locked(&self.shards).insert(id, Arc::new(entry));
    }

    /// Writes until dropped.
    pub(crate) async fn run(&self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let entries: Vec<_> = locked(&self.shards).values().cloned().collect();
            let every = write_every(entries.len());
            for entry in entries {
                self.write_if_due(&entry, every).await;
            }
        }
    }

    /// Says that nobody holds the shard, and where to carry on. Returns the record's revision; `None`: it
    /// could not be written within `patience`, or the shard is another's. Nothing more is written of it
    /// in any case.
    pub(crate) async fn release(&self, id: u32, patience: Duration) -> Option<u64> {
        let entry = locked(&self.shards).remove(&id)?;
        let release = async {
            let mut written = entry.written.lock().await;
            loop {
                let mut record = self.record(&entry.parts, &written);
                record.owner = None;
                record.owner_instance = None;
                record.state = ShardState::Disconnected;
                record.changed_at_unix_ms = unix_ms();
                if entry.parts.lost.is_lost() {
                    return None;
                }
                self.write(&entry.parts, &mut written, record).await;
                if written.record.owner.is_none() {
                    return Some(written.revision);
                }
                tokio::time::sleep(RELEASE_PAUSE).await;
            }
        };
        let released = tokio::time::timeout(patience, release).await;
        entry.written.lock().await.over = true;
        released.ok().flatten()
    }

    /// Writes nothing more of a shard; a write that is on its way is waited for.
    pub(crate) async fn retire(&self, id: u32) {
        let entry = locked(&self.shards).remove(&id);
        if let Some(entry) = entry {
            entry.written.lock().await.over = true;
        }
    }

    /// Lets go without a word: the record is another's, or about to be.
    pub(crate) fn forget(&self, id: u32) {
        let Some(entry) = locked(&self.shards).remove(&id) else {
            return;
        };
        // A write that is on its way fails by its revision, should another have the record by then.
        if let Ok(mut written) = entry.written.try_lock() {
            written.over = true;
        }
    }

    async fn write_if_due(&self, entry: &Entry, every: Duration) {
        let mut written = entry.written.lock().await;
        if written.over {
            return;
        }
        let record = self.record(&entry.parts, &written);
        let changed = written.record.state != record.state
            || written.record.owner != record.owner
            || written.record.session_id != record.session_id;
        let due = changed || (written.record != record && written.at.elapsed() >= every);
        // What failed is not tried at every look.
        let rested = written
            .attempted_at
            .is_none_or(|at| at.elapsed() >= WRITE_EVERY || written.at > at);
        if due && rested {
            self.write(&entry.parts, &mut written, record).await;
        }
    }

    fn record(&self, parts: &ShardParts, written: &Written) -> ShardRecord {
        let status = &parts.status;
        let (generation, acked) = parts.lane.checkpoint();
        // A session none of whose events is stored yet has no checkpoint; the one before is still
        // what the stream ends with.
        let known = parts
            .session
            .get()
            .filter(|(known, _)| *known == generation && acked > 0)
            .map(|(_, known)| known);
        let earlier = &written.record;
        let mut record = ShardRecord::new(status.shard());
        record.owner = Some(self.common.owner.clone());
        record.owner_instance = Some(self.ownership.instance().to_string());
        record.state = status.state();
        match known {
            Some(known) => {
                record.session_id = Some(known.session_id);
                record.resume_gateway_url = known.resume_url;
                record.sequence = Some(acked);
                record.sequence_at_unix_ms = Some(alive_at(written, &record, acked));
                record.intents = Some(self.common.intents);
                record.api_version = Some(API_VERSION);
                record.compression = Some(self.common.compression);
            }
            None => {
                record.session_id = earlier.session_id.clone();
                record.resume_gateway_url = earlier.resume_gateway_url.clone();
                record.sequence = earlier.sequence;
                record.sequence_at_unix_ms = earlier.sequence_at_unix_ms;
                record.intents = earlier.intents;
                record.api_version = earlier.api_version;
                record.compression = earlier.compression;
            }
        }
        record.guilds = status.guilds().or(earlier.guilds);
        record.latency_ms = status
            .latency()
            .map(|latency| rounded(latency.as_secs_f64() * 1e3));
        record.events_per_second = rounded(status.events_per_second());
        record.changed_at_unix_ms = status.changed_unix_ms();
        record
    }

    async fn write(&self, parts: &ShardParts, written: &mut Written, record: ShardRecord) {
        if parts.lost.is_lost() {
            return;
        }
        let key = FleetKey::Shard(record.shard).to_string();
        written.attempted_at = Some(Instant::now());
        let update = self.bucket.update(&key, encode(&record), written.revision);
        match tokio::time::timeout(WRITE_TIMEOUT, update).await {
            Ok(Ok(revision)) => {
                (written.revision, written.record, written.at) = (revision, record, Instant::now());
                if let Some(trouble) = locked(&self.trouble).take() {
                    info!(
                        failed = trouble.failed,
                        "records of shards are written again"
                    );
                }
            }
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                self.look_who_wrote(parts, written, &key).await;
            }
            Ok(Err(error)) => self.failed(&key, &error.to_string()),
            Err(_) => self.failed(&key, "NATS does not answer"),
        }
    }

    fn failed(&self, key: &str, error: &str) {
        let mut trouble = locked(&self.trouble);
        let trouble = trouble.get_or_insert_with(|| {
            warn!(key, error, "the record of a shard was not written");
            Trouble {
                said_at: Instant::now(),
                failed: 0,
            }
        });
        trouble.failed += 1;
        if trouble.said_at.elapsed() >= SAY_EVERY {
            trouble.said_at = Instant::now();
            warn!(
                key,
                error,
                failed = trouble.failed,
                "records of shards are still not written"
            );
        }
    }

    /// Somebody wrote the record since: another owner, our own write whose answer was lost, or a
    /// hand.
    async fn look_who_wrote(&self, parts: &ShardParts, written: &mut Written, key: &str) {
        let entry = tokio::time::timeout(WRITE_TIMEOUT, self.bucket.entry(key)).await;
        // Without an answer the next write finds the same.
        let Ok(Ok(entry)) = entry else { return };
        let record = entry
            .as_ref()
            .and_then(|entry| serde_json::from_slice::<ShardRecord>(&entry.value).ok());
        match record.map_or(Owner::Us, |record| self.ownership.in_record(&record)) {
            Owner::Other { proxy } => parts.lost.lose(proxy),
            // The next look writes again.
            Owner::Us | Owner::Unknown(_) => {
                written.revision = entry.map_or(0, |entry| entry.revision);
            }
        }
    }
}

/// How often a record is written while little changes, with so many shards.
fn write_every(shards: usize) -> Duration {
    let every = Duration::from_secs(shards as u64 / WRITES_PER_SECOND);
    every.clamp(WRITE_EVERY, WRITE_EVERY_MAX)
}

/// While the shard is ready its session is alive now; otherwise it was when last written.
fn alive_at(written: &Written, record: &ShardRecord, acked: u64) -> u64 {
    let earlier = &written.record;
    let same = earlier.session_id == record.session_id && earlier.sequence == Some(acked);
    let fresh = record.state.is_ready() && written.at.elapsed() >= WRITE_EVERY;
    match earlier.sequence_at_unix_ms {
        Some(at) if same && !fresh => at,
        _ => unix_ms(),
    }
}

pub(crate) fn encode(record: &ShardRecord) -> bytes::Bytes {
    serde_json::to_vec(record)
        .expect("records hold only strings and numbers")
        .into()
}

/// Valid after every statement, whoever panicked elsewhere.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_shards_are_recorded_less_often() {
        let seconds = |shards| write_every(shards).as_secs();
        assert_eq!([1, 500, 1_024, 16_000].map(seconds), [5, 5, 10, 20]);
    }
}
