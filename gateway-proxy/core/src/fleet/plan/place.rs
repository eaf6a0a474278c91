//! The table a plan is worked out in.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use schemas::ProxyId;

use super::shares::{Weight, shares, weights};
use super::{Candidate, Input, Move, Outcome, Problem, Reason, Refusal, Request};
use crate::fleet::handover::SHARDS_MAX;

/// Index into [`Table::members`].
type Index = usize;

pub(super) struct Table<'a> {
    input: &'a Input<'a>,
    count: u32,
    // By name, each once.
    members: Vec<Row<'a>>,
    shards: Vec<Cell<'a>>,
    problems: BTreeSet<Problem>,
    unsettled: BTreeSet<Index>,
    more: bool,
}

/// A member.
struct Row<'a> {
    is: &'a Candidate,
    // Takes any shard: neither pinned nor draining.
    open: bool,
    weight: Weight,
    held: u32,
}

/// A shard.
#[derive(Clone)]
struct Cell<'a> {
    // Where the previous plan, or else its record, has it.
    from: Option<&'a ProxyId>,
    // Where it stays if it can.
    base: Option<Index>,
    owner: Option<Index>,
    pinned: bool,
    reason: Reason,
}

impl Row<'_> {
    fn has_room(&self) -> bool {
        self.is.max_shards.is_none_or(|max| self.held < max)
    }

    /// Compares how full two members would be with one more.
    fn fuller(&self, other: &Self) -> Ordering {
        let mine = (u64::from(self.held) + 1) * other.weight.weight;
        mine.cmp(&((u64::from(other.held) + 1) * self.weight.weight))
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(input: &'a Input<'a>) -> Self {
        let mut sorted: Vec<&Candidate> = input.members.iter().collect();
        sorted.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        sorted.dedup_by(|a, b| a.proxy == b.proxy);
        let open = |member: &Candidate| member.pinned.is_none() && !member.draining;
        let capacities: Vec<Option<u32>> = sorted
            .iter()
            .map(|member| {
                if open(member) {
                    member.max_shards
                } else {
                    Some(0)
                }
            })
            .collect();
        let members: Vec<Row<'_>> = sorted
            .into_iter()
            .zip(weights(&capacities))
            .map(|(is, weight)| Row {
                is,
                open: open(is),
                weight,
                held: 0,
            })
            .collect();
        let count = input.shard_count.min(SHARDS_MAX);
        let mut table = Self {
            input,
            count,
            members,
            shards: Vec::new(),
            problems: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            more: false,
        };
        table.shards = (0..count).map(|shard| table.cell(shard)).collect();
        table
    }

    /// What there was before.
    fn cell(&self, shard: u32) -> Cell<'a> {
        let previous = self
            .input
            .previous
            .filter(|plan| plan.shard_count == self.input.shard_count);
        let planned = previous.and_then(|plan| plan.shards.get(&shard));
        let holder = self.input.holders.get(&shard);
        let stays = |proxy: &&ProxyId| {
            let index = self.index(proxy)?;
            (!self.members[index].is.draining).then_some(index)
        };
        // A hand-over to one that went meanwhile is called off.
        let base = planned
            .as_ref()
            .and_then(stays)
            .or_else(|| holder.as_ref().and_then(stays));
        let from = planned.or(holder.filter(|_| previous.is_none()));
        let reason = match from.map(|from| self.index(from)) {
            None => Reason::Unplaced,
            Some(None) => Reason::Gone,
            Some(Some(index)) if self.members[index].is.draining => Reason::Draining,
            Some(Some(_)) => Reason::Pinned,
        };
        Cell {
            from,
            base,
            owner: None,
            pinned: false,
            reason,
        }
    }

    fn index(&self, proxy: &ProxyId) -> Option<Index> {
        self.members
            .binary_search_by(|row| row.is.proxy.cmp(proxy))
            .ok()
    }

    /// Pinned members get their pins, the one that has a shard before others that want it.
    pub(super) fn pin(&mut self) {
        let mut wanted: BTreeMap<u32, Vec<Index>> = BTreeMap::new();
        for (index, row) in self.members.iter().enumerate() {
            for shard in row.is.pinned.iter().flatten() {
                if *shard >= self.count {
                    self.problems.insert(Problem::PinBeyondCount {
                        proxy: row.is.proxy.clone(),
                        shard: *shard,
                        count: self.count,
                    });
                } else if !row.is.draining {
                    wanted.entry(*shard).or_default().push(index);
                }
            }
        }
        for (shard, mut indices) in wanted {
            let base = self.shards[shard as usize].base;
            indices.sort_by_key(|index| (Some(*index) != base, *index));
            for index in indices {
                self.pin_one(shard, index);
            }
        }
    }

    fn pin_one(&mut self, shard: u32, index: Index) {
        let row = &self.members[index];
        let proxy = row.is.proxy.clone();
        if let Some(owner) = self.shards[shard as usize].owner {
            self.problems.insert(Problem::PinnedTwice {
                shard,
                kept: self.members[owner].is.proxy.clone(),
                ignored: proxy,
            });
        } else if row.has_room() {
            self.assign(shard, index);
            let cell = &mut self.shards[shard as usize];
            cell.pinned = true;
            cell.reason = Reason::Pinned;
        } else {
            let max = row.is.max_shards.unwrap_or(0);
            self.problems
                .insert(Problem::PinBeyondCapacity { proxy, shard, max });
        }
    }

    /// Everything else stays where it may.
    pub(super) fn keep(&mut self) {
        for shard in 0..self.count {
            let cell = &self.shards[shard as usize];
            if let (None, Some(base)) = (cell.owner, cell.base)
                && self.members[base].open
            {
                self.assign(shard, base);
            }
        }
    }

    /// Who has too many keeps the first.
    pub(super) fn trim(&mut self) {
        for shard in (0..self.count).rev() {
            let cell = &mut self.shards[shard as usize];
            let Some(owner) = cell.owner.filter(|_| !cell.pinned) else {
                continue;
            };
            let row = &mut self.members[owner];
            if row.is.max_shards.is_some_and(|max| row.held > max) {
                row.held -= 1;
                cell.owner = None;
                cell.reason = Reason::OverCapacity;
            }
        }
    }

    pub(super) fn follow_requests(&mut self) {
        for request in self.input.requests {
            if let Err(refusal) = self.follow(request) {
                self.problems.insert(Problem::Refused {
                    shard: request.shard,
                    to: request.to.clone(),
                    refusal,
                });
            }
        }
    }

    fn follow(&mut self, request: &Request) -> Result<(), Refusal> {
        let cell = self
            .shards
            .get(request.shard as usize)
            .ok_or(Refusal::NoShard)?;
        let target = self.index(&request.to).ok_or(Refusal::NoMember)?;
        if cell.owner == Some(target) {
            return Ok(());
        }
        let row = &self.members[target];
        if row.is.draining {
            return Err(Refusal::Draining);
        }
        if cell.pinned {
            return Err(Refusal::ShardPinned);
        }
        if !row.open {
            return Err(Refusal::PinnedElsewhere);
        }
        if !row.has_room() {
            return Err(Refusal::Full);
        }
        self.assign(request.shard, target);
        self.shards[request.shard as usize].reason = request.reason;
        Ok(())
    }

    /// Shards without a place go to the emptiest.
    pub(super) fn place(&mut self) {
        for shard in 0..self.count {
            if self.shards[shard as usize].owner.is_none()
                && let Some(index) = self.emptiest(shard)
            {
                self.assign(shard, index);
            }
        }
    }

    /// The open member that would be least full, relative to its weight; among equals one whose zone
    /// does not have a neighbouring shard already.
    fn emptiest(&self, shard: u32) -> Option<Index> {
        let (before, after) = self.neighbours(shard);
        let near = |index: Index| self.nearness(index, before, after);
        // The neighbours are looked at only among equals: this is the planner's innermost loop.
        let mut best: Option<(Index, Option<u32>)> = None;
        for (index, row) in self.members.iter().enumerate() {
            if !row.open || !row.has_room() {
                continue;
            }
            let Some((other, other_near)) = best else {
                best = Some((index, None));
                continue;
            };
            let emptiest = &self.members[other];
            let order = row.is.hot.cmp(&emptiest.is.hot);
            match order.then_with(|| row.fuller(emptiest)) {
                Ordering::Less => best = Some((index, None)),
                Ordering::Equal => {
                    let other_near = other_near.unwrap_or_else(|| near(other));
                    let own = (other_near > 0).then(|| near(index));
                    best = match own.filter(|own| *own < other_near) {
                        Some(own) => Some((index, Some(own))),
                        None => Some((other, Some(other_near))),
                    };
                }
                Ordering::Greater => {}
            }
        }
        best.map(|(index, _)| index)
    }

    fn neighbours(&self, shard: u32) -> (Option<Index>, Option<Index>) {
        let owner = |shard: u32| self.shards.get(shard as usize).and_then(|cell| cell.owner);
        (shard.checked_sub(1).and_then(owner), owner(shard + 1))
    }

    /// How many neighbours are in the same zone; the same member counts twice.
    fn nearness(&self, index: Index, before: Option<Index>, after: Option<Index>) -> u32 {
        let zone = &self.members[index].is.zone;
        let near = |neighbour: Option<Index>| match neighbour {
            Some(neighbour) if neighbour == index => 2,
            Some(neighbour) => {
                u32::from(zone.is_some() && self.members[neighbour].is.zone == *zone)
            }
            None => 0,
        };
        near(before) + near(after)
    }

    /// Members that joined get what is missing to their share.
    pub(super) fn fill_joining(&mut self, moves_max: u32) {
        let total = self.members.iter().filter(|row| row.open);
        let total = total.map(|row| row.held).sum();
        let weights: Vec<Weight> = self.members.iter().map(|row| row.weight).collect();
        let shares = shares(&weights, total);
        self.unsettled = self.joining(&shares);
        if self.unsettled.is_empty() {
            return;
        }
        let mut held: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); self.members.len()];
        for (shard, cell) in (0..).zip(&self.shards) {
            if let Some(owner) = cell.owner.filter(|_| !cell.pinned) {
                held[owner].insert(shard);
            }
        }
        let mut moves = 0;
        while let Some((joiner, donor)) = self.neediest(&shares) {
            if moves == moves_max {
                self.more = true;
                return;
            }
            let Some(shard) = self.giveable(&held[donor], joiner) else {
                break;
            };
            held[donor].remove(&shard);
            held[joiner].insert(shard);
            let cell = &self.shards[shard as usize];
            // What moves anyway costs no move more.
            if cell.owner == cell.base {
                moves += 1;
                self.shards[shard as usize].reason = Reason::Joining;
            }
            self.assign(shard, joiner);
        }
        self.unsettled.clear();
    }

    fn joining(&self, shares: &[u32]) -> BTreeSet<Index> {
        let previous = self
            .input
            .previous
            .filter(|plan| plan.shard_count == self.input.shard_count);
        let below = |index: &Index| {
            let row = &self.members[*index];
            let settled = match previous {
                Some(plan) => plan.settled.contains(&row.is.proxy),
                // A lost plan: who holds something had its share.
                None => self.shards.iter().any(|cell| cell.base == Some(*index)),
            };
            row.open && !row.is.hot && !settled && row.held < shares[*index]
        };
        (0..self.members.len()).filter(below).collect()
    }

    /// Who lacks most of its share, and who has most above its own.
    fn neediest(&self, shares: &[u32]) -> Option<(Index, Index)> {
        let lacks = |index: &Index| shares[*index].saturating_sub(self.members[*index].held);
        let joiner = self
            .unsettled
            .iter()
            .copied()
            .filter(|index| lacks(index) > 0)
            .max_by(|a, b| lacks(a).cmp(&lacks(b)).then(b.cmp(a)))?;
        let donor = (0..self.members.len())
            .filter(|index| {
                let row = &self.members[*index];
                row.open && *index != joiner && row.held > shares[*index]
            })
            .max_by(|a, b| {
                let (first, second) = (&self.members[*a], &self.members[*b]);
                first.fuller(second).then(b.cmp(a))
            })?;
        Some((joiner, donor))
    }

    /// The shard a donor gives, but none somebody asked for: one that moves anyway, else one whose neighbours are not in the
    /// joiner's zone, else the last.
    fn giveable(&self, held: &BTreeSet<u32>, joiner: Index) -> Option<u32> {
        let given = |shard: &u32| {
            let cell = &self.shards[*shard as usize];
            let asked = matches!(cell.reason, Reason::Requested | Reason::Load);
            !(asked && cell.owner != cell.base)
        };
        held.iter().copied().filter(given).min_by_key(|shard| {
            let cell = &self.shards[*shard as usize];
            let (before, after) = self.neighbours(*shard);
            let stays = cell.owner == cell.base;
            let near = self.nearness(joiner, before, after);
            (stays, near, u32::MAX - shard)
        })
    }

    fn assign(&mut self, shard: u32, index: Index) {
        let cell = &mut self.shards[shard as usize];
        if let Some(before) = cell.owner.replace(index) {
            self.members[before].held -= 1;
        }
        self.members[index].held += 1;
    }

    pub(super) fn finish(mut self) -> Outcome {
        let name = |owner: Option<Index>| owner.map(|index| self.members[index].is.proxy.clone());
        let moved = |(shard, cell): (u32, &Cell<'_>)| {
            let to = name(cell.owner);
            (to.as_ref() != cell.from).then(|| Move {
                shard,
                from: cell.from.cloned(),
                to,
                reason: cell.reason,
            })
        };
        let moves = (0..).zip(&self.shards).filter_map(moved).collect();
        let place = |(shard, cell): (u32, &Cell<'_>)| Some((shard, name(cell.owner)?));
        let shards: BTreeMap<u32, ProxyId> = (0..).zip(&self.shards).filter_map(place).collect();
        let unplaced: Vec<u32> = (0..self.count)
            .filter(|shard| !shards.contains_key(shard))
            .collect();
        let settled = (0..self.members.len())
            .filter(|index| !self.members[*index].is.draining && !self.unsettled.contains(index))
            .map(|index| self.members[index].is.proxy.clone())
            .collect();
        if !unplaced.is_empty() {
            let none = !self.members.iter().any(|row| !row.is.draining);
            self.problems.insert(if none {
                Problem::NoMembers { count: self.count }
            } else {
                Problem::NoRoom {
                    room: self.count - u32::try_from(unplaced.len()).unwrap_or(self.count),
                    count: self.count,
                    unplaced: unplaced.clone(),
                }
            });
        }
        Outcome {
            shards,
            settled,
            moves,
            unplaced,
            problems: self.problems.into_iter().collect(),
            more: self.more,
        }
    }
}
