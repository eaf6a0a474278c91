//! The process' log: standard error, as text for people or JSON for collectors.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Config, LogFormat};

/// Installs the log of the process, unless the program has one already.
pub(crate) fn init(config: &Config) {
    let filter = EnvFilter::new(&config.log_filter);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // On a terminal tracing-subscriber itself asks NO_COLOR.
    let log = match std::io::stderr().is_terminal() {
        true => log,
        false => log.with_ansi(false),
    };
    let installed = match config.log {
        LogFormat::Text => log.finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    };
    if installed.is_err() {
        tracing::debug!("the process has a log already");
    }
}
