//! What happens in the guilds: the mix of events, their pace, slash commands and recordings.

mod mix;
mod playback;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::playback::PlaybackError;
pub(crate) use self::playback::{Playback, Recorded};
use super::config::{Load, Pace};
use super::guilds::{skewed, splitmix};
use super::session::{Body, NO_GUILD_INDEX, Session};
use super::state::Shared;

/// Shortest pause between two batches of paced events: the runtime's timer knows no less.
const TICK: Duration = Duration::from_millis(1);
/// A pace that fell behind (a stalled machine) catches up at most this much.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);
/// Draws for a guild that is no outage before an event is given up.
const DRAWS_MAX: usize = 8;
/// Longest sleep of the thread that makes events one by one: how late it sees another load or the end.
const NAP: Duration = Duration::from_millis(10);
/// Without a pace the pacer only waits for another load.
const IDLE: Duration = Duration::from_secs(3600);

/// The load and its number: it changes while the simulator runs.
pub(crate) struct LoadState {
    pub(crate) load: Load,
    pub(crate) generation: u64,
}

/// What a session floods with: templates its intents allow, or a recording.
pub(crate) struct FloodTable {
    source: Source,
    limit: Option<u64>,
    seed: u64,
}

enum Source {
    Mix(Vec<u16>),
    Playback(Vec<Body>),
}

impl FloodTable {
    /// `None` where the load is no flood or nothing of it may reach the session.
    pub(crate) fn for_session(
        shared: &Shared,
        load: &LoadState,
        session: &Session,
    ) -> Option<Self> {
        let Pace::Flood { events_per_shard } = load.load.pace else {
            return None;
        };
        let shard = session.shard;
        let source = match &shared.playback {
            Some(playback) => Source::Playback(playback.for_session(session)),
            None => {
                let allowed = |template: u16| {
                    let template = &shared.templates.events[usize::from(template)];
                    let mine = if template.direct {
                        shard.id() == 0
                    } else {
                        !session.guilds.is_empty()
                    };
                    mine && (template.intents == 0 || template.intents & session.intents != 0)
                };
                Source::Mix(mix::slots(&shared.templates, load.load.mix, allowed))
            }
        };
        let (empty, limit) = match &source {
            Source::Mix(slots) => (slots.is_empty(), events_per_shard),
            // A recording is played once unless a number is asked for.
            Source::Playback(frames) => (
                frames.is_empty(),
                events_per_shard.or(Some(frames.len() as u64)),
            ),
        };
        let tuple = u64::from(shard.id()) << 32 | u64::from(shard.count());
        let seed = splitmix(shared.config.seed ^ splitmix(tuple));
        (!empty).then_some(Self {
            source,
            limit,
            seed,
        })
    }

    /// The next event, or `None` once the shard had its number.
    pub(crate) fn next(&self, shared: &Shared, session: &Session) -> Option<Body> {
        let made = &session.flood_made;
        if self
            .limit
            .is_some_and(|limit| made.load(Ordering::Relaxed) >= limit)
        {
            return None;
        }
        let number = made.fetch_add(1, Ordering::Relaxed);
        let slots = match &self.source {
            Source::Playback(frames) => {
                return Some(frames[number as usize % frames.len()].clone());
            }
            Source::Mix(slots) => slots,
        };
        let mut rng = fastrand::Rng::with_seed(self.seed ^ splitmix(number));
        let template = slots[rng.usize(..slots.len())];
        let guild = if shared.templates.events[usize::from(template)].direct {
            NO_GUILD_INDEX
        } else {
            draw_guild(shared, &mut rng, &session.guilds)
        };
        // Made-up moments: a millisecond from event to event.
        Some(Body::Template {
            template,
            guild,
            seed: rng.u64(..),
            moment: number as u32,
        })
    }
}

/// Exponentially distributed around 1.
fn exponential(rng: &mut fastrand::Rng) -> f64 {
    // Never the logarithm of 0.
    -(1.0 - rng.f64()).ln()
}

/// A busy guild without an outage, or the last one drawn.
fn draw_guild(shared: &Shared, rng: &mut fastrand::Rng, guilds: &[u32]) -> u32 {
    let mut guild = guilds[skewed(rng, guilds.len())];
    for _ in 1..DRAWS_MAX {
        if !shared.world.is_unavailable(guild) {
            break;
        }
        guild = guilds[skewed(rng, guilds.len())];
    }
    guild
}

/// Makes paced events and slash commands until the simulator stops.
pub(crate) fn start(shared: &Arc<Shared>, tasks: &TaskTracker) {
    let shared = Arc::clone(shared);
    if shared.config.one_by_one {
        tasks.spawn_blocking(move || run_one_by_one(&shared));
    } else {
        tasks.spawn(run(shared));
    }
}

