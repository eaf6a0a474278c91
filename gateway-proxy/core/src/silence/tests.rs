//! Simulated weeks of shards of every kind, healthy and not.

use super::*;

const SHORTEST: Duration = Duration::from_secs(120);
const SLOT: Duration = Duration::from_secs(10);
const DAY: u64 = 24 * 360;
const ALONE: Others = Others {
    awake: 0,
    asleep: 0,
    may_identify: true,
};
const AMONG_OTHERS: Others = Others { awake: 15, ..ALONE };

/// One shard, its Discord and its driver; a step is a slot.
struct World {
    silence: Silence,
    heard: Heard,
    now: Instant,
    slot: u64,
    others: Others,
    suspected: u32,
    steps: Vec<(u64, Advice)>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut silence = Silence::new(Limits { shortest: SHORTEST });
        silence.handle_listening(true, Heard::default(), now);
        Self {
            silence,
            heard: Heard::default(),
            now,
            slot: 0,
            others: AMONG_OTHERS,
            suspected: 0,
            steps: Vec::new(),
        }
    }

    /// One slot with so many events; a RESUME brings nothing.
    fn step(&mut self, events: u64) -> Option<Advice> {
        self.heard.live += events;
        self.now += SLOT;
        self.slot += 1;
        let others = self.others;
        let found = self.silence.handle_timeout(self.heard, self.now, || others);
        self.suspected += u32::from(found.suspected);
        if let Some(advice) = found.advice {
            self.steps.push((self.slot, advice));
        }
        if matches!(found.advice, Some(Advice::Resume | Advice::Renew)) {
            self.reconnect(0);
        }
        found.advice
    }

    /// So many slots, each with so many events.
    fn run(&mut self, slots: u64, events: u64) {
        for _ in 0..slots {
            self.step(events);
        }
    }

    fn reconnect(&mut self, replayed: u64) {
        self.silence.handle_listening(false, self.heard, self.now);
        assert_eq!(self.silence.poll_timeout(), None);
        self.heard.replayed += replayed;
        self.now += Duration::from_secs(1);
        self.silence.handle_listening(true, self.heard, self.now);
    }

    /// A healthy shard.
    fn poisson(&mut self, rng: &mut fastrand::Rng, rate: f64, slots: u64) {
        for _ in 0..slots {
            self.step(filled(rng, rate));
        }
    }

    fn count(&self, advice: Advice) -> usize {
        self.steps.iter().filter(|step| step.1 == advice).count()
    }

    /// Slots until the advice comes in silence.
    fn silent_until(&mut self, advice: Advice) -> u64 {
        let from = self.slot;
        for _ in 0..DAY {
            if self.step(0) == Some(advice) {
                return self.slot - from;
            }
        }
        panic!("{advice:?} never came: {:?}", self.steps);
    }
}

/// Whether a slot has an event at a rate of so many per slot.
fn filled(rng: &mut fastrand::Rng, rate: f64) -> u64 {
    u64::from(rng.f64() >= (-rate).exp())
}

fn worlds() -> impl Iterator<Item = (u64, fastrand::Rng, World)> {
    (0..6).map(|seed| (seed, fastrand::Rng::with_seed(seed), World::new()))
}

#[test]
fn a_healthy_shard_with_a_steady_rate_is_never_suspected_in_weeks() {
    for rate in [0.0, 0.01, 0.1, 0.2, 0.35, 0.45, 0.6, 0.8, 1.2, 3.0, 50.0] {
        for (seed, mut rng, mut world) in worlds() {
            world.poisson(&mut rng, rate, 28 * DAY);
            assert_eq!(world.suspected, 0, "seed {seed}, rate {rate}");
        }
    }
}

#[test]
fn nights_that_are_thirty_times_quieter_are_no_silence() {
    for peak in [0.3, 1.0, 3.0, 10.0, 100.0] {
        for (seed, mut rng, mut world) in worlds() {
            let start = rng.f64();
            for slot in 0..28 * DAY {
                let day = slot as f64 / DAY as f64 + start;
                let swing = (1.0 - (day * std::f64::consts::TAU).cos()) / 2.0;
                world.step(filled(&mut rng, peak * 30_f64.powf(-swing)));
            }
            assert_eq!(world.suspected, 0, "seed {seed}, peak {peak}");
        }
    }
}

