//! Writes each shard's record into the fleet bucket: on change, and every few seconds while the
//! sequence moves. Never per event, and never over a record that another process wrote since.

use std::time::Duration;

use async_nats::jetstream::kv::{self, UpdateErrorKind};
use schemas::{Compression, FleetKey, Intents, ProxyId, ShardRecord, ShardState};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::ownership::{Owner, Ownership};
use crate::shard::ShardParts;
use crate::status::{rounded, unix_ms};
use crate::transport::API_VERSION;

/// How often shards are looked at for a change of state or session.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a record is written while only its sequence and its measures move.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// How often records that cannot be written are reported.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long one write may take; the next look tries again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two attempts to take a shard at the start.
const CLAIM_PAUSE: Duration = Duration::from_millis(500);

/// What stands in every record of this process.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) owner: ProxyId,
    pub(crate) intents: Intents,
    pub(crate) compression: Compression,
}

/// The records of this process' shards.
#[derive(Debug)]
pub(crate) struct Recorder {
    bucket: kv::Store,
    ownership: Ownership,
    common: Common,
    shards: Vec<Shard>,
    trouble: Option<Trouble>,
}

/// Records that cannot be written: said once, and again from time to time.
#[derive(Debug)]
struct Trouble {
    said_at: Instant,
    failed: u64,
}

#[derive(Debug)]
struct Shard {
    parts: ShardParts,
    written: Option<ShardRecord>,
    written_at: Instant,
    // What an update must find; 0: no record.
    revision: u64,
    // The last attempt, which may have failed.
    attempted_at: Option<Instant>,
}

impl Recorder {
    /// `earlier` holds what the bucket says now, so that guild counts survive a RESUME.
    pub(crate) fn new(
        bucket: kv::Store,
        ownership: Ownership,
        common: Common,
        shards: Vec<(ShardParts, Option<ShardRecord>)>,
    ) -> Self {
        let now = Instant::now();
        let shards = shards
            .into_iter()
            .map(|(parts, written)| Shard {
                parts,
                written,
                written_at: now,
                revision: 0,
                attempted_at: None,
            })
            .collect();
        Self {
            bucket,
            ownership,
            common,
            shards,
            trouble: None,
        }
    }

    /// Takes every shard, whoever had it: this process was started to hold them.
    ///
    /// # Errors
    /// What NATS says about the first record that cannot be written until the deadline.
    pub(crate) async fn claim(&mut self, until: Instant) -> Result<(), String> {
        for index in 0..self.shards.len() {
            let record = self.record(index);
            let key = FleetKey::Shard(record.shard).to_string();
            let revision = self.take(&key, &record, until).await?;
            let shard = &mut self.shards[index];
            (shard.revision, shard.written, shard.written_at) =
                (revision, Some(record), Instant::now());
        }
        Ok(())
    }

    /// Writes a record whatever stands there; a cluster may be electing a leader, which takes seconds.
    async fn take(&self, key: &str, record: &ShardRecord, until: Instant) -> Result<u64, String> {
        loop {
            let put = self.bucket.put(key, encode(record));
            let error = match tokio::time::timeout(WRITE_TIMEOUT, put).await {
                Ok(Ok(revision)) => return Ok(revision),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= until {
                return Err(format!("{key}: {error}"));
            }
            debug!(key, error, "a record was not written, trying again");
            tokio::time::sleep(CLAIM_PAUSE).await;
        }
    }

    /// Writes until dropped.
    pub(crate) async fn run(&mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write_due().await;
        }
    }

    /// Writes every record that differs from what stands in the bucket: before shards are let go.
    pub(crate) async fn write_all(&mut self, released: bool) {
        for index in 0..self.shards.len() {
            let mut record = self.record(index);
            if released {
                record.owner = None;
                record.owner_instance = None;
                record.state = ShardState::Disconnected;
            }
            if self.shards[index].written.as_ref() != Some(&record) {
                self.write(index, record).await;
            }
        }
    }

    async fn write_due(&mut self) {
        for index in 0..self.shards.len() {
            let record = self.record(index);
            let shard = &self.shards[index];
            let due = match &shard.written {
                None => true,
                Some(written) => {
                    let changed = written.state != record.state
                        || written.owner != record.owner
                        || written.session_id != record.session_id;
                    changed || (*written != record && shard.written_at.elapsed() >= WRITE_EVERY)
                }
            };
            // What failed is not tried at every look.
            let rested = shard
                .attempted_at
                .is_none_or(|at| at.elapsed() >= WRITE_EVERY || shard.written_at > at);
            if due && rested {
                self.write(index, record).await;
            }
        }
    }

