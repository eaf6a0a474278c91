//! Who should hold which shard: a pure function of members, previous plan and requests.
//!
//! **Minimal** means: a shard stays where the previous plan has it, unless
//! 1. its proxy is gone, drains, or is pinned to other shards;
//! 2. its proxy has more shards than it takes;
//! 3. a proxy is pinned to it;
//! 4. a request says so;
//! 5. a proxy that has not received its share yet (it joined) is below it: then it gets just what is
//!    missing, from those that have most, and at most [`Input::moves_max`] at once.
//!
//! Imbalance alone moves nothing: what an operator or the rebalancer moved stays moved. Shards of a
//! proxy that died go to the emptiest; when it returns it gets its share, not the same shards.
//!
//! Deterministic: members are sorted, nothing is drawn. With unlimited moves a plan is a fixed point:
//! planning again with the outcome as previous plan changes nothing; with limited ones it is reached by
//! planning again. Requests are given to one planning and then forgotten: refused or carried out.

mod place;
mod shares;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Member, Plan, ProxyId};

use place::Table;

/// Everything a plan depends on.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// Shards of the bot.
    pub shard_count: u32,
    /// The living members, each once, in any order.
    pub members: &'a [Candidate],
    /// The plan so far. One of another shard count counts for nothing.
    pub previous: Option<&'a Plan>,
    /// Who holds a shard according to its record, living or not: used where the previous plan says
    /// nothing, so that a lost plan moves nothing.
    pub holders: &'a BTreeMap<u32, ProxyId>,
    /// Moves that an operator or the rebalancer asks for.
    pub requests: &'a [Request],
    /// Most moves made only to give joining members their share.
    pub moves_max: u32,
}

/// A member as plans see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub proxy: ProxyId,
    /// Most shards it takes.
    pub max_shards: Option<u32>,
    /// Where it runs.
    pub zone: Option<String>,
    /// The only shards it takes.
    pub pinned: Option<BTreeSet<u32>>,
    /// It hands everything over.
    pub draining: bool,
    /// It is overloaded ([`super::rebalance`]): it keeps what it has and gets nothing that fits
    /// elsewhere.
    pub hot: bool,
}

impl Candidate {
    /// What a heartbeat says.
    #[must_use]
    pub fn of(proxy: &ProxyId, member: &Member, hot: bool) -> Self {
        Self {
            proxy: proxy.clone(),
            max_shards: member.max_shards,
            zone: member.zone.clone(),
            pinned: member
                .pinned
                .as_ref()
                .map(|pinned| pinned.iter().copied().collect()),
            draining: member.draining,
            hot,
        }
    }
}

/// A shard shall go to a certain proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The shard.
    pub shard: u32,
    /// Its new place.
    pub to: ProxyId,
    /// On whose behalf.
    pub reason: Reason,
}

/// Why a shard moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It had no place.
    Unplaced,
    /// Its proxy is gone.
    Gone,
    /// Its proxy drains.
    Draining,
    /// Its proxy takes fewer shards than it had.
    OverCapacity,
    /// A proxy is pinned to it, or its proxy is pinned to others.
    Pinned,
    /// An operator asked for it.
    Requested,
    /// Its proxy is overloaded.
    Load,
    /// A proxy that joined gets its share.
    Joining,
}

/// One shard that changes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: u32,
    /// Where it was.
    pub from: Option<ProxyId>,
    /// Where it goes, `None`: nowhere.
    pub to: Option<ProxyId>,
    /// Why.
    pub reason: Reason,
}

