//! How a worker ends: every reason to give up, its exit code, and the one line that says what to do
//! about it. Decides nothing; whoever finds the reason builds a [`Fatal`] and returns it.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// Signals that start the graceful stop, and end the process at once when they come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// What service managers send.
    Terminate,
}

impl Signal {
    /// The signal's number, as in `128 + number`.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Why the process cannot go on. The exit codes are part of the contract, the same for every
/// program of the system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// 64: flags or environment are wrong; the problem names the key.
    #[error("{problem}; {advice}")]
    Usage {
        /// Which key, which value, what is allowed.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 69: NATS or Discord did not answer within `--startup-timeout`.
    #[error("{problem}; {advice}")]
    Unreachable {
        /// Who, for how long, and the last error.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 70: a fault of the program itself.
    #[error("internal error: {problem}; this is a bug, please report it with the log above")]
    Bug {
        /// What was found.
        problem: String,
    },
    /// 77: Discord refuses the token (401, 403).
    #[error("{problem}; {advice}")]
    Refused {
        /// What Discord said.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 78: the surroundings do not fit: no stream, a consumer with other settings, NATS too old or
    /// without JetStream, missing permission.
    #[error("{problem}; {advice}")]
    Unfit {
        /// What is there and what would be needed.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 130 or 143: a second signal cut the stop short, as a shell reports a death by that signal.
    #[error("{0} came a second time: stopped without finishing what was in flight")]
    Interrupted(Signal),
}

impl Fatal {
    /// Wrong flags or environment.
    pub fn usage(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Usage {
            problem: problem.into(),
            advice: advice.into(),
        }
    }

    /// Somebody we need does not answer.
    pub fn unreachable(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Unreachable {
            problem: problem.into(),
            advice: advice.into(),
        }
    }

    /// A fault of ours.
    pub fn bug(problem: impl Into<String>) -> Self {
        Self::Bug {
            problem: problem.into(),
        }
    }

    /// Discord says no.
    pub fn refused(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Refused {
            problem: problem.into(),
            advice: advice.into(),
        }
    }

    /// The surroundings do not fit.
    pub fn unfit(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Unfit {
            problem: problem.into(),
            advice: advice.into(),
        }
    }

    /// The process' exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 64,
            Self::Unreachable { .. } => 69,
            Self::Bug { .. } => 70,
            Self::Refused { .. } => 77,
            Self::Unfit { .. } => 78,
            Self::Interrupted(signal) => 128 + signal.number(),
        }
    }
}

/// Writes the reason to standard error as one line and turns it into the exit code.
pub(crate) fn finish(program: &str, outcome: Result<(), Fatal>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            complain(&format!("{program}: {fatal}"));
            ExitCode::from(fatal.code())
        }
    }
}

/// One line on standard error; a reader that went away is no reason to fail.
fn complain(text: &str) {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_exit_code_of_the_contract() {
        assert_eq!(Fatal::usage("a", "b").code(), 64);
        assert_eq!(Fatal::unreachable("a", "b").code(), 69);
        assert_eq!(Fatal::bug("a").code(), 70);
        assert_eq!(Fatal::refused("a", "b").code(), 77);
        assert_eq!(Fatal::unfit("a", "b").code(), 78);
        assert_eq!(Fatal::Interrupted(Signal::Interrupt).code(), 130);
        assert_eq!(Fatal::Interrupted(Signal::Terminate).code(), 143);
    }
}
