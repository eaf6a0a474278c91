//! Who may IDENTIFY when: one grant per `shard_id % max_concurrency` per 5 s, and a daily budget with
//! a reserve.
//!
//! Pure: time is unix milliseconds, because the state must survive a change of the process that
//! grants. Whoever grants holds one [`Limiter`]; in a fleet that is the coordinator.

use std::collections::BTreeMap;

use schemas::ShardId;

/// One IDENTIFY per bucket in this time (Discord, Gateway, Rate Limiting).
pub const WINDOW_MS: u64 = 5_000;
/// Added to [`WINDOW_MS`]: Discord measures at arrival, we at sending, and two sendings may take
/// differently long on the way.
pub const MARGIN_MS: u64 = 100;
/// Most buckets believed in: each keeps its last grant, and Discord's largest bots have 64.
const BUCKETS_MAX: u32 = 1 << 16;
/// How long to wait before asking again when the budget's reset time has passed unnoticed.
const RECHECK_MS: u64 = 60_000;

/// Discord's session start limit as last known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// IDENTIFYs per day.
    pub total: u32,
    /// How many are left.
    pub remaining: u32,
    /// When `remaining` becomes `total` again, unix ms.
    pub reset_at_ms: u64,
    /// How many buckets there are.
    pub max_concurrency: u32,
}

/// Why a shard must be identified; lower goes first within a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// It had a session and lost it.
    Lost,
    /// It never had one.
    New,
}

/// Grants IDENTIFYs.
#[derive(Debug)]
pub struct Limiter {
    budget: Budget,
    reserve_percent: u8,
    // Keyed so that iteration is the order of service: lost sessions first, then by shard number,
    // which starts the buckets in order (0 … max_concurrency-1 first). At most one per shard.
    waiting: BTreeMap<(Priority, u32), ShardId>,
    // Last grant per bucket, unix ms. At most max_concurrency entries.
    last: BTreeMap<u32, u64>,
}

/// Why nothing can be granted at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody waits.
    Idle,
    /// Every waiting shard's bucket was used within the window; free again at this time, unix ms.
    Bucket(u64),
    /// The day's budget is down to its reserve; new sessions wait until this time, unix ms.
    Reserve(u64),
}

