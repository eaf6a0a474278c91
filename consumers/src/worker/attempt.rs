//! One attempt of a handler at one event: contained, so that a panic or a handler that hangs is the
//! event's trouble and nobody else's.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::task::Poll;

use futures_util::{FutureExt as _, poll};
use tokio::time::{Instant, timeout};

use super::shared::Shared;
use crate::context::Context;
use crate::events::{Dispatch, Events};
use crate::verdict::Ended;

/// Lets the handler of the event try, within the time limit.
pub(crate) async fn attempt(shared: &Shared, events: &Events, context: &Context) -> Ended {
    let handling = AssertUnwindSafe(run(shared, events, context)).catch_unwind();
    tokio::pin!(handling);
    // Most end at once and need no timer.
    let ended = match poll!(handling.as_mut()) {
        Poll::Ready(ended) => Ok(ended),
        Poll::Pending => timeout(events.timeout, handling).await,
    };
    match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(panic)) => Ended::Failed(format!("the handler panicked: {}", panic_text(&*panic))),
        Err(_) => Ended::Failed(format!("the handler took longer than {:?}", events.timeout)),
    }
}

async fn run(shared: &Shared, events: &Events, context: &Context) -> Ended {
    let handling = match events.dispatch(context) {
        Dispatch::Typed(handling) | Dispatch::Raw(handling, None) => handling,
        Dispatch::Raw(handling, Some(why)) => {
            undecodable(shared, events, context, &why);
            handling
        }
        Dispatch::Undecodable(why) => {
            undecodable(shared, events, context, &why);
            return Ended::Undecodable(why);
        }
        Dispatch::Unhandled => return Ended::Unhandled,
    };
    match handling.await {
        Ok(verdict) => Ended::Verdict(verdict),
        Err(error) => Ended::Failed(format!("the handler failed: {error}")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_what_it_said() {
        let text = |panic: Box<dyn Any + Send>| panic_text(&*panic).to_owned();
        assert_eq!(text(Box::new("plain")), "plain");
        assert_eq!(text(Box::new("made".to_owned())), "made");
        assert_eq!(text(Box::new(7)), "without a text");
    }
}
