//! The end of the process: the reason on standard error, its exit code, panics among the reasons.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::OnceLock;

use gateway_proxy_core::close::FatalClose;
use schemas::ShardId;
use schemas::exit::one_line;
pub use schemas::exit::{Fatal, Signal};
use tokio::sync::watch;

/// The end that a close demands which no reconnect can cure (Discord, Gateway close event codes:
/// reconnect "false").
#[must_use]
pub(crate) fn gateway_close(shard: ShardId, close: FatalClose) -> Fatal {
    let problem = format!("shard {shard}: {close}");
    match close {
        FatalClose::AuthenticationFailed => Fatal::refused(
            problem,
            "set the bot's current token (--token-file or DISCORD_TOKEN)",
        ),
        FatalClose::InvalidIntents => Fatal::refused(problem, "check --intents"),
        FatalClose::DisallowedIntents => Fatal::refused(
            problem,
            "enable them in Discord's developer portal (Bot, Privileged Gateway Intents) or leave them out of --intents",
        ),
        FatalClose::InvalidShard => Fatal::unfit(
            problem,
            "check --shards and --shard-ids; very large bots need a multiple of the number Discord recommends",
        ),
        FatalClose::ShardingRequired => {
            Fatal::unfit(problem, "raise --shards or use --shards auto")
        }
        FatalClose::InvalidVersion => {
            Fatal::unfit(problem, "this program is too old for Discord: update it")
        }
    }
}

/// Writes the reason to standard error as one line and turns it into the exit code.
pub(crate) fn finish(program: &str, outcome: Result<(), Fatal>) -> ExitCode {
    let Err(fatal) = outcome else {
        return ExitCode::SUCCESS;
    };
    complain(&fatal.line(program));
    ExitCode::from(fatal.code())
}

/// One line on standard error; a reader that went away is no reason to fail.
pub(crate) fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", one_line(text)));
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
            let fatal = gateway_close(shard, close);
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
