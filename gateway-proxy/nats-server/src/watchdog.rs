//! A process that dies with its owner, even when the owner is killed with SIGKILL.
//!
//! The server runs below a small shell whose standard input is a pipe that only the owner holds.
//! When the owner goes, in whatever way, the pipe ends; the shell then kills the server and removes
//! the temporary directory. (`PR_SET_PDEATHSIG` would need unsafe code, and fires when the
//! *thread* that spawned the child ends.)

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `$1` is the directory to remove when the owner is gone (or empty), the rest is the command.
/// File descriptor 3 is the owner's pipe: background jobs of a shell get no standard input. The
/// shell ends when the server ends, with its status. (`true`, not `:`, which ends the shell when it
/// cannot write: somebody may have removed the directory.)
const SCRIPT: &str = r#"
dir=$1; shift
exec 3<&0 4>&1 </dev/null >/dev/null
"$@" 1>&2 3<&- 4>&- &
server=$!
{ read -r _ <&3; [ -n "$dir" ] && true >"$dir/orphaned"; kill -9 "$server"; } 2>/dev/null 4>&- &
watch=$!
echo "$server" >&4
exec 3<&- 4>&-
wait "$server"
status=$?
if [ -n "$dir" ] && [ -e "$dir/orphaned" ]; then rm -rf "$dir"; fi
kill "$watch" 2>/dev/null
wait "$watch" 2>/dev/null
exit "$status"
"#;

/// A killed process is gone within milliseconds; more means the machine is stuck.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// A running command, and the shell that watches it.
#[derive(Debug)]
pub(crate) struct Watched {
    shell: Child,
    /// Dropping it kills the command.
    owner: Option<ChildStdin>,
    pid: Pid,
}

impl Watched {
    /// Starts the command in its own process group (a Ctrl-C in the terminal is for the owner to
    /// handle) with its output appended to `log`. `remove` goes when the owner has gone.
    pub(crate) fn spawn(
        program: &Path,
        args: &[&str],
        remove: Option<&Path>,
        log: File,
    ) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "nats-server-watchdog"])
            .arg(remove.unwrap_or(Path::new("")))
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let owner = shell.stdin.take();
        let stdout = shell.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.trim().parse().map_err(|_| {
            io::Error::other(format!(
                "the watchdog said {line:?} instead of a process id"
            ))
        })?;
        Ok(Self {
            shell,
            owner,
            pid: Pid::from_raw(pid),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// The exit status of the command, as the shell reports it, once it has ended.
    pub(crate) fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.shell.try_wait()
    }

    /// Sends a signal; nothing happens when the command has ended.
    pub(crate) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        match kill(self.pid, signal) {
            // Ended in between.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stops every thread with SIGSTOP, and waits until the kernel has done so: until then one may
    /// still answer. (Where there is no `/proc` to ask, returns at once.)
    pub(crate) fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + GONE_WITHIN;
        let tasks = format!("/proc/{}/task", self.pid);
        while self.ended()?.is_none() && any_runs(&tasks) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "process {} does not stop",
                    self.pid
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for the command's end; `false` when it takes longer.
    pub(crate) fn wait(&mut self, within: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        while self.ended()?.is_none() {
            if Instant::now() > deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }

    /// Kills the command and waits until it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        if self.wait(GONE_WITHIN)? {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "process {} does not die",
                self.pid
            )))
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Ends the pipe: the shell kills the command even if what follows fails.
        drop(self.owner.take());
        if let Err(error) = self.kill() {
            tracing::warn!(pid = self.pid.as_raw(), %error, "nats-server was left behind");
        }
    }
}

/// Whether a thread listed in this directory of `/proc` is in another state than stopped.
fn any_runs(tasks: &str) -> bool {
    let Ok(entries) = fs::read_dir(tasks) else {
        return false;
    };
    entries.flatten().any(|entry| {
        // `<id> (<name>) <state> …`; the name may hold anything.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.trim_start().chars().next());
        state.is_some_and(|state| state != 'T')
    })
}
