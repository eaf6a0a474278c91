//! Which of a shard's events may be handled now: each guild's one after the other, guilds beside
//! each other, and some events alone. Pure: knows sequences and keys, not messages or time.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use schemas::{EventKind, EventName, GuildId};

use super::by_sequence::BySequence;

/// Events remembered after they are done: an acknowledgement that got lost leads to another delivery
/// about a second later.
const RECENT_MAX: usize = 4096;

/// What an event is in order with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// The other events of this guild; `None` is what belongs to no guild, direct messages above
    /// all.
    Guild(Option<GuildId>),
    /// All other events of the shard: those before it are done when it begins, and it is done when
    /// those after it begin.
    Alone,
}

impl Lane {
    /// The lane of an event. What says something about the whole shard goes alone: a new session,
    /// and everything a proxy adds.
    pub(crate) fn of(event: &str, guild: Option<GuildId>) -> Self {
        match EventName::parse(event) {
            EventName::Proxy(_) | EventName::Known(EventKind::Ready | EventKind::Resumed) => {
                Self::Alone
            }
            EventName::Known(_) | EventName::Other(_) => Self::Guild(guild),
        }
    }
}

/// Events of a guild that wait for the one that runs. The ids are Discord's and nobody else's to
/// choose, so that a hash which could be attacked will do.
type Guilds<T> = FxHashMap<Option<GuildId>, VecDeque<(u64, T)>>;

/// The events of one shard that are not done, with what the driver keeps for each.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    /// Every event that is not done.
    unfinished: BySequence<Lane>,
    /// A guild is here while an event of it runs, or may.
    guilds: Guilds<T>,
    /// Events behind one that must be alone, that one first.
    behind: VecDeque<(u64, Lane, T)>,
    /// True while an event that must be alone runs, or may.
    alone: bool,
    /// May begin.
    ready: VecDeque<(u64, T)>,
    /// The last events taken, done or not, in ascending order.
    recent: VecDeque<u64>,
    /// Highest sequence ever taken.
    highest: u64,
}

