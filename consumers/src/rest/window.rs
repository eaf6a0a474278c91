//! No more than so many requests within a second, whichever second is looked at, and at an even pace:
//! requests that are held up on their way then meet few others, where bursts would meet bursts. Pure.

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
        if limit == 0 {
            return Err(None);
        }
        while let Some(first) = self.0.front()
            && now.saturating_duration_since(*first) >= WINDOW
        {
            self.0.pop_front();
        }
        let Some(last) = self.0.back() else {
            return Ok(());
        };
        let pace = *last + WINDOW / limit;
        // With a limit that has become smaller more than one must leave the window.
        let leaves = self.0.len().checked_sub(limit as usize);
        let room = leaves.map_or(pace, |index| pace.max(self.0[index] + WINDOW));
        if now >= room { Ok(()) } else { Err(Some(room)) }
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
    fn requests_leave_at_an_even_pace_and_one_alone_at_once() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(window.room(at(0), 10), Ok(()));
        window.sent(at(0));
        assert_eq!(window.room(at(1), 10), Err(Some(at(110))));
        assert_eq!(window.room(at(110), 10), Ok(()));
        window.sent(at(110));
        assert_eq!(window.room(at(5000), 10), Ok(()), "nothing is saved up");
        window.sent(at(5000));
        assert_eq!(window.room(at(5001), 10), Err(Some(at(5110))));
    }

    #[test]
    fn no_second_has_more_than_the_limit() {
        let (mut window, start) = (Window::default(), Instant::now());
        let mut sent = Vec::new();
        for ms in 0..4000 {
            let now = start + Duration::from_millis(ms);
            if window.room(now, 50).is_ok() {
                window.sent(now);
                sent.push(now);
            }
        }
        let second = Duration::from_secs(1);
        for first in &sent {
            let within = sent
                .iter()
                .filter(|at| *at >= first && **at < *first + second);
            assert!(within.count() <= 46);
        }
        assert_eq!(sent.len(), 182, "45 per second are used");
    }

    #[test]
    fn a_smaller_limit_waits_for_more_to_leave_and_none_for_another_limit() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 300, 600] {
            window.sent(at(ms));
        }
        assert_eq!(window.room(at(700), 1), Err(Some(at(600) + WINDOW)));
        assert_eq!(window.room(at(700), 2), Err(Some(at(300) + WINDOW)));
        assert_eq!(window.room(at(700), 0), Err(None));
        assert_eq!(window.room(at(5000), 0), Err(None));
        assert_eq!(window.room(at(5000), 1), Ok(()));
    }
}
