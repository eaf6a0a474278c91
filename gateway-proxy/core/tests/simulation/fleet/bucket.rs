//! A naive bucket: one value per key, one sequence for all, compare-and-set, TTLs, and a watch that shows
//! only what is still the last value of its key when it is read.

use std::collections::BTreeMap;
use std::time::Duration;

use gateway_proxy_core::fleet::Gone;
use schemas::{Leader, Member, Plan, ProxyId, ShardId, ShardRecord};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Member(ProxyId),
    Leader,
    Plan,
    Shard(ShardId),
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Member(Box<Member>),
    Leader(Leader),
    Plan(Plan),
    Shard(Box<ShardRecord>),
    Garbage,
    Gone(Gone),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) revision: u64,
    pub(crate) value: Value,
    expires_at: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: Key,
    pub(crate) value: Value,
    /// `None` overwrites: somebody's hand.
    pub(crate) expected_revision: Option<u64>,
    pub(crate) ttl: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Bucket {
    revision: u64,
    by_key: BTreeMap<Key, u64>,
    by_revision: BTreeMap<u64, Entry>,
    /// Keys stay although their TTL is over: what a client's bug or an old server does.
    pub(crate) never_expires: bool,
    /// How late the server notices that a TTL is over.
    expires_late: Duration,
}

impl Bucket {
    pub(crate) fn new(never_expires: bool, expires_late: Duration) -> Self {
        Self {
            never_expires,
            expires_late,
            ..Self::default()
        }
    }

    pub(crate) fn write(
        &mut self,
        write: &Write,
        now: Duration,
    ) -> Result<u64, Option<Box<Entry>>> {
        let current = self.by_key.get(&write.key).copied();
        if let Some(expected) = write.expected_revision
            && expected != current.unwrap_or(0)
        {
            return Err(
                current.and_then(|revision| self.by_revision.get(&revision).cloned().map(Box::new))
            );
        }
        let expires_at = write.ttl.map(|ttl| now + ttl + self.expires_late);
        Ok(self.store(write.key.clone(), write.value.clone(), expires_at))
    }

    fn store(&mut self, key: Key, value: Value, expires_at: Option<Duration>) -> u64 {
        self.revision += 1;
        if let Some(before) = self.by_key.insert(key.clone(), self.revision) {
            self.by_revision.remove(&before);
        }
        let entry = Entry {
            key,
            revision: self.revision,
            value,
            expires_at,
        };
        self.by_revision.insert(self.revision, entry);
        self.revision
    }

    pub(crate) fn advance(&mut self, now: Duration) {
        if self.never_expires {
            return;
        }
        let over: Vec<Key> = self
            .by_revision
            .values()
            .filter(|entry| entry.expires_at.is_some_and(|at| now >= at))
            .map(|entry| entry.key.clone())
            .collect();
        for key in over {
            self.store(key, Value::Gone(Gone::Expired), None);
        }
    }

    /// What a watch shows next that has read up to this revision.
    pub(crate) fn after(&self, revision: u64) -> impl Iterator<Item = &Entry> {
        self.by_revision
            .range(revision + 1..)
            .map(|(_, entry)| entry)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.by_revision.get(self.by_key.get(key)?)
    }

    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }
}
