//! How the process ends: every reason to give up, its exit code, and the one line that says what to
//! do about it. Decides nothing; whoever finds the reason builds a [`Fatal`] and returns it.

use std::fmt;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::OnceLock;

use gateway_proxy_core::close::FatalClose;
use schemas::ShardId;
use tokio::sync::watch;

/// Signals that end the process at once when they arrive a second time.
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

/// Why the process cannot go on. Every variant has its exit code; the codes are part of the
/// contract and follow `sysexits.h` where it has one.
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
    /// 78: the surroundings do not fit: a stream with other settings, NATS too old or without
    /// JetStream, missing permission, shard or version refused (4010, 4011, 4012).
    #[error("{problem}; {advice}")]
    Unfit {
        /// What is there and what would be needed.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// 130 or 143: a second signal cut the drain short, as a shell reports a death by that signal.
    #[error("{0} came a second time: stopped without draining")]
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

    /// The end that a close demands which no reconnect can cure (Discord, Gateway close event codes:
    /// reconnect "false").
    #[must_use]
    pub fn gateway_close(shard: ShardId, close: FatalClose) -> Self {
        let problem = format!("shard {shard}: {close}");
        match close {
            FatalClose::AuthenticationFailed => Self::refused(
                problem,
                "set the bot's current token (--token-file or DISCORD_TOKEN)",
            ),
            FatalClose::InvalidIntents => Self::refused(problem, "check --intents"),
            FatalClose::DisallowedIntents => Self::refused(
                problem,
                "enable them in Discord's developer portal (Bot, Privileged Gateway Intents) or leave them out of --intents",
            ),
            FatalClose::InvalidShard => Self::unfit(
                problem,
                "check --shards and --shard-ids; very large bots need a multiple of the number Discord recommends",
            ),
            FatalClose::ShardingRequired => {
                Self::unfit(problem, "raise --shards or use --shards auto")
            }
            FatalClose::InvalidVersion => {
                Self::unfit(problem, "this program is too old for Discord: update it")
            }
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
pub(crate) fn complain(text: &str) {
    let line: String = text
        .chars()
        .map(|c| if c == '\n' || c == '\r' { ' ' } else { c })
        .collect();
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Tells of the first panic in any thread or task.
///
/// A task that panics ends alone: its shard would be silently gone. The process ends instead, its
/// sockets are reset, which leaves the sessions resumable, and whoever supervises it starts it anew.
#[derive(Clone, Debug)]
pub(crate) struct Panics(watch::Receiver<Option<String>>);

/// Installs the hook, once per process. It also reports panics through the log, in the operator's
/// format. The text of a panic is ours: no payload and no token ever goes into one.
pub(crate) fn watch_panics() -> Panics {
    static FIRST: OnceLock<watch::Sender<Option<String>>> = OnceLock::new();
    let mut installed_now = false;
    let sender = FIRST.get_or_init(|| {
        installed_now = true;
        watch::channel(None).0
    });
    if installed_now {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let location = info.location().map(ToString::to_string).unwrap_or_default();
            let text = info.payload_as_str().unwrap_or("no message");
            tracing::error!(location, text, "panicked");
            sender.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert_with(|| format!("panicked at {location}: {text}"));
                is_first
            });
            previous(info);
        }));
    }
    Panics(sender.subscribe())
}

impl Panics {
    /// Completes with the first panic, also one that was before.
    pub(crate) async fn first(mut self) -> Fatal {
        match self.0.wait_for(Option::is_some).await {
            Ok(text) => Fatal::bug(text.clone().unwrap_or_default()),
            // The sender lives as long as the process.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Runs what a process does; a panic of its own becomes [`Fatal::Bug`].
pub(crate) fn contained(work: impl FnOnce() -> Result<(), Fatal>) -> Result<(), Fatal> {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|_| Err(Fatal::bug("the program panicked")))
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
    fn a_refused_token_or_intent_is_77_and_a_refused_shard_or_version_78() {
        let shard = ShardId::new(3, 16).unwrap();
        for (close, code) in [
            (FatalClose::AuthenticationFailed, 77),
            (FatalClose::InvalidIntents, 77),
            (FatalClose::DisallowedIntents, 77),
            (FatalClose::InvalidShard, 78),
            (FatalClose::ShardingRequired, 78),
            (FatalClose::InvalidVersion, 78),
        ] {
            let fatal = Fatal::gateway_close(shard, close);
            assert_eq!(fatal.code(), code, "{close:?}");
            assert!(fatal.to_string().contains("3/16"), "{fatal}");
        }
    }

    #[tokio::test]
    async fn a_panic_in_any_task_is_a_bug_of_the_process() {
        let panics = watch_panics();
        let task = tokio::spawn(async { panic!("for this test") });
        assert!(task.await.unwrap_err().is_panic());
        let fatal = panics.first().await;
        assert_eq!(fatal.code(), 70);
        assert!(fatal.to_string().contains("report it"), "{fatal}");
        let fatal = contained(|| panic!("for this test")).unwrap_err();
        assert_eq!(fatal.code(), 70);
        assert_eq!(contained(|| Ok(())), Ok(()));
    }
}
