//! One attempt of a handler at one event: contained, so that a panic or a handler that hangs is the
//! event's trouble and nobody else's.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{self, Poll};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Message};
use futures_util::FutureExt as _;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};

use super::settle::tell;
use super::shared::Shared;
use crate::context::Context;
use crate::events::{Dispatch, Events, VerdictFuture};
use crate::router::HandlerError;
use crate::verdict::{Ended, Finished, Verdict};

/// An attempt after its first step. Most are over then, and need neither a timer nor a task.
pub(crate) enum Attempt {
    Over(Ended),
    /// The handler waits for something.
    Waiting(VerdictFuture),
}

/// Starts the handler of the event and takes it as far as it goes without waiting.
pub(crate) fn begin_attempt(
    shared: &Shared,
    events: &Events,
    context: &Context,
    task: &mut task::Context<'_>,
) -> Attempt {
    let beginning = AssertUnwindSafe(|| {
        let mut handling = match start(shared, events, context) {
            Ok(handling) => handling,
            Err(ended) => return Attempt::Over(ended),
        };
        match handling.as_mut().poll(task) {
            Poll::Ready(said) => Attempt::Over(ended(said)),
            Poll::Pending => Attempt::Waiting(handling),
        }
    });
    catch_unwind(beginning).unwrap_or_else(|panic| Attempt::Over(panicked(&*panic)))
}

/// What the server is told every so often while a handler works.
#[derive(Clone, Copy)]
pub(crate) struct Signs<'a> {
    pub(crate) client: &'a Client,
    pub(crate) message: &'a Message,
    pub(crate) every: Duration,
}

impl Attempt {
    /// How the event is done with, if there is nothing left to do but tell the stream.
    pub(crate) const fn finished(&self) -> Option<Finished> {
        match self {
            Self::Over(ended) => ended.finished(),
            Self::Waiting(_) => None,
        }
    }

    /// Waits for the end of the handler, within the time limit, and shows signs of life meanwhile.
    pub(crate) async fn finish(self, limit: Duration, signs: Option<Signs<'_>>) -> Ended {
        let mut handling = match self {
            Self::Over(ended) => return ended,
            Self::Waiting(handling) => handling,
        };
        let ended = within(limit, signs, &mut handling).await;
        // What a handler leaves behind is as much its own as what it does.
        match catch_unwind(AssertUnwindSafe(|| drop(handling))) {
            Ok(()) => ended,
            Err(panic) => panicked(&*panic),
        }
    }
}

/// One timer for both limit and signs of life: most that wait do so for less.
async fn within(limit: Duration, signs: Option<Signs<'_>>, handling: &mut VerdictFuture) -> Ended {
    let now = Instant::now();
    let deadline = now + limit;
    let next = |now: Instant| match &signs {
        Some(signs) => deadline.min(now + signs.every),
        None => deadline,
    };
    let timer = sleep_until(next(now));
    let handling = AssertUnwindSafe(handling).catch_unwind();
    tokio::pin!(handling, timer);
    loop {
        tokio::select! {
            biased;
            said = &mut handling => return match said {
                Ok(said) => ended(said),
                Err(panic) => panicked(&*panic),
            },
            // A handler that never has to wait uses up what tokio lets a task do at once, and the
            // timer must be looked at all the same.
            () = unconstrained(timer.as_mut()) => {}
        }
        let now = Instant::now();
        if now >= deadline {
            return Ended::Failed(format!("the handler took longer than {limit:?}"));
        }
        if let Some(signs) = &signs {
            // At once or not at all: while NATS is away a sign is worth nothing, and the handler must
            // not wait for it.
            let told = tell(signs.client, signs.message, AckKind::Progress);
            unconstrained(told).now_or_never();
        }
        timer.as_mut().reset(next(now));
    }
}

/// Lets the handler of the event try, as far as it goes without waiting.
pub(crate) async fn attempt(shared: &Shared, events: &Events, context: &Context) -> Attempt {
    poll_fn(|task| Poll::Ready(begin_attempt(shared, events, context, task))).await
}

fn start(shared: &Shared, events: &Events, context: &Context) -> Result<VerdictFuture, Ended> {
    let handling = match events.dispatch(context) {
        Dispatch::Typed(handling) | Dispatch::Raw(handling, None) => handling,
        Dispatch::Raw(handling, Some(why)) => {
            undecodable(shared, events, context, &why);
            handling
        }
        Dispatch::Undecodable(why) => {
            undecodable(shared, events, context, &why);
            return Err(Ended::Undecodable(why));
        }
        Dispatch::Unhandled => return Err(Ended::Unhandled),
    };
    Ok(handling)
}

fn ended(said: Result<Verdict, HandlerError>) -> Ended {
    match said {
        Ok(verdict) => Ended::Verdict(verdict),
        Err(error) => Ended::Failed(format!("the handler failed: {error}")),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Ended {
    Ended::Failed(format!("the handler panicked: {}", panic_text(panic)))
}

fn undecodable(shared: &Shared, events: &Events, context: &Context, why: &str) {
    shared.metrics.event_undecodable(&events.name);
    if let Some(more) = shared.warnings.undecodable.admit(Instant::now().into_std()) {
        let (event, id) = (&*context.event.name, &*context.message_id);
        tracing::warn!(event, id, why, more, "a frame is not its typed event");
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over(ended) => f.debug_tuple("Over").field(ended).finish(),
            Self::Waiting(_) => f.write_str("Waiting"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);
    /// How long a test waits for what should be over after the limit.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn failure(handling: VerdictFuture) -> String {
        let ending = Attempt::Waiting(handling).finish(LIMIT, None);
        match tokio::time::timeout(PATIENCE, ending).await {
            Ok(Ended::Failed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_handler_that_goes_on_and_on_is_ended_by_the_time_limit() {
        let why = failure(Box::pin(async {
            loop {
                tokio::task::coop::consume_budget().await;
            }
        }));
        assert_eq!(why.await, "the handler took longer than 20ms");
    }

    #[tokio::test]
    async fn a_handler_does_not_stand_still_because_nothing_can_be_told() {
        // Nobody listens there, and one word is as many as may wait.
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let connecting = options.client_capacity(1).connect("127.0.0.1:1");
        let client = connecting.await.unwrap();
        let message = Message {
            subject: "subject".into(),
            reply: Some("reply".into()),
            payload: bytes::Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let signs = Signs {
            client: &client,
            message: &message,
            every: Duration::from_millis(1),
        };
        let waiting = Attempt::Waiting(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Verdict::Discard)
        }));
        let ending = waiting.finish(PATIENCE, Some(signs));
        let ended = tokio::time::timeout(PATIENCE, ending).await.unwrap();
        assert_eq!(ended, Ended::Verdict(Verdict::Discard));
    }

    #[tokio::test]
    async fn a_handler_that_panics_when_it_is_ended_is_contained() {
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                panic!("too early");
            }
        }
        let why = failure(Box::pin(async {
            let _guard = Guard;
            std::future::pending().await
        }));
        assert_eq!(why.await, "the handler panicked: too early");
    }

    #[test]
    fn a_panic_says_what_it_said() {
        let text = |panic: Box<dyn Any + Send>| panic_text(&*panic).to_owned();
        assert_eq!(text(Box::new("plain")), "plain");
        assert_eq!(text(Box::new("made".to_owned())), "made");
        assert_eq!(text(Box::new(7)), "without a text");
    }
}
