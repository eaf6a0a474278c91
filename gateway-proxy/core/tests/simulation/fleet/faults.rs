//! Whatever happens, no shard has two owners; and when it stops happening, each has one before long.

use std::time::Duration;

use schemas::{Plan, ProxyId};

use crate::fleet::bucket::{Key, Value};
use crate::fleet::world::World;
use crate::for_each_seed;

const SEEDS: u64 = 40;
const STEPS: u32 = 4_000;
/// After the last fault: two TTLs for those that died, the settling of a new view, the wait for a
/// doubtful name, gradual joining, each with retries.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

fn time(world: &mut World) -> Duration {
    let most = *world.rng.choice(&[300, 1_900, 2_500, 8_000]).unwrap();
    Duration::from_millis(world.rng.u64(0..most))
}

fn fault(world: &mut World) {
    let time = time(world);
    let Some(index) = world.any() else {
        return world.start(None, None, 0);
    };
    match world.rng.u8(0..20) {
        0 | 1 => world.nodes[index].dead = true,
        2 => {
            let leaders = world.leaders();
            if let Some(leader) = leaders.first() {
                world.nodes[*leader].dead = true;
            }
        }
        3..=5 => world.freeze(index, time),
        6..=8 => world.cut(index, time),
        9 => (0..world.nodes.len() / 2).for_each(|index| world.cut(index, time)),
        10 => (0..world.nodes.len()).for_each(|index| world.cut(index, time)),
        11 | 12 => world.slow_watch(index, time),
        13 => {
            // Started again while the old one may still be there.
            let name = world.nodes[index].process.settings.name.clone();
            world.start(Some(name), None, 0);
        }
        14 | 15 if world.nodes.len() < 7 => {
            let max = [None, Some(3), Some(8)][world.rng.usize(0..3)];
            let priority = world.rng.i64(0..3);
            world.start(None, max, priority);
        }
        16 => world.nodes[index].process.draining = true,
        17 => {
            let shard = world.rng.u32(0..world.shard_count);
            let to = world.nodes[index].process.settings.name.clone();
            for node in &mut world.nodes {
                node.process.ask_to_move(shard, to.clone());
            }
        }
        18 => edit(world, index),
        _ => {}
    }
}

/// Somebody edits the bucket by hand; the shards' records, which are the proof of who owns what, not.
fn edit(world: &mut World, index: usize) {
    let name = world.nodes[index].process.settings.name.clone();
    match world.rng.u8(0..6) {
        0 => world.edit(Key::Leader, Value::Garbage),
        1 => world.edit(Key::Plan, Value::Garbage),
        2 => world.edit(Key::Member(name), Value::Garbage),
        3 => world.delete(Key::Leader),
        4 => world.delete(Key::Plan),
        _ => {
            let plan = any_plan(world, &name);
            world.edit(Key::Plan, Value::Plan(plan));
        }
    }
}

fn any_plan(world: &mut World, name: &ProxyId) -> Plan {
    let epoch = world.rng.u64(0..1_000);
    let shards = (0..world.shard_count).filter(|_| world.rng.bool());
    Plan {
        epoch,
        shards: shards.map(|shard| (shard, name.clone())).collect(),
        shard_count: world.shard_count,
        made_at_unix_ms: 0,
        settled: [name.clone()].into(),
        format: Plan::FORMAT,
    }
}

fn settle(world: &mut World) {
    world.heal();
    if world.nodes.iter().all(|node| node.process.draining) {
        world.start(None, None, 0);
    }
    let deadline = world.now + SETTLED_WITHIN;
    // Settled is what stays so.
    let mut settled = 0;
    while settled < 100 {
        world.step();
        settled = if world.is_settled() { settled + 1 } else { 0 };
        assert!(
            world.now < deadline,
            "not settled in time:\n{}",
            world.describe()
        );
    }
}

fn storm(seed: u64, steps: u32) -> World {
    let shards = 12;
    let mut world = World::new(seed, shards);
    for _ in 0..world.rng.u32(1..5) {
        let priority = world.rng.i64(0..3);
        world.start(None, None, priority);
    }
    let calm = world.rng.u32(5..300);
    for _ in 0..steps {
        if world.rng.u32(0..calm) == 0 {
            fault(&mut world);
        }
        world.step();
    }
    world
}

