//! A copy of everything the directory's bucket holds: what batches start from and what queries
//! answer from. Every instance has all of it, whichever shards it reads itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemas::directory::{PAGE_DEFAULT, PAGE_MAX};
use schemas::{
    DirectoryStats, GuildEntry, GuildId, GuildInfo, GuildPage, GuildsRequest, ShardPosition,
};
use serde::Serialize;
use tokio::sync::watch;

use super::batch::{Known, Revised};

/// An entry and where it stands in the bucket.
#[derive(Clone, Debug)]
struct Stored<T> {
    value: T,
    revision: u64,
}

/// The guilds of one shard.
#[derive(Clone, Debug, Default)]
struct OfShard {
    guilds: BTreeSet<GuildId>,
    members: u64,
}

#[derive(Debug, Default)]
struct Inner {
    guilds: BTreeMap<GuildId, Stored<GuildEntry>>,
    // Entries we removed, until the bucket has told us everything before that: at most the
    // removals of the last moments.
    removed: BTreeMap<GuildId, u64>,
    shards: BTreeMap<u32, OfShard>,
    stale: BTreeSet<(u64, GuildId)>,
    unavailable: u64,
    members: u64,
    channels: u64,
    positions: BTreeMap<u32, Stored<ShardPosition>>,
    instances: BTreeMap<String, Instant>,
}

/// The copy.
#[derive(Debug)]
pub(crate) struct View {
    inner: Mutex<Inner>,
    /// The bucket has told us everything up to this revision.
    revision: watch::Sender<u64>,
}

