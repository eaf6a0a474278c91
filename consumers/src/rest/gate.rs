//! What every request passes before it is sent: the worker's share of the global rate limit, and the
//! breaker against Discord's ban.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::breaker::{Breaker, Purpose};
use super::metrics::RestMetrics;
use super::window::{WINDOW, Window};
use crate::lease::Lease;

#[derive(Debug, Default)]
struct State {
    window: Window,
    breaker: Breaker,
    /// Requests per second that may be sent.
    share: u32,
    /// A larger share, and when it may be used.
    raise: Option<(u32, Instant)>,
    /// While it is valid the share is this worker's.
    lease: Option<Arc<Lease>>,
}

/// One worker's gate.
#[derive(Debug)]
pub(crate) struct Gate {
    /// What all workers have together; `None`: somebody else limits.
    budget: Option<u32>,
    state: Mutex<State>,
    changed: Notify,
    metrics: RestMetrics,
}

impl Gate {
    /// A gate that is closed until there is a share, or open for ever without a budget.
    pub(crate) fn new(budget: Option<u32>, metrics: RestMetrics) -> Self {
        Self {
            budget,
            state: Mutex::default(),
            changed: Notify::new(),
            metrics,
        }
    }

    /// The requests per second that all workers have together.
    pub(crate) const fn budget(&self) -> Option<u32> {
        self.budget
    }

    /// A new life in the bucket, with nothing yet.
    pub(crate) fn begin(&self, lease: Arc<Lease>) {
        self.with(|state| {
            (state.share, state.raise) = (0, None);
            state.lease = Some(lease);
        });
    }

    /// What holds by now. A smaller share does at once. A larger one does after the second in which
    /// others may have used a part of it, counted from `freed`, when that was seen. False if it is
    /// what was set before.
    pub(crate) fn set_share(&self, share: u32, freed: Option<Instant>) -> bool {
        let other = self.with(|state| {
            state.ripen(Instant::now());
            let before = state.raise.map_or(state.share, |(share, _)| share);
            if before == share {
                return false;
            }
            if share <= state.share {
                (state.share, state.raise) = (share, None);
            } else {
                let from = freed.map_or_else(Instant::now, |freed| freed + WINDOW);
                state.raise = Some((share, from));
            }
            true
        });
        if other {
            self.metrics.share(share);
            self.changed.notify_waiters();
        }
        other
    }

    /// Requests per second of this worker, if there is a budget.
    pub(crate) fn share(&self) -> Option<u32> {
        self.budget?;
        Some(self.with(|state| state.usable(Instant::now())))
    }

    /// Sends one, if that may be right now.
    pub(crate) fn try_pass(&self) -> bool {
        if self.budget.is_none() {
            return true;
        }
        let now = Instant::now();
        self.with(|state| {
            let share = state.usable(now);
            let passes = state.window.room(now.into_std(), share).is_ok();
            if passes {
                state.window.sent(now.into_std());
            }
            passes
        })
    }

    /// Waits until [`Gate::try_pass`] may succeed; false if that is not before the deadline.
    pub(crate) async fn wait(&self, deadline: Instant) -> bool {
        if self.budget.is_none() {
            return true;
        }
        let mut waited = false;
        let room = async {
            loop {
                let changed = self.changed.notified();
                let now = Instant::now();
                let room = self.with(|state| {
                    let share = state.usable(now);
                    let ripe = state.raise.map(|(_, at)| at);
                    let room = state.window.room(now.into_std(), share);
                    room.map_err(|again| again.map(Instant::from_std).into_iter().chain(ripe).min())
                });
                let Err(again) = room else { return };
                if !waited {
                    waited = true;
                    self.metrics.waited();
                }
                match again {
                    Some(again) => tokio::select! {
                        () = sleep_until(again) => {}
                        () = changed => {}
                    },
                    None => changed.await,
                }
            }
        };
        timeout_at(deadline, room).await.is_ok()
    }

    /// Discord called a request invalid.
    pub(crate) fn count_invalid(&self) {
        let now = Instant::now().into_std();
        self.with(|state| state.breaker.count(now));
        self.metrics.invalid();
    }

    /// How long nothing may be sent because too many requests were invalid, if so.
    pub(crate) fn closed_for(&self, purpose: Purpose) -> Option<Duration> {
        let now = Instant::now();
        self.with(|state| {
            let part = match self.budget {
                Some(budget) => (state.usable(now), budget),
                None => (1, 1),
            };
            state.breaker.closed_for(now.into_std(), purpose, part)
        })
    }

    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        // Plain assignments: a panic elsewhere leaves no half of one.
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn ripen(&mut self, now: Instant) {
        if let Some((share, at)) = self.raise
            && at <= now
        {
            (self.share, self.raise) = (share, None);
        }
    }

    fn usable(&mut self, now: Instant) -> u32 {
        self.ripen(now);
        let valid = self.lease.as_ref().is_some_and(|lease| lease.is_valid());
        if valid { self.share } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn gate() -> Gate {
        let gate = Gate::new(Some(50), RestMetrics::default());
        let ttl = Duration::from_secs(10);
        gate.begin(Arc::new(Lease::new(Instant::now(), ttl)));
        gate
    }

    /// How many pass within a window.
    async fn passes(gate: &Gate) -> usize {
        let mut passed = 0;
        for _ in 0..WINDOW.as_millis() {
            passed += usize::from(gate.try_pass());
            advance(Duration::from_millis(1)).await;
        }
        passed
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_passes_without_a_share_or_after_the_lease() {
        let gate = gate();
        assert_eq!(passes(&gate).await, 0);
        let soon = Instant::now() + Duration::from_millis(100);
        assert!(!gate.wait(soon).await);
        gate.set_share(5, None);
        assert_eq!((passes(&gate).await, gate.share()), (5, Some(5)));
        advance(Duration::from_secs(10)).await;
        assert_eq!((passes(&gate).await, gate.share()), (0, Some(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_larger_share_waits_for_the_second_in_which_others_had_it() {
        let gate = gate();
        gate.set_share(5, None);
        gate.set_share(20, Some(Instant::now()));
        assert_eq!(gate.share(), Some(5));
        advance(WINDOW - Duration::from_millis(1)).await;
        assert_eq!(gate.share(), Some(5));
        advance(Duration::from_millis(1)).await;
        assert_eq!((gate.share(), passes(&gate).await), (Some(20), 20));
        gate.set_share(3, None);
        assert_eq!(gate.share(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_with_the_pace_or_with_a_share() {
        let gate = Arc::new(gate());
        let far = Instant::now() + Duration::from_secs(5);
        let waiting = Arc::clone(&gate);
        let waiting = tokio::spawn(async move { waiting.wait(far).await });
        tokio::task::yield_now().await;
        gate.set_share(2, None);
        assert!(waiting.await.unwrap());
        assert!(gate.try_pass() && !gate.try_pass());
        let began = Instant::now();
        assert!(gate.wait(far).await);
        assert_eq!(began.elapsed().as_millis(), WINDOW.as_millis() / 2);
    }

    #[tokio::test]
    async fn without_a_budget_everything_passes() {
        let gate = Gate::new(None, RestMetrics::default());
        assert!((0..100).all(|_| gate.try_pass()));
        assert_eq!(gate.share(), None);
    }
}
