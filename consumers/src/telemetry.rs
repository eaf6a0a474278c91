//! The process' log: standard error, as text for people or JSON for collectors.

use std::ffi::OsString;
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Config, LogFormat};

/// Installs the log of the process, unless the program has one already.
pub(crate) fn init(config: &Config) {
    let filter = EnvFilter::new(&config.log_filter);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(wants_colours(
            std::io::stderr().is_terminal(),
            std::env::var_os("NO_COLOR"),
        ))
        .with_writer(std::io::stderr);
    let installed = match config.log {
        LogFormat::Text => log.finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    };
    if installed.is_err() {
        tracing::debug!("the process has a log already");
    }
}

/// Colours, unless nobody sees them or somebody wants none (<https://no-color.org>: set and not empty).
fn wants_colours(terminal: bool, no_color: Option<OsString>) -> bool {
    terminal && no_color.is_none_or(|text| text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_a_terminal_whose_user_has_not_said_no() {
        let said = |text: &str| Some(OsString::from(text));
        assert!(wants_colours(true, None));
        assert!(wants_colours(true, said("")));
        assert!(!wants_colours(true, said("1")));
        assert!(!wants_colours(false, None));
    }
}
