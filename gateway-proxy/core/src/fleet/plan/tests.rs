use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn proxy(number: usize) -> ProxyId {
    format!("p{number}").parse().unwrap()
}

fn member(number: usize) -> Candidate {
    Candidate {
        proxy: proxy(number),
        max_shards: None,
        zone: None,
        pinned: None,
        draining: false,
        hot: false,
    }
}

fn members(count: usize) -> Vec<Candidate> {
    (0..count).map(member).collect()
}

/// Everything that changes from one planning to the next.
#[derive(Clone, Debug)]
struct Fleet {
    shard_count: u32,
    members: Vec<Candidate>,
    previous: Option<Plan>,
    holders: BTreeMap<u32, ProxyId>,
    requests: Vec<Request>,
    moves_max: u32,
}

impl Fleet {
    fn new(shard_count: u32, members: Vec<Candidate>) -> Self {
        Self {
            shard_count,
            members,
            previous: None,
            holders: BTreeMap::new(),
            requests: Vec::new(),
            moves_max: u32::MAX,
        }
    }

    /// Plans and makes the outcome the previous plan, as a coordinator does.
    fn plan(&mut self) -> Outcome {
        let input = Input {
            shard_count: self.shard_count,
            members: &self.members,
            previous: self.previous.as_ref(),
            holders: &self.holders,
            requests: &self.requests,
            moves_max: self.moves_max,
        };
        let outcome = plan(&input);
        let epoch = self.previous.as_ref().map_or(1, |plan| plan.epoch + 1);
        if let Some(plan) = outcome.to_plan(&input, epoch, 0) {
            self.previous = Some(plan);
        }
        self.requests.clear();
        outcome
    }

    fn held(&self, number: usize) -> u32 {
        let plan = self.previous.as_ref().unwrap();
        let own = proxy(number);
        plan.shards.values().filter(|held| **held == own).count() as u32
    }
}

fn reasons(outcome: &Outcome) -> BTreeMap<Reason, usize> {
    let mut reasons = BTreeMap::new();
    for moved in &outcome.moves {
        *reasons.entry(moved.reason).or_default() += 1;
    }
    reasons
}

#[test]
fn shards_are_dealt_out_evenly_and_by_capacity() {
    let mut fleet = Fleet::new(10, members(3));
    let outcome = fleet.plan();
    assert_eq!((fleet.held(0), fleet.held(1), fleet.held(2)), (4, 3, 3));
    assert_eq!(reasons(&outcome), [(Reason::Unplaced, 10)].into());
    assert!(outcome.problems.is_empty());

    let mut fleet = Fleet::new(40, members(2));
    fleet.members[0].max_shards = Some(15);
    fleet.members[1].max_shards = Some(45);
    fleet.plan();
    assert_eq!((fleet.held(0), fleet.held(1)), (10, 30));
}

#[test]
fn only_the_shards_of_the_dead_move_and_to_the_emptiest() {
    let mut fleet = Fleet::new(64, members(4));
    fleet.plan();
    let before = fleet.previous.clone().unwrap();
    fleet.members.remove(1);
    let outcome = fleet.plan();
    assert_eq!(reasons(&outcome), [(Reason::Gone, 16)].into());
    for moved in &outcome.moves {
        assert_eq!(before.shards[&moved.shard], proxy(1));
    }
    let held = [fleet.held(0), fleet.held(2), fleet.held(3)];
    assert!(held.iter().all(|held| (21..=22).contains(held)), "{held:?}");
}

#[test]
fn one_that_joins_gets_its_share_and_no_shard_more() {
    let mut fleet = Fleet::new(64, members(3));
    fleet.plan();
    fleet.members.push(member(3));
    let outcome = fleet.plan();
    assert_eq!(reasons(&outcome), [(Reason::Joining, 16)].into());
    assert_eq!(fleet.held(3), 16);
    assert!(fleet.plan().moves.is_empty());
}

#[test]
fn one_that_joins_gets_its_share_little_by_little() {
    let mut fleet = Fleet::new(64, members(3));
    fleet.plan();
    fleet.members.push(member(3));
    fleet.moves_max = 5;
    for expect in [5, 10, 15] {
        let outcome = fleet.plan();
        assert_eq!((outcome.moves.len(), outcome.more), (5, true));
        assert_eq!(fleet.held(3), expect);
    }
    let outcome = fleet.plan();
    assert_eq!((outcome.moves.len(), outcome.more), (1, false));
    assert!(fleet.plan().moves.is_empty());
}

