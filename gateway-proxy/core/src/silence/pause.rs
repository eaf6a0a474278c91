//! A step that may be taken once, and again only after a while.

use std::time::{Duration, Instant};

/// Twice the last pause without the step, and it counts as the first again.
const CALM: u32 = 2;

/// Pauses double from `base` to `max` with each step, and begin anew after a calm time.
#[derive(Debug)]
pub(super) struct Pause {
    base: Duration,
    max: Duration,
    // The last step and the pause after it.
    last: Option<(Instant, Duration)>,
}

impl Pause {
    pub(super) const fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            last: None,
        }
    }

    /// Takes the step if it may be taken.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let pause = match self.last {
            None => self.base,
            Some((at, pause)) => {
                let since = now.saturating_duration_since(at);
                if since < pause {
                    return false;
                }
                if since >= pause * CALM {
                    self.base
                } else {
                    (pause * 2).min(self.max)
                }
            }
        };
        self.last = Some((now, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_calm() {
        let unit = Duration::from_secs(1);
        let mut pause = Pause::new(unit, unit * 4);
        let mut now = Instant::now();
        let mut taken = Vec::new();
        for second in 0..20_u32 {
            if pause.take(now) {
                taken.push(second);
            }
            now += unit;
        }
        assert_eq!(taken, [0, 1, 3, 7, 11, 15, 19]);
        now += unit * 8;
        assert!(pause.take(now));
        assert!(!pause.take(now + unit / 2));
        assert!(pause.take(now + unit));
    }
}
