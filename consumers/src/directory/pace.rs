//! What the reader of a shard does next: what it writes together, how far it reads on meanwhile, when
//! its position is due, and where it begins. Pure: is told facts and the time.

use std::time::{Duration, Instant};

use schemas::ShardPosition;

/// How often the position is written while events come: what is read again after a crash.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// How often the position of a quiet shard moves with the stream, so that it does not fall out of
/// the stream's retention: well below the shortest sensible `max_age`.
const QUIET_POSITION_EVERY: Duration = Duration::from_secs(300);
/// Events read while others are being written: they are written together, each guild once. A burst in
/// all guilds brings one kind of event after the other, so these are several of each guild of a full
/// shard (2,500). What is kept of most is a few words, of a guild's description a kilobyte or two.
const AHEAD_MAX: usize = 16_384;

/// What was read and is written together.
#[derive(Debug)]
pub(crate) struct Read<E> {
    pub(crate) events: Vec<E>,
    /// How many were read, those without meaning included, and the last one's sequence.
    pub(crate) count: u64,
    pub(crate) last: u64,
}

/// How far a shard is read and stored.
#[derive(Debug)]
pub(crate) struct Pace<E> {
    /// Read and not given to a write yet.
    ahead: Read<E>,
    writing: bool,
    done: u64,
    position_at: Instant,
    quiet_since: Instant,
}

impl<E> Pace<E> {
    /// Of a shard that is stored up to this sequence, which its position has just said.
    pub(crate) const fn new(done: u64, now: Instant) -> Self {
        Self {
            ahead: Read::nothing(),
            writing: false,
            done,
            position_at: now,
            quiet_since: now,
        }
    }

    /// Stored up to here.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    /// An event came in, which means something or nothing.
    pub(crate) fn hear(&mut self, seq: u64, event: Option<E>, now: Instant) {
        self.ahead.count += 1;
        self.ahead.last = seq;
        self.ahead.events.extend(event);
        self.quiet_since = now;
    }

    /// What is to be written now: all that was read while the last was written. A write is under way
    /// then, and [`Pace::written`] must end it.
    pub(crate) fn next_write(&mut self) -> Option<Read<E>> {
        if self.writing || self.ahead.count == 0 {
            return None;
        }
        self.writing = true;
        Some(std::mem::replace(&mut self.ahead, Read::nothing()))
    }

    pub(crate) const fn is_writing(&self) -> bool {
        self.writing
    }

    /// Everything up to here is stored.
    pub(crate) const fn written(&mut self, last: u64) {
        self.writing = false;
        self.done = last;
    }

    /// Whether more may be read.
    pub(crate) const fn may_read(&self) -> bool {
        self.ahead.events.len() < AHEAD_MAX
    }

    /// Whether the shard was quiet for so long that its position must move with the stream; asked
    /// when nothing comes, and true once for each time.
    pub(crate) fn take_quiet(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.quiet_since);
        let quiet = !self.writing && since >= QUIET_POSITION_EVERY;
        if quiet {
            self.quiet_since = now;
        }
        quiet
    }

    /// The stream has nothing for the shard up to here.
    pub(crate) fn passed(&mut self, seq: u64) {
        self.done = self.done.max(seq);
    }

    /// Whether the position, which says this sequence, is to be written.
    pub(crate) fn is_position_due(&self, said: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.position_at);
        since >= POSITION_EVERY && self.done > said
    }

    /// The position is being written; what it says.
    pub(crate) const fn position(&mut self, now: Instant) -> u64 {
        self.position_at = now;
        self.done
    }
}

impl<E> Read<E> {
    const fn nothing() -> Self {
        Self {
            events: Vec::new(),
            count: 0,
            last: 0,
        }
    }
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// The first sequence to read.
    pub(crate) next: u64,
    /// Whether the position counts in another stream.
    pub(crate) other_stream: bool,
    /// Whether nothing says what was before: without a READY ahead, nobody lists quiet guilds.
    pub(crate) anew: bool,
    /// Whether events after the position are gone: what is known may be out of date.
    pub(crate) lost: bool,
}

