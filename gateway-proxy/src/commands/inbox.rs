//! Requests on their way to one shard's task. Without any it holds no memory of its own.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Requests that wait for one shard's task; more are refused at once.
pub(super) const REQUESTS_MAX: usize = 64;

/// One request with the subject its asker waits on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) payload: Box<[u8]>,
    pub(super) reply: Option<Box<str>>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// [`REQUESTS_MAX`] wait.
    Full,
    /// Nobody reads any more.
    Closed,
}

/// Written by the connection, read by the shard's task.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Request>,
    // The shard's task, once it has waited.
    reader: Option<Waker>,
    closed: bool,
}

impl Inbox {
    /// Hands a request over and wakes the reader.
    pub(super) fn push(&self, request: Request) -> Result<(), (Request, Refused)> {
        let mut state = self.state();
        if state.closed {
            return Err((request, Refused::Closed));
        }
        if state.requests.len() >= REQUESTS_MAX {
            return Err((request, Refused::Full));
        }
        state.requests.push_back(request);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// The oldest request, or a wake-up when there is one.
    pub(super) fn poll_pop(&self, context: &Context<'_>) -> Poll<Request> {
        let mut state = self.state();
        let Some(request) = state.requests.pop_front() else {
            let known = state.reader.as_ref();
            if known.is_none_or(|reader| !reader.will_wake(context.waker())) {
                state.reader = Some(context.waker().clone());
            }
            return Poll::Pending;
        };
        if state.requests.is_empty() {
            // Most shards get a command now and then, if ever.
            state.requests = VecDeque::new();
        }
        Poll::Ready(request)
    }

    /// Takes no more, and gives back what nobody has read.
    pub(super) fn close(&self) -> VecDeque<Request> {
        let mut state = self.state();
        state.closed = true;
        // It keeps the task alive, and the task this.
        state.reader = None;
        std::mem::take(&mut state.requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn request(payload: &str) -> Request {
        Request {
            payload: payload.as_bytes().into(),
            reply: None,
        }
    }

    #[test]
    fn a_request_wakes_the_reader_once_and_they_come_in_order() {
        let (inbox, wakes) = (Inbox::default(), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let context = Context::from_waker(&waker);
        assert_eq!(inbox.poll_pop(&context), Poll::Pending);
        inbox.push(request("a")).unwrap();
        inbox.push(request("b")).unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(inbox.poll_pop(&context), Poll::Ready(request("a")));
        assert_eq!(inbox.poll_pop(&context), Poll::Ready(request("b")));
        assert_eq!(inbox.poll_pop(&context), Poll::Pending);
        assert_eq!(inbox.state().requests.capacity(), 0);
    }

    #[test]
    fn a_full_or_closed_inbox_gives_the_request_back() {
        let inbox = Inbox::default();
        for _ in 0..REQUESTS_MAX {
            inbox.push(request("a")).unwrap();
        }
        let full = Err((request("b"), Refused::Full));
        assert_eq!(inbox.push(request("b")), full);
        assert_eq!(inbox.close().len(), REQUESTS_MAX);
        let closed = Err((request("c"), Refused::Closed));
        assert_eq!(inbox.push(request("c")), closed);
    }

    #[test]
    fn a_shard_without_commands_costs_some_tens_of_bytes() {
        assert!(size_of::<Inbox>() <= 72, "{}", size_of::<Inbox>());
    }
}