/// Guilds and members of one shard number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSums {
    pub(crate) guilds: u64,
    pub(crate) members: u64,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            revision: watch::Sender::new(0),
        }
    }

    /// Forgets everything: the bucket was made again.
    pub(crate) fn clear(&self) {
        *self.lock() = Inner::default();
        self.revision.send_replace(0);
    }

    /// Up to where the bucket has told its entries.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// The bucket told everything up to here.
    pub(crate) fn advance(&self, revision: u64) {
        self.lock().removed.retain(|_, at| *at > revision);
        self.revision.send_if_modified(|known| {
            let newer = *known < revision;
            *known = (*known).max(revision);
            newer
        });
    }

    /// Waits until the bucket has told everything up to this revision.
    pub(crate) async fn caught_up(&self, revision: u64) {
        let mut known = self.revision.subscribe();
        // The sender lives as long as the view.
        drop(known.wait_for(|known| *known >= revision).await);
    }

    /// Whether the guild's entry is known as the bucket has it at this revision, or newer.
    pub(crate) fn knows(&self, guild: GuildId, revision: u64) -> bool {
        self.lock().knows(guild, revision)
    }

    /// Takes over an entry as the bucket has it at this revision; `None`: it was removed.
    pub(crate) fn set_guild(&self, guild: GuildId, entry: Option<GuildEntry>, revision: u64) {
        let mut inner = self.lock();
        if inner.knows(guild, revision) {
            return;
        }
        inner.forget(guild);
        match entry {
            Some(entry) => inner.remember(guild, entry, revision),
            None => drop(inner.removed.insert(guild, revision)),
        }
    }

    pub(crate) fn set_position(&self, shard: u32, position: Option<ShardPosition>, revision: u64) {
        let mut inner = self.lock();
        match (inner.positions.get(&shard), position) {
            (Some(known), _) if known.revision >= revision => {}
            (_, Some(value)) => {
                drop(inner.positions.insert(shard, Stored { value, revision }));
            }
            (_, None) => drop(inner.positions.remove(&shard)),
        }
    }

    pub(crate) fn position(&self, shard: u32) -> Option<ShardPosition> {
        let inner = self.lock();
        inner
            .positions
            .get(&shard)
            .map(|stored| stored.value.clone())
    }

    /// Shards anybody has read.
    pub(crate) fn shards(&self) -> BTreeSet<u32> {
        self.lock().positions.keys().copied().collect()
    }

    /// An instance gave a sign of life, or left.
    pub(crate) fn set_instance(&self, name: &str, alive: Option<Instant>) {
        let mut inner = self.lock();
        match alive {
            Some(now) => drop(inner.instances.insert(name.to_owned(), now)),
            None => drop(inner.instances.remove(name)),
        }
    }

    /// Instances that gave a sign of life within this time.
    pub(crate) fn instances(&self, within: Duration, now: Instant) -> Vec<String> {
        let inner = self.lock();
        let alive = inner
            .instances
            .iter()
            .filter(|(_, seen)| now.saturating_duration_since(**seen) <= within);
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// Revision that the next write of the guild's entry must expect; 0 for a new one.
    pub(crate) fn revision_of(&self, guild: GuildId) -> u64 {
        self.lock().revision_of(guild)
    }

    /// The guild that has been stale the longest, if that was before this time, of the shards this
    /// instance reads.
    pub(crate) fn stale_before(&self, unix_ms: u64, reader: &str) -> Option<GuildEntry> {
        let inner = self.lock();
        let reads = |shard: &u32| {
            let position = inner.positions.get(shard);
            position.is_some_and(|stored| stored.value.holder.as_deref() == Some(reader))
        };
        inner
            .stale
            .iter()
            .take_while(|(since, _)| *since < unix_ms)
            .filter_map(|(_, guild)| inner.guilds.get(guild))
            .find(|stored| reads(&stored.value.shard))
            .map(|stored| stored.value.clone())
    }

    /// Sums over all guilds; shards and latencies are somebody else's knowledge.
    pub(crate) fn stats(&self) -> DirectoryStats {
        let inner = self.lock();
        DirectoryStats {
            guilds: inner.guilds.len() as u64,
            unavailable: inner.unavailable,
            stale: inner.stale.len() as u64,
            members: inner.members,
            channels: inner.channels,
            ..DirectoryStats::default()
        }
    }

    /// What is on each shard number.
    pub(crate) fn shard_sums(&self) -> BTreeMap<u32, ShardSums> {
        let inner = self.lock();
        let sums = |of: &OfShard| ShardSums {
            guilds: of.guilds.len() as u64,
            members: of.members,
        };
        inner
            .shards
            .iter()
            .map(|(shard, of)| (*shard, sums(of)))
            .collect()
    }

    /// A page of guilds whose JSON has at most `bytes_max` bytes.
    pub(crate) fn page(&self, request: &GuildsRequest, bytes_max: usize) -> GuildPage {
        let wanted = request.name.as_deref().map(str::to_lowercase);
        let matches = |entry: &GuildEntry| {
            wanted.as_deref().is_none_or(|wanted| {
                let name = entry.name.as_deref().unwrap_or_default();
                name.to_lowercase().contains(wanted)
            })
        };
        let inner = self.lock();
        let after = request.after.map(schemas::Snowflake::as_guild);
        let from = match after {
            Some(after) => (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        let entry = |guild: &GuildId| inner.guilds.get(guild).map(|stored| &stored.value);
        let mut page = Page::new(request.limit, bytes_max);
        match request.shard {
            Some(shard) => {
                let guilds = inner.shards.get(&shard).map(|of| &of.guilds);
                let guilds = guilds.into_iter().flat_map(|guilds| guilds.range(from));
                page.fill(
                    guilds
                        .filter_map(entry)
                        .filter(|entry| matches(entry))
                        .map(GuildEntry::info),
                );
            }
            None => {
                let guilds = inner.guilds.range(from).map(|(_, stored)| &stored.value);
                page.fill(guilds.filter(|entry| matches(entry)).map(GuildEntry::info));
            }
        }
        let next = page
            .more
            .then(|| page.lines.last().map(|line: &GuildInfo| line.id));
        GuildPage {
            next: next.flatten(),
            guilds: page.lines,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between the parts of a change would leave sums that are wrong by one entry, which
        // is better than a directory that answers nothing any more.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known for View {
    fn revised(&self, guild: GuildId) -> Revised {
        let inner = self.lock();
        let stored = inner.guilds.get(&guild);
        Revised {
            entry: stored.map(|stored| stored.value.clone()),
            revision: inner.revision_of(guild),
        }
    }

    fn of_shard(&self, shard: u32) -> Vec<GuildId> {
        let inner = self.lock();
        let of = inner.shards.get(&shard);
        of.map(|of| of.guilds.iter().copied().collect())
            .unwrap_or_default()
    }
}

impl Inner {
    fn knows(&self, guild: GuildId, revision: u64) -> bool {
        let known = self.guilds.get(&guild).map(|stored| stored.revision);
        let newest = known.max(self.removed.get(&guild).copied());
        newest.is_some_and(|newest| newest >= revision)
    }

    fn revision_of(&self, guild: GuildId) -> u64 {
        let stored = self.guilds.get(&guild).map(|stored| stored.revision);
        stored
            .or(self.removed.get(&guild).copied())
            .unwrap_or_default()
    }

    fn remember(&mut self, guild: GuildId, entry: GuildEntry, revision: u64) {
        self.removed.remove(&guild);
        let of = self.shards.entry(entry.shard).or_default();
        of.guilds.insert(guild);
        let members = entry.member_count.unwrap_or_default();
        of.members = of.members.saturating_add(members);
        self.members = self.members.saturating_add(members);
        self.channels += entry.channels.len() as u64;
        self.unavailable += u64::from(!entry.available);
        if let Some(since) = entry.stale_since_unix_ms {
            self.stale.insert((since, guild));
        }
        let value = entry;
        self.guilds.insert(guild, Stored { value, revision });
    }

    fn forget(&mut self, guild: GuildId) {
        let Some(Stored { value: entry, .. }) = self.guilds.remove(&guild) else {
            return;
        };
        let members = entry.member_count.unwrap_or_default();
        if let Some(of) = self.shards.get_mut(&entry.shard) {
            of.guilds.remove(&guild);
            of.members = of.members.saturating_sub(members);
            if of.guilds.is_empty() {
                self.shards.remove(&entry.shard);
            }
        }
        self.members = self.members.saturating_sub(members);
        self.channels -= entry.channels.len() as u64;
        self.unavailable -= u64::from(!entry.available);
        if let Some(since) = entry.stale_since_unix_ms {
            self.stale.remove(&(since, guild));
        }
    }
}

/// Lines of a reply until it is long enough.
pub(crate) struct Page<L> {
    pub(crate) lines: Vec<L>,
    /// Whether there are more lines than fit.
    pub(crate) more: bool,
    limit: usize,
    bytes_left: usize,
}

impl<L: Serialize> Page<L> {
    pub(crate) fn new(limit: Option<u32>, bytes_max: usize) -> Self {
        Self {
            lines: Vec::new(),
            more: false,
            limit: limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX) as usize,
            bytes_left: bytes_max,
        }
    }

    pub(crate) fn fill(&mut self, lines: impl Iterator<Item = L>) {
        for line in lines {
            // And a comma. What cannot be written has no length, and fails where it is sent.
            let bytes = serde_json::to_vec(&line).map_or(0, |json| json.len() + 1);
            if self.lines.len() == self.limit || bytes > self.bytes_left {
                self.more = true;
                return;
            }
            self.bytes_left -= bytes;
            self.lines.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::Snowflake;

    use super::*;

    fn guild(id: u64) -> GuildId {
        GuildId::new(id).unwrap()
    }

    fn entry(id: u64, shard: u32) -> GuildEntry {
        GuildEntry {
            name: Some(format!("Guild {id}")),
            member_count: Some(10),
            channels: [Snowflake::new(1).unwrap()].into(),
            available: true,
            ..GuildEntry::stub(Snowflake::new(id).unwrap(), shard)
        }
    }

    fn view(guilds: std::ops::RangeInclusive<u64>) -> View {
        let view = View::new();
        for id in guilds {
            view.set_guild(guild(id), Some(entry(id, (id % 2) as u32)), id);
        }
        view
    }

    #[test]
    fn sums_follow_every_change() {
        let view = view(1..=4);
        let stats = view.stats();
        assert_eq!((stats.guilds, stats.members, stats.channels), (4, 40, 4));
        let moved = GuildEntry {
            member_count: Some(3),
            available: false,
            stale_since_unix_ms: Some(5),
            ..entry(1, 0)
        };
        view.set_guild(guild(1), Some(moved), 10);
        view.set_guild(guild(2), None, 11);
        let stats = view.stats();
        assert_eq!((stats.guilds, stats.members, stats.channels), (3, 23, 3));
        assert_eq!((stats.unavailable, stats.stale), (1, 1));
        let sums = view.shard_sums();
        assert_eq!(
            sums[&0],
            ShardSums {
                guilds: 2,
                members: 13
            }
        );
        assert_eq!(
            sums[&1],
            ShardSums {
                guilds: 1,
                members: 10
            }
        );
        view.clear();
        assert_eq!(view.stats(), DirectoryStats::default());
    }

    #[test]
    fn what_the_bucket_tells_late_does_not_undo_what_we_wrote() {
        let view = view(1..=1);
        view.set_guild(guild(1), None, 9);
        assert_eq!(view.revision_of(guild(1)), 9);
        view.set_guild(guild(1), Some(entry(1, 0)), 5);
        assert_eq!(view.guild(guild(1)), None);
        view.advance(9);
        assert_eq!(view.revision_of(guild(1)), 0, "the bucket is asked");
        view.set_guild(guild(1), Some(entry(1, 0)), 12);
        view.set_guild(guild(1), Some(entry(1, 1)), 11);
        assert_eq!(view.guild(guild(1)).unwrap().shard, 0);
    }

    #[test]
    fn pages_lead_to_every_guild_once() {
        let view = view(1..=25);
        for (shard, expect) in [(None, 25), (Some(0), 12), (Some(1), 13), (Some(9), 0)] {
            for (limit, bytes) in [(Some(4), usize::MAX), (None, 500), (Some(100), usize::MAX)] {
                let mut request = GuildsRequest {
                    shard,
                    limit,
                    ..GuildsRequest::default()
                };
                let mut seen = BTreeSet::new();
                loop {
                    let page = view.page(&request, bytes);
                    assert!(
                        serde_json::to_vec(&page.guilds).unwrap().len() <= bytes.saturating_add(2)
                    );
                    seen.extend(page.guilds.iter().map(|guild| guild.id));
                    let Some(next) = page.next else { break };
                    request.after = Some(next);
                }
                assert_eq!(seen.len(), expect, "{shard:?} {limit:?} {bytes}");
            }
        }
    }

    #[test]
    fn a_name_is_found_in_any_case() {
        let view = view(1..=25);
        let request = GuildsRequest {
            name: Some("gUILD 2".to_owned()),
            ..GuildsRequest::default()
        };
        let names: Vec<_> = view.page(&request, usize::MAX).guilds;
        assert_eq!(names.len(), 7, "2 and 20 to 25");
    }

    #[test]
    fn the_stalest_guild_of_the_readers_shards_comes_first() {
        let view = view(1..=3);
        for (id, since) in [(1, 30), (2, 10), (3, 20)] {
            let stale = GuildEntry {
                stale_since_unix_ms: Some(since),
                ..entry(id, (id % 2) as u32)
            };
            view.set_guild(guild(id), Some(stale), 100 + id);
        }
        for (shard, holder) in [(0, "a"), (1, "b")] {
            let position = ShardPosition {
                holder: Some(holder.to_owned()),
                ..ShardPosition::default()
            };
            view.set_position(shard, Some(position), 200);
        }
        let first = |before, reader| {
            let found = view.stale_before(before, reader);
            found.map(|entry| entry.id.get())
        };
        assert_eq!(first(100, "a"), Some(2));
        assert_eq!(first(100, "b"), Some(3));
        assert_eq!(first(100, "c"), None);
        assert_eq!(first(10, "a"), None);
    }

    #[test]
    fn an_instance_without_a_sign_of_life_is_not_counted() {
        let (view, now) = (View::new(), Instant::now());
        view.set_instance("a", Some(now));
        view.set_instance("b", Some(now + Duration::from_secs(5)));
        let alive = |at: u64| view.instances(Duration::from_secs(2), now + Duration::from_secs(at));
        assert_eq!(alive(1), ["a", "b"]);
        assert_eq!(alive(5), ["b"]);
        view.set_instance("b", None);
        assert_eq!(alive(1), ["a"]);
    }
}