#[test]
fn no_shard_ever_has_two_owners_and_each_finds_one_again() {
    for_each_seed(SEEDS, |seed| {
        let mut world = storm(seed, STEPS);
        settle(&mut world);
    });
}

#[test]
#[should_panic(expected = "has the owners")]
fn a_process_that_ignores_its_fence_is_caught() {
    let mut world = World::new(1, 12);
    world.be_calm();
    for _ in 0..3 {
        world.start(None, None, 0);
    }
    settle(&mut world);
    world.nodes[1].process.reckless = true;
    world.cut(1, SETTLED_WITHIN);
    let end = world.now + SETTLED_WITHIN;
    while world.now < end {
        world.step();
    }
}

/// A fleet in good health: its links are short and everybody runs.
fn healthy(seed: u64, priorities: &[i64]) -> World {
    let mut world = World::new(seed, 32);
    world.be_calm();
    for priority in priorities {
        world.start(None, None, *priority);
    }
    settle(&mut world);
    world
}

/// Steps until a process of this priority coordinates, and alone.
fn leader_of_priority(world: &mut World, priority: i64) -> usize {
    let deadline = world.now + Duration::from_secs(20);
    loop {
        world.step();
        if let [leader] = world.leaders()[..]
            && world.nodes[leader].process.settings.priority == priority
        {
            return leader;
        }
        assert!(world.now < deadline, "{}", world.describe());
    }
}

/// Steps until it is settled and says how long that took.
fn time_to_settle(world: &mut World) -> Duration {
    let begin = world.now;
    while !world.is_settled() {
        world.step();
        assert!(world.now < begin + SETTLED_WITHIN, "{}", world.describe());
    }
    world.now - begin
}

#[test]
fn the_shards_of_a_dead_proxy_run_elsewhere_within_three_seconds() {
    for_each_seed(5, |seed| {
        let mut world = healthy(seed, &[1, 0, 0]);
        let leader = world.leaders()[0];
        let victim = (leader + 1) % 3;
        world.nodes[victim].dead = true;
        world.step();
        let took = time_to_settle(&mut world);
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}

#[test]
fn also_when_the_coordinator_dies_at_the_same_moment_within_four() {
    for_each_seed(5, |seed| {
        let mut world = healthy(seed, &[1, 0, 0, 0]);
        let leader = world.leaders()[0];
        world.nodes[leader].dead = true;
        world.nodes[(leader + 1) % 4].dead = true;
        world.step();
        let took = time_to_settle(&mut world);
        assert!(took < Duration::from_secs(4), "{took:?}");
    });
}

#[test]
fn a_coordinator_of_higher_priority_returns_without_moving_a_shard() {
    for_each_seed(5, |seed| {
        // The first takes no shards, so that nothing moves because it is there.
        let mut world = World::new(seed, 32);
        world.be_calm();
        world.start(None, Some(0), 5);
        world.start(None, None, 0);
        world.start(None, None, 0);
        let first = leader_of_priority(&mut world, 5);
        settle(&mut world);
        world.nodes[first].dead = true;
        world.step();
        settle(&mut world);
        let (places, starts) = (world.places(), world.starts);
        world.start(None, Some(0), 5);
        leader_of_priority(&mut world, 5);
        settle(&mut world);
        assert_eq!((world.places(), world.starts), (places, starts));
    });
}

#[test]
fn a_rolling_drain_starts_every_shard_once_per_move() {
    for_each_seed(5, |seed| {
        let mut world = healthy(seed, &[0, 0, 0]);
        for _ in 0..3 {
            world.start(None, None, 0);
            settle(&mut world);
            let (before, starts) = (world.places(), world.starts);
            let name = world.nodes[0].process.settings.name.clone();
            let held = before.values().filter(|held| **held == name).count() as u64;
            world.nodes[0].process.draining = true;
            settle(&mut world);
            assert_eq!(world.starts - starts, held);
            world.nodes[0].dead = true;
            world.step();
            settle(&mut world);
            assert_eq!(world.starts - starts, held);
        }
    });
}
