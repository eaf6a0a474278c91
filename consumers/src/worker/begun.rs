//! Events that arrive together begin in one task, one after the other: most handlers end when they
//! are polled for the first time, and a task of its own would cost more than they do. Those that wait
//! for something go on in tasks of their own.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use async_nats::Message;
use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use tokio::task::{coop, yield_now};
use tokio::time::Instant;
use tracing::Span;

use super::attempt::{Attempt, begin_attempt};
use super::settle::tell;
use super::shared::Shared;
use crate::context::Context;
use crate::events::Events;

/// Events that begin in one task at first, and after some that took their time.
const TOGETHER: usize = 8;
/// The same while handlers take little time: more makes a task no cheaper.
const TOGETHER_MAX: usize = 16;
/// A handler that computes holds up those behind it: after this time they are left to other tasks,
/// and so to other threads.
const TOGETHER_TIME: Duration = Duration::from_micros(100);

/// An event on its way to its handler.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) message: Message,
    pub(crate) context: Context,
}

/// An event that is not over after its first step.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) item: Item,
    /// None when the handler has not begun.
    pub(crate) attempt: Option<Attempt>,
    pub(crate) span: Span,
}

/// What became of events that began together.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// Their places in the stream, of those that are over; the stream has been told.
    pub(crate) ended: Vec<u64>,
    pub(crate) waiting: Vec<Waiting>,
    /// Had no turn.
    pub(crate) left: Vec<Item>,
    /// Whether it took long; nothing is known of that from an event that went on by itself.
    pub(crate) slow: Option<bool>,
}

impl Begun {
    /// One event that went on by itself.
    pub(crate) fn ended(sequence: u64) -> Self {
        Self {
            ended: vec![sequence],
            ..Self::default()
        }
    }
}

/// Begins to handle events, in their order. `may_begin` is asked right before each one; what it
/// refuses is left waiting.
pub(crate) async fn begin(
    shared: &Shared,
    events: &Events,
    items: Vec<Item>,
    may_begin: impl Fn(&Context, Instant) -> bool,
) -> Begun {
    let mut begun = Begun::default();
    begun.ended.reserve(items.len());
    let _in_flight = shared.metrics.events_started(items.len());
    let mut now = Instant::now();
    let until = now + TOGETHER_TIME;
    let (mut items, mut slow) = (items.into_iter(), false);
    for item in items.by_ref() {
        // Off by default: making a span, which is formatted and registered, is paid by every event.
        let span = tracing::debug_span!("event", subject = %item.message.subject);
        let attempt = match may_begin(&item.context, now) {
            true => {
                let beginning = poll_fn(|task| {
                    let beginning = || begin_attempt(shared, events, &item.context, task);
                    Poll::Ready(span.in_scope(beginning))
                });
                Some(beginning.await)
            }
            false => None,
        };
        let finished = attempt.as_ref().and_then(Attempt::finished);
        // While NATS is away telling it waits, and others must not wait for that.
        let told = || tell(&shared.link.client, &item.message, AckKind::Ack).now_or_never();
        match finished {
            Some(finished) if told().is_some() => {
                events.count(&shared.metrics, finished.into());
                begun.ended.push(item.context.event.sequence);
            }
            _ => begun.waiting.push(Waiting {
                item,
                attempt,
                span,
            }),
        }
        now = Instant::now();
        if now >= until {
            slow = true;
            break;
        }
        if !coop::has_budget_remaining() {
            // What is ready would look as if it had to be waited for.
            yield_now().await;
            now = Instant::now();
        }
    }
    begun.left = items.collect();
    begun.slow = Some(slow);
    begun
}

/// How many events begin together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Together(usize);

impl Together {
    pub(crate) const fn new() -> Self {
        Self(TOGETHER)
    }

    pub(crate) const fn most(self) -> usize {
        self.0
    }

    /// Learns from those that did.
    pub(crate) fn learn(&mut self, begun: &Begun) {
        self.0 = match begun.slow {
            Some(true) => TOGETHER,
            Some(false) => (self.0 * 2).min(TOGETHER_MAX),
            None => self.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_begin_together_until_some_take_their_time() {
        let mut together = Together::new();
        let begun = |slow| Begun {
            slow: Some(slow),
            ..Begun::default()
        };
        let mut most = Vec::new();
        for _ in 0..5 {
            most.push(together.most());
            together.learn(&begun(false));
        }
        assert_eq!(most, [8, 16, 16, 16, 16]);
        together.learn(&begun(true));
        together.learn(&Begun::ended(7));
        assert_eq!(together.most(), TOGETHER);
    }
}
