//! Runs the demo in a temporary directory of its own, and finds what it leaves.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take; `TEST_PATIENCE` multiplies it on slow machines.
pub(crate) fn patience() -> Duration {
    let factor = std::env::var("TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(150) * factor.unwrap_or(1_u32)
}

/// One demo at a time: each is seven processes, and commands are to be answered within 3 s.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory for everything temporary. Its path is in the environment of every process of the
/// demo, which is how they are found.
pub(crate) struct Room {
    dir: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let unique = format!("demo-test-{}-{:x}", std::process::id(), fastrand::u64(..));
        let dir = std::env::temp_dir().join(unique);
        fs::create_dir(&dir).unwrap();
        Self { dir, _alone: alone }
    }

    /// A small demo that prints lines.
    pub(crate) fn demo(&self, args: &[&str]) -> Command {
        let mut command = self.bare(env!("CARGO_BIN_EXE_demo").as_ref());
        command
            .args([
                "--plain", "--shards", "4", "--guilds", "40", "--rate", "100",
            ])
            .args(args);
        command
    }

    /// Any program, with an environment as of an ordinary shell.
    pub(crate) fn bare(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("TMPDIR", &self.dir);
        for name in [
            "PATH",
            "HOME",
            "NATS_SERVER",
            "LLVM_PROFILE_FILE",
            "CARGO_TARGET_DIR",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The processes of this demo that live, with their command lines.
    pub(crate) fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter(|e| e.file_name().as_bytes()[0].is_ascii_digit());
        let mine = pids.filter_map(|entry| {
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let needle = self.dir.as_os_str().as_bytes();
            let ours = environment.windows(needle.len()).any(|part| part == needle);
            // Of those that have ended and wait to be reaped, the environment is empty.
            let name = fs::read(entry.path().join("cmdline")).ok()?;
            let name = String::from_utf8_lossy(&name).replace('\0', " ");
            ours.then(|| format!("{} {name}", entry.file_name().display()))
        });
        mine.collect()
    }

    /// Waits until no process and no file is left.
    #[track_caller]
    pub(crate) fn expect_empty(&self) {
        let look = || {
            let files = fs::read_dir(&self.dir).unwrap().flatten();
            let files: Vec<OsString> = files.map(|entry| entry.file_name()).collect();
            (self.processes(), files)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = look();
            if left.0.is_empty() && left.1.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// A running demo, whose lines are read.
pub(crate) struct Demo {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    errors: thread::JoinHandle<String>,
}

impl Demo {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
        Self {
            child,
            lines,
            seen: Vec::new(),
            errors,
        }
    }

    /// Waits for a line with this text.
    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + patience();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with {text:?} in: {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until everything is up and commands have been answered.
    #[track_caller]
    pub(crate) fn under_load(&mut self) {
        self.line("everything is up");
        while self.line("  commands ").contains("commands 0/") {}
    }

    /// The process id in the line that says that this part was started.
    #[track_caller]
    pub(crate) fn pid_of(&mut self, name: &str) -> Pid {
        let line = self.line(&format!("{name}: pid "));
        let pid = line.split("pid ").nth(1).unwrap();
        let pid = pid.split(',').next().unwrap();
        Pid::from_raw(pid.parse().unwrap())
    }

    /// Where the simulated Discord's control endpoints are.
    #[track_caller]
    pub(crate) fn simulator(&mut self) -> String {
        let line = self.line("REST at ");
        let address = line.split("REST at http://").nth(1).unwrap();
        address.strip_suffix("/api/v10").unwrap().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for the end: how, and what was written.
    #[track_caller]
    pub(crate) fn end(mut self) -> End {
        let deadline = Instant::now() + patience();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                self.seen.extend(self.lines.iter());
                panic!("the demo does not end: {:#?}", self.seen);
            }
            thread::sleep(Duration::from_millis(20));
        };
        self.seen.extend(self.lines.iter());
        End {
            status,
            out: self.seen.join("\n"),
            err: self.errors.join().unwrap(),
        }
    }
}

/// How a demo ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl End {
    /// Checks the exit code, and that all `parts` were written somewhere.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, parts: &[&str]) {
        let text = format!("{}\n{}", self.out, self.err);
        assert_eq!(self.status.code(), Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }
}
