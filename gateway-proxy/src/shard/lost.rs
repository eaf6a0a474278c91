//! The word that another process took the shard.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

/// Said once, by whoever finds out first.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    to: OnceLock<String>,
    token: CancellationToken,
}

impl Lost {
    /// The shard belongs to this proxy now.
    pub(crate) fn lose(&self, to: String) {
        // The first word stands.
        drop(self.to.set(to));
        self.token.cancel();
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The name of the proxy that has the shard, once it is lost.
    pub(super) fn to(&self) -> Option<String> {
        let to = || self.to.get().cloned().unwrap_or_default();
        self.is_lost().then(to)
    }

    /// Waits for the word: the name of the proxy that has the shard.
    pub(super) async fn lost(&self) -> String {
        self.token.cancelled().await;
        self.to.get().cloned().unwrap_or_default()
    }
}
