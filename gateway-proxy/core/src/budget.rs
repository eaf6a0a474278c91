//! The send budget of one connection: 120 payloads per 60 s, heartbeats reserved.
//!
//! Discord counts everything a client sends, heartbeats included, and closes with 4008 above it. The
//! count belongs to the connection, so a reconnect starts with a full budget.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Payloads per [`WINDOW`] (Discord, Gateway, Rate Limiting).
pub const LIMIT: usize = 120;
/// The window of [`LIMIT`].
pub const WINDOW: Duration = Duration::from_secs(60);
/// Kept back beside the regular heartbeats, for those the server asks for and for clock differences.
const SPARE: usize = 3;

/// When this connection sent what it sent in the last [`WINDOW`].
#[derive(Debug, Default)]
pub struct SendBudget {
    // At most LIMIT entries: older ones leave, newer ones are refused.
    sent: VecDeque<Instant>,
    reserved: usize,
}

impl SendBudget {
    /// A new connection's budget. `heartbeat_interval` decides how much is kept for heartbeats.
    #[must_use]
    pub fn new(heartbeat_interval: Duration) -> Self {
        let interval = heartbeat_interval.as_secs_f64().max(0.001);
        let beats = (WINDOW.as_secs_f64() / interval).ceil();
        // Never reserve everything: with an absurdly short interval half is still for commands.
        let reserved = (beats as usize).saturating_add(SPARE).min(LIMIT / 2);
        Self {
            sent: VecDeque::new(),
            reserved,
        }
    }

    /// Takes room for a regular heartbeat, which may use the reserve too, but for the place of the one
    /// IDENTIFY or RESUME of the connection.
    ///
    /// # Errors
    /// The time until there is room.
    pub fn take_heartbeat(&mut self, now: Instant) -> Result<(), Duration> {
        self.take(LIMIT - 1, now)
    }

    /// Takes room for IDENTIFY or RESUME, of which a connection has one.
    ///
    /// # Errors
    /// The time until there is room, when all [`LIMIT`] are used.
    pub fn take_reserved(&mut self, now: Instant) -> Result<(), Duration> {
        self.take(LIMIT, now)
    }

    /// Takes room for a heartbeat the server asked for, leaving what regular ones need: however often
    /// it asks, they go on.
    ///
    /// # Errors
    /// The time until there is room.
    pub fn take_demanded(&mut self, now: Instant) -> Result<(), Duration> {
        self.take(LIMIT - self.reserved.saturating_sub(SPARE), now)
    }

    /// Takes room for a command, leaving the reserve alone.
    ///
    /// # Errors
    /// The time until there is room.
    pub fn take_command(&mut self, now: Instant) -> Result<(), Duration> {
        self.take(LIMIT - self.reserved, now)
    }

    fn take(&mut self, limit: usize, now: Instant) -> Result<(), Duration> {
        while self
            .sent
            .front()
            .is_some_and(|sent| now.duration_since(*sent) >= WINDOW)
        {
            self.sent.pop_front();
        }
        if self.sent.len() < limit {
            self.sent.push_back(now);
            return Ok(());
        }
        // There is room once so many have left that fewer than `limit` remain.
        let leaves = self.sent[self.sent.len() - limit];
        Err((leaves + WINDOW).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(41_250);

    #[test]
    fn commands_leave_room_for_heartbeats() {
        let start = Instant::now();
        let mut budget = SendBudget::new(INTERVAL);
        let sent = (0..LIMIT)
            .take_while(|_| budget.take_command(start).is_ok())
            .count();
        assert_eq!(sent, LIMIT - 2 - SPARE);
        assert_eq!(budget.take_command(start), Err(WINDOW));
        for _ in 0..2 + SPARE {
            assert_eq!(budget.take_reserved(start), Ok(()));
        }
        assert!(budget.take_reserved(start).is_err());
    }

    #[test]
    fn no_window_of_sixty_seconds_ever_holds_more_than_the_limit() {
        let start = Instant::now();
        let mut budget = SendBudget::new(INTERVAL);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut now = start;
        let mut sent = Vec::new();
        for _ in 0..5_000 {
            now += Duration::from_millis(rng.u64(0..700));
            let taken = if rng.bool() {
                budget.take_command(now)
            } else {
                budget.take_reserved(now)
            };
            match taken {
                Ok(()) => sent.push(now),
                Err(wait) => assert!(wait > Duration::ZERO && wait <= WINDOW),
            }
        }
        for (index, first) in sent.iter().enumerate() {
            let in_window = sent[index..]
                .iter()
                .take_while(|at| **at - *first < WINDOW)
                .count();
            assert!(in_window <= LIMIT);
        }
    }

    #[test]
    fn the_wait_it_names_is_enough() {
        let start = Instant::now();
        let mut budget = SendBudget::new(INTERVAL);
        while budget.take_command(start).is_ok() {}
        let wait = budget
            .take_command(start + Duration::from_secs(10))
            .unwrap_err();
        assert_eq!(
            budget.take_command(start + Duration::from_secs(10) + wait),
            Ok(())
        );
    }
}
