//! The proxies as processes of their own: this very binary under another name.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};

/// One proxy's place: it may be killed and started again any number of times.
pub struct Proxy {
    /// What it is called in messages.
    pub name: String,
    args: Vec<String>,
    token: String,
    log: PathBuf,
    child: Option<Child>,
    // Kept apart from the child, because waiting for a child closes its input, which is how it
    // learns that we are gone.
    alive: Option<ChildStdin>,
    /// How often it was started.
    pub starts: u32,
}

impl Proxy {
    /// A place for the proxy with these arguments, not started yet; `log` is appended to.
    #[must_use]
    pub fn new(name: String, args: Vec<String>, token: String, log: PathBuf) -> Self {
        Self {
            name,
            args,
            token,
            log,
            child: None,
            alive: None,
            starts: 0,
        }
    }

    /// Starts it; the process ends with ours, because it reads our end of a pipe.
    ///
    /// # Errors
    /// When the process cannot be started or its log not be opened.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let own = std::env::current_exe().context("where this program is")?;
        let mut child = Command::new(own)
            .arg(crate::CHILD)
            .args(&self.args)
            .env("DISCORD_TOKEN", &self.token)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        self.alive = child.stdin.take();
        self.child = Some(child);
        self.starts += 1;
        Ok(())
    }

    /// Sends it a signal; nothing happens when it does not run.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(pid) = self.child.as_ref().and_then(Child::id) else {
            return Ok(());
        };
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for its end and gives its exit code; `None` when it did not run or a signal ended it.
    ///
    /// # Errors
    /// When the system cannot say.
    pub async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.wait().await?;
        self.child = None;
        Ok(status.code())
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The code of a process that ended although nobody asked for it.
    pub fn died(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(2_000);
        let tail: String = log.get(from..).unwrap_or_default().to_owned();
        Some(format!(
            "{} ended by itself ({status}); the end of its log:\n{tail}",
            self.name
        ))
    }
}