impl Limiter {
    /// A limiter that granted nothing yet. `reserve_percent` of the day's total is never spent.
    #[must_use]
    pub fn new(budget: Budget, reserve_percent: u8) -> Self {
        Self {
            budget: bounded(budget),
            reserve_percent,
            waiting: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// Continues where another process stopped: its last grants per bucket, unix ms.
    pub fn restore(&mut self, last_grants: impl IntoIterator<Item = (u32, u64)>) {
        for (bucket, at) in last_grants {
            let last = self.last.entry(bucket).or_default();
            *last = at.max(*last);
        }
    }

    /// What Discord said last.
    #[must_use]
    pub const fn budget(&self) -> Budget {
        self.budget
    }

    /// The last grant per bucket, unix ms.
    pub fn last_grants(&self) -> impl Iterator<Item = (u32, u64)> {
        self.last.iter().map(|(bucket, at)| (*bucket, *at))
    }

    /// How many shards wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// IDENTIFYs below which new sessions wait.
    #[must_use]
    pub fn reserve(&self) -> u32 {
        let reserve = u64::from(self.budget.total) * u64::from(self.reserve_percent.min(100)) / 100;
        // At most the total, which is a u32.
        u32::try_from(reserve).unwrap_or(u32::MAX)
    }

    /// Discord was asked again.
    pub fn set_budget(&mut self, budget: Budget) {
        let budget = bounded(budget);
        if budget.max_concurrency != self.budget.max_concurrency {
            // Other buckets: the newest grant counts for all of them, so that none is used early.
            let newest = self.last.values().copied().max();
            self.last.clear();
            if let Some(newest) = newest {
                self.last
                    .extend((0..budget.max_concurrency).map(|bucket| (bucket, newest)));
            }
        }
        self.budget = budget;
    }

    /// Whether the budget is above its reserve.
    #[must_use]
    pub fn has_budget(&self, now_ms: u64) -> bool {
        self.budget.remaining > self.reserve() || now_ms >= self.budget.reset_at_ms
    }

    /// A shard wants to IDENTIFY. Asking again moves it to the new priority.
    pub fn request(&mut self, shard: ShardId, priority: Priority) {
        self.cancel(shard);
        self.waiting.insert((priority, shard.id()), shard);
    }

    /// A shard wants no grant any more.
    pub fn cancel(&mut self, shard: ShardId) {
        for priority in [Priority::Lost, Priority::New] {
            self.waiting.remove(&(priority, shard.id()));
        }
    }

    /// The IDENTIFY went out, perhaps some time after its grant: the window runs from here.
    pub fn sent(&mut self, shard: ShardId, now_ms: u64) {
        let last = self.last.entry(shard.bucket(self.budget.max_concurrency));
        let last = last.or_default();
        *last = now_ms.max(*last);
    }

    /// A grant was not used: the day's budget gets it back. The bucket keeps its pause, since
    /// somebody else may have sent in it meanwhile.
    pub fn give_back(&mut self) {
        self.budget.remaining = self
            .budget
            .remaining
            .saturating_add(1)
            .min(self.budget.total);
    }

    /// The next grant, if one is possible now.
    pub fn poll(&mut self, now_ms: u64) -> Option<ShardId> {
        self.roll_over(now_ms);
        for last in self.last.values_mut() {
            // A grant in the future was made before the clock was set back: its window starts now.
            *last = (*last).min(now_ms);
        }
        if self.budget.remaining <= self.reserve() {
            return None;
        }
        let (key, shard) = self
            .waiting
            .iter()
            .find(|(_, shard)| self.free_at(**shard) <= now_ms)
            .map(|(key, shard)| (*key, *shard))?;
        self.waiting.remove(&key);
        self.last
            .insert(shard.bucket(self.budget.max_concurrency), now_ms);
        self.budget.remaining -= 1;
        Some(shard)
    }

    /// Why [`Limiter::poll`] grants nothing, and until when.
    #[must_use]
    pub fn hold(&self, now_ms: u64) -> Hold {
        let Some(free) = self
            .waiting
            .values()
            .map(|shard| self.free_at(*shard))
            .min()
        else {
            return Hold::Idle;
        };
        if self.budget.remaining <= self.reserve() {
            let reset = self.budget.reset_at_ms;
            return Hold::Reserve(if reset > now_ms {
                reset
            } else {
                now_ms + RECHECK_MS
            });
        }
        Hold::Bucket(free.max(now_ms))
    }

    fn free_at(&self, shard: ShardId) -> u64 {
        let bucket = shard.bucket(self.budget.max_concurrency);
        self.last
            .get(&bucket)
            .map_or(0, |last| last + WINDOW_MS + MARGIN_MS)
    }

    fn roll_over(&mut self, now_ms: u64) {
        if now_ms >= self.budget.reset_at_ms {
            self.budget.remaining = self.budget.total;
            // Until Discord is asked again, a day from now is what it will say.
            self.budget.reset_at_ms = now_ms + DAY_MS;
        }
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

const fn bounded(budget: Budget) -> Budget {
    let max_concurrency = if budget.max_concurrency > BUCKETS_MAX {
        BUCKETS_MAX
    } else {
        budget.max_concurrency
    };
    Budget {
        max_concurrency,
        ..budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn budget(remaining: u32, max_concurrency: u32) -> Budget {
        Budget {
            total: 1_000,
            remaining,
            reset_at_ms: NOW + 3_600_000,
            max_concurrency,
        }
    }

    fn shard(id: u32) -> ShardId {
        ShardId::new(id, 64).unwrap()
    }

    #[test]
    fn buckets_start_in_order_and_each_waits_its_window() {
        let mut limiter = Limiter::new(budget(1_000, 4), 0);
        for id in (0..8).rev() {
            limiter.request(shard(id), Priority::New);
        }
        let first: Vec<_> = std::iter::from_fn(|| limiter.poll(NOW))
            .map(ShardId::id)
            .collect();
        assert_eq!(first, [0, 1, 2, 3]);
        assert_eq!(limiter.hold(NOW), Hold::Bucket(NOW + WINDOW_MS + MARGIN_MS));
        assert_eq!(limiter.poll(NOW + WINDOW_MS), None);
        let later = NOW + WINDOW_MS + MARGIN_MS;
        let second: Vec<_> = std::iter::from_fn(|| limiter.poll(later))
            .map(ShardId::id)
            .collect();
        assert_eq!(second, [4, 5, 6, 7]);
        assert_eq!(limiter.hold(later), Hold::Idle);
    }

    #[test]
    fn an_identify_sent_late_holds_the_next_one_back() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.request(shard(0), Priority::New);
        limiter.request(shard(1), Priority::New);
        assert_eq!(limiter.poll(NOW), Some(shard(0)));
        limiter.sent(shard(0), NOW + 3_000);
        assert_eq!(limiter.poll(NOW + WINDOW_MS + MARGIN_MS), None);
        let free = NOW + 3_000 + WINDOW_MS + MARGIN_MS;
        assert_eq!(limiter.hold(NOW), Hold::Bucket(free));
        assert_eq!(limiter.poll(free), Some(shard(1)));
    }

    #[test]
    fn a_lost_session_goes_before_new_ones() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.request(shard(0), Priority::New);
        limiter.request(shard(9), Priority::Lost);
        assert_eq!(limiter.poll(NOW), Some(shard(9)));
    }

    #[test]
    fn the_reserve_is_never_spent_and_the_wait_names_the_reset() {
        let mut limiter = Limiter::new(budget(201, 16), 20);
        for id in 0..3 {
            limiter.request(shard(id), Priority::New);
        }
        assert_eq!(limiter.poll(NOW), Some(shard(0)));
        assert_eq!(limiter.poll(NOW), None);
        assert_eq!(limiter.hold(NOW), Hold::Reserve(NOW + 3_600_000));
        let reset = NOW + 3_600_000;
        assert!(!limiter.has_budget(reset - 1) && limiter.has_budget(reset));
        assert_eq!(limiter.poll(reset), Some(shard(1)));
        assert_eq!(limiter.budget().remaining, 999);
    }

    #[test]
    fn a_cancelled_request_is_not_granted() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.request(shard(0), Priority::New);
        limiter.cancel(shard(0));
        assert_eq!(limiter.poll(NOW), None);
        assert_eq!(limiter.hold(NOW), Hold::Idle);
    }

    #[test]
    fn a_successor_never_grants_earlier_than_its_predecessor_would_have() {
        let mut limiter = Limiter::new(budget(1_000, 2), 0);
        limiter.restore([(0, NOW - 1_000)]);
        limiter.request(shard(0), Priority::New);
        limiter.request(shard(1), Priority::New);
        assert_eq!(limiter.poll(NOW), Some(shard(1)));
        assert_eq!(
            limiter.hold(NOW),
            Hold::Bucket(NOW - 1_000 + WINDOW_MS + MARGIN_MS)
        );
    }

    #[test]
    fn a_clock_set_back_delays_by_one_window_at_most() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.restore([(0, NOW + 3_600_000)]);
        limiter.request(shard(0), Priority::New);
        assert_eq!(limiter.poll(NOW), None);
        assert_eq!(limiter.poll(NOW + WINDOW_MS + MARGIN_MS), Some(shard(0)));
    }

    #[test]
    fn a_number_of_buckets_beyond_reason_costs_no_memory() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.request(shard(0), Priority::New);
        assert_eq!(limiter.poll(NOW), Some(shard(0)));
        limiter.set_budget(budget(999, u32::MAX));
        assert_eq!(limiter.last_grants().count(), BUCKETS_MAX as usize);
    }

