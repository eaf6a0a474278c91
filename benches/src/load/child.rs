//! A part of a run as a child process: started from this very binary, told what to do as JSON,
//! ended with its standard input or by a signal, killed when nothing else helps.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child as Process, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::peers::Program;

/// How long a part may take to say something, and to end when asked to.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a part kept unread; more only come from a proxy that logs trouble, and are dropped.
const LINES_MAX: usize = 1024;
/// Last lines of a part that are shown when it fails.
const LAST_LINES: usize = 20;
/// What a part's environment has of ours: enough to find libraries and a home, and to try another
/// allocator.
const KEPT_ENV: [&str; 5] = [
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
];

/// Where a part speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    Stdout,
    Stderr,
}

/// A running part, or a program of others. Killed when dropped.
pub(crate) struct Child {
    name: &'static str,
    process: Process,
    pid: u32,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Child {
    /// Starts a part that takes its setup as JSON.
    pub(crate) fn with_setup(part: &'static str, setup: &impl Serialize) -> Result<Self> {
        let setup = serde_json::to_string(setup).context("write a part's setup")?;
        Self::spawn(part, &[setup], &[], Voice::Stdout)
    }

    /// Starts a part with these arguments and environment.
    pub(crate) fn spawn(
        part: &'static str,
        args: &[String],
        env: &[(&str, String)],
        voice: Voice,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg(part).args(args);
        Self::start(part, command, env, voice)
    }

    /// Starts a program of others that takes its setup as JSON.
    pub(crate) fn foreign(
        name: &'static str,
        program: &Program,
        setup: &impl Serialize,
    ) -> Result<Self> {
        let setup = serde_json::to_string(setup).context("write a peer's setup")?;
        let mut command = Command::new(&program.path);
        command.arg(&program.script).arg(setup);
        Self::start(name, command, &[], Voice::Stdout)
    }

    fn start(
        name: &'static str,
        mut command: Command,
        env: &[(&str, String)],
        voice: Voice,
    ) -> Result<Self> {
        command.env_clear();
        for name in KEPT_ENV {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).kill_on_drop(true);
        match voice {
            Voice::Stdout => command.stdout(Stdio::piped()),
            Voice::Stderr => command.stdout(Stdio::null()).stderr(Stdio::piped()),
        };
        let mut process = command.spawn().with_context(|| format!("start {name}"))?;
        let pid = process.id().context("a child that has ended already")?;
        let stdin = process.stdin.take();
        let last = Arc::default();
        let (sender, lines) = mpsc::channel(LINES_MAX);
        if let Some(stdout) = process.stdout.take() {
            tokio::spawn(listen(stdout, sender, Arc::clone(&last)));
        } else if let Some(stderr) = process.stderr.take() {
            tokio::spawn(listen(stderr, sender, Arc::clone(&last)));
        }
        Ok(Self {
            name,
            process,
            pid,
            stdin,
            lines,
            last,
        })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    /// The first thing the part says that `pick` takes.
    pub(crate) async fn says<T>(&mut self, pick: impl Fn(&str) -> Option<T>) -> Result<T> {
        let listen = async {
            while let Some(line) = self.lines.recv().await {
                if let Some(picked) = pick(&line) {
                    return Ok(picked);
                }
            }
            bail!("it ended")
        };
        timeout(PATIENCE, listen)
            .await
            .unwrap_or_else(|_| Err(anyhow!("silent for {} s", PATIENCE.as_secs())))
            .with_context(|| self.complaint())
    }

    /// Tells the part to begin.
    pub(crate) async fn go(&mut self) -> Result<()> {
        let stdin = self.stdin.as_mut().context("a part that was told to end")?;
        stdin.write_all(b"go\n").await.context("tell a part to go")
    }

    /// Fails when the process is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.process.try_wait().context("ask for a child")? {
            None => Ok(()),
            Some(status) => {
                Err(anyhow!("it ended early: {status}")).with_context(|| self.complaint())
            }
        }
    }

    /// Ends the part by the end of its standard input.
    pub(crate) async fn close(mut self) -> Result<()> {
        drop(self.stdin.take());
        self.ended().await
    }

    /// Ends the part as an operator would. Returns how often it allocated, if it counts that.
    pub(crate) async fn terminate(mut self) -> Result<Option<u64>> {
        let pid = Pid::from_raw(i32::try_from(self.pid).context("a process id")?);
        kill(pid, Signal::SIGTERM).context("send SIGTERM")?;
        self.ended().await?;
        // Its last words are read until it closes its end.
        while self.lines.recv().await.is_some() {}
        Ok(self.said_last(allocations))
    }

    async fn ended(&mut self) -> Result<()> {
        let status: ExitStatus = match timeout(PATIENCE, self.process.wait()).await {
            Ok(status) => status.context("wait for a child")?,
            Err(_) => {
                self.process.kill().await.context("kill a child")?;
                return Err(anyhow!("it did not end within {} s", PATIENCE.as_secs()))
                    .with_context(|| self.complaint());
            }
        };
        if status.success() {
            Ok(())
        } else {
            Err(anyhow!("{status}")).with_context(|| self.complaint())
        }
    }

    /// Its name and last lines, for an error.
    pub(crate) fn complaint(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = last
            .iter()
            .fold(String::new(), |all, line| all + "\n  " + line);
        format!("{}{lines}\n", self.name)
    }

    /// The last thing the part said that `pick` takes; for when it has ended.
    fn said_last<T>(&self, pick: impl Fn(&str) -> Option<T>) -> Option<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().rev().find_map(|line| pick(line))
    }
}

/// What a part that counts allocations says at its end.
pub(crate) fn allocations_line(count: u64) -> String {
    format!("allocations {count}")
}

fn allocations(line: &str) -> Option<u64> {
    line.strip_prefix("allocations ")?.parse().ok()
}

/// Hands lines over and never lets the child wait for a reader.
async fn listen(
    pipe: impl AsyncRead + Unpin,
    lines: mpsc::Sender<String>,
    last: Arc<Mutex<VecDeque<String>>>,
) {
    let mut reader = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = reader.next_line().await {
        {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.clone());
        }
        // Full: nobody is interested any more.
        drop(lines.try_send(line));
    }
}

/// In the part: its setup.
pub(crate) fn setup<T: DeserializeOwned>(args: &[OsString]) -> Result<T> {
    let text = args
        .first()
        .and_then(|arg| arg.to_str())
        .unwrap_or_default();
    serde_json::from_str(text).context("the setup of a part")
}

/// In an asynchronous part: waits for the end of standard input.
pub(crate) async fn told_to_end() {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = lines.next_line().await {}
}
