//! The bot's guilds: ids, sizes and outages, all from one seed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use schemas::{GuildId, ShardId};

use super::config::GuildBytes;

/// First second of 2015, where snowflakes begin.
pub(crate) const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;
/// Guilds were founded between 2016 and 2026.
const FOUNDED_FROM_MS: u64 = 1_451_606_400_000;
const FOUNDED_SPAN_MS: u64 = 10 * 365 * 86_400_000;
/// Smallest GUILD_CREATE worth drawing.
const GUILD_BYTES_MIN: f64 = 3000.0;

/// One guild.
#[derive(Clone, Copy)]
pub(crate) struct Guild {
    pub(crate) id: u64,
    pub(crate) bytes: u32,
}

/// All guilds of the bot.
pub(crate) struct World {
    guilds: Vec<Guild>,
    by_id: HashMap<u64, u32>,
    /// In the order of their ids.
    sorted: Vec<u32>,
    unavailable: Vec<AtomicBool>,
}

impl World {
    pub(crate) fn new(seed: u64, count: usize, bytes: GuildBytes) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut guilds = Vec::with_capacity(count);
        let mut by_id = HashMap::with_capacity(count);
        while guilds.len() < count {
            let id = snowflake(FOUNDED_FROM_MS + rng.u64(..FOUNDED_SPAN_MS), rng.u64(..));
            if by_id.insert(id, guilds.len() as u32).is_some() {
                continue;
            }
            let size = if guilds.len() < bytes.forced_max {
                bytes.max
            } else {
                let size = bytes.median as f64 * (bytes.sigma * normal(&mut rng)).exp();
                (size.max(GUILD_BYTES_MIN) as usize).min(bytes.max)
            };
            guilds.push(Guild {
                id,
                bytes: size as u32,
            });
        }
        let unavailable = guilds.iter().map(|_| AtomicBool::new(false)).collect();
        let mut sorted: Vec<u32> = (0..count as u32).collect();
        sorted.sort_unstable_by_key(|index| guilds[*index as usize].id);
        Self {
            guilds,
            by_id,
            sorted,
            unavailable,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.guilds.len()
    }

    pub(crate) fn guild(&self, index: u32) -> Guild {
        self.guilds[index as usize]
    }

    pub(crate) fn index_of(&self, id: u64) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// A page of guilds in the order of their ids: the first after `after`, or the last before `before`.
    pub(crate) fn page(&self, after: u64, before: Option<u64>, limit: usize) -> &[u32] {
        let below = |id: u64| move |index: &u32| self.guild(*index).id < id;
        let from = self.sorted.partition_point(below(after.saturating_add(1)));
        match before {
            None => &self.sorted[from..(from + limit).min(self.sorted.len())],
            Some(before) => {
                let to = self.sorted.partition_point(below(before)).max(from);
                &self.sorted[from.max(to.saturating_sub(limit))..to]
            }
        }
    }

    /// The guilds of a shard, by Discord's formula.
    pub(crate) fn of_shard(&self, shard: ShardId) -> Vec<u32> {
        let mine = |guild: &Guild| shard_of(guild.id, shard.count()) == shard.id();
        let numbered = self.guilds.iter().zip(0_u32..);
        numbered
            .filter(|(guild, _)| mine(guild))
            .map(|(_, index)| index)
            .collect()
    }

    pub(crate) fn is_unavailable(&self, index: u32) -> bool {
        self.unavailable[index as usize].load(Ordering::Relaxed)
    }

    /// Guilds in an outage.
    pub(crate) fn unavailable(&self) -> usize {
        let out = |guild: &&AtomicBool| guild.load(Ordering::Relaxed);
        self.unavailable.iter().filter(out).count()
    }

    /// True when that changed something.
    pub(crate) fn set_unavailable(&self, index: u32, unavailable: bool) -> bool {
        self.unavailable[index as usize].swap(unavailable, Ordering::Relaxed) != unavailable
    }
}

/// Guilds are busy by Zipf's law: a number below `count`, the first ones far more often.
pub(crate) fn skewed(rng: &mut fastrand::Rng, count: usize) -> usize {
    let draw = (count as f64 + 1.0).powf(rng.f64()) - 1.0;
    (draw as usize).min(count.saturating_sub(1))
}

/// `(guild_id >> 22) % count`; guild 0 (no guild) belongs to shard 0.
pub(crate) fn shard_of(guild: u64, count: u32) -> u32 {
    GuildId::new(guild).map_or(0, |guild| guild.shard(count))
}

/// What an entity is, so that ids of different kinds differ.
#[derive(Clone, Copy)]
pub(crate) enum Entity {
    Channel = 1,
    Role = 2,
    User = 3,
}

/// The id of a guild's n-th channel, role or user.
pub(crate) fn entity(kind: Entity, guild: u64, index: u64) -> u64 {
    let hash = splitmix(guild ^ (kind as u64) << 56 ^ index << 40);
    snowflake(FOUNDED_FROM_MS + hash % FOUNDED_SPAN_MS, hash >> 20)
}

/// An id made at `unix_ms`, with 22 low bits of `low`.
pub(crate) const fn snowflake(unix_ms: u64, low: u64) -> u64 {
    (unix_ms - DISCORD_EPOCH_MS) << 22 | low & 0x3f_ffff
}

/// Scrambles a number (SplitMix64).
pub(crate) const fn splitmix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A normally distributed number (Box–Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guild_is_on_exactly_one_shard() {
        let world = World::new(7, 500, GuildBytes::default());
        let mut all: Vec<u32> = (0..16)
            .flat_map(|id| world.of_shard(ShardId::new(id, 16).unwrap()))
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        for index in world.of_shard(ShardId::new(3, 16).unwrap()) {
            assert_eq!((world.guild(index).id >> 22) % 16, 3);
        }
    }

    #[test]
    fn pages_hold_every_guild_once_in_the_order_of_ids() {
        let world = World::new(7, 250, GuildBytes::default());
        let mut all: Vec<u64> = world.guilds.iter().map(|guild| guild.id).collect();
        all.sort_unstable();
        let ids = |page: &[u32]| -> Vec<u64> {
            page.iter().map(|index| world.guild(*index).id).collect()
        };
        let (mut paged, mut after) = (Vec::new(), 0);
        while let [.., last] = &ids(world.page(after, None, 100))[..] {
            paged.extend(ids(world.page(after, None, 100)));
            after = *last;
        }
        assert_eq!(paged, all);
        assert_eq!(ids(world.page(0, Some(all[200]), 3)), all[197..200]);
        assert_eq!(ids(world.page(all[198], Some(all[200]), 3)), all[199..200]);
        assert!(world.page(0, Some(all[0]), 3).is_empty());
        assert!(world.page(u64::MAX, None, 3).is_empty());
    }

    #[test]
    fn the_same_seed_founds_the_same_guilds() {
        let ids = |seed| -> Vec<u64> {
            let world = World::new(seed, 20, GuildBytes::default());
            (0..20).map(|index| world.guild(index).id).collect()
        };
        assert_eq!(ids(3), ids(3));
        assert_ne!(ids(3), ids(4));
    }

    #[test]
    fn busy_guilds_come_first() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut hits = [0_u32; 100];
        for _ in 0..10_000 {
            hits[skewed(&mut rng, 100)] += 1;
        }
        assert!(hits[0] > 5 * hits[50]);
        assert!(hits[99] > 0);
    }
}