    fn record(&self, index: usize) -> ShardRecord {
        let shard = &self.shards[index];
        let status = &shard.parts.status;
        let (generation, acked) = shard.parts.lane.checkpoint();
        // A session none of whose events is stored yet has no checkpoint; the one before is still
        // what the stream ends with.
        let known = shard
            .parts
            .session
            .get()
            .filter(|(known, _)| *known == generation && acked > 0)
            .map(|(_, known)| known);
        let earlier = shard.written.as_ref();
        let mut record = ShardRecord::new(status.shard());
        record.owner = Some(self.common.owner.clone());
        record.owner_instance = Some(self.ownership.instance().to_owned());
        record.state = status.state();
        match known {
            Some(known) => {
                record.session_id = Some(known.session_id);
                record.resume_gateway_url = known.resume_url;
                record.sequence = Some(acked);
                record.sequence_at_unix_ms = Some(self.alive_at(index, &record, acked));
                record.intents = Some(self.common.intents);
                record.api_version = Some(API_VERSION);
                record.compression = Some(self.common.compression);
            }
            None => {
                if let Some(earlier) = earlier {
                    record.session_id = earlier.session_id.clone();
                    record.resume_gateway_url = earlier.resume_gateway_url.clone();
                    record.sequence = earlier.sequence;
                    record.sequence_at_unix_ms = earlier.sequence_at_unix_ms;
                    record.intents = earlier.intents;
                    record.api_version = earlier.api_version;
                    record.compression = earlier.compression;
                }
            }
        }
        record.guilds = status
            .guilds()
            .or_else(|| earlier.and_then(|earlier| earlier.guilds));
        record.latency_ms = status
            .latency()
            .map(|latency| rounded(latency.as_secs_f64() * 1e3));
        record.events_per_second = rounded(status.events_per_second());
        record.changed_at_unix_ms = status.changed_unix_ms();
        record
    }

    /// While the shard is ready its session is alive now; otherwise it was when last written.
    fn alive_at(&self, index: usize, record: &ShardRecord, acked: u64) -> u64 {
        let shard = &self.shards[index];
        let same = shard.written.as_ref().filter(|written| {
            written.session_id == record.session_id && written.sequence == Some(acked)
        });
        let fresh = record.state.is_ready() && shard.written_at.elapsed() >= WRITE_EVERY;
        match same.and_then(|written| written.sequence_at_unix_ms) {
            Some(at) if !fresh => at,
            _ => unix_ms(),
        }
    }

    async fn write(&mut self, index: usize, record: ShardRecord) {
        if self.shards[index].parts.lost.is_lost() {
            return;
        }
        let key = FleetKey::Shard(record.shard).to_string();
        self.shards[index].attempted_at = Some(Instant::now());
        let update = self
            .bucket
            .update(&key, encode(&record), self.shards[index].revision);
        match tokio::time::timeout(WRITE_TIMEOUT, update).await {
            Ok(Ok(revision)) => {
                let shard = &mut self.shards[index];
                (shard.revision, shard.written, shard.written_at) =
                    (revision, Some(record), Instant::now());
                if let Some(trouble) = self.trouble.take() {
                    info!(
                        failed = trouble.failed,
                        "records of shards are written again"
                    );
                }
            }
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                self.look_who_wrote(index, &key).await;
            }
            Ok(Err(error)) => self.failed(&key, &error.to_string()),
            Err(_) => self.failed(&key, "NATS does not answer"),
        }
    }

    fn failed(&mut self, key: &str, error: &str) {
        let trouble = self.trouble.get_or_insert_with(|| {
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
    async fn look_who_wrote(&mut self, index: usize, key: &str) {
        let entry = tokio::time::timeout(WRITE_TIMEOUT, self.bucket.entry(key)).await;
        // Without an answer the next write finds the same.
        let Ok(Ok(entry)) = entry else { return };
        let record = entry
            .as_ref()
            .and_then(|entry| serde_json::from_slice::<ShardRecord>(&entry.value).ok());
        let shard = &mut self.shards[index];
        match record.map_or(Owner::Us, |record| self.ownership.in_record(&record)) {
            Owner::Other { proxy } => shard.parts.lost.lose(proxy),
            // The next look writes again.
            Owner::Us | Owner::Unknown(_) => {
                shard.revision = entry.map_or(0, |entry| entry.revision);
            }
        }
    }
}

fn encode(record: &ShardRecord) -> bytes::Bytes {
    serde_json::to_vec(record)
        .expect("records hold only strings and numbers")
        .into()
}
