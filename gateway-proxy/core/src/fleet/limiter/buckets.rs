//! When each bucket was used last, as this process can know it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schemas::IdentifyState;

use super::{GOOD_FOR, PERIOD, SKEW_MAX};

/// Most buckets believed in: Discord's largest bots have 64.
const BUCKETS_MAX: u32 = 1 << 16;

/// The buckets of one `max_concurrency`.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    count: u32,
    // At most BUCKETS_MAX; a bucket that is missing is free.
    used: BTreeMap<u32, Used>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    // No grant before.
    free_at: Instant,
    // What `free_at` was before the last grant.
    free_before: Instant,
    // Number of the last grant, 0 when it was another coordinator's.
    grant: u64,
    unix_ms: u64,
}

impl Buckets {
    pub(super) const fn new() -> Self {
        Self {
            count: 1,
            used: BTreeMap::new(),
        }
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn of(&self, shard: u32) -> u32 {
        shard % self.count
    }

    pub(super) fn free_at(&self, bucket: u32) -> Option<Instant> {
        self.used.get(&bucket).map(|used| used.free_at)
    }

    pub(super) fn is_free(&self, bucket: u32, now: Instant) -> bool {
        self.free_at(bucket).is_none_or(|at| now >= at)
    }

    /// Discord has other buckets now. What it makes of those in use is unknown: all wait for the last.
    pub(super) fn set_count(&mut self, count: u32) {
        let count = count.clamp(1, BUCKETS_MAX);
        if count == self.count {
            return;
        }
        self.count = count;
        let Some(last) = self.used.values().copied().max_by_key(|used| used.free_at) else {
            return;
        };
        let last = Used { grant: 0, ..last };
        self.used = (0..count).map(|bucket| (bucket, last)).collect();
    }

    /// Another coordinator's grants: they were given before they are seen here, and may be used for
    /// [`GOOD_FOR`] from when they were asked for. `first`: this process did not see them come, so they
    /// count from now, unless they are older than clocks can differ.
    pub(super) fn learn(
        &mut self,
        before: Option<&IdentifyState>,
        state: &IdentifyState,
        now: Instant,
        unix_ms: u64,
    ) {
        self.set_count(state.max_concurrency);
        let blocked = now + GOOD_FOR + PERIOD;
        for (bucket, at) in &state.last_grant_unix_ms {
            let known = before.and_then(|before| before.last_grant_unix_ms.get(bucket));
            let news = match before {
                Some(before) => {
                    known != Some(at) || before.max_concurrency != state.max_concurrency
                }
                None => unix_ms.abs_diff(*at) < SKEW_MAX.as_millis() as u64,
            };
            if news && *bucket < self.count {
                self.block(*bucket, *at, blocked);
            }
        }
    }

    fn block(&mut self, bucket: u32, unix_ms: u64, until: Instant) {
        let used = self.used.entry(bucket).or_insert(Used {
            free_at: until,
            free_before: until,
            grant: 0,
            unix_ms,
        });
        used.free_at = used.free_at.max(until);
        used.free_before = used.free_at;
        used.grant = 0;
        used.unix_ms = used.unix_ms.max(unix_ms);
    }

    /// A grant is about to be given.
    pub(super) fn take(&mut self, bucket: u32, grant: u64, now: Instant, unix_ms: u64) {
        let free_before = self.free_at(bucket).unwrap_or(now);
        let used = Used {
            free_at: now + GOOD_FOR + PERIOD,
            free_before,
            grant,
            unix_ms,
        };
        self.used.insert(bucket, used);
    }

    /// The grant was not given, or not used, and never will be.
    pub(super) fn give_back(&mut self, bucket: u32, grant: u64) {
        if let Some(used) = self.used.get_mut(&bucket)
            && used.grant == grant
        {
            used.free_at = used.free_before;
        }
    }

    /// The IDENTIFY was sent before now.
    pub(super) fn sent(&mut self, bucket: u32, grant: u64, now: Instant) {
        if let Some(used) = self.used.get_mut(&bucket)
            && used.grant == grant
        {
            used.free_at = used.free_at.min(now + PERIOD);
        }
    }

    /// Forgets what no clock can doubt any more.
    pub(super) fn forget(&mut self, now: Instant) {
        self.used.retain(|_, used| now < used.free_at + SKEW_MAX);
    }

    pub(super) fn last_grants(&self) -> BTreeMap<u32, u64> {
        let at = |(bucket, used): (&u32, &Used)| (*bucket, used.unix_ms);
        self.used.iter().map(at).collect()
    }

    /// How long until every one of these shards may have had a grant.
    pub(super) fn time_for(&self, shards: impl Iterator<Item = u32>, now: Instant) -> Duration {
        let mut waiting: BTreeMap<u32, u32> = BTreeMap::new();
        for shard in shards {
            *waiting.entry(self.of(shard)).or_default() += 1;
        }
        let time = |(bucket, count): (&u32, &u32)| {
            let free_at = self.free_at(*bucket).unwrap_or(now);
            free_at.saturating_duration_since(now) + PERIOD * (count - 1)
        };
        waiting.iter().map(time).max().unwrap_or_default()
    }
}