    #[test]
    fn the_day_that_ends_unused_begins_anew_all_the_same() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        let reset = NOW + 3_600_000;
        for round in 0..3 {
            limiter.request(shard(0), Priority::New);
            let at = reset + round * (WINDOW_MS + MARGIN_MS);
            assert_eq!(limiter.poll(at), Some(shard(0)));
        }
        assert_eq!(limiter.budget().remaining, 997);
    }

    #[test]
    fn a_change_of_max_concurrency_keeps_the_pause() {
        let mut limiter = Limiter::new(budget(1_000, 1), 0);
        limiter.request(shard(0), Priority::New);
        assert_eq!(limiter.poll(NOW), Some(shard(0)));
        limiter.set_budget(budget(999, 16));
        limiter.request(shard(5), Priority::New);
        assert_eq!(limiter.poll(NOW + 1), None);
        assert_eq!(limiter.poll(NOW + WINDOW_MS + MARGIN_MS), Some(shard(5)));
    }

    #[test]
    fn no_bucket_is_granted_twice_within_a_window_whatever_happens() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let concurrency = rng.u32(1..20);
            let mut limiter = Limiter::new(budget(500, concurrency), 20);
            let mut now = NOW;
            let mut granted: Vec<(u32, u64)> = Vec::new();
            for _ in 0..300 {
                match rng.u8(0..4) {
                    0 => limiter.request(shard(rng.u32(0..64)), Priority::New),
                    1 => limiter.request(shard(rng.u32(0..64)), Priority::Lost),
                    2 => limiter.cancel(shard(rng.u32(0..64))),
                    _ => now += rng.u64(0..4_000),
                }
                while let Some(shard) = limiter.poll(now) {
                    let bucket = shard.id() % concurrency;
                    let earlier = granted.iter().rev().find(|(other, _)| *other == bucket);
                    assert!(
                        earlier.is_none_or(|(_, at)| now - at >= WINDOW_MS),
                        "seed {seed}"
                    );
                    granted.push((bucket, now));
                }
                assert!(
                    limiter.budget().remaining >= limiter.reserve(),
                    "seed {seed}"
                );
            }
        }
    }
}
