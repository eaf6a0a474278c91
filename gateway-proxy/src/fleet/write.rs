//! One compare-and-set of a lease, from the request to what the decisions want to hear of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_proxy_core::fleet::Current;
use schemas::FleetKey;

use super::bucket::{Bucket, WriteError};

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done.
    Written { revision: u64, sent_at: Instant },
    /// The key had another revision; this is what it holds.
    Refused(Current),
    /// It may have arrived or not.
    Failed,
}

/// A value on its way to a key.
#[derive(Debug)]
pub(super) struct LeaseWrite {
    pub(super) key: FleetKey,
    pub(super) value: Bytes,
    pub(super) expected_revision: u64,
    pub(super) ttl: Duration,
    pub(super) within: Duration,
}

impl LeaseWrite {
    /// Writes it. `is_ours` tells whether a value was written by this very instance.
    pub(super) async fn send(self, bucket: &Bucket, is_ours: impl Fn(&[u8]) -> bool) -> Outcome {
        let sent_at = Instant::now();
        let write = bucket.write(
            &self.key,
            self.value,
            self.expected_revision,
            Some(self.ttl),
            self.within,
        );
        match write.await {
            Ok(revision) => Outcome::Written { revision, sent_at },
            Err(WriteError::Refused) => {
                let Ok(entry) = bucket.read(&self.key, self.within).await else {
                    return Outcome::Failed;
                };
                Outcome::Refused(match entry.value {
                    None => Current::Gone,
                    Some(value) if is_ours(&value) => Current::Ours {
                        revision: entry.revision,
                    },
                    Some(_) => Current::Other,
                })
            }
            Err(WriteError::Failed(reason)) => {
                tracing::debug!(key = %self.key, reason, "a lease was not written");
                Outcome::Failed
            }
        }
    }
}
