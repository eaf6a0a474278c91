//! How often the thread wakes up: with many small messages per second most of what an event costs is
//! the wake-up it causes, here, in the NATS server and for the acknowledgement. So under such a load
//! the thread works in rounds: what arrives within a millisecond at most is read together, written to
//! NATS in one go and acknowledged in one go. Without the load nothing waits.
//!
//! The runtime calls [`rest`] whenever there is nothing left to do, before it waits for sockets.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// The longest round, which is what a message waits at most.
const ROUND: Duration = Duration::from_millis(1);
/// Messages that make a round: with more the wake-up is a small part of what each costs, and the round
/// may be shorter.
const ENOUGH: u32 = 4;
/// Over how long messages are counted to tell whether there is a load.
const WINDOW: Duration = Duration::from_millis(10);
/// Messages per [`ROUND`], on average, from which on there is. At one the wake-up for the message also
/// handles the acknowledgement of the one before.
const BUSY_FROM: f64 = 2.0;
/// And below which there is none any more.
const BUSY_UNTIL: f64 = 1.0;

thread_local! {
    static MESSAGES: Cell<u64> = const { Cell::new(0) };
    static RHYTHM: RefCell<Option<Rhythm>> = const { RefCell::new(None) };
}

/// A message was read from a gateway socket, on this thread.
pub(crate) fn note_message() {
    MESSAGES.set(MESSAGES.get().wrapping_add(1));
}

/// Sleeps until the next round may begin, if there is a load. For `on_thread_park`.
pub(crate) fn rest() {
    let (now, messages) = (Instant::now(), MESSAGES.get());
    let pause = RHYTHM.with_borrow_mut(|rhythm| {
        let rhythm = rhythm.get_or_insert_with(|| Rhythm::new(messages, now));
        rhythm.pause(messages, now)
    });
    if let Some(pause) = pause {
        std::thread::sleep(pause);
    }
}

#[derive(Debug)]
struct Rhythm {
    // The length of a round; `None`: there is no load.
    round: Option<Duration>,
    round_began: Instant,
    window_began: Instant,
    // Messages before the window.
    counted: u64,
}

impl Rhythm {
    const fn new(messages: u64, now: Instant) -> Self {
        Self {
            round: None,
            round_began: now,
            window_began: now,
            counted: messages,
        }
    }

    /// How long to sleep. `messages`: read so far.
    fn pause(&mut self, messages: u64, now: Instant) -> Option<Duration> {
        let measured = now.saturating_duration_since(self.window_began);
        if measured >= WINDOW {
            let count = messages.wrapping_sub(self.counted) as f64;
            let rounds = measured.as_secs_f64() / ROUND.as_secs_f64();
            let enough = match self.round {
                Some(_) => BUSY_UNTIL,
                None => BUSY_FROM,
            };
            let busy = count >= enough * rounds;
            self.round = busy.then(|| measured.mul_f64(f64::from(ENOUGH) / count).min(ROUND));
            self.window_began = now;
            self.counted = messages;
        }
        let next = self.round.map(|round| self.round_began + round);
        let pause = next.filter(|next| now < *next).map(|next| next - now);
        self.round_began = now + pause.unwrap_or_default();
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a rhythm at a steady rate: every message wakes the thread, which works 50 µs and then
    /// rests. Returns the times at which it worked.
    fn works(rhythm: &mut Rhythm, start: Instant, every: Duration, messages: u32) -> Vec<Duration> {
        let arrivals: Vec<_> = (1..=messages).map(|n| every * n).collect();
        let (mut now, mut read, mut works) = (Duration::ZERO, 0, Vec::new());
        let counted = rhythm.counted;
        while let Some(next) = arrivals.get(read) {
            now = now.max(*next);
            works.push(now);
            read = arrivals
                .iter()
                .take_while(|arrival| **arrival <= now)
                .count();
            now += Duration::from_micros(50);
            let pause = rhythm.pause(counted + read as u64, start + now);
            now += pause.unwrap_or_default();
        }
        works
    }

    #[test]
    fn many_small_messages_share_a_round_and_wait_no_longer_than_one() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(0, start);
        let works = works(&mut rhythm, start, Duration::from_micros(200), 5_000);
        // A second of 5,000 messages, the first window of which is not known to be busy: four in each.
        assert!((1_240..=1_310).contains(&works.len()), "{}", works.len());
        let longest = works.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(ROUND), "{longest:?}");
    }

    #[test]
    fn the_fewer_messages_come_the_longer_a_round_up_to_a_millisecond() {
        for (every_us, rounds) in [(400, 1_000), (100, 2_500), (20, 12_500)] {
            let start = Instant::now();
            let mut rhythm = Rhythm::new(0, start);
            let every = Duration::from_micros(every_us);
            let messages = u32::try_from(1_000_000 / every_us).unwrap();
            let works = works(&mut rhythm, start, every, messages);
            let about = rounds * 8 / 10..=rounds * 11 / 10;
            assert!(
                about.contains(&works.len()),
                "{} rounds with a message every {every:?}",
                works.len()
            );
        }
    }

    #[test]
    fn messages_far_apart_are_handled_at_once() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(7, start);
        let every = Duration::from_millis(2);
        let works = works(&mut rhythm, start, every, 500);
        assert!(works.iter().zip(1..).all(|(at, n)| *at == every * n));
    }

    #[test]
    fn after_a_load_the_next_single_message_does_not_wait() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(0, start);
        works(&mut rhythm, start, Duration::from_micros(100), 1_000);
        assert!(rhythm.round.is_some());
        // It comes a second later; what it caused comes soon after.
        let later = start + Duration::from_millis(1_100);
        assert_eq!(rhythm.pause(1_001, later), None);
        assert_eq!(rhythm.pause(1_001, later + ROUND / 4), None);
    }

    #[test]
    fn a_round_that_took_longer_is_followed_by_the_next_at_once() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(0, start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(
            rhythm.pause(1_000, at(10)),
            None,
            "the last round took 10 ms"
        );
        let round = rhythm.round.unwrap();
        assert!(
            round < ROUND / 10,
            "100 messages per millisecond: {round:?}"
        );
        assert_eq!(rhythm.pause(1_000, at(12)), None);
        assert_eq!(rhythm.pause(1_000, at(12)), Some(round));
    }
}