#[test]
fn no_moves_allowed_means_that_joining_waits() {
    let mut fleet = Fleet::new(64, members(3));
    fleet.plan();
    fleet.members.push(member(3));
    fleet.moves_max = 0;
    let outcome = fleet.plan();
    assert!(outcome.moves.is_empty() && outcome.more);
    fleet.moves_max = 100;
    assert_eq!(fleet.plan().moves.len(), 16);
}

#[test]
fn what_an_operator_moved_stays_moved() {
    let mut fleet = Fleet::new(8, members(2));
    fleet.plan();
    let from_first = fleet.previous.as_ref().unwrap().shards.iter();
    let shard = *from_first
        .clone()
        .find(|(_, held)| **held == proxy(0))
        .unwrap()
        .0;
    fleet.requests.push(Request {
        shard,
        to: proxy(1),
        reason: Reason::Requested,
    });
    let outcome = fleet.plan();
    assert_eq!(reasons(&outcome), [(Reason::Requested, 1)].into());
    assert!(fleet.plan().moves.is_empty());
    // Also when somebody joins just then.
    fleet.members.push(member(2));
    fleet.requests.push(Request {
        shard,
        to: proxy(0),
        reason: Reason::Requested,
    });
    fleet.plan();
    assert_eq!(fleet.previous.as_ref().unwrap().shards[&shard], proxy(0));
}

#[test]
fn requests_that_cannot_be_carried_out_say_why() {
    let mut fleet = Fleet::new(8, members(5));
    fleet.members[1].draining = true;
    fleet.members[2].max_shards = Some(0);
    fleet.members[3].pinned = Some([7].into());
    let refused = |fleet: &mut Fleet, shard, to: usize| {
        fleet.requests.push(Request {
            shard,
            to: proxy(to),
            reason: Reason::Requested,
        });
        fleet.plan().problems
    };
    let check = |fleet: &mut Fleet, shard, to, refusal| {
        let problem = Problem::Refused {
            shard,
            to: proxy(to),
            refusal,
        };
        assert_eq!(refused(fleet, shard, to), [problem]);
    };
    fleet.plan();
    check(&mut fleet, 8, 0, Refusal::NoShard);
    check(&mut fleet, 0, 9, Refusal::NoMember);
    check(&mut fleet, 0, 1, Refusal::Draining);
    check(&mut fleet, 0, 2, Refusal::Full);
    check(&mut fleet, 0, 3, Refusal::PinnedElsewhere);
    check(&mut fleet, 7, 0, Refusal::ShardPinned);
}

#[test]
fn a_draining_proxy_loses_all_and_gets_nothing() {
    let mut fleet = Fleet::new(32, members(2));
    fleet.plan();
    fleet.members[0].draining = true;
    let outcome = fleet.plan();
    assert_eq!(reasons(&outcome), [(Reason::Draining, 16)].into());
    assert_eq!(fleet.held(0), 0);
    // The last one drains: nobody has its shards.
    fleet.members[1].draining = true;
    let outcome = fleet.plan();
    assert_eq!(outcome.unplaced.len(), 32);
    assert_eq!(outcome.problems, [Problem::NoMembers { count: 32 }]);
}

#[test]
fn without_members_every_shard_is_named_as_unplaced() {
    let outcome = Fleet::new(3, Vec::new()).plan();
    assert_eq!(outcome.unplaced, [0, 1, 2]);
    assert_eq!(
        outcome.problems[0].to_string(),
        "no proxy takes shards: 3 shards have no place"
    );
}

#[test]
fn too_little_room_keeps_what_runs_and_names_the_rest() {
    let mut fleet = Fleet::new(10, members(1));
    fleet.plan();
    fleet.members[0].max_shards = Some(6);
    let outcome = fleet.plan();
    assert_eq!(outcome.unplaced, [6, 7, 8, 9]);
    assert_eq!(reasons(&outcome), [(Reason::OverCapacity, 4)].into());
    assert_eq!(
        outcome.problems[0].to_string(),
        "the proxies have room for 6 of 10 shards; without a place: 6-9"
    );
    // Room again: those that run stay.
    fleet.members.push(member(1));
    fleet.members[1].max_shards = Some(3);
    let outcome = fleet.plan();
    assert_eq!(outcome.unplaced, [9]);
    assert_eq!(reasons(&outcome), [(Reason::Unplaced, 3)].into());
}

