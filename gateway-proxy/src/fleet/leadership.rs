//! Whether this process coordinates, for parts that act on their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use crate::fence::Fence;

/// The coordinator's lease as far as this process has it; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: AtomicU64,
    lease: Fence,
    changed: Notify,
}

impl Default for Leadership {
    fn default() -> Self {
        Self(Arc::new(Inner {
            epoch: AtomicU64::new(0),
            lease: Fence::down(),
            changed: Notify::new(),
        }))
    }
}

impl Leadership {
    /// The epoch under which this process coordinates at this moment: asked immediately before
    /// everything that only the coordinator does.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let epoch = self.0.epoch.load(Ordering::Acquire);
        self.0.lease.holds().then_some(epoch)
    }

    /// The lease of this epoch lasts until then.
    pub(crate) fn hold(&self, epoch: u64, until: Instant) {
        let before = self.epoch();
        self.0.epoch.store(epoch, Ordering::Release);
        if !self.0.lease.extend(until) {
            self.0.lease.raise(until);
        }
        if before != Some(epoch) {
            self.0.changed.notify_waiters();
        }
    }

    /// It is over.
    pub(crate) fn end(&self) {
        self.0.lease.lower();
        self.0.changed.notify_waiters();
    }

    /// Waits until [`Leadership::epoch`] is another than `before`.
    pub(crate) async fn changed(&self, before: Option<u64>) {
        loop {
            let changed = self.0.changed.notified();
            if self.epoch() != before {
                return;
            }
            match before {
                None => changed.await,
                Some(_) => tokio::select! {
                    () = changed => {}
                    () = self.0.lease.fallen() => {}
                },
            }
        }
    }
}
