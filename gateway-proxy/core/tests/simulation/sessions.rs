//! Sessions under random faults: nothing lost, nothing twice, in order, never silent, never rude; and
//! when the faults stop, ready before long.

use std::time::Duration;

use crate::discord::Frame;
use crate::for_each_seed;
use crate::world::World;

const SEEDS: u64 = 1_000;
const STEPS: u32 = 500;
/// After the last fault: the longest start (300 s) twice, the longest back-off (128 s) a few times.
const SETTLED_WITHIN: Duration = Duration::from_secs(30 * 60);
const SETTLED_STEPS: u32 = 5_000;

/// Close codes that are not fatal.
const CODES: [u16; 15] = [
    1000, 1001, 1006, 3000, 4000, 4001, 4002, 4003, 4005, 4006, 4007, 4008, 4009, 4015, 4999,
];

fn close(world: &mut World) -> Frame {
    let code = world.rng.choice(CODES);
    Frame::Close(code.filter(|_| world.rng.u8(0..4) > 0))
}

fn fault(world: &mut World) {
    let now = world.now;
    let coin = world.rng.bool();
    let frame = match world.rng.u8(0..26) {
        0 => Frame::Close(None),
        1 => close(world),
        2 => Frame::Reconnect,
        3 => Frame::Invalid(true),
        4 => Frame::Invalid(false),
        5 => Frame::HeartbeatRequest,
        6 => Frame::Undecodable,
        7 => Frame::StrayReady,
        8 => return world.lose_live_event(),
        9 => {
            if let Some(connection) = &mut world.discord.connection {
                connection.silent = true;
            }
            return;
        }
        10 => {
            let told_after = Duration::from_millis(world.rng.u64(0..60_000));
            return world.discord.forget_attached(told_after, now);
        }
        11 => return world.unreachable = world.rng.u32(1..6),
        12 => return world.next_hello = Some(None),
        13 => return world.next_hello = Some(Some(Frame::Reconnect)),
        14 => {
            let frame = close(world);
            return world.next_hello = Some(Some(frame));
        }
        15 => return world.discord.next_start = Some(Frame::Invalid(coin)),
        16 => return world.discord.next_start = Some(close(world)),
        17 => return world.discord.next_start_hangs = true,
        18 => {
            let time = Duration::from_millis(world.rng.u64(0..200_000));
            return world.freeze(time);
        }
        19 => return world.crash(),
        20 => return world.hand_over_shard(),
        21 => return world.renew(),
        22 => return world.pause(),
        23 => return world.set_nats_down(coin),
        24 => return world.set_reading(coin),
        _ => {
            for _ in 0..world.rng.u32(0..100) {
                world.discord.happen(now);
            }
            return;
        }
    };
    world.discord.send(frame, now);
}

fn settle(world: &mut World) {
    world.unreachable = 0;
    world.next_hello = None;
    world.discord.next_start = None;
    world.discord.next_start_hangs = false;
    world.set_nats_down(false);
    world.set_reading(true);
    world.hush();
    let deadline = world.now + SETTLED_WITHIN;
    for _ in 0..SETTLED_STEPS {
        if world.is_settled() {
            return;
        }
        world.step();
        assert!(
            world.now < deadline,
            "not ready in time: {}",
            world.describe()
        );
    }
    panic!(
        "not ready after {SETTLED_STEPS} steps: {}",
        world.describe()
    );
}

#[test]
fn whatever_happens_the_stream_is_complete_and_the_shard_returns() {
    for_each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        // From calm to storm.
        let calm = world.rng.u32(3..60);
        for _ in 0..STEPS {
            if world.rng.u32(0..calm) == 0 {
                fault(&mut world);
            }
            world.step();
        }
        settle(&mut world);
        world.check_skipped();
    });
}

#[test]
fn without_faults_there_is_one_session_and_no_gap() {
    for_each_seed(50, |seed| {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        settle(&mut world);
        assert_eq!(world.session.id(), Some("session0"));
        assert_eq!(world.session.skipped(), 0);
        assert_eq!(world.session.generation(), 1);
    });
}