#[test]
fn a_shard_without_a_place_is_not_told_again_and_again() {
    let mut fleet = Fleet::new(2, Vec::new());
    fleet.holders = [(0, proxy(0))].into();
    assert_eq!(reasons(&fleet.plan()), [(Reason::Gone, 1)].into());
    let again = fleet.plan();
    assert_eq!((again.moves, again.unplaced), (Vec::new(), vec![0, 1]));
}

#[test]
fn pinned_proxies_hold_their_pins_and_nothing_else() {
    let mut fleet = Fleet::new(8, members(3));
    fleet.plan();
    fleet.members[2].pinned = Some([0, 1, 9].into());
    let outcome = fleet.plan();
    let plan = fleet.previous.clone().unwrap();
    let held: Vec<u32> = plan
        .shards
        .iter()
        .filter(|(_, held)| **held == proxy(2))
        .map(|(shard, _)| *shard)
        .collect();
    assert_eq!(held, [0, 1]);
    assert_eq!(
        outcome.problems,
        [Problem::PinBeyondCount {
            proxy: proxy(2),
            shard: 9,
            count: 8
        }]
    );
    // Gone: others carry on. Back: it has its pins again.
    let pinned = fleet.members.pop().unwrap();
    assert_eq!(reasons(&fleet.plan()), [(Reason::Gone, 2)].into());
    fleet.members.push(pinned);
    assert_eq!(reasons(&fleet.plan()), [(Reason::Pinned, 2)].into());
}

#[test]
fn of_two_that_are_pinned_to_a_shard_the_one_that_has_it_keeps_it() {
    let mut fleet = Fleet::new(2, members(2));
    fleet.members[1].pinned = Some([0, 1].into());
    fleet.members.remove(0);
    fleet.plan();
    fleet.members.insert(0, member(0));
    fleet.members[0].pinned = Some([0].into());
    let outcome = fleet.plan();
    assert!(outcome.moves.is_empty());
    assert_eq!(
        outcome.problems,
        [Problem::PinnedTwice {
            shard: 0,
            kept: proxy(1),
            ignored: proxy(0)
        }]
    );
}

#[test]
fn a_lost_plan_moves_nothing() {
    let mut fleet = Fleet::new(12, members(3));
    fleet.plan();
    let plan = fleet.previous.take().unwrap();
    fleet.holders = plan.shards.clone();
    let outcome = fleet.plan();
    assert!(outcome.moves.is_empty());
    assert_eq!(outcome.shards, plan.shards);
}

#[test]
fn a_handover_to_one_that_died_meanwhile_is_called_off() {
    let mut fleet = Fleet::new(4, members(3));
    fleet.plan();
    let mut plan = fleet.previous.clone().unwrap();
    fleet.holders = plan.shards.clone();
    plan.shards.insert(0, proxy(2));
    fleet.holders.insert(0, proxy(1));
    fleet.previous = Some(plan);
    fleet.members.pop();
    fleet.plan();
    assert_eq!(fleet.previous.as_ref().unwrap().shards[&0], proxy(1));
}

#[test]
fn neighbouring_shards_are_in_different_zones() {
    let mut fleet = Fleet::new(64, members(4));
    for (number, member) in fleet.members.iter_mut().enumerate() {
        member.zone = Some(format!("z{}", number / 2));
    }
    let outcome = fleet.plan();
    let zone = |shard: u32| {
        let held = &outcome.shards[&shard];
        let row = fleet.members.iter().find(|row| row.proxy == *held);
        row.unwrap().zone.clone()
    };
    let together = (0..63).filter(|shard| zone(*shard) == zone(shard + 1));
    // Only where one round of dealing ends and the next begins with what is left.
    assert!(together.count() <= 16);
    // A zone that fails takes half.
    assert_eq!(fleet.held(0) + fleet.held(1), 32);
}

