//! How many events are asked for beyond the free places, and those that wait here for one. Pure: is
//! told the time.
//!
//! A request takes a round trip, and what it asks for comes in one piece: while handlers end at once,
//! a worker that asks for no more than it has places mostly waits. But an event that waits here is
//! one that another worker does not have. So no more may wait than were handled in the last
//! [`WINDOW`]: while they end as quickly as that, none waits longer. When they no longer do, it has
//! to be given back after [`PATIENCE`].

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// What may wait is what was handled in such a time.
const WINDOW: Duration = Duration::from_millis(20);
/// Most that may wait: a few requests' worth is enough for the round trip to vanish, and what a
/// worker that dies holds is delivered again only after the consumer's `ack_wait`.
const WAITING_MAX: usize = 512;
/// Longest time that an event waits: far above [`WINDOW`], so that a machine that stalls gives
/// nothing back, and far below the consumer's `ack_wait`.
const PATIENCE: Duration = Duration::from_millis(500);

/// Events that came before there was a place for them, and how many have one.
#[derive(Debug)]
pub(crate) struct Ahead<T> {
    /// Events handled at once.
    places: usize,
    /// Places that are taken.
    taken: usize,
    waiting: VecDeque<(Instant, T)>,
    /// How many may wait.
    most: usize,
    /// Events that are done since then.
    done: usize,
    since: Instant,
}

impl<T> Ahead<T> {
    pub(crate) const fn new(places: usize, now: Instant) -> Self {
        Self {
            places,
            taken: 0,
            waiting: VecDeque::new(),
            most: 0,
            done: 0,
            since: now,
        }
    }

    /// How many more to ask for, when so many were asked for and have not come. Not for each one
    /// that becomes free: every request is a message.
    pub(crate) fn wanted(&self, outstanding: usize) -> usize {
        let all = self.places + self.most;
        let wanted = all.saturating_sub(self.taken + self.waiting.len() + outstanding);
        if outstanding == 0 || wanted >= all.div_ceil(4) {
            wanted
        } else {
            0
        }
    }

    pub(crate) fn push(&mut self, event: T, now: Instant) {
        self.waiting.push_back((now, event));
    }

    /// How many have a place.
    pub(crate) const fn taken(&self) -> usize {
        self.taken
    }

    /// Events that have a place now, `together` at most, in the order they came; none when there is
    /// none, or no place. Each keeps its place until [`Ahead::free`].
    pub(crate) fn take(&mut self, together: usize) -> Vec<T> {
        let free = self.places.saturating_sub(self.taken);
        let number = together.min(free).min(self.waiting.len());
        self.taken += number;
        let taken = self.waiting.drain(..number);
        taken.map(|(_, event)| event).collect()
    }

    /// So many events that have a place already get one more each, before the old one is free.
    pub(crate) const fn keep(&mut self, number: usize) {
        self.taken += number;
    }

    pub(crate) const fn free(&mut self, number: usize) {
        self.taken = self.taken.saturating_sub(number);
    }

    /// Learns how quickly events are handled; to be told now and then also when none is.
    pub(crate) fn handled(&mut self, number: usize, now: Instant) {
        self.done += number;
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let done = u128::try_from(self.done).unwrap_or(u128::MAX);
        let each = done.saturating_mul(WINDOW.as_nanos()) / passed.as_nanos();
        let each = usize::try_from(each).unwrap_or(usize::MAX);
        self.most = each.min(WAITING_MAX);
        self.done = 0;
        self.since = now;
    }

    /// Takes out what has waited too long, which shows that handlers no longer end quickly.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<T> {
        let came = |(came, _): &(Instant, T)| now.saturating_duration_since(*came) >= PATIENCE;
        let number = self.waiting.iter().take_while(|event| came(event)).count();
        if number > 0 {
            self.most = 0;
        }
        self.waiting
            .drain(..number)
            .map(|(_, event)| event)
            .collect()
    }

    /// Takes out all that wait.
    pub(crate) fn all(&mut self) -> Vec<T> {
        self.waiting.drain(..).map(|(_, event)| event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 64;

    fn busy(now: Instant, handled: usize) -> Ahead<u32> {
        let mut ahead = Ahead::new(PLACES, now);
        ahead.handled(handled, now + WINDOW);
        ahead
    }

    #[test]
    fn nothing_is_asked_for_ahead_until_events_are_handled_quickly() {
        let now = Instant::now();
        let mut ahead = Ahead::<u32>::new(PLACES, now);
        assert_eq!(ahead.wanted(0), PLACES);
        assert_eq!(ahead.wanted(PLACES), 0);
        ahead.handled(100, now + WINDOW / 2);
        assert_eq!(ahead.wanted(0), PLACES, "a window is not over");
        ahead.handled(100, now + WINDOW);
        assert_eq!(ahead.wanted(0), PLACES + 200);
        ahead.keep(PLACES);
        assert_eq!(ahead.wanted(100), 100);
    }

    #[test]
    fn what_is_asked_for_ahead_has_a_bound() {
        let ahead = busy(Instant::now(), 1_000_000);
        assert_eq!(ahead.wanted(0), PLACES + WAITING_MAX);
    }

    #[test]
    fn less_is_asked_for_when_fewer_are_handled() {
        let now = Instant::now();
        let mut ahead = busy(now, 400);
        ahead.handled(100, now + 3 * WINDOW);
        assert_eq!(ahead.wanted(0), PLACES + 50);
        ahead.handled(0, now + 4 * WINDOW);
        assert_eq!(ahead.wanted(0), PLACES);
    }

    #[test]
    fn no_request_is_made_for_each_event_that_ends() {
        let mut ahead = Ahead::<u32>::new(PLACES, Instant::now());
        ahead.keep(48);
        assert_eq!(ahead.wanted(1), 0);
        ahead.free(1);
        assert_eq!(ahead.wanted(1), 16);
        ahead.keep(16);
        assert_eq!(ahead.wanted(0), 1, "but nothing else would come");
    }

    #[test]
    fn events_begin_in_their_order_and_no_more_than_there_are_places() {
        let now = Instant::now();
        let mut ahead = Ahead::new(3, now);
        for event in 0..5 {
            ahead.push(event, now);
        }
        assert_eq!(ahead.take(2), [0, 1]);
        assert_eq!(ahead.take(2), [2]);
        assert_eq!(ahead.take(2), [0; 0]);
        ahead.free(1);
        assert_eq!(ahead.take(2), [3]);
        assert_eq!(ahead.taken(), 3);
        assert_eq!(ahead.wanted(0), 0, "what waits was asked for");
        assert_eq!(ahead.all(), [4]);
    }

    #[test]
    fn what_waits_while_handlers_hang_is_given_back_and_no_more_is_asked_for() {
        let now = Instant::now();
        let mut ahead = busy(now, 400);
        ahead.keep(PLACES);
        ahead.push(0, now);
        ahead.push(1, now + PATIENCE / 2);
        assert_eq!(ahead.overdue(now + PATIENCE / 2), [0; 0]);
        assert!(ahead.wanted(0) > 0);
        assert_eq!(ahead.overdue(now + PATIENCE), [0]);
        assert_eq!(ahead.wanted(0), 0);
    }
}
