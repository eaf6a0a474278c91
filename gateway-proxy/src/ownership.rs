//! Whose a shard is: its record in the fleet bucket names the process that took it last. A process
//! that stood still, or that somebody started a second time, finds another name there and lets go,
//! instead of fighting its successor for the session.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use schemas::{FleetKey, ShardId, ShardRecord};

use crate::fence::Fence;

/// How long the question may take: a shard waits for the answer before it connects.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Letters and digits of an instance's name: 95 bits.
const NAME_LEN: usize = 16;

/// How often [`Ownership::tick`] shows that the process runs.
const TICK: Duration = Duration::from_secs(1);
/// A tick this late means that the process was stopped or starved, and that others may have taken its
/// shards. Far below the stream's duplicate window, within which publishing again is harmless.
pub(crate) const STOOD_STILL: Duration = Duration::from_secs(10);

/// This process, as it stands in the records of its shards.
#[derive(Clone, Debug)]
pub(crate) struct Ownership {
    bucket: kv::Store,
    // Shared by all clones; a new one whenever the process joins the fleet again.
    instance: Arc<RwLock<Arc<str>>>,
    pulse: Arc<Pulse>,
    fence: Fence,
}

/// Whether this process has run without interruption.
#[derive(Debug)]
struct Pulse {
    started: Instant,
    // Milliseconds after `started`.
    last_tick: AtomicU64,
    standstills: AtomicU64,
}

impl Pulse {
    fn since_tick(&self) -> Duration {
        let last = Duration::from_millis(self.last_tick.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(last)
    }
}

fn new_instance() -> Arc<str> {
    let name: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(NAME_LEN)
        .collect();
    name.into()
}

/// Whose a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Ours, or nobody's.
    Us,
    /// Another process took it since.
    Other {
        /// The proxy's name, for people.
        proxy: String,
    },
    /// NATS does not say.
    Unknown(String),
}

impl Ownership {
    pub(crate) fn new(bucket: kv::Store, fence: Fence) -> Self {
        let pulse = Pulse {
            started: Instant::now(),
            last_tick: AtomicU64::new(0),
            standstills: AtomicU64::new(0),
        };
        Self {
            bucket,
            instance: Arc::new(RwLock::new(new_instance())),
            pulse: Arc::new(pulse),
            fence,
        }
    }

    /// Keeps the pulse while the process runs.
    pub(crate) async fn tick(self) {
        loop {
            tokio::time::sleep(TICK).await;
            let pulse = &self.pulse;
            if pulse.since_tick() > STOOD_STILL {
                pulse.standstills.fetch_add(1, Ordering::AcqRel);
            }
            let now = u64::try_from(pulse.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            pulse.last_tick.store(now, Ordering::Release);
        }
    }

    /// How often the process has stood still, one that only just ended included: the tick that will
    /// count it may come after the question.
    pub(crate) fn standstills(&self) -> u64 {
        let just_now = u64::from(self.pulse.since_tick() > STOOD_STILL);
        self.pulse.standstills.load(Ordering::Acquire) + just_now
    }

    /// True while the runtime that holds the shards has not come round for so long that others should
    /// have them.
    pub(crate) fn stands_still(&self) -> bool {
        self.pulse.since_tick() > STOOD_STILL
    }

    /// Until when this process may act on its shards.
    pub(crate) const fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The name of this process, as it joined last.
    pub(crate) fn instance(&self) -> Arc<str> {
        let instance = self.instance.read();
        Arc::clone(&instance.unwrap_or_else(PoisonError::into_inner))
    }

    /// Another name from here on: whatever the one before wrote may still be on its way. Nothing is
    /// held under it any more.
    pub(crate) fn rename(&self) -> Arc<str> {
        let name = new_instance();
        let mut instance = self
            .instance
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *instance = Arc::clone(&name);
        name
    }

    /// Reads whose the shard is.
    pub(crate) async fn of(&self, shard: ShardId) -> Owner {
        let key = FleetKey::Shard(shard).to_string();
        let value = match tokio::time::timeout(LOOKUP_TIMEOUT, self.bucket.get(&key)).await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => return Owner::Unknown(error.to_string()),
            Err(_) => return Owner::Unknown("no answer".to_owned()),
        };
        // A record that is gone or edited beyond reading names nobody else.
        let record = value.and_then(|value| serde_json::from_slice::<ShardRecord>(&value).ok());
        record.map_or(Owner::Us, |record| self.in_record(&record))
    }

    /// Whose the record says the shard is.
    pub(crate) fn in_record(&self, record: &ShardRecord) -> Owner {
        match &record.owner_instance {
            Some(instance) if **instance != *self.instance() => Owner::Other {
                proxy: record
                    .owner
                    .as_ref()
                    .map_or("somebody", |id| id.as_str())
                    .to_owned(),
            },
            _ => Owner::Us,
        }
    }
}
