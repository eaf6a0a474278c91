//! What events change in the directory. Pure: a batch starts from what is stored, takes events in
//! stream order, and yields the entries to write.
//!
//! Every entry carries the stream sequence of its last event, and no event at or below it is applied
//! again. Entries and position can therefore be written one after the other: whatever was written
//! before a crash, reading again from the older position leads to the same entries.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use schemas::{GuildEntry, GuildId, ShardId};

use super::event::{Facts, GuildEvent};

/// A guild's entry, if it has one, with the revision it stands at, which a write in its place must
/// expect. Both are of the same moment: what somebody writes after it must not be overwritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revised {
    pub(crate) entry: Option<GuildEntry>,
    /// 0: there has been none.
    pub(crate) revision: u64,
}

/// Entries to write, or to remove where there is none, with what each is to replace.
pub(crate) type Changes = BTreeMap<GuildId, Revised>;

/// What is stored, as a batch sees it.
pub(crate) trait Known {
    /// The entry of a guild and its revision.
    fn revised(&self, guild: GuildId) -> Revised;
    /// The entry of a guild.
    fn guild(&self, guild: GuildId) -> Option<GuildEntry> {
        self.revised(guild).entry
    }
    /// The guilds whose entries name the shard.
    fn of_shard(&self, shard: u32) -> Vec<GuildId>;
}

/// Where an event stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    /// Shard whose subjects it is in.
    pub(crate) shard: u32,
    /// Which stream the sequence counts in.
    pub(crate) stream: &'a str,
    /// Its sequence there.
    pub(crate) seq: u64,
    /// When it was stored, Unix milliseconds.
    pub(crate) unix_ms: u64,
}

/// What an event told besides the entries it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// A guild that was described in full: whether the shard is the one the formula says can be
    /// checked.
    pub(crate) described: Option<GuildId>,
    /// A READY: every guild of the shard was listed.
    pub(crate) listed: bool,
    /// The sharding that a READY or a gap belongs to.
    pub(crate) shard: Option<ShardId>,
}

/// Events of one shard on their way into the store.
pub(crate) struct Batch<'k, K> {
    known: &'k K,
    changed: Changes,
}

impl<'k, K: Known> Batch<'k, K> {
    /// A batch on top of what is stored.
    pub(crate) const fn new(known: &'k K) -> Self {
        Self {
            known,
            changed: Changes::new(),
        }
    }

    /// The entries to write, or to remove where there is none, each in place of what this batch began
    /// with.
    pub(crate) fn into_changes(self) -> Changes {
        self.changed
    }

    /// Applies an event, in the order of the stream.
    pub(crate) fn apply(&mut self, at: At<'_>, event: GuildEvent) -> Told {
        match event {
            GuildEvent::Ready { shard, guilds } => {
                self.ready(at, shard, &guilds);
                return Told {
                    shard,
                    listed: true,
                    described: None,
                };
            }
            GuildEvent::Gap { shard } => {
                for guild in self.of_shard(at.shard) {
                    self.change(at, guild, |entry| mark_stale(entry, at));
                }
                return Told {
                    shard: Some(shard),
                    ..Told::default()
                };
            }
            GuildEvent::Created(facts) => {
                let guild = facts.id;
                self.change(at, guild, |entry| {
                    *entry = GuildEntry::stub(guild.into(), at.shard);
                    adopt(entry, *facts);
                    entry.available = true;
                });
                return Told {
                    described: Some(guild),
                    ..Told::default()
                };
            }
            GuildEvent::Removed(guild) => self.remove(at, guild),
            GuildEvent::Updated(facts) => {
                self.change_known(at, facts.id, |entry| adopt(entry, *facts));
            }
            GuildEvent::Outage(guild) => self.change(at, guild, |entry| {
                entry.available = false;
                // Its GUILD_CREATE ends the outage; nothing can be asked before that. A guild that
                // is known by its id only is better asked for at the REST API.
                if entry.name.is_some() {
                    entry.stale_since_unix_ms = None;
                } else {
                    mark_stale(entry, at);
                }
            }),
            GuildEvent::Channel { guild, channel } => self.change_known(at, guild, |entry| {
                entry.channels.insert(channel);
            }),
            GuildEvent::ChannelGone { guild, channel } => self.change_known(at, guild, |entry| {
                entry.channels.remove(&channel);
            }),
            GuildEvent::Role { guild, role } => self.change_known(at, guild, |entry| {
                entry.roles.insert(role);
            }),
            GuildEvent::RoleGone { guild, role } => self.change_known(at, guild, |entry| {
                entry.roles.remove(&role);
            }),
            GuildEvent::Joined { guild } => self.change_known(at, guild, |entry| {
                entry.member_count = entry.member_count.map(|count| count.saturating_add(1));
            }),
            GuildEvent::Left { guild } => self.change_known(at, guild, |entry| {
                entry.member_count = entry.member_count.map(|count| count.saturating_sub(1));
            }),
            GuildEvent::Unreadable { guild } => {
                self.change(at, guild, |entry| mark_stale(entry, at));
            }
        }
        Told::default()
    }

