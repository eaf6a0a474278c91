//! Why the demo ends other than well, and what the shell is told.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use testkit::nats::{LocateError, StartError as NatsError};
use testkit::simulator::StartError as SimulatorError;

/// Reasons not to end with 0.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    /// 1: it ran, and something is not as it should be. The summary has said what.
    #[error("not everything is as it should be: {}", reasons.join("; "))]
    Unclean { reasons: Vec<String> },
    /// 1: a part ended that should run.
    #[error("{name} (pid {pid}) ended unexpectedly: {status}\n{}", last_lines(log_end, log_file.as_ref()))]
    Died {
        name: String,
        pid: u32,
        status: String,
        log_end: String,
        log_file: Option<PathBuf>,
    },
    /// 1: somebody shut it down, through its control endpoints.
    #[error("the simulated Discord was shut down")]
    SimulatorStopped,
    /// 69: something did not come up.
    #[error("not up within {within:?}: {missing}\n{log_end}")]
    NotUp {
        within: Duration,
        missing: String,
        log_end: String,
    },
    /// 69: no nats-server can be had.
    #[error("no nats-server to start")]
    NoNats(#[from] LocateError),
    /// 69: it is there and does not start.
    #[error("nats-server does not start")]
    NatsStart(#[from] NatsError),
    /// 69: it runs and does not answer.
    #[error("nats-server at {url} does not answer")]
    NatsConnect {
        url: String,
        #[source]
        source: async_nats::ConnectError,
    },
    /// 69: ports, usually.
    #[error("the simulated Discord does not start")]
    Simulator(#[from] SimulatorError),
    /// 70: the system said no.
    #[error("cannot {action}")]
    System {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// 69: the file system said no; usually to the directory of --keep-logs.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// 70: a task of the demo panicked; the panic's message was printed before.
    #[error("a part of the demo panicked (a bug)")]
    Panicked,
    /// 130: stopped before there was anything to compare, or by a second signal.
    #[error("{0}")]
    Interrupted(&'static str),
}

impl Fatal {
    const fn code(&self) -> u8 {
        match self {
            Self::Unclean { .. } | Self::Died { .. } | Self::SimulatorStopped => 1,
            Self::NotUp { .. }
            | Self::NoNats(_)
            | Self::NatsStart(_)
            | Self::NatsConnect { .. }
            | Self::Simulator(_)
            | Self::File { .. } => 69,
            Self::System { .. } | Self::Panicked => 70,
            Self::Interrupted(_) => 130,
        }
    }
}

fn last_lines(log_end: &str, file: Option<&PathBuf>) -> String {
    let place = file.map_or(String::new(), |file| format!(" ({})", file.display()));
    if log_end.is_empty() {
        format!("it logged nothing{place}")
    } else {
        format!("the end of its log{place}:\n{log_end}")
    }
}

/// Explains on standard error and says the exit code.
pub(crate) fn finish(outcome: Result<(), Fatal>) -> ExitCode {
    let Err(fatal) = outcome else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("demo: {fatal}");
    let mut cause = fatal.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // Nothing is left to do when even that cannot be printed.
    drop(writeln!(io::stderr().lock(), "{text}"));
    ExitCode::from(fatal.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_part_is_named_with_its_last_words() {
        let fatal = Fatal::Died {
            name: "proxy-2".into(),
            pid: 7,
            status: "signal: 9 (SIGKILL)".into(),
            log_end: "last line".into(),
            log_file: None,
        };
        let text = fatal.to_string();
        for part in ["proxy-2", "pid 7", "SIGKILL", "last line"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(fatal.code(), 1);
    }
}
