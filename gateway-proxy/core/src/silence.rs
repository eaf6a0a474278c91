//! Whether a shard whose heartbeats are acknowledged has stopped delivering, and what is done about
//! it: first a RESUME, and if that does not help a new session.
//!
//! Discord does not say how often a shard has events, so each shard is measured by itself. Time is
//! cut into slots; learnt is how often a slot holds an event, so that a burst counts once, and which
//! silence was the longest that ended by itself. A silence is suspected when all of this holds:
//!
//! - it lasts [`Limits::shortest`];
//! - slots that are filled as often as this shard's would be empty so long by chance less than once
//!   in e⁴⁰ times (`EVIDENCE`);
//! - it is three times as long as the longest healthy one of the last day (`LONGEST_FACTOR`):
//!   people are not a Poisson process, and nights are quiet;
//! - all of this was reached within eight times [`Limits::shortest`]. Shards with so few events that
//!   it would take longer are never suspected; by default those with fewer than about 2.5 a minute.
//!
//! Steps are taken once, then pauses grow (`Pause`): a shard cannot be led in circles, whatever
//! Discord does. If most shards of the process are silent at once, it is Discord that has an outage,
//! and nothing is done ([`Others`]).
//!
//! Memory is constant, the cost per event is the caller's counter.

use std::time::{Duration, Instant};

mod baseline;
mod pause;

#[cfg(test)]
mod tests;

use baseline::Baseline;
use pause::Pause;

/// Slots in [`Limits::shortest`]: 10 s each by default.
const SLOTS: u32 = 12;
/// Slots after which a silence that is not suspected yet never is.
const SLOTS_MAX: u32 = 8 * SLOTS;
/// Natural logarithm of how unlikely a silence must be: e⁻⁴⁰ is 4·10⁻¹⁸. Far beyond what statistics
/// need, because the baseline is an estimate: it may be wrong by half and still leave e⁻²⁰.
const EVIDENCE: f64 = 40.0;
/// A silence is at least so many times as long as the longest healthy one.
const LONGEST_FACTOR: u32 = 3;
/// A look so many slots late means that the process was held up: frames may lie unread.
const HELD_UP_SLOTS: u32 = 4;
/// RESUMEs of a shard because of silence, in units of [`Limits::shortest`]: 10 min to 6 h apart.
const RESUME_PAUSE: (u32, u32) = (5, 180);
/// New sessions of a shard because of silence: 6 h to a week apart.
const RENEW_PAUSE: (u32, u32) = (180, 28 * 180);

/// How patient the watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// No shorter silence is suspected, however busy the shard. All other times are multiples of it.
    pub shortest: Duration,
}

/// Where the other shards of the process stand, and the limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Others {
    /// Other shards that delivered within the last half of [`Limits::shortest`].
    pub awake: usize,
    /// Other shards that usually would have, and did not.
    pub asleep: usize,
    /// Whether the day's budget allows a new session.
    pub may_identify: bool,
}

impl Others {
    /// Half of all, or more, are silent with this one.
    const fn is_outage(&self) -> bool {
        self.asleep + self.awake > 0 && self.asleep >= self.awake
    }
}

/// What other shards may conclude from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing: it is not listening, or usually has so few events.
    Unknown,
    /// It delivered within the last half of [`Limits::shortest`].
    Awake,
    /// It did not, and usually would have.
    Asleep,
}

/// Dispatches since the process started, without READY, RESUMED and the guilds of a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Delivered as they happened.
    pub live: u64,
    /// Brought by a replay after RESUME.
    pub replayed: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Close resumably and RESUME.
    Resume,
    /// End the session and IDENTIFY.
    Renew,
    /// Nothing, though the shard is silent: most others are too.
    Outage,
    /// Nothing, though the shard is silent: it was helped not long ago, or the budget is at its
    /// reserve.
    Wait,
    /// Nothing: events came back after a step.
    Recovered,
    /// Nothing: a new session is as silent, so there is nothing to deliver. Learnt anew.
    Quiet,
}

/// What a look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// A silence became one to suspect; once per silence.
    pub suspected: bool,
    /// What to do about it, once each.
    pub advice: Option<Advice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Learns, and looks out.
    Watching,
    /// A RESUME was asked for; so many had been replayed before, after so many slots of silence.
    Resumed { replayed: u64, silent: u32 },
    /// A new session was asked for.
    Renewed,
}

/// The watch over one shard.
#[derive(Debug)]
pub struct Silence {
    slot: Duration,
    next: Option<Instant>,
    baseline: Baseline,
    // Events heard of at the last look.
    live: u64,
    // Empty slots in a row, while listening.
    empty: u32,
    // Slots until the last event counts as long ago.
    awake: u32,
    // What makes a silence in the stages after the first.
    needed: u32,
    stage: Stage,
    resume: Pause,
    renew: Pause,
    // What was said about the silence there is: that it is suspected, and why nothing is done (wait,
    // outage).
    suspected: bool,
    told: [bool; 2],
}