    /// A new session: its list of guilds is complete, and each is unavailable until its
    /// GUILD_CREATE comes.
    fn ready(
        &mut self,
        at: At<'_>,
        shard: Option<ShardId>,
        listed: &std::collections::BTreeSet<GuildId>,
    ) {
        for guild in self.of_shard(at.shard) {
            if listed.contains(&guild) {
                continue;
            }
            // During a reshard entries of the other sharding name the same shard number; and
            // without the count nobody can tell.
            match shard {
                Some(shard) if guild.shard(shard.count()) == at.shard => self.remove(at, guild),
                Some(_) => {}
                None => self.change(at, guild, |entry| mark_stale(entry, at)),
            }
        }
        for guild in listed {
            self.change(at, *guild, |entry| {
                entry.available = false;
                mark_stale(entry, at);
            });
        }
    }

    fn of_shard(&self, shard: u32) -> Vec<GuildId> {
        let mut guilds = self.known.of_shard(shard);
        let is_here = |changed: &Revised| changed.entry.as_ref().is_some_and(|e| e.shard == shard);
        let added = self.changed.iter().filter(|(_, changed)| is_here(changed));
        let added = added.map(|(guild, _)| *guild);
        guilds.extend(added);
        guilds.sort_unstable();
        guilds.dedup();
        guilds.retain(|guild| self.changed.get(guild).is_none_or(is_here));
        guilds
    }

    /// Changes a guild's entry, which is made if there is none.
    fn change(&mut self, at: At<'_>, guild: GuildId, change: impl FnOnce(&mut GuildEntry)) {
        // Changed in place: a busy guild has many events in a batch.
        let changed = match self.changed.entry(guild) {
            Entry::Occupied(changed) => changed.into_mut(),
            Entry::Vacant(first) => {
                let known = self.known.revised(guild);
                let entry = known.entry.as_ref();
                if entry.is_some_and(|entry| !is_newer(at, entry)) {
                    return;
                }
                first.insert(known)
            }
        };
        let entry = changed
            .entry
            .get_or_insert_with(|| GuildEntry::stub(guild.into(), at.shard));
        if !is_newer(at, entry) {
            return;
        }
        change(entry);
        entry.shard = at.shard;
        at.stream.clone_into(&mut entry.stream);
        entry.seq = at.seq;
    }

    /// The same for an event that says little: of a guild nobody has described, it tells that the
    /// guild exists and must be asked for.
    fn change_known(&mut self, at: At<'_>, guild: GuildId, change: impl FnOnce(&mut GuildEntry)) {
        self.change(at, guild, |entry| {
            if entry.name.is_none() {
                entry.available = true;
                mark_stale(entry, at);
            }
            change(entry);
        });
    }

    fn remove(&mut self, at: At<'_>, guild: GuildId) {
        let is_older = |entry: &GuildEntry| is_newer(at, entry);
        match self.changed.entry(guild) {
            Entry::Occupied(mut changed) => {
                changed.get_mut().entry.take_if(|entry| is_older(entry));
            }
            Entry::Vacant(first) => {
                let Revised { entry, revision } = self.known.revised(guild);
                if entry.as_ref().is_some_and(is_older) {
                    let entry = None;
                    first.insert(Revised { entry, revision });
                }
            }
        }
    }
}

/// Whether the event is not in the entry yet. Sequences of different streams cannot be compared: a
/// stream was made again, or the guild moved to a shard of another one.
fn is_newer(at: At<'_>, entry: &GuildEntry) -> bool {
    entry.stream != at.stream || at.seq > entry.seq
}

fn mark_stale(entry: &mut GuildEntry, at: At<'_>) {
    entry.stale_since_unix_ms.get_or_insert(at.unix_ms);
}

/// Takes over what the facts say.
pub(crate) fn adopt(entry: &mut GuildEntry, facts: Facts) {
    let Facts {
        id: _,
        name,
        owner_id,
        member_count,
        channels,
        roles,
        features,
        joined_at,
    } = facts;
    entry.name = name.or(entry.name.take());
    entry.owner_id = owner_id.or(entry.owner_id);
    entry.member_count = member_count.or(entry.member_count);
    entry.joined_at = joined_at.or(entry.joined_at);
    if let Some(channels) = channels {
        entry.channels = channels;
    }
    if let Some(roles) = roles {
        entry.roles = roles;
    }
    if let Some(features) = features {
        entry.features = features;
    }
}

#[cfg(test)]
#[path = "batch/tests.rs"]
mod tests;
