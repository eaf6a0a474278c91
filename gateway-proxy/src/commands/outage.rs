//! When to connect again and what to say about it, and whether the server still answers. No I/O.

use std::time::{Duration, Instant};

/// Before the first attempt to connect again; each further one waits twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: after it, commands are late by seconds when NATS is back, not by minutes.
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// A connection that lasted this long was a good one: the next attempt is the first again.
const STABLE: Duration = Duration::from_secs(5);
/// A connection that comes and goes is reported this often at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// After this silence the server is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(10);
/// It has this long to answer.
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// A refused subscription is tried again after this, then after twice as long, and so on.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// Longest pause: permissions are changed by people.
const RETRY_LAST: Duration = Duration::from_secs(600);

/// The losses of a connection.
#[derive(Debug, Default)]
pub(super) struct Outage {
    attempt: u32,
    connected: Option<Instant>,
    // The loss was reported, so that its end is too.
    told: bool,
    told_at: Option<Instant>,
}

/// What to do about a lost connection, or one that did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// Wait this long.
    pub(super) pause: Duration,
    /// It is news.
    pub(super) tell: bool,
}

impl Outage {
    /// There is a connection. True: that is news.
    pub(super) fn connected(&mut self, now: Instant) -> bool {
        self.connected = Some(now);
        std::mem::take(&mut self.told)
    }

    /// There is none any more, or still none. `jitter` is in 0..1.
    pub(super) fn lost(&mut self, jitter: f64, now: Instant) -> Lost {
        let since = self.connected.take();
        if since.is_some_and(|since| now.duration_since(since) >= STABLE) {
            self.attempt = 0;
        }
        let pause = doubled(PAUSE_FIRST, self.attempt, PAUSE_LAST);
        self.attempt = self.attempt.saturating_add(1);
        let due = |at: Instant| now.duration_since(at) >= TELL_EVERY;
        let tell = !self.told && self.told_at.is_none_or(due);
        if tell {
            self.told = true;
            self.told_at = Some(now);
        }
        Lost {
            pause: pause.mul_f64(0.5 + jitter / 2.0),
            tell,
        }
    }
}

fn doubled(first: Duration, times: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(last)
}

/// Whether the server is still there.
#[derive(Debug)]
pub(super) struct Pulse {
    heard: Instant,
    pinged: Option<Instant>,
}

/// What a silence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing yet.
    Wait,
    /// A PING.
    Ping,
    /// To give the connection up.
    Dead,
}

impl Pulse {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            heard: now,
            pinged: None,
        }
    }

    /// Something came.
    pub(super) fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// When to ask [`Pulse::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Instant {
        self.pinged
            .map_or(self.heard + PING_AFTER, |at| at + PONG_WITHIN)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Beat {
        if now < self.poll_timeout() {
            return Beat::Wait;
        }
        match self.pinged {
            Some(_) => Beat::Dead,
            None => {
                self.pinged = Some(now);
                Beat::Ping
            }
        }
    }
}

/// What -ERR means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerError<'a> {
    /// A subscription was not made; all others stand.
    Subscription(&'a str),
    /// An answer may not be sent; nothing else changes.
    Publish,
    /// The server ends the connection.
    Fatal,
}

/// Reads the server's words.
pub(super) fn read_error(text: &str) -> ServerError<'_> {
    let says = |words: &str| text.to_ascii_lowercase().starts_with(words);
    if says("permissions violation for subscription") {
        // `Permissions Violation for Subscription to "discord.shard.0.commands"`
        let subject = text.split('"').nth(1);
        ServerError::Subscription(subject.unwrap_or(text))
    } else if says("maximum subscriptions exceeded") {
        ServerError::Subscription("one of them: the account's or connection's limit is reached")
    } else if says("permissions violation for publish") {
        ServerError::Publish
    } else {
        ServerError::Fatal
    }
}

/// What the server refuses on one connection.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    // An answer was refused.
    answer: bool,
    retries: u32,
    retry_at: Option<Instant>,
}

