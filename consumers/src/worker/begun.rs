//! Events that arrive together begin in one task: most handlers end when they are polled for the first
//! time, and a task of its own would cost more than they do. Those that wait go on in their own.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tokio::task::JoinSet;
use tokio_util::sync::ReusableBoxFuture;

/// Events that begin in one task. A handler that computes holds up those behind it: few, so that the
/// other threads get something to do as well.
pub(crate) const TOGETHER: usize = 8;

/// What became of events that began together.
pub(crate) struct Begun<T> {
    /// Of those whose handling is over.
    pub(crate) ended: Vec<T>,
    waiting: Vec<ReusableBoxFuture<'static, T>>,
}

/// Begins to handle events, one after the other.
pub(crate) async fn begin<T, F>(handlings: impl IntoIterator<Item = F>) -> Begun<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let (mut ended, mut waiting) = (Vec::with_capacity(TOGETHER), Vec::new());
    // One allocation for all that end at once: these futures are some kilobytes large.
    let mut room: Option<ReusableBoxFuture<'static, T>> = None;
    for handling in handlings {
        let mut handling = match room.take() {
            Some(mut room) => {
                room.set(handling);
                room
            }
            None => ReusableBoxFuture::new(handling),
        };
        let polled = poll_fn(|context| Poll::Ready(handling.poll(context)));
        match polled.await {
            Poll::Ready(output) => {
                ended.push(output);
                room = Some(handling);
            }
            Poll::Pending => waiting.push(handling),
        }
    }
    Begun { ended, waiting }
}

impl<T: Send + 'static> Begun<T> {
    /// Gives each that waits a task of its own; returns what has ended.
    pub(crate) fn go_on(self, tasks: &mut JoinSet<Self>) -> Vec<T> {
        for waiting in self.waiting {
            tasks.spawn(async move {
                Self {
                    ended: vec![waiting.await],
                    waiting: Vec::new(),
                }
            });
        }
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_goes_on_by_itself_and_holds_up_nothing() {
        let (open, gate) = tokio::sync::watch::channel(false);
        let handle = move |number: u32| {
            let mut gate = gate.clone();
            async move {
                if number % 2 == 1 {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                number
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(begin((0..5).map(handle)));
        let begun = tasks.join_next().await.unwrap().unwrap();
        assert_eq!(begun.go_on(&mut tasks), [0, 2, 4]);
        assert_eq!(tasks.len(), 2);
        open.send_replace(true);
        let mut rest = Vec::new();
        while let Some(begun) = tasks.join_next().await {
            rest.extend(begun.unwrap().go_on(&mut tasks));
        }
        rest.sort_unstable();
        assert_eq!(rest, [1, 3]);
    }
}
