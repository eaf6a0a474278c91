//! `--nats-url embedded`: a local nats-server of this process' own, so that trying the proxy needs
//! nothing installed. It keeps its streams in a directory the operator sees, and dies with us.

use std::error::Error as _;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use nats_server::{Options, Server, StartError};

use crate::config::NatsSettings;
use crate::exit::Fatal;

/// Tried first, so that consumers with their defaults find the server.
const USUAL_PORT: u16 = 4222;

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct EmbeddedNats {
    server: Server,
    /// Two servers on one directory would destroy each other's streams.
    _lock: File,
}

impl EmbeddedNats {
    /// Starts a server that keeps its streams in `store`.
    ///
    /// # Errors
    /// [`Fatal::Unfit`] when the directory cannot be used, [`Fatal::Unreachable`] when no server can
    /// be found or started.
    pub async fn start(store: &Path) -> Result<Self, Fatal> {
        let store = store.to_owned();
        // Finding one may mean fetching it, which takes a while.
        let started = tokio::task::spawn_blocking(move || Self::start_blocking(store));
        started
            .await
            .map_err(|error| Fatal::bug(format!("starting nats-server: {error}")))?
    }

    fn start_blocking(store: PathBuf) -> Result<Self, Fatal> {
        let lock = lock(&store)?;
        let options = |port| Options {
            port,
            store_dir: Some(store.clone()),
            log_file: Some(store.join("nats-server.log")),
            ..Options::default()
        };
        let server = match Server::start(options(Some(USUAL_PORT))) {
            Err(StartError::PortInUse { .. }) => Server::start(options(None)),
            other => other,
        };
        let server = server.map_err(|error| not_started(&error))?;
        tracing::info!(
            url = server.url(),
            store = %store.display(),
            "started an embedded nats-server; it stops with this process"
        );
        Ok(Self {
            server,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// How to connect to it.
    ///
    /// # Errors
    /// [`Fatal::Bug`] when the server's own URL is none.
    pub fn settings(&self) -> Result<NatsSettings, Fatal> {
        let url = self.url();
        NatsSettings::local(&url).map_err(|error| Fatal::bug(error.to_string()))
    }
}

fn lock(store: &Path) -> Result<File, Fatal> {
    let unusable = |error: &dyn std::fmt::Display| {
        Fatal::unfit(
            format!("--nats-store {}: {error}", store.display()),
            "choose a directory this process may write to",
        )
    };
    std::fs::create_dir_all(store).map_err(|error| unusable(&error))?;
    let file = File::create(store.join("lock")).map_err(|error| unusable(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Fatal::unfit(
            format!(
                "--nats-store {} is in use by another proxy",
                store.display()
            ),
            "connect this one to the other's server with --nats-url, or choose another directory",
        )),
        Err(TryLockError::Error(error)) => Err(unusable(&error)),
    }
}

fn not_started(error: &StartError) -> Fatal {
    let mut problem = format!("the embedded nats-server did not start: {error}");
    if let Some(cause) = error.source() {
        problem = format!("{problem}: {cause}");
    }
    Fatal::unreachable(problem, "or start one yourself and name it with --nats-url")
}
