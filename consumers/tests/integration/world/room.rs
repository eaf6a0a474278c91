//! Handlers that stay until the test lets them go, and how many there were at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::world::until;

#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inside: AtomicUsize,
    most: AtomicUsize,
    /// A permit lets one out.
    door: Semaphore,
}

/// One that is inside, until it is dropped: a handler that takes too long is not asked.
struct Guest<'a>(&'a Inner);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            door: Semaphore::new(0),
        }))
    }

    /// Comes in, and stays until it is let out.
    pub(crate) async fn visit(&self) {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        let _guest = Guest(&self.0);
        self.0.most.fetch_max(inside, Ordering::SeqCst);
        // The door is never closed for good.
        self.0.door.acquire().await.unwrap().forget();
    }

    /// Waits until so many are inside.
    pub(crate) async fn holds(&self, count: usize) {
        until("the handlers to be busy", async || {
            (self.0.inside.load(Ordering::SeqCst) == count).then_some(())
        })
        .await;
    }

    pub(crate) fn let_one_out(&self) {
        self.0.door.add_permits(1);
    }

    /// Most that were ever inside at once.
    pub(crate) fn most(&self) -> usize {
        self.0.most.load(Ordering::SeqCst)
    }
}
