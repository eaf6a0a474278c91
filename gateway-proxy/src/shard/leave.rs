//! How one shard is let go of: first it reads nothing more, then it closes its connection.

use std::sync::Arc;

use tokio::sync::watch;

/// Where a shard stands on its way out. Only forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Working.
    Running,
    /// Nothing is read; what was read is being stored.
    Draining,
    /// The connection is closed resumably, and the task ends.
    Releasing,
}

/// Tells a shard's task how far to go; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Leave(Arc<watch::Sender<Stage>>);

impl Default for Leave {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Stage::Running).0))
    }
}

impl Leave {
    /// The stage at this moment.
    pub(crate) fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Goes on to a later stage; going back does nothing.
    pub(crate) fn advance(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let later = to > *stage;
            if later {
                *stage = to;
            }
            later
        });
    }

    /// Completes when the stage is `at_least` this one.
    pub(crate) async fn reached(&self, at_least: Stage) {
        let mut stage = self.0.subscribe();
        // The sender lives as long as self, so this cannot fail.
        drop(stage.wait_for(|stage| *stage >= at_least).await);
    }
}