impl Refusals {
    /// The server refused to pass an answer on. True: the first.
    pub(super) fn answer_refused(&mut self) -> bool {
        !std::mem::replace(&mut self.answer, true)
    }

    /// The server refused a subscription. True: the first since the last attempt.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let first = self.retry_at.is_none();
        if first {
            self.retry_at = Some(now + doubled(RETRY_FIRST, self.retries, RETRY_LAST));
            self.retries = self.retries.saturating_add(1);
        }
        first
    }

    /// When to ask [`Refusals::handle_timeout`].
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at
    }

    /// True: subscribe again.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.retry_at.is_some_and(|at| at <= now);
        if due {
            self.retry_at = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn attempts_become_rarer_until_a_connection_has_lasted() {
        let (mut outage, mut now) = (Outage::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let lost = outage.lost(1.0, now);
            pauses.push(lost.pause.as_millis());
            now += lost.pause;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        outage.connected(now);
        now += SECOND;
        assert_eq!(outage.lost(1.0, now).pause, PAUSE_LAST);
        outage.connected(now);
        now += STABLE;
        assert_eq!(outage.lost(1.0, now).pause, PAUSE_FIRST);
        assert_eq!(outage.lost(0.0, now).pause, PAUSE_FIRST);
    }

    #[test]
    fn a_loss_and_its_end_are_told_once() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        assert!(!outage.connected(start), "the first connection is no news");
        let at = |seconds: u32| start + SECOND * seconds;
        assert!(outage.lost(0.5, at(10)).tell);
        for second in 11..100 {
            assert!(!outage.lost(0.5, at(second)).tell, "{second}");
        }
        assert!(outage.connected(at(100)));
        assert!(!outage.connected(at(101)));
    }

    #[test]
    fn a_connection_that_comes_and_goes_is_told_rarely_and_a_loss_that_stays_is_told_late() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let mut told = 0;
        for second in 0..60 {
            let now = start + SECOND * second;
            outage.connected(now);
            told += u32::from(outage.lost(0.5, now).tell);
        }
        assert_eq!(told, 6);
        outage.connected(start + SECOND * 59);
        let later = (59..90).filter(|second| outage.lost(0.5, start + SECOND * *second).tell);
        assert_eq!(later.collect::<Vec<_>>(), [60]);
    }

    #[test]
    fn a_silent_server_is_asked_and_then_given_up() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.handle_timeout(start), Beat::Wait);
        let asked = pulse.poll_timeout();
        assert_eq!(asked, start + PING_AFTER);
        assert_eq!(pulse.handle_timeout(asked), Beat::Ping);
        pulse.heard(asked + SECOND);
        assert_eq!(pulse.handle_timeout(asked + PONG_WITHIN), Beat::Wait);
        let asked = pulse.poll_timeout();
        assert_eq!(pulse.handle_timeout(asked), Beat::Ping);
        assert_eq!(pulse.handle_timeout(pulse.poll_timeout()), Beat::Dead);
    }

    #[test]
    fn the_servers_words_are_understood() {
        let refused = "Permissions Violation for Subscription to \"discord.shard.0.commands\"";
        let subject = "discord.shard.0.commands";
        assert_eq!(read_error(refused), ServerError::Subscription(subject));
        let limit = read_error("maximum subscriptions exceeded");
        assert!(matches!(limit, ServerError::Subscription(_)));
        let publish = "Permissions Violation for Publish to \"_INBOX.a.b\"";
        assert_eq!(read_error(publish), ServerError::Publish);
        for fatal in ["Stale Connection", "Authorization Violation", ""] {
            assert_eq!(read_error(fatal), ServerError::Fatal, "{fatal}");
        }
    }

    #[test]
    fn refused_subscriptions_are_tried_again_ever_more_rarely() {
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.poll_timeout(), None);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(refusals.refused(now));
            assert!(!refusals.refused(now), "one line for all");
            assert!(!refusals.handle_timeout(now));
            let at = refusals.poll_timeout().unwrap();
            pauses.push((at - now).as_secs());
            now = at;
            assert!(refusals.handle_timeout(now));
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
    }
}