#[test]
fn conversations_with_long_pauses_cost_no_session_and_few_resumes() {
    for pause in [30.0, 90.0, 200.0] {
        for (seed, mut rng, mut world) in worlds() {
            let mut talking = true;
            for _ in 0..28 * DAY {
                let mean = if talking { 60.0 } else { pause };
                talking ^= rng.f64() < 1.0 / mean;
                world.step(filled(&mut rng, if talking { 3.0 } else { 0.0 }));
            }
            let resumes = world.count(Advice::Resume);
            assert!(resumes <= 28, "seed {seed}, pause {pause}: {resumes}");
            let renewed = world.count(Advice::Renew);
            assert!(renewed <= 1, "seed {seed}, pause {pause}: {renewed}");
        }
    }
}

#[test]
fn a_silence_is_found_in_the_stated_time() {
    for (rate, most) in [(0.6, 96), (1.0, 64), (2.0, 30), (5.0, 12), (500.0, 12)] {
        for (seed, mut rng, mut world) in worlds() {
            world.poisson(&mut rng, rate, DAY);
            let patience = world.silence.patience().unwrap();
            let slots = world.silent_until(Advice::Resume);
            assert!(
                (12..=most).contains(&slots),
                "seed {seed}, rate {rate}: {slots}"
            );
            assert!(SLOT * slots as u32 <= patience, "seed {seed}, rate {rate}");
            assert_eq!(world.suspected, 1);
        }
    }
}

#[test]
fn a_shard_with_few_events_or_none_is_never_suspected() {
    for rate in [0.0, 0.001, 0.05, 0.16] {
        for (seed, mut rng, mut world) in worlds() {
            world.poisson(&mut rng, rate, 3 * DAY);
            world.run(28 * DAY, 0);
            assert_eq!(world.suspected, 0, "seed {seed}, rate {rate}");
        }
    }
}

#[test]
fn a_silence_for_ever_costs_one_resume_and_one_session() {
    for (seed, mut rng, mut world) in worlds() {
        world.poisson(&mut rng, 4.0, DAY);
        world.run(56 * DAY, 0);
        let steps: Vec<_> = world.steps.iter().map(|step| step.1).collect();
        let expected = [Advice::Resume, Advice::Renew, Advice::Quiet];
        assert_eq!(steps, expected, "seed {seed}");
    }
}

#[test]
fn events_that_a_resume_brings_are_no_reason_to_be_more_patient() {
    let mut world = World::new();
    world.run(DAY, 3);
    let before = world.silence.patience();
    world.silent_until(Advice::Resume);
    world.heard.replayed += 40;
    assert_eq!(world.step(0), Some(Advice::Recovered));
    world.step(1);
    assert_eq!(world.silence.patience(), before);
}

#[test]
fn a_shard_that_was_only_quiet_is_given_more_time_from_then_on() {
    let mut world = World::new();
    world.run(DAY, 3);
    let silent = world.silent_until(Advice::Resume);
    assert_eq!(world.step(1), Some(Advice::Recovered));
    let patience = world.silence.patience().unwrap();
    assert!(patience >= SLOT * 3 * silent as u32, "{patience:?}");
}

#[test]
fn a_shard_that_falls_silent_again_right_after_a_resume_gets_a_new_session() {
    let mut world = World::new();
    world.run(DAY, 3);
    world.silent_until(Advice::Resume);
    world.heard.replayed += 40;
    assert_eq!(world.step(2), Some(Advice::Recovered));
    assert_eq!(world.silent_until(Advice::Renew), 12);
    assert_eq!(world.step(2), Some(Advice::Recovered));
    // Both were taken: the next waits, and says so once.
    assert_eq!(world.silent_until(Advice::Wait), 12);
    assert_eq!(world.silent_until(Advice::Resume), 34);
}

