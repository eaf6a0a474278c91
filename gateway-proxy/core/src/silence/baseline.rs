//! How often a shard has events while it is healthy.

use super::{EVIDENCE, LONGEST_FACTOR, SLOTS, SLOTS_MAX};

/// Slots after which a change of the rate has sunk in: 30 min by default. A day's rise and fall takes
/// hours, so that the baseline follows it.
const MEMORY: u32 = 15 * SLOTS;
/// Slots before anything is concluded: 40 min by default.
const LEARNING: u32 = 20 * SLOTS;
/// Slots for which the longest silence is kept, at least; twice that at most: a day by default.
const DAY: u32 = 720 * SLOTS;
/// Most evidence one empty slot gives: that of a slot which is filled 98 times in 100. A longer row
/// of filled slots is no reason to believe in more.
const SLOT_EVIDENCE_MAX: f64 = 4.0;
/// Empty slots of one silence that are learnt one by one; four times [`MEMORY`] forget everything.
const EMPTY_MAX: u32 = 4 * MEMORY;

/// Learnt from silences that ended by themselves, and from nothing else.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    // Share of slots with an event: a mean that forgets.
    filled: f64,
    // Slots learnt from; beyond `LEARNING` only that it is so.
    learnt: u32,
    // The longest healthy silence of this day and of the one before, in slots.
    longest: [u32; 2],
    // Slots of this day.
    day: u32,
    needed: Option<u32>,
}

impl Baseline {
    /// Empty slots that make a silence to suspect.
    pub(super) const fn needed(&self) -> Option<u32> {
        self.needed
    }

    /// So many empty slots, then a filled one.
    pub(super) fn learn(&mut self, empty: u32) {
        for _ in 0..empty.min(EMPTY_MAX) {
            self.slot(0.0);
        }
        self.slot(1.0);
        self.longest[0] = self.longest[0].max(empty);
        self.day = self.day.saturating_add(empty).saturating_add(1);
        if self.day >= DAY {
            self.day = 0;
            self.longest = [0, self.longest[0]];
        }
        self.needed = self.judge();
    }

    fn slot(&mut self, filled: f64) {
        self.learnt = self.learnt.saturating_add(1).min(LEARNING);
        // A plain mean at first, so that the beginning does not weigh more than the rest.
        let weight = 1.0 / f64::from(self.learnt.min(MEMORY));
        self.filled += (filled - self.filled) * weight;
    }

    fn judge(&self) -> Option<u32> {
        if self.learnt < LEARNING {
            return None;
        }
        let evidence = (-(-self.filled).ln_1p()).min(SLOT_EVIDENCE_MAX);
        // Infinite for a shard without events, and then above every limit.
        let slots = (EVIDENCE / evidence).ceil();
        if slots > f64::from(SLOTS_MAX) {
            return None;
        }
        let longest = self.longest[0].max(self.longest[1]);
        // At most SLOTS_MAX, and positive.
        let needed = (slots as u32)
            .max(SLOTS)
            .max(longest.saturating_mul(LONGEST_FACTOR));
        (needed <= SLOTS_MAX).then_some(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(empty: u32, times: u32) -> Baseline {
        let mut baseline = Baseline::default();
        (0..times).for_each(|_| baseline.learn(empty));
        baseline
    }

    #[test]
    fn nothing_is_concluded_before_enough_was_seen() {
        assert_eq!(learnt(0, LEARNING - 1).needed(), None);
        assert_eq!(learnt(0, LEARNING).needed(), Some(SLOTS));
    }

    #[test]
    fn rarer_events_take_longer_and_rare_ones_tell_nothing() {
        // Every slot, every second, every third: evidence 4, 0.69 and 0.41 per slot.
        let needed = [0, 1, 2].map(|empty| learnt(empty, 2_000).needed());
        assert_eq!(needed, [Some(SLOTS), Some(58), None]);
    }

    #[test]
    fn a_long_healthy_silence_is_remembered_for_a_day() {
        let mut baseline = learnt(0, 2_000);
        baseline.learn(10);
        (0..DAY).for_each(|_| baseline.learn(0));
        assert_eq!(baseline.needed(), Some(30));
        (0..DAY).for_each(|_| baseline.learn(0));
        assert_eq!(baseline.needed(), Some(SLOTS));
    }

    #[test]
    fn a_silence_beyond_every_limit_ends_the_watch_for_a_while() {
        let mut baseline = learnt(0, 2_000);
        baseline.learn(u32::MAX);
        assert_eq!(baseline.needed(), None);
    }
}