#[test]
fn a_hot_proxy_gets_nothing_that_fits_elsewhere() {
    let mut fleet = Fleet::new(12, members(3));
    fleet.plan();
    fleet.members[0].hot = true;
    fleet.members.remove(1);
    fleet.plan();
    assert_eq!((fleet.held(0), fleet.held(2)), (4, 8));
    // With nowhere else to go it takes them all the same.
    fleet.members.pop();
    assert!(fleet.plan().unplaced.is_empty());
}

#[test]
fn lists_of_shards_are_short() {
    assert_eq!(list(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    let odd: Vec<u32> = (0..100).map(|number| number * 2).collect();
    assert!(list(&odd).ends_with("38, …"));
}

#[test]
fn ten_thousand_shards_over_two_hundred_proxies_are_planned_in_time() {
    let mut fleet = Fleet::new(10_000, members(200));
    for (number, member) in fleet.members.iter_mut().enumerate() {
        member.zone = Some(format!("z{}", number % 3));
        member.max_shards = Some(60 + number as u32 % 7);
    }
    // Seconds are measured by the example `plan` in a release build; here it must only not explode.
    assert!(fleet.plan().unplaced.is_empty());
    fleet.members.drain(0..20);
    assert!(!fleet.plan().moves.is_empty());
    fleet.members.extend((200..220).map(member));
    assert!(!fleet.plan().moves.is_empty());
    assert!(fleet.plan().moves.is_empty());
}

fn any_member() -> impl Strategy<Value = Candidate> {
    let capacity = proptest::option::of(0_u32..20);
    let zone = proptest::option::of(0_u8..3);
    let pinned = proptest::option::weighted(0.15, proptest::collection::btree_set(0_u32..40, 0..5));
    (0_usize..12, capacity, zone, pinned, 0_u8..8, 0_u8..8).prop_map(
        |(number, max_shards, zone, pinned, draining, hot)| Candidate {
            proxy: proxy(number),
            max_shards,
            zone: zone.map(|zone| format!("z{zone}")),
            pinned,
            draining: draining == 0,
            hot: hot == 0,
        },
    )
}

fn any_members() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec(any_member(), 0..10).prop_map(|mut members| {
        members.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        members.dedup_by(|a, b| a.proxy == b.proxy);
        members
    })
}

fn any_requests() -> impl Strategy<Value = Vec<Request>> {
    let request = (0_u32..40, 0_usize..12).prop_map(|(shard, to)| Request {
        shard,
        to: proxy(to),
        reason: Reason::Requested,
    });
    proptest::collection::vec(request, 0..4)
}

/// Fleets with a history: planned for some members, now with others.
fn any_fleet() -> impl Strategy<Value = Fleet> {
    let history = (0_u32..36, any_members(), any_members());
    (history, any_requests(), proptest::bool::ANY).prop_map(
        |((shard_count, before, members), requests, lost)| {
            let mut fleet = Fleet::new(shard_count, before);
            fleet.plan();
            fleet.holders = fleet
                .previous
                .as_ref()
                .map_or_else(BTreeMap::new, |plan| plan.shards.clone());
            if lost {
                fleet.previous = None;
            }
            fleet.members = members;
            fleet.requests = requests;
            fleet
        },
    )
}

/// How many shards each holds, by name.
fn counts(outcome: &Outcome) -> BTreeMap<&ProxyId, u32> {
    let mut counts = BTreeMap::new();
    for held in outcome.shards.values() {
        *counts.entry(held).or_default() += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn planning_again_changes_nothing(mut fleet in any_fleet()) {
        let first = fleet.plan();
        prop_assert!(!first.more);
        let before = fleet.previous.clone();
        let again = fleet.plan();
        prop_assert_eq!(&again.shards, &first.shards);
        prop_assert!(again.moves.is_empty());
        prop_assert_eq!(fleet.previous, before);
    }

    #[test]
    fn limited_plans_reach_a_fixed_point(mut fleet in any_fleet(), moves_max in 1_u32..4) {
        fleet.moves_max = moves_max;
        for _ in 0..40 {
            fleet.plan();
        }
        prop_assert!(fleet.plan().moves.is_empty());
        fleet.moves_max = u32::MAX;
        prop_assert!(fleet.plan().moves.is_empty());
    }

    #[test]
    fn the_order_of_the_members_does_not_matter(fleet in any_fleet(), seed: u64) {
        let mut shuffled = fleet.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled.members);
        let mut fleet = fleet;
        prop_assert_eq!(fleet.plan(), shuffled.plan());
    }

    #[test]
    fn capacity_pins_and_draining_are_honoured(mut fleet in any_fleet()) {
        let members = fleet.members.clone();
        let outcome = fleet.plan();
        let counts = counts(&outcome);
        for (shard, held) in &outcome.shards {
            prop_assert!(*shard < fleet.shard_count);
            let row = members.iter().find(|row| row.proxy == *held).unwrap();
            prop_assert!(!row.draining);
            prop_assert!(row.pinned.as_ref().is_none_or(|pinned| pinned.contains(shard)));
            prop_assert!(row.max_shards.is_none_or(|max| counts[held] <= max));
        }
        let pinned: BTreeSet<u32> = members
            .iter()
            .filter(|row| !row.draining && row.max_shards.is_none())
            .filter_map(|row| row.pinned.clone())
            .flatten()
            .filter(|shard| *shard < fleet.shard_count)
            .collect();
        for shard in pinned {
            let row = members.iter().find(|row| row.proxy == outcome.shards[&shard]).unwrap();
            prop_assert!(row.pinned.is_some());
        }
    }

    #[test]
    fn a_shard_is_unplaced_only_when_there_is_no_room(mut fleet in any_fleet()) {
        let members = fleet.members.clone();
        let outcome = fleet.plan();
        let counts = counts(&outcome);
        let room = members.iter().any(|row| {
            let held = counts.get(&row.proxy).copied().unwrap_or(0);
            let open = row.pinned.is_none() && !row.draining;
            open && row.max_shards.is_none_or(|max| held < max)
        });
        prop_assert!(outcome.unplaced.is_empty() || !room);
        prop_assert_eq!(outcome.unplaced.is_empty(), outcome.problems.iter().all(|problem| {
            !matches!(problem, Problem::NoRoom { .. } | Problem::NoMembers { .. })
        }));
    }

    #[test]
    fn only_what_must_move_moves(mut fleet in any_fleet()) {
        let members = fleet.members.clone();
        let before = fleet.previous.clone();
        let outcome = fleet.plan();
        let joined: BTreeSet<_> = members
            .iter()
            .filter(|row| before.as_ref().is_none_or(|plan| !plan.settled.contains(&row.proxy)))
            .map(|row| row.proxy.clone())
            .collect();
        for moved in &outcome.moves {
            let from = moved.from.as_ref().and_then(|from| {
                members.iter().find(|row| row.proxy == *from)
            });
            let fits = match moved.reason {
                Reason::Unplaced => moved.from.is_none(),
                Reason::Gone => moved.from.is_some() && from.is_none(),
                Reason::Draining => from.is_some_and(|row| row.draining),
                Reason::OverCapacity => from.is_some_and(|row| row.max_shards.is_some()),
                Reason::Pinned => members.iter().any(|row| row.pinned.is_some()),
                Reason::Requested => true,
                Reason::Load => false,
                Reason::Joining => moved.to.as_ref().is_some_and(|to| joined.contains(to)),
            };
            prop_assert!(fits, "{:?}", moved);
        }
    }

    #[test]
    fn everybody_gets_at_least_its_share_of_a_fresh_start(
        capacities in proptest::collection::vec(proptest::option::of(1_u32..50), 1..12),
        shard_count in 0_u32..200,
    ) {
        let mut fleet = Fleet::new(shard_count, members(capacities.len()));
        for (row, capacity) in fleet.members.iter_mut().zip(&capacities) {
            row.max_shards = *capacity;
        }
        let outcome = fleet.plan();
        let placed = outcome.shards.len() as u32;
        let shares = shares::shares(&shares::weights(&capacities), placed);
        for (number, share) in shares.into_iter().enumerate() {
            prop_assert!(fleet.held(number) >= share, "p{}: {} < {}", number, fleet.held(number), share);
        }
    }

    #[test]
    fn one_that_joins_costs_others_only_its_share(
        shard_count in 0_u32..200,
        count in 1_usize..10,
    ) {
        let mut fleet = Fleet::new(shard_count, members(count));
        fleet.plan();
        fleet.members.push(member(count));
        let outcome = fleet.plan();
        let share = shard_count / (count as u32 + 1);
        prop_assert_eq!(outcome.moves.len() as u32, share);
        prop_assert_eq!(fleet.held(count), share);
    }
}