impl Silence {
    /// A shard nothing is known of.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let slot = (limits.shortest / SLOTS).max(Duration::from_millis(1));
        let pause = |(base, max): (u32, u32)| Pause::new(slot * SLOTS * base, slot * SLOTS * max);
        Self {
            slot,
            next: None,
            baseline: Baseline::default(),
            live: 0,
            empty: 0,
            awake: 0,
            needed: SLOTS_MAX,
            stage: Stage::Watching,
            resume: pause(RESUME_PAUSE),
            renew: pause(RENEW_PAUSE),
            suspected: false,
            told: [false; 2],
        }
    }

    /// When to call [`Silence::handle_timeout`]; `None` while the shard does not listen.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// What others may conclude.
    #[must_use]
    pub const fn pulse(&self) -> Pulse {
        if self.next.is_none() {
            Pulse::Unknown
        } else if self.awake > 0 {
            Pulse::Awake
        } else if self.empty >= SLOTS / 2 && self.baseline.needed().is_some() {
            Pulse::Asleep
        } else {
            Pulse::Unknown
        }
    }

    /// How long nothing has come.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.slot * self.empty
    }

    /// True from suspicion until events come, or until the silence is taken for the shard's nature.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.suspected
    }

    /// How long a silence must last to be suspected; `None`: no silence is.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.baseline.needed().map(|slots| self.slot * slots)
    }

    /// Whether events can come: the session is ready and its socket is read. While they cannot, time
    /// does not count.
    pub fn handle_listening(&mut self, listening: bool, heard: Heard, now: Instant) {
        if listening == self.next.is_some() {
            return;
        }
        if listening {
            self.begin(heard, now);
        } else {
            self.next = None;
            self.empty = 0;
            self.awake = 0;
        }
    }

    /// Looks, once per slot. The others are asked for only where it depends on them.
    pub fn handle_timeout(
        &mut self,
        heard: Heard,
        now: Instant,
        others: impl FnOnce() -> Others,
    ) -> Finding {
        let Some(due) = self.next.filter(|due| now >= *due) else {
            return Finding::default();
        };
        if now.saturating_duration_since(due) >= self.slot * HELD_UP_SLOTS {
            // What has arrived meanwhile is still to be read.
            self.begin(heard, now);
            return Finding::default();
        }
        self.next = Some(due + self.slot);
        let delivered = heard.live != self.live;
        self.live = heard.live;
        if delivered {
            self.awake = SLOTS / 2;
        }
        if let Stage::Resumed { replayed, .. } = self.stage
            && heard.replayed != replayed
        {
            // Discord had withheld them: the silence is not in the shard's nature, and not learnt.
            self.recover();
            return advise(Advice::Recovered);
        }
        if delivered {
            return self.delivered();
        }
        self.awake = self.awake.saturating_sub(1);
        self.empty = self.empty.saturating_add(1);
        self.judge(heard, now, others)
    }

    fn begin(&mut self, heard: Heard, now: Instant) {
        self.next = Some(now + self.slot);
        self.empty = 0;
        self.live = heard.live;
    }

    fn delivered(&mut self) -> Finding {
        match self.stage {
            Stage::Watching => {
                // Discord's outages say nothing about the shard.
                let [_, outage] = self.told;
                if !outage {
                    self.baseline.learn(self.empty);
                }
                self.quiet_again();
                Finding::default()
            }
            Stage::Resumed { silent, .. } => {
                // Nothing was replayed: the shard may just have been quiet, so that is learnt too.
                self.baseline.learn(silent.saturating_add(self.empty));
                self.recover();
                advise(Advice::Recovered)
            }
            Stage::Renewed => {
                self.recover();
                advise(Advice::Recovered)
            }
        }
    }

    fn recover(&mut self) {
        self.stage = Stage::Watching;
        self.quiet_again();
    }

    const fn quiet_again(&mut self) {
        self.empty = 0;
        self.suspected = false;
        self.told = [false; 2];
    }

    fn judge(&mut self, heard: Heard, now: Instant, others: impl FnOnce() -> Others) -> Finding {
        match self.stage {
            Stage::Watching => {
                let Some(needed) = self.baseline.needed().filter(|slots| self.empty >= *slots)
                else {
                    return Finding::default();
                };
                let suspected = !std::mem::replace(&mut self.suspected, true);
                self.needed = needed;
                let advice = self.help(heard, now, others());
                Finding { suspected, advice }
            }
            Stage::Resumed { .. } if self.empty >= self.needed => {
                let others = others();
                // Without another shard as a witness, an outage of Discord looks the same.
                let needed = if others.awake == 0 {
                    SLOTS_MAX
                } else {
                    self.needed
                };
                let advice = match (self.empty >= needed, others.is_outage()) {
                    (false, _) => None,
                    (true, true) => self.hold(Advice::Outage),
                    (true, false) => self.try_renew(others, now),
                };
                Finding {
                    suspected: false,
                    advice,
                }
            }
            Stage::Renewed if self.empty >= self.needed => {
                self.baseline = Baseline::default();
                self.recover();
                advise(Advice::Quiet)
            }
            Stage::Resumed { .. } | Stage::Renewed => Finding::default(),
        }
    }

    fn help(&mut self, heard: Heard, now: Instant, others: Others) -> Option<Advice> {
        if others.is_outage() {
            return self.hold(Advice::Outage);
        }
        if !self.resume.take(now) {
            // A RESUME did not help for long.
            return self.try_renew(others, now);
        }
        self.stage = Stage::Resumed {
            replayed: heard.replayed,
            silent: self.empty,
        };
        Some(Advice::Resume)
    }

    fn try_renew(&mut self, others: Others, now: Instant) -> Option<Advice> {
        if !others.may_identify || !self.renew.take(now) {
            return self.hold(Advice::Wait);
        }
        self.stage = Stage::Renewed;
        Some(Advice::Renew)
    }

    /// Says why nothing is done, each reason once per silence.
    fn hold(&mut self, why: Advice) -> Option<Advice> {
        let told = &mut self.told[usize::from(why == Advice::Outage)];
        (!std::mem::replace(told, true)).then_some(why)
    }
}

const fn advise(advice: Advice) -> Finding {
    Finding {
        suspected: false,
        advice: Some(advice),
    }
}