#[test]
fn nothing_is_done_while_most_shards_are_silent() {
    let mut world = World::new();
    world.run(DAY, 3);
    world.others = Others {
        awake: 3,
        asleep: 3,
        may_identify: true,
    };
    assert_eq!(world.silent_until(Advice::Outage), 12);
    (0..DAY).for_each(|_| assert_eq!(world.step(0), None));
    // They are back, and this one is not.
    world.others.awake = 4;
    assert_eq!(world.step(0), Some(Advice::Resume));
}

#[test]
fn an_outage_of_discord_leaves_the_watch_as_it_was() {
    let mut world = World::new();
    world.run(DAY, 3);
    let before = world.silence.patience();
    world.others = Others {
        awake: 0,
        asleep: 15,
        may_identify: true,
    };
    world.run(6 * 60, 0);
    world.run(1, 3);
    assert_eq!(world.silence.patience(), before);
    world.others = AMONG_OTHERS;
    assert_eq!(world.silent_until(Advice::Resume), 12);
}

#[test]
fn a_shard_without_witnesses_waits_longer_for_a_new_session() {
    let mut world = World::new();
    world.others = ALONE;
    world.run(DAY, 3);
    assert_eq!(world.silent_until(Advice::Resume), 12);
    assert_eq!(world.silent_until(Advice::Renew), u64::from(SLOTS_MAX));
}

#[test]
fn a_budget_at_its_reserve_allows_no_new_session() {
    let mut world = World::new();
    world.run(DAY, 3);
    world.others.may_identify = false;
    world.silent_until(Advice::Resume);
    assert_eq!(world.silent_until(Advice::Wait), 12);
    (0..DAY).for_each(|_| assert_eq!(world.step(0), None));
    world.others.may_identify = true;
    assert_eq!(world.step(0), Some(Advice::Renew));
}

#[test]
fn time_in_which_nothing_is_read_does_not_count() {
    let mut world = World::new();
    world.run(DAY, 3);
    world.run(11, 0);
    // Frozen for an hour: the events lie in the socket.
    world.now += Duration::from_secs(3600);
    assert_eq!(world.step(0), None);
    world.run(11, 0);
    // Reconnected by Discord.
    world.reconnect(0);
    world.run(11, 0);
    assert_eq!((world.suspected, world.steps.len()), (0, 0));
}

#[test]
fn a_hostile_discord_cannot_lead_in_circles() {
    for (seed, mut rng, mut world) in worlds() {
        world.poisson(&mut rng, 3.0, DAY);
        let mut silent = false;
        for _ in 0..56 * DAY {
            // Where a silence would not be noticed there is none.
            silent &= world.silence.patience().is_some();
            silent |= rng.f64() < 0.001;
            world.others.awake = rng.usize(0..3);
            world.others.asleep = rng.usize(0..2);
            let events = if silent { 0 } else { 1 };
            match world.step(events) {
                Some(Advice::Resume) if rng.bool() => {
                    world.heard.replayed += 1;
                    silent = rng.bool();
                }
                Some(Advice::Renew) => silent = rng.u8(0..4) == 0,
                Some(Advice::Quiet | Advice::Wait) => silent = rng.bool(),
                None => silent &= rng.f64() >= 0.0001,
                _ => {}
            }
        }
        let apart = |advice: Advice| {
            let at: Vec<_> = world.steps.iter().filter(|step| step.1 == advice).collect();
            at.windows(2).map(|two| two[1].0 - two[0].0).min()
        };
        let hours = 360;
        assert!(
            world.count(Advice::Resume) > 5,
            "seed {seed}: {:?}",
            world.steps
        );
        assert!(apart(Advice::Resume) >= Some(hours / 6), "seed {seed}");
        assert!(
            apart(Advice::Renew).is_none_or(|slots| slots >= 6 * hours),
            "seed {seed}"
        );
        // Doubling to a week: fewer than one in two days.
        assert!(world.count(Advice::Renew) < 28, "seed {seed}");
    }
}
