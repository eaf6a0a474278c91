//! No more than so many requests within a second, whichever second is looked at. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Discord's second, and a tenth more: requests that leave here within it may arrive closer
/// together.
pub(crate) const WINDOW: Duration = Duration::from_millis(1100);

/// When requests of the last second were sent: never more than the largest limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window(VecDeque<Instant>);

impl Window {
    /// Whether one more may be sent now, without sending it; `Err`: look again then, or for `None`
    /// when the limit changes.
    pub(crate) fn room(&mut self, now: Instant, limit: u32) -> Result<(), Option<Instant>> {
        while let Some(first) = self.0.front()
            && now.saturating_duration_since(*first) >= WINDOW
        {
            self.0.pop_front();
        }
        let limit = limit as usize;
        if self.0.len() < limit {
            return Ok(());
        }
        // With a limit that has become smaller more than one must leave the window.
        let leaves = self.0.len().checked_sub(limit.max(1));
        Err(leaves
            .filter(|_| limit > 0)
            .map(|index| self.0[index] + WINDOW))
    }

    /// One was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.0.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_its_limit_and_goes_on_when_the_first_has_left_it() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 10, 20] {
            assert_eq!(window.room(at(ms), 3), Ok(()));
            window.sent(at(ms));
        }
        assert_eq!(window.room(at(30), 3), Err(Some(at(0) + WINDOW)));
        assert_eq!(window.room(at(1100), 3), Ok(()));
        window.sent(at(1100));
        assert_eq!(window.room(at(1101), 3), Err(Some(at(10) + WINDOW)));
    }

    #[test]
    fn a_smaller_limit_waits_for_more_to_leave_and_none_for_another_limit() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 10, 20] {
            window.sent(at(ms));
        }
        assert_eq!(window.room(at(30), 1), Err(Some(at(20) + WINDOW)));
        assert_eq!(window.room(at(30), 0), Err(None));
        assert_eq!(window.room(at(5000), 0), Err(None));
        assert_eq!(window.room(at(5000), 1), Ok(()));
    }
}
