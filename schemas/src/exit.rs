//! How a process ends: every reason to give up, its exit code, and the one line that says what to do
//! about it. Decides nothing; whoever finds the reason builds a [`Fatal`] and returns it.

use std::fmt;

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

/// Why a process cannot go on. Every variant has its exit code; the codes are part of the contract, the
/// same for every program, and follow `sysexits.h` where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// 64: flags, environment or file are wrong; the problem names the key.
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
    /// 77: Discord refuses the token or the intents (401, 403, 4004, 4013, 4014).
    #[error("{problem}; {advice}")]
    Refused {
        /// What Discord said.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 78: the surroundings do not fit: a stream or consumer that is missing or has other settings, NATS
    /// too old or without JetStream, missing permission, shard or version refused (4010, 4011, 4012).
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
    /// Wrong flags, environment or file.
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

    /// The reason as one line for standard error.
    #[must_use]
    pub fn line(&self, program: &str) -> String {
        one_line(&format!("{program}: {self}"))
    }
}

/// The text without line breaks and whatever else a terminal obeys.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Causes that [`with_causes`] names: real chains have three or four.
const CAUSES_MAX: usize = 8;

/// The text of an error and of its causes, eight at most, each said once: what a library's error says by
/// itself is often little.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    for cause in causes.take(CAUSES_MAX) {
        let next = cause.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
    }
    text
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

    #[test]
    fn a_reason_is_one_line_whatever_it_quotes() {
        let fatal = Fatal::usage("bad\nvalue \u{1b}[2J", "change it");
        assert_eq!(fatal.line("proxy"), "proxy: bad value  [2J; change it");
    }

    /// With as many causes as one likes.
    #[derive(Debug, thiserror::Error)]
    #[error("cause {0}")]
    struct Deep(usize, #[source] Option<Box<Self>>);

    #[test]
    fn causes_are_named_once_and_not_without_an_end() {
        let deep =
            |depth: usize| (0..depth).fold(None, |cause, at| Some(Box::new(Deep(at, cause))));
        let text = |depth| with_causes(&*deep(depth).unwrap());
        assert_eq!(text(1), "cause 0");
        assert_eq!(text(3), "cause 2: cause 1: cause 0");
        assert_eq!(text(100).matches("cause").count(), 1 + CAUSES_MAX);
        let twice = std::io::Error::other(Deep(7, Some(Box::new(Deep(7, None)))));
        assert_eq!(with_causes(&twice), "cause 7");
    }
}
