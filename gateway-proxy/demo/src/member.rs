//! One embedded program as a child process: started, watched, ended.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use crate::embedded::PARENT_ENV;
use crate::exit::Fatal;

/// How soon the end of a process is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A killed process is gone within milliseconds.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Enough lines to see why, few enough for one screen.
const LOG_END_LINES: usize = 15;
/// Those lines are well within so many bytes.
const LOG_END_BYTES: u64 = 16 * 1024;
/// The address of the HTTP endpoints is among the first lines of a log.
const LOG_START_BYTES: u64 = 64 * 1024;
/// Passed on from the demo's environment; the rest could change what the parts do.
const ENVIRONMENT: [&str; 6] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
];

/// What a member does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A proxy with these shards, first and last.
    Proxy { first: u32, last: u32 },
    /// A command worker.
    Worker,
}

/// What is known of a member besides its process.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) pid: u32,
    /// Where it logs.
    pub(crate) log: PathBuf,
}

impl Card {
    /// Where its HTTP endpoints are, once it has logged that.
    pub(crate) fn find_http(&self) -> Option<SocketAddr> {
        let mut text = String::new();
        let start = File::open(&self.log).ok()?.take(LOG_START_BYTES);
        { start }.read_to_string(&mut text).ok()?;
        http_address(&text)
    }

    /// The end of its log.
    pub(crate) fn log_end(&self) -> String {
        log_end(&self.log)
    }
}

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) card: Card,
    child: Child,
    /// Ends with this process; the child notices.
    _lifeline: ChildStdin,
}

impl Member {
    /// Starts `demo <args>` with an environment of its own.
    pub(crate) fn start(
        name: String,
        role: Role,
        args: &[String],
        env: &[(&str, String)],
        logs: &Path,
        scratch: &Path,
    ) -> Result<Self, Fatal> {
        let failed = |source| Fatal::System {
            action: "start a part of the demo",
            source,
        };
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|source| Fatal::File {
            action: "create",
            path: log.clone(),
            source,
        })?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(args).env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            // For logs that go to files.
            .env("NO_COLOR", "1")
            .env(PARENT_ENV, scratch)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // A Ctrl-C in the terminal is for the demo to handle.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        // Taken, because waiting for a child closes what it still has.
        let lifeline = child.stdin.take().expect("stdin is piped");
        let pid = child.id().expect("nobody has waited for it");
        let card = Card {
            name,
            role,
            pid,
            log,
        };
        Ok(Self {
            card,
            child,
            _lifeline: lifeline,
        })
    }

    /// Its exit status once it has ended.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks it to end, and waits; kills it when that takes longer than `within`.
    pub(crate) async fn drain(&mut self, within: Duration) -> Result<ExitStatus, String> {
        if let Ok(Some(status)) = self.ended() {
            return Ok(status);
        }
        let pid = i32::try_from(self.card.pid).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| error.to_string())?;
        match timeout(within, self.child.wait()).await {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => {
                self.child.start_kill().map_err(|error| error.to_string())?;
                // The kernel does the rest.
                drop(timeout(GONE_WITHIN, self.child.wait()).await);
                Err(format!("did not end within {within:?} and was killed"))
            }
        }
    }
}

/// Completes when one of them has ended, which none should.
pub(crate) async fn first_death(members: &mut [Member], keeps_logs: bool) -> Fatal {
    loop {
        for member in &mut *members {
            let status = match member.ended() {
                Ok(None) => continue,
                Ok(Some(status)) => status.to_string(),
                Err(error) => error.to_string(),
            };
            let card = &member.card;
            return Fatal::Died {
                name: card.name.clone(),
                pid: card.pid,
                status,
                log_end: card.log_end(),
                log_file: keeps_logs.then(|| card.log.clone()),
            };
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `address=…` of a proxy, `http=…` of a worker.
fn http_address(log: &str) -> Option<SocketAddr> {
    let words = log.split_ascii_whitespace();
    let mut values = words.filter_map(|word| {
        word.strip_prefix("address=")
            .or_else(|| word.strip_prefix("http="))
    });
    values.find_map(|value| value.parse().ok())
}

/// The last lines of a log file.
pub(crate) fn log_end(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = fs::metadata(path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_END_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    match read() {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("(unreadable: {error})"),
    }
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_END_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_logs_of_both_programs() {
        let expect = Some("127.0.0.1:4321".parse().unwrap());
        let proxy = "2026 INFO a::b: HTTP endpoints: /live /ready address=127.0.0.1:4321\n";
        assert_eq!(http_address(proxy), expect);
        let worker = "2026 INFO a::b: starting worker=worker-1 http=127.0.0.1:4321\n";
        assert_eq!(http_address(worker), expect);
        assert_eq!(
            http_address("INFO connected address=nats://x http=later"),
            None
        );
    }

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let text: String = (0..40).map(|n| format!("line {n}\n")).collect();
        let end = last_lines(&text);
        assert!(
            end.starts_with("line 25\n") && end.ends_with("line 39"),
            "{end}"
        );
        assert_eq!(last_lines(""), "");
        assert!(log_end(Path::new("/nowhere/at.log")).contains("unreadable"));
    }
}
