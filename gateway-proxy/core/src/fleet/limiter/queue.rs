//! Who waits for an IDENTIFY, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use schemas::control::IdentifyPriority;
use schemas::{ProxyId, ShardId};

use super::Ticket;

/// Most that wait: one per shard.
const WAITING_MAX: usize = 1 << 20;
/// Grants without a session within [`TRIES_WINDOW`] after which a shard lets all others go first.
const TRIES_MAX: u32 = 3;
/// See [`TRIES_MAX`].
const TRIES_WINDOW: Duration = Duration::from_secs(600);

/// Everybody who waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    // One per shard.
    waiting: BTreeMap<u32, Waiting>,
    // Those whose request is held, by since when.
    held: BTreeSet<(Instant, u32)>,
    // Of shards that were granted lately and are not ready: how often, and when last.
    tries: BTreeMap<u32, (u32, Instant)>,
    // Number of the last grant per proxy.
    served: BTreeMap<ProxyId, u64>,
}

/// One shard that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) shard: ShardId,
    pub(super) proxy: ProxyId,
    priority: IdentifyPriority,
    // A request that is held until it is answered, and since when.
    pub(super) present: Option<(Ticket, Instant)>,
    // Forgotten when it has not asked again by then.
    until: Instant,
}

/// The order of service: the least first.
type Rank = (u32, u64, u32);

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = u32> {
        self.waiting.keys().copied()
    }

    /// Adds a request; whoever asked before for the same shard and is still held is returned.
    ///
    /// # Errors
    /// The ticket, when too many wait.
    pub(super) fn push(
        &mut self,
        shard: ShardId,
        proxy: ProxyId,
        priority: IdentifyPriority,
        ticket: Ticket,
        now: Instant,
        until: Instant,
    ) -> Result<Option<Ticket>, Ticket> {
        if self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&shard.id()) {
            return Err(ticket);
        }
        let waiting = Waiting {
            shard,
            proxy,
            priority,
            present: Some((ticket, now)),
            until,
        };
        self.held.insert((now, shard.id()));
        let before = self.waiting.insert(shard.id(), waiting);
        let Some((ticket, since)) = before.and_then(|before| before.present) else {
            return Ok(None);
        };
        if since != now {
            self.held.remove(&(since, shard.id()));
        }
        Ok(Some(ticket))
    }

    pub(super) fn remove(&mut self, shard: u32) -> Option<Waiting> {
        let waiting = self.waiting.remove(&shard)?;
        if let Some((_, since)) = waiting.present {
            self.held.remove(&(since, shard));
        }
        Some(waiting)
    }

    /// Puts back what was taken out to be granted. False when it has asked again meanwhile.
    pub(super) fn put_back(&mut self, waiting: Waiting) -> bool {
        let shard = waiting.shard.id();
        if self.waiting.contains_key(&shard) {
            return false;
        }
        if let Some((_, since)) = waiting.present {
            self.held.insert((since, shard));
        }
        self.waiting.insert(shard, waiting);
        true
    }

    pub(super) fn cancel(&mut self, ticket: Ticket) {
        let found = self.waiting.values().find(|waiting| {
            let held = waiting.present.map(|(held, _)| held);
            held == Some(ticket)
        });
        if let Some(shard) = found.map(|waiting| waiting.shard.id()) {
            self.remove(shard);
        }
    }

    /// Those that are there to be granted and of whose bucket `free` says so, best first.
    pub(super) fn present(&self, free: impl Fn(u32) -> bool, now: Instant) -> Vec<u32> {
        let mut ranked: Vec<(Rank, u32)> = self
            .held
            .iter()
            .filter(|(_, shard)| free(*shard))
            .filter_map(|(_, shard)| Some((self.rank(self.waiting.get(shard)?, now), *shard)))
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, shard)| shard).collect()
    }

    /// The held ones.
    pub(super) fn held(&self) -> impl Iterator<Item = u32> {
        self.held.iter().map(|(_, shard)| *shard)
    }

    /// How many of its bucket this shard must let go first.
    pub(super) fn before(&self, shard: u32, buckets: u32, now: Instant) -> u32 {
        let Some(own) = self.waiting.get(&shard) else {
            return 0;
        };
        let rank = self.rank(own, now);
        let last = self.waiting.last_key_value().map_or(0, |(last, _)| *last);
        let better = (shard % buckets..=last)
            .step_by(buckets as usize)
            .filter_map(|other| self.waiting.get(&other))
            .filter(|waiting| self.rank(waiting, now) < rank);
        u32::try_from(better.count()).unwrap_or(u32::MAX)
    }

    /// A held request that was held for long enough.
    pub(super) fn overdue(&mut self, held: Duration, now: Instant) -> Option<(Ticket, ShardId)> {
        let (since, _) = self.held.first()?;
        if now < *since + held {
            return None;
        }
        self.pop_held()
    }

    /// Any held request, to answer all.
    pub(super) fn pop_held(&mut self) -> Option<(Ticket, ShardId)> {
        let (_, shard) = self.held.pop_first()?;
        let waiting = self.waiting.get_mut(&shard)?;
        let (ticket, _) = waiting.present.take()?;
        Some((ticket, waiting.shard))
    }

    pub(super) fn expect_again(&mut self, shard: u32, until: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&shard) {
            waiting.until = until;
        }
    }

    pub(super) fn next_overdue(&self, held: Duration) -> Option<Instant> {
        self.held.first().map(|(since, _)| *since + held)
    }

    pub(super) fn forget(&mut self, now: Instant) {
        self.waiting
            .retain(|_, waiting| waiting.present.is_some() || now < waiting.until);
        self.tries.retain(|_, (_, last)| now < *last + TRIES_WINDOW);
    }

    pub(super) fn granted(&mut self, waiting: &Waiting, grant: u64, now: Instant) {
        self.served.insert(waiting.proxy.clone(), grant);
        let (tries, last) = self.tries.entry(waiting.shard.id()).or_insert((0, now));
        *tries += 1;
        *last = now;
    }

    pub(super) fn unused(&mut self, shard: u32) {
        if let Some((tries, _)) = self.tries.get_mut(&shard) {
            *tries = tries.saturating_sub(1);
        }
    }

    pub(super) fn ready(&mut self, shard: u32) {
        self.tries.remove(&shard);
    }

    /// Members that are no more.
    pub(super) fn forget_served(&mut self, keep: usize) {
        while self.served.len() > keep {
            let oldest = self.served.iter().min_by_key(|(_, grant)| **grant);
            let Some(proxy) = oldest.map(|(proxy, _)| proxy.clone()) else {
                return;
            };
            self.served.remove(&proxy);
        }
    }

    /// Lost sessions first, in turns between the proxies; then what starts, by number, which is Discord's
    /// order of the buckets and, within one, that of the waves; then growth. A shard that is granted again
    /// and again without success comes after all of them.
    fn rank(&self, waiting: &Waiting, now: Instant) -> Rank {
        let id = waiting.shard.id();
        let tried = self
            .tries
            .get(&id)
            .is_some_and(|(tries, last)| *tries >= TRIES_MAX && now < *last + TRIES_WINDOW);
        let served = || self.served.get(&waiting.proxy).copied().unwrap_or(0);
        match waiting.priority {
            _ if tried => (3, served(), id),
            IdentifyPriority::Failed => (0, served(), id),
            IdentifyPriority::Start => (1, 0, id),
            IdentifyPriority::Growth => (2, 0, id),
        }
    }
}
