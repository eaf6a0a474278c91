//! Keeps a warning that can come thousands of times a second (a backlog of stale interactions)
//! from filling the log. Pure: the time is an argument.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines of the same warning; the counters tell the whole story.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

/// One warning's brake.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<State>);

impl Throttle {
    /// Whether to write the line: `Some` with the number of lines left out since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        // Plain assignments: a panic elsewhere leaves no half of one.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if !due {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_one_line_per_pause_that_counts_the_others() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.admit(start), Some(0));
        for ms in 1..=500 {
            assert_eq!(throttle.admit(start + Duration::from_millis(ms)), None);
        }
        assert_eq!(throttle.admit(start + PAUSE), Some(500));
        assert_eq!(throttle.admit(start + PAUSE * 2), Some(0));
    }
}