async fn run(shared: Arc<Shared>) {
    let mut pacer = Pacer::new(&shared);
    loop {
        let wait = pacer.step(&shared).max(TICK);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = shared.load_changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// On a thread of its own, as the runtime's timers know nothing shorter than a millisecond.
fn run_one_by_one(shared: &Shared) {
    let mut pacer = Pacer::new(shared);
    while !shared.cancel.is_cancelled() {
        let wait = pacer.step(shared);
        std::thread::sleep(wait.min(NAP));
    }
}

struct Pacer {
    generation: u64,
    last: Instant,
    events_due: f64,
    // How much of `events_due` the next event takes: 1 on average.
    next_event: f64,
    commands_due: f64,
    number: u64,
    rng: fastrand::Rng,
    slots: Vec<u16>,
    guilds: Vec<u32>,
}

impl Pacer {
    fn new(shared: &Shared) -> Self {
        Self {
            generation: u64::MAX,
            last: Instant::now(),
            events_due: 0.0,
            next_event: 1.0,
            commands_due: 0.0,
            number: 0,
            rng: fastrand::Rng::with_seed(splitmix(shared.config.seed)),
            slots: Vec::new(),
            guilds: (0..shared.world.len() as u32).collect(),
        }
    }

    fn restart(&mut self, shared: &Shared, load: &LoadState) {
        self.generation = load.generation;
        self.last = Instant::now();
        self.events_due = 0.0;
        self.commands_due = 0.0;
        self.slots = mix::slots(&shared.templates, load.load.mix, |_| true);
    }

    /// Does what is due and says how long to wait.
    fn step(&mut self, shared: &Shared) -> Duration {
        let load = shared.load();
        if self.generation != load.generation {
            self.restart(shared, &load);
        }
        let load = &load.load;
        let rate = match load.pace {
            Pace::Rate { events_per_second } => events_per_second,
            Pace::RatePerShard { events_per_second } => {
                events_per_second * f64::from(shared.config.shards)
            }
            Pace::Quiet | Pace::Flood { .. } => 0.0,
        };
        let now = Instant::now();
        let passed = (now - self.last).min(CATCH_UP_MAX).as_secs_f64();
        self.last = now;
        self.events_due += rate * passed;
        self.commands_due += load.commands_per_second * passed;
        while self.events_due >= self.next_event {
            self.events_due -= self.next_event;
            if shared.config.one_by_one {
                self.next_event = exponential(&mut self.rng);
            }
            self.event(shared);
        }
        while self.commands_due >= 1.0 {
            self.commands_due -= 1.0;
            let name = if self.rng.bool() { "ping" } else { "info" };
            let guild = self.guild(shared);
            shared.type_command(guild, name);
        }
        let until = |missing: f64, rate: f64| {
            if rate > 0.0 {
                Duration::from_secs_f64((missing / rate).min(3600.0))
            } else {
                IDLE
            }
        };
        let events = until(self.next_event - self.events_due, rate);
        events.min(until(1.0 - self.commands_due, load.commands_per_second))
    }

    fn guild(&mut self, shared: &Shared) -> Option<u32> {
        (!self.guilds.is_empty()).then(|| draw_guild(shared, &mut self.rng, &self.guilds))
    }

    fn event(&mut self, shared: &Shared) {
        self.number += 1;
        if let Some(playback) = &shared.playback {
            if let Some(frame) = playback.cycle(self.number - 1) {
                shared.publish_raw(frame);
            }
            return;
        }
        if self.slots.is_empty() {
            return;
        }
        let template = self.slots[self.rng.usize(..self.slots.len())];
        let direct = shared.templates.events[usize::from(template)].direct;
        let guild = if direct {
            Some(NO_GUILD_INDEX)
        } else {
            self.guild(shared)
        };
        if let Some(guild) = guild {
            let (seed, moment) = (self.rng.u64(..), self.number as u32);
            shared.publish_template(&Body::Template {
                template,
                guild,
                seed,
                moment,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_events_are_as_of_sources_that_know_nothing_of_each_other() {
        const DRAWS: usize = 100_000;
        let mut rng = fastrand::Rng::with_seed(7);
        let gaps: Vec<f64> = (0..DRAWS).map(|_| exponential(&mut rng)).collect();
        let share = |longer_than: f64| {
            let count = gaps.iter().filter(|gap| **gap > longer_than).count();
            count as f64 / DRAWS as f64
        };
        let mean = gaps.iter().sum::<f64>() / DRAWS as f64;
        assert!((0.98..1.02).contains(&mean), "{mean}");
        // e to the power of -0.1, -1 and -3.
        for (longer_than, expected) in [(0.1, 0.905), (1.0, 0.368), (3.0, 0.050)] {
            let share = share(longer_than);
            assert!((share - expected).abs() < 0.01, "{longer_than}: {share}");
        }
    }
}