/// Where to begin in the stream of this id that has events from `first` on.
pub(crate) fn beginning(position: &ShardPosition, stream: &str, first: u64) -> Beginning {
    let same = position.stream == stream;
    let next = if same { position.seq + 1 } else { 1 };
    let anew = !same || first > next;
    Beginning {
        next,
        other_stream: !same,
        anew,
        lost: anew && !position.stream.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, pause: Duration) -> Instant {
        start.checked_add(pause).unwrap()
    }

    #[test]
    fn what_is_read_during_a_write_is_written_together_after_it() {
        let now = Instant::now();
        let mut pace = Pace::new(4, now);
        assert!(pace.next_write().is_none());
        pace.hear(5, Some("a"), now);
        let first = pace.next_write().unwrap();
        assert_eq!((first.events, first.count, first.last), (vec!["a"], 1, 5));
        pace.hear(7, Some("b"), now);
        pace.hear(9, None, now);
        assert!(pace.is_writing() && pace.next_write().is_none());
        assert_eq!(pace.done(), 4, "not stored yet");
        pace.written(5);
        assert_eq!(pace.done(), 5);
        let next = pace.next_write().unwrap();
        assert_eq!((next.events, next.count, next.last), (vec!["b"], 2, 9));
        pace.written(9);
        assert!(pace.next_write().is_none() && !pace.is_writing());
    }

    #[test]
    fn events_without_meaning_move_the_position_too() {
        let now = Instant::now();
        let mut pace: Pace<()> = Pace::new(0, now);
        pace.hear(3, None, now);
        assert_eq!(pace.next_write().unwrap().last, 3);
        pace.written(3);
        assert_eq!(pace.done(), 3);
    }

    #[test]
    fn nobody_reads_on_for_ever_while_a_write_takes_long() {
        let now = Instant::now();
        let mut pace = Pace::new(0, now);
        pace.hear(1, Some(()), now);
        let written = pace.next_write().unwrap();
        let mut seq = 1;
        while pace.may_read() {
            seq += 1;
            pace.hear(seq, Some(()), now);
        }
        assert_eq!(seq, 1 + AHEAD_MAX as u64);
        pace.written(written.last);
        assert_eq!(pace.next_write().unwrap().events.len(), AHEAD_MAX);
        assert!(pace.may_read());
    }

    #[test]
    fn the_position_follows_what_is_stored_once_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(4, now);
        pace.hear(5, Some(()), now);
        pace.next_write().unwrap();
        let due = after(now, POSITION_EVERY);
        assert!(!pace.is_position_due(4, due), "nothing is stored");
        pace.written(5);
        let early = after(now, POSITION_EVERY - Duration::from_millis(1));
        assert!(!pace.is_position_due(4, early));
        assert!(pace.is_position_due(4, due));
        assert_eq!(pace.position(due), 5);
        assert!(!pace.is_position_due(5, after(due, POSITION_EVERY)));
        assert!(!pace.is_position_due(4, due), "it was just written");
    }

    #[test]
    fn the_position_of_a_quiet_shard_moves_with_the_stream() {
        let now = Instant::now();
        let mut pace = Pace::new(4, now);
        let quiet = after(now, QUIET_POSITION_EVERY);
        assert!(pace.take_quiet(quiet));
        assert!(!pace.take_quiet(quiet), "once");
        pace.passed(90);
        pace.passed(80);
        assert_eq!(pace.done(), 90);
        pace.hear(91, Some(()), quiet);
        pace.next_write().unwrap();
        let later = after(quiet, QUIET_POSITION_EVERY);
        assert!(!pace.take_quiet(later), "a write is under way");
        pace.written(91);
        assert!(pace.take_quiet(later));
    }

    #[test]
    fn reading_begins_after_the_position_or_where_the_stream_does() {
        let position = |stream: &str, seq| ShardPosition {
            stream: stream.to_owned(),
            seq,
            ..ShardPosition::default()
        };
        let at = |next, [other_stream, anew, lost]: [bool; 3]| Beginning {
            next,
            other_stream,
            anew,
            lost,
        };
        for (position, first, expected) in [
            (position("0-1", 6), 1, at(7, [false, false, false])),
            (position("0-1", 6), 7, at(7, [false, false, false])),
            (position("0-1", 6), 8, at(7, [false, true, true])),
            (position("0-0", 6), 1, at(1, [true, true, true])),
            // Never read before: there is nothing that could be out of date.
            (position("", 0), 1, at(1, [true, true, false])),
            (position("", 0), 500, at(1, [true, true, false])),
        ] {
            let begins = beginning(&position, "0-1", first);
            assert_eq!(begins, expected, "{position:?}, from {first}");
        }
    }
}
