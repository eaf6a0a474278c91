//! Stops in time before Discord bans the address for invalid requests: 10,000 answers of 401, 403 or
//! 429 within 10 minutes (Discord, Rate Limits, Invalid Request Limit). Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time Discord counts in.
const PERIOD: Duration = Duration::from_secs(600);
/// What is counted together: this much longer than needed an invalid request is remembered.
const STEP: Duration = Duration::from_secs(5);
/// Invalid requests of all workers together, of Discord's 10,000: what else uses the address, and
/// answers to interactions, have the rest.
const LIMIT: u64 = 8_000;
/// The same for answers to interactions, which are worth more than anything else.
const INTERACTIONS_LIMIT: u64 = 9_500;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Interaction,
    Anything,
}

/// Invalid requests of one worker in the last period.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker {
    /// Beginning of each step and how many fell into it: at most a period's steps.
    steps: VecDeque<(Instant, u64)>,
}

impl Breaker {
    /// Discord called a request invalid.
    pub(crate) fn count(&mut self, now: Instant) {
        self.forget(now);
        match self.steps.back_mut() {
            Some((from, count)) if now.saturating_duration_since(*from) < STEP => *count += 1,
            _ => self.steps.push_back((now, 1)),
        }
    }

    /// How many there were in the last period.
    pub(crate) fn invalid(&mut self, now: Instant) -> u64 {
        self.forget(now);
        self.steps.iter().map(|(_, count)| count).sum()
    }

    /// How long nothing may be sent, if so; `part` of `whole` is this worker's part of the limit.
    pub(crate) fn closed_for(
        &mut self,
        now: Instant,
        purpose: Purpose,
        (part, whole): (u32, u32),
    ) -> Option<Duration> {
        let limit = match purpose {
            Purpose::Anything => LIMIT,
            Purpose::Interaction => INTERACTIONS_LIMIT,
        };
        let limit = limit * u64::from(part.max(1)) / u64::from(whole.max(1));
        let mut left = self.invalid(now);
        if left < limit {
            return None;
        }
        for (from, count) in &self.steps {
            left -= count;
            if left < limit {
                return Some((*from + STEP + PERIOD).saturating_duration_since(now));
            }
        }
        None
    }

    fn forget(&mut self, now: Instant) {
        while let Some((from, _)) = self.steps.front()
            && now.saturating_duration_since(*from) >= STEP + PERIOD
        {
            self.steps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (u32, u32) = (50, 50);

    #[test]
    fn eight_thousand_invalid_requests_in_ten_minutes_close_everything_but_interactions() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for number in 0..7_999 {
            breaker.count(at(number / 20));
        }
        assert_eq!(breaker.closed_for(at(400), Purpose::Anything, ALL), None);
        breaker.count(at(400));
        assert_eq!(breaker.invalid(at(400)), 8_000);
        let closed = breaker.closed_for(at(400), Purpose::Anything, ALL);
        assert_eq!(
            closed,
            Some(Duration::from_secs(205)),
            "until the first leave"
        );
        assert_eq!(breaker.closed_for(at(400), Purpose::Interaction, ALL), None);
        assert_eq!(breaker.closed_for(at(605), Purpose::Anything, ALL), None);
        assert_eq!(breaker.invalid(at(2_000)), 0);
    }

    #[test]
    fn a_worker_with_a_part_of_the_budget_has_that_part_of_the_limit() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..1_600 {
            breaker.count(now);
        }
        assert_eq!(breaker.closed_for(now, Purpose::Anything, (25, 50)), None);
        let closed = breaker.closed_for(now, Purpose::Anything, (10, 50));
        assert_eq!(closed, Some(PERIOD + STEP));
        assert!(
            breaker
                .closed_for(now, Purpose::Anything, (0, 50))
                .is_some()
        );
    }
}