/// Something an operator should know. The plan is made all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// There is no member at all, or none that takes shards.
    #[error("no proxy takes shards: {count} shards have no place")]
    NoMembers {
        /// How many.
        count: u32,
    },
    /// Not enough room.
    #[error("the proxies have room for {room} of {count} shards; without a place: {}", list(.unplaced))]
    NoRoom {
        /// Shards they can take together.
        room: u32,
        /// Shards there are.
        count: u32,
        /// Which have no place.
        unplaced: Vec<u32>,
    },
    /// Two proxies are pinned to one shard.
    #[error("shard {shard} is pinned to {kept} and to {ignored}; {kept} has it")]
    PinnedTwice {
        /// The shard.
        shard: u32,
        /// Who has it.
        kept: ProxyId,
        /// Who has not.
        ignored: ProxyId,
    },
    /// A pin beyond the shard count.
    #[error("{proxy} is pinned to shard {shard}, but there are {count} shards")]
    PinBeyondCount {
        /// Who is pinned.
        proxy: ProxyId,
        /// To what.
        shard: u32,
        /// How many there are.
        count: u32,
    },
    /// More pins than `--max-shards`.
    #[error("{proxy} is pinned to shard {shard}, but takes only {max} shards")]
    PinBeyondCapacity {
        /// Who is pinned.
        proxy: ProxyId,
        /// To what.
        shard: u32,
        /// How many it takes.
        max: u32,
    },
    /// A request that cannot be carried out.
    #[error("shard {shard} cannot move to {to}: {refusal}")]
    Refused {
        /// The shard.
        shard: u32,
        /// Where it should go.
        to: ProxyId,
        /// Why not.
        refusal: Refusal,
    },
}

/// Why a request cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// No such shard.
    #[error("there is no such shard")]
    NoShard,
    /// No such living member.
    #[error("there is no such proxy")]
    NoMember,
    /// It drains.
    #[error("it drains")]
    Draining,
    /// It is full.
    #[error("it is full")]
    Full,
    /// It is pinned to other shards.
    #[error("it is pinned to other shards")]
    PinnedElsewhere,
    /// The shard is pinned to another proxy.
    #[error("the shard is pinned to another proxy")]
    ShardPinned,
}

/// A plan, and what changes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The whole assignment; a shard that is missing has no place.
    pub shards: BTreeMap<u32, ProxyId>,
    /// Members that have received their share: for [`Plan::settled`].
    pub settled: BTreeSet<ProxyId>,
    /// Difference to the previous plan (or the holders where it says nothing), by shard.
    pub moves: Vec<Move>,
    /// Shards without a place.
    pub unplaced: Vec<u32>,
    /// What an operator should know, in a fixed order.
    pub problems: Vec<Problem>,
    /// True when a joining member still lacks part of its share only because of `moves_max`: plan again
    /// later.
    pub more: bool,
}

impl Outcome {
    /// The plan to write, `None` when the previous one says the same.
    #[must_use]
    pub fn to_plan(&self, input: &Input<'_>, epoch: u64, made_at_unix_ms: u64) -> Option<Plan> {
        let same = input.previous.is_some_and(|previous| {
            previous.shard_count == input.shard_count
                && previous.shards == self.shards
                && previous.settled == self.settled
        });
        (!same).then(|| Plan {
            epoch,
            shard_count: input.shard_count,
            shards: self.shards.clone(),
            made_at_unix_ms,
            settled: self.settled.clone(),
            format: Plan::FORMAT,
        })
    }
}

/// Makes a plan.
#[must_use]
pub fn plan(input: &Input<'_>) -> Outcome {
    let mut table = Table::new(input);
    table.pin();
    table.keep();
    table.trim();
    table.follow_requests();
    table.place();
    table.fill_joining(input.moves_max);
    table.finish()
}

/// Shard numbers for people: ranges, and not too many of them.
fn list(shards: &[u32]) -> String {
    const RANGES_MAX: usize = 20;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for shard in shards {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *shard => *last = *shard,
            _ => ranges.push((*shard, *shard)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let shown: Vec<String> = ranges.iter().take(RANGES_MAX).map(text).collect();
    let more = if ranges.len() > RANGES_MAX {
        ", …"
    } else {
        ""
    };
    shown.join(", ") + more
}