impl<T> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self {
            unfinished: BySequence::new(),
            guilds: Guilds::default(),
            behind: VecDeque::new(),
            alone: false,
            ready: VecDeque::new(),
            recent: VecDeque::new(),
            highest: 0,
        }
    }

    /// Takes an event, in the order of the sequences; one that comes late is handled late, which is
    /// better than never. False for one it has had before.
    pub(crate) fn push(&mut self, sequence: u64, lane: Lane, item: T) -> bool {
        match self.recent.back() {
            Some(last) if *last >= sequence => match self.recent.binary_search(&sequence) {
                Ok(_) => return false,
                Err(index) => self.recent.insert(index, sequence),
            },
            _ => self.recent.push_back(sequence),
        }
        if self.recent.len() > RECENT_MAX + self.unfinished.len() {
            self.recent.pop_front();
        }
        self.highest = self.highest.max(sequence);
        self.unfinished.insert(sequence, lane);
        self.behind.push_back((sequence, lane, item));
        self.advance();
        true
    }

    /// The next event that may begin. Its turn ends with [`Lanes::finish`].
    pub(crate) fn next(&mut self) -> Option<(u64, T)> {
        self.ready.pop_front()
    }

    /// Takes events back that [`Lanes::next`] gave out, in their order: they are the next again.
    pub(crate) fn give_back(&mut self, events: Vec<T>, sequence: impl Fn(&T) -> u64) {
        for event in events.into_iter().rev() {
            self.ready.push_front((sequence(&event), event));
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many events may begin.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// An event is done; what waited for it may begin.
    pub(crate) fn finish(&mut self, sequence: u64) {
        match self.unfinished.remove(sequence) {
            None => return,
            Some(Lane::Alone) => self.alone = false,
            Some(Lane::Guild(guild)) => {
                let waiting = self.guilds.get_mut(&guild);
                match waiting.and_then(VecDeque::pop_front) {
                    Some(next) => self.ready.push_back(next),
                    None => drop(self.guilds.remove(&guild)),
                }
            }
        }
        self.advance();
    }

    /// Lets events out of the queue behind one that must be alone, as far as they may go.
    fn advance(&mut self) {
        while let Some((_, lane, _)) = self.behind.front() {
            let may_go = match lane {
                Lane::Alone => !self.alone && self.guilds.is_empty(),
                Lane::Guild(_) => !self.alone,
            };
            if !may_go {
                return;
            }
            let Some((sequence, lane, item)) = self.behind.pop_front() else {
                return;
            };
            let event = (sequence, item);
            match lane {
                Lane::Alone => {
                    self.alone = true;
                    self.ready.push_back(event);
                }
                Lane::Guild(guild) => match self.guilds.get_mut(&guild) {
                    Some(waiting) => waiting.push_back(event),
                    None => {
                        self.guilds.insert(guild, VecDeque::new());
                        self.ready.push_back(event);
                    }
                },
            }
        }
    }

    /// Whether an event has been here lately, done or not.
    pub(crate) fn knows(&self, sequence: u64) -> bool {
        // A new one is the highest.
        self.recent.back().is_some_and(|last| sequence <= *last)
            && self.recent.binary_search(&sequence).is_ok()
    }

    /// Everything up to this sequence is done, as far as anything has been taken.
    pub(crate) fn floor(&self) -> u64 {
        let first = self.unfinished.first();
        first.map_or(self.highest, |first| first - 1)
    }

    /// Highest sequence ever taken.
    pub(crate) const fn highest(&self) -> u64 {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;

    const NONE: [u64; 0] = [];

    fn guild(id: u64) -> Lane {
        Lane::Guild(GuildId::new(id))
    }

    fn begin(lanes: &mut Lanes<()>) -> Vec<u64> {
        std::iter::from_fn(|| lanes.next().map(|(sequence, ())| sequence)).collect()
    }

    fn lanes(events: &[(u64, Lane)]) -> Lanes<()> {
        let mut lanes = Lanes::new();
        for (sequence, lane) in events {
            assert!(lanes.push(*sequence, *lane, ()));
        }
        lanes
    }

    #[test]
    fn guilds_run_beside_each_other_and_each_in_order() {
        let mut lanes = lanes(&[(1, guild(1)), (2, guild(2)), (3, guild(1)), (4, guild(0))]);
        assert_eq!(begin(&mut lanes), [1, 2, 4]);
        lanes.finish(2);
        assert_eq!(begin(&mut lanes), NONE);
        lanes.finish(1);
        assert_eq!(begin(&mut lanes), [3]);
        assert!(lanes.push(5, guild(1), ()));
        assert_eq!(begin(&mut lanes), NONE);
        lanes.finish(3);
        assert_eq!(begin(&mut lanes), [5]);
    }

    #[test]
    fn what_is_given_back_is_next_again_and_still_in_the_way_of_its_guild() {
        let mut lanes = Lanes::new();
        for (sequence, id) in [(1, 1), (2, 2), (3, 3), (4, 1), (5, 4)] {
            assert!(lanes.push(sequence, guild(id), sequence));
        }
        let taken: Vec<u64> = (0..3)
            .filter_map(|_| lanes.next())
            .map(|(at, _)| at)
            .collect();
        assert_eq!(taken, [1, 2, 3]);
        lanes.finish(1);
        lanes.give_back(vec![2, 3], |at| *at);
        let next: Vec<u64> = std::iter::from_fn(|| lanes.next())
            .map(|(at, _)| at)
            .collect();
        assert_eq!(next, [2, 3, 5, 4]);
    }

    #[test]
    fn what_speaks_of_the_whole_shard_goes_alone() {
        let mut lanes = lanes(&[
            (1, guild(1)),
            (2, Lane::Alone),
            (3, Lane::Alone),
            (4, guild(2)),
        ]);
        assert_eq!(begin(&mut lanes), [1]);
        lanes.finish(1);
        assert_eq!(begin(&mut lanes), [2]);
        lanes.finish(2);
        assert_eq!(begin(&mut lanes), [3]);
        assert!(lanes.push(5, guild(3), ()));
        assert_eq!(begin(&mut lanes), NONE);
        lanes.finish(3);
        assert_eq!(begin(&mut lanes), [4, 5]);
    }

    #[test]
    fn markers_and_sessions_are_alone_and_everything_else_belongs_to_its_guild() {
        let seven = GuildId::new(7);
        for event in [
            "PROXY_GAP",
            "PROXY_SHARD",
            "PROXY_RESHARD",
            "READY",
            "RESUMED",
        ] {
            assert_eq!(Lane::of(event, None), Lane::Alone, "{event}");
        }
        assert_eq!(Lane::of("MESSAGE_CREATE", seven), Lane::Guild(seven));
        assert_eq!(Lane::of("MESSAGE_CREATE", None), Lane::Guild(None));
        assert_eq!(Lane::of("SOMETHING_NEW", seven), Lane::Guild(seven));
    }

    #[test]
    fn an_event_that_was_here_before_is_not_taken_again() {
        let mut lanes = lanes(&[(5, guild(1)), (9, guild(1))]);
        assert!(!lanes.push(5, guild(1), ()));
        lanes.finish(5);
        assert!(!lanes.push(5, guild(1), ()));
        assert!(lanes.knows(5) && lanes.knows(9) && !lanes.knows(7));
        assert_eq!((lanes.floor(), lanes.highest()), (8, 9));
        lanes.finish(9);
        assert_eq!(lanes.floor(), 9);
    }

    #[test]
    fn an_event_that_comes_late_is_handled_late() {
        let mut lanes = lanes(&[(9, guild(1))]);
        assert!(lanes.push(7, guild(2), ()));
        assert_eq!(begin(&mut lanes), [9, 7]);
        assert_eq!((lanes.floor(), lanes.highest()), (6, 9));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_not_done_is_not_forgotten() {
        let mut lanes = lanes(&[(1, guild(1))]);
        for sequence in 2..10_000 {
            assert!(lanes.push(sequence, guild(2), ()));
            lanes.finish(sequence);
        }
        assert!(lanes.recent.len() <= RECENT_MAX + 1);
        assert!(lanes.knows(9_999) && !lanes.knows(2));
        assert_eq!(lanes.floor(), 0);
    }

    /// Against a plain model: an event may begin when no unfinished one before it is in its way.
    #[test]
    fn whatever_the_order_of_finishing_no_event_overtakes_its_own() {
        for seed in 1..400_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut lanes = Lanes::new();
            let (mut open, mut running) = (BTreeMap::new(), Vec::new());
            let mut sequence = 0;
            for _ in 0..200 {
                if random.bool() {
                    sequence += random.u64(1..4);
                    let lane = match random.u64(..8) {
                        0 => Lane::Alone,
                        id => guild(id % 4),
                    };
                    assert!(lanes.push(sequence, lane, ()));
                    open.insert(sequence, lane);
                } else if !running.is_empty() {
                    let index = random.usize(..running.len());
                    let done = running.swap_remove(index);
                    lanes.finish(done);
                    open.remove(&done);
                }
                running.extend(begin(&mut lanes));
                for (at, lane) in &open {
                    let in_the_way = |(before, other): (&u64, &Lane)| {
                        before < at
                            && (other == lane || *other == Lane::Alone || *lane == Lane::Alone)
                    };
                    let may_run = !open.iter().any(in_the_way);
                    assert_eq!(running.contains(at), may_run, "seed {seed}, event {at}");
                }
            }
            let unfinished = lanes.unfinished.iter().map(|(at, lane)| (at, *lane));
            assert!(unfinished.eq(open));
        }
    }
}
