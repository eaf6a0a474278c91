//! One running nats-server and its life.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{self, Options};
use crate::fetch::tail;
use crate::locate::{LocateError, locate};
use crate::probe::{self, Answer};
use crate::watchdog::Watched;

/// A port picked as free may be taken before the server binds it; five in a row is not chance.
const PORT_ATTEMPTS: u32 = 5;
/// A server asked to stop closes its streams first; then it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const POLL_EVERY: Duration = Duration::from_millis(10);

/// A nats-server of our own: JetStream on, listening on 127.0.0.1, killed on drop and when this
/// process ends in whatever way.
#[derive(Debug)]
pub struct Server {
    options: Options,
    binary: PathBuf,
    name: String,
    port: u16,
    process: Option<Watched>,
    dir: TempDir,
}

/// Why a server did not start, or did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no nats-server to run.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The system said no.
    #[error("{action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// Something else listens on the port.
    #[error("port {port} is in use")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The server ended while it started: a configuration it refuses, usually.
    #[error("nats-server ended at once ({status}); its log ends with:\n{log}")]
    Ended {
        /// Exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// JetStream did not answer in time.
    #[error("nats-server was not ready within {within:?}; its log ends with:\n{log}")]
    NotReady {
        /// The limit.
        within: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// `start_again` on a server that runs.
    #[error("nats-server {name} is still running")]
    StillRunning {
        /// Its name.
        name: String,
    },
}

impl Server {
    /// Starts a server and waits until JetStream answers.
    ///
    /// # Errors
    /// [`StartError`] when there is no binary, the configuration is refused, the given port is in
    /// use, or the server is not ready in time.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let mut attempt = 1;
        loop {
            let mut server = Self::spawn(options.clone())?;
            match server.wait_ready() {
                Ok(()) => return Ok(server),
                Err(StartError::PortInUse { .. })
                    if options.port.is_none() && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the process without waiting: the members of a cluster need each other to be ready.
    pub(crate) fn spawn(options: Options) -> Result<Self, StartError> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => locate()?.path,
        };
        let dir = TempDir::new("nats-server").map_err(io_error("create a temporary directory"))?;
        let port = match options.port {
            Some(port) => port,
            None => free_port().map_err(io_error("find a free port"))?,
        };
        let name = options
            .name
            .clone()
            .unwrap_or_else(|| format!("{}-{port}", dir.name()));
        let mut server = Self {
            options,
            binary,
            name,
            port,
            process: None,
            dir,
        };
        let text = config::render(&server.options, &server.name, port, &server.store_dir());
        fs::write(server.config_path(), text).map_err(io_error("write the configuration"))?;
        server.spawn_process()?;
        Ok(server)
    }

    /// The server's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What a client connects to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The server's process id, `None` while it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Watched::pid)
    }

    /// Whether the process is there (a paused one is).
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| matches!(process.ended(), Ok(None)))
    }

    /// Where JetStream keeps its files.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.options
            .store_dir
            .clone()
            .unwrap_or_else(|| self.dir.path().join("store"))
    }

    /// What the server logged so far, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        // Unreadable and empty are the same to whoever looks for a line.
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Kills it with SIGKILL, as a crash would; port and store are kept for
    /// [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// [`StartError::Io`] when the process does not die.
    pub fn kill9(&mut self) -> Result<(), StartError> {
        match self.process.take() {
            Some(mut process) => process.kill().map_err(io_error("kill nats-server")),
            None => Ok(()),
        }
    }

    /// Stops it as an operator would, with SIGTERM; killed if that takes too long.
    ///
    /// # Errors
    /// [`StartError::Io`] when the process does not die.
    pub fn stop(&mut self) -> Result<(), StartError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let stop = |process: &mut Watched| {
            process.signal(Signal::SIGTERM)?;
            process.signal(Signal::SIGCONT)?;
            if process.wait(STOP_WITHIN)? {
                Ok(())
            } else {
                process.kill()
            }
        };
        stop(&mut process).map_err(io_error("stop nats-server"))
    }

    /// Starts it again on the same port and store, and waits until it is ready.
    ///
    /// # Errors
    /// [`StartError::StillRunning`] when it was not stopped, and those of [`Self::start`].
    pub fn start_again(&mut self) -> Result<(), StartError> {
        if self.is_running() {
            return Err(StartError::StillRunning {
                name: self.name.clone(),
            });
        }
        let deadline = Instant::now() + self.options.ready_within;
        loop {
            self.spawn_process()?;
            match self.wait_ready() {
                // The old process' port may take a moment to be free again.
                Err(StartError::PortInUse { .. }) if Instant::now() < deadline => {
                    thread::sleep(POLL_EVERY);
                }
                result => return result,
            }
        }
    }

    /// Freezes it with SIGSTOP: when this returns, connections stay open and nothing answers.
    ///
    /// # Errors
    /// [`StartError::Io`] when the signal cannot be sent.
    pub fn pause(&mut self) -> Result<(), StartError> {
        match &mut self.process {
            Some(process) => process.pause().map_err(io_error("pause nats-server")),
            None => Ok(()),
        }
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// [`StartError::Io`] when the signal cannot be sent.
    pub fn resume(&mut self) -> Result<(), StartError> {
        match &mut self.process {
            Some(process) => process
                .signal(Signal::SIGCONT)
                .map_err(io_error("resume nats-server")),
            None => Ok(()),
        }
    }

    fn spawn_process(&mut self) -> Result<(), StartError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.map_err(io_error("open nats-server's log"))?;
        // One that ended by itself is reaped first.
        self.process = None;
        let config = self.config_path();
        let args = ["-c", &config.to_string_lossy()];
        let process = Watched::spawn(&self.binary, &args, Some(self.dir.path()), log);
        self.process = Some(process.map_err(io_error("start nats-server"))?);
        Ok(())
    }

    pub(crate) fn wait_ready(&mut self) -> Result<(), StartError> {
        let within = self.options.ready_within;
        let deadline = Instant::now() + within;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended().map_err(io_error("wait for nats-server"))?
            {
                self.process = None;
                let log = tail(&self.log());
                if log.contains("address already in use") {
                    return Err(StartError::PortInUse { port: self.port });
                }
                return Err(StartError::Ended {
                    status: status.to_string(),
                    log,
                });
            }
            // Refused while it starts. A stranger means that the port was taken: the process will
            // end by itself.
            if let Ok(Answer::Ready | Answer::Guarded) = probe::ask(self.port, &self.name) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(StartError::NotReady {
                    within,
                    log: tail(&self.log()),
                });
            }
            thread::sleep(POLL_EVERY);
        }
    }

    fn config_path(&self) -> PathBuf {
        self.dir.path().join("nats-server.conf")
    }

    fn log_path(&self) -> PathBuf {
        let own = || self.dir.path().join("nats-server.log");
        self.options.log_file.clone().unwrap_or_else(own)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Before the directory: the server writes into it.
        self.process = None;
    }
}

/// A port nothing listens on, outside the range the kernel takes ports for outgoing connections
/// from: there, any client could take it while a server is down between kill and restart.
pub(crate) fn free_port() -> io::Result<u16> {
    const PORTS: std::ops::Range<u16> = 10_240..32_768;
    const ATTEMPTS: u32 = 100; // all taken: the machine has a problem of another kind
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let port = fastrand::u16(PORTS);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A directory that goes with its owner.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(kind: &str) -> io::Result<Self> {
        let unique = fastrand::u64(..);
        let name = format!("{kind}-{}-{unique:016x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn name(&self) -> String {
        self.0
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.0.display(), %error, "temporary directory not removed");
            }
            _ => {}
        }
    }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { action, source }
}
