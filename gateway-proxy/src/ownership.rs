//! Whose a shard is: its record in the fleet bucket names the process that took it last. A process
//! that stood still, or that somebody started a second time, finds another name there and lets go,
//! instead of fighting its successor for the session.

use std::time::Duration;

use async_nats::jetstream::kv;
use schemas::{FleetKey, ShardId, ShardRecord};

/// How long the question may take: a shard waits for the answer before it connects.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Letters and digits of an instance's name: 95 bits.
const NAME_LEN: usize = 16;

/// This process, as it stands in the records of its shards.
#[derive(Clone, Debug)]
pub(crate) struct Ownership {
    bucket: kv::Store,
    instance: String,
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
    pub(crate) fn new(bucket: kv::Store) -> Self {
        let instance = std::iter::repeat_with(fastrand::alphanumeric)
            .take(NAME_LEN)
            .collect();
        Self { bucket, instance }
    }

    /// The name of this process.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
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
            Some(instance) if *instance != self.instance => Owner::Other {
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
