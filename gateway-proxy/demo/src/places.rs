//! What was started and where: what a person copies into another window.

use std::path::PathBuf;

use schemas::Prefix;

/// Addresses that do not change while the demo runs.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `nats://127.0.0.1:PORT`.
    pub(crate) nats_url: String,
    pub(crate) nats_pid: Option<u32>,
    /// `http://127.0.0.1:PORT/api/v10`.
    pub(crate) api_url: String,
    /// The script that subscribes.
    pub(crate) script: PathBuf,
}

impl Places {
    /// Subscribes with the `nats` command line tool.
    pub(crate) fn nats_line(&self) -> String {
        let subject = Prefix::default().live_feed();
        format!("nats -s {} sub '{subject}'", self.nats_url)
    }

    /// Subscribes with nothing but Python.
    pub(crate) fn python_line(&self) -> String {
        format!("python3 {}", self.script.display())
    }
}
