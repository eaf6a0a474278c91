//! A simulated Discord: gateway v10 and the REST endpoints a bot uses, on loopback ports.
//!
//! It is strict: every rule of the published protocol that a client can break is checked, answered
//! as Discord does, and recorded. It keeps an exact ledger of every dispatch of every session, so
//! that a test can compare it with what arrived elsewhere.

mod actions;
mod compress;
mod config;
mod connection;
mod control;
mod events;
mod faults;
mod guilds;
mod identify;
mod interactions;
mod ledger;
mod load;
mod rest;
mod scan;
mod session;
mod state;
mod stats;
mod templates;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

pub use self::compress::Transport;
pub use self::config::{
    Compression, Config, GuildBytes, Load, Mix, Pace, SessionStarts, Strictness,
};
pub use self::events::{ALL_INTENTS, PRIVILEGED};
pub use self::faults::{Action, ConnectFault, Fault, Moment, ScriptStep, Target, Until};
pub use self::interactions::{ANSWER_WITHIN, CommandRecord, InteractionStats};
pub use self::ledger::{
    Entry, IdentifyRecord, Injected, LedgerSnapshot, Lifecycle, Rule, SessionRecord, SessionState,
    Step, Violation, content_hash,
};
use self::load::Playback;
pub use self::load::PlaybackError;
pub use self::session::Progress;
use self::state::{Shared, Urls};
pub use self::stats::{ShardStats, Stats};

/// Tasks that do not end by themselves this long after a shutdown are left to the runtime.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// A simulator that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken or not allowed.
    #[error("listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The recording cannot be played.
    #[error(transparent)]
    Playback(#[from] PlaybackError),
}

/// A running simulated Discord. Dropping it stops it.
pub struct Simulator {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Simulator {
    /// Binds the ports and starts.
    ///
    /// # Errors
    /// [`StartError`] when a port cannot be bound or the recording cannot be read.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let gateway = listen(&config, config.gateway_port).await?;
        let resume = listen(&config, config.resume_port).await?;
        let rest = listen(&config, config.rest_port).await?;
        let host = config
            .public_host
            .clone()
            .unwrap_or_else(|| config.listen.to_string());
        let port = |listener: &TcpListener| listener.local_addr().map_or(0, |a| a.port());
        let urls = Urls {
            gateway: format!("ws://{host}:{}", port(&gateway)),
            resume: format!("ws://{host}:{}", port(&resume)),
            api: format!("http://{host}:{}/api/v10", port(&rest)),
        };
        let names = events::Names::default();
        let playback = match &config.playback {
            Some(path) => Some(Playback::read(path, &names)?),
            None => None,
        };
        let shared = Arc::new(Shared::new(config, urls, playback, names));
        let tasks = TaskTracker::new();
        let serve = |listener, on_resume_url| {
            connection::serve(Arc::clone(&shared), listener, on_resume_url, tasks.clone())
        };
        tasks.spawn(serve(gateway, false));
        tasks.spawn(serve(resume, true));
        let router = rest::router(&shared);
        let stopped = shared.cancel.clone();
        tasks.spawn(async move {
            let stopping = stopped.clone().cancelled_owned();
            let serving = axum::serve(rest, router).with_graceful_shutdown(stopping);
            // Kept-alive clients would hold a graceful shutdown open for ever.
            tokio::select! {
                _ = serving => {}
                () = stopped.cancelled() => {}
            }
        });
        load::start(&shared, &tasks);
        tasks.spawn(actions::run(Arc::clone(&shared)));
        tasks.close();
        Ok(Self { shared, tasks })
    }

    /// Base of the REST API: `http://127.0.0.1:PORT/api/v10`.
    #[must_use]
    pub fn api_url(&self) -> &str {
        &self.shared.urls.api
    }

    /// The gateway as `/gateway` names it: `ws://127.0.0.1:PORT`.
    #[must_use]
    pub fn gateway_url(&self) -> &str {
        &self.shared.urls.gateway
    }

    /// The gateway as READY names it for resuming.
    #[must_use]
    pub fn resume_url(&self) -> &str {
        &self.shared.urls.resume
    }

    /// The first accepted token.
    #[must_use]
    pub fn token(&self) -> &str {
        self.shared.config.tokens.first().map_or("", String::as_str)
    }

    /// The guilds' ids.
    #[must_use]
    pub fn guild_ids(&self) -> Vec<u64> {
        (0..self.shared.world.len() as u32)
            .map(|n| self.shared.world.guild(n).id)
            .collect()
    }

    /// How many guilds are in an outage.
    #[must_use]
    pub fn unavailable_guilds(&self) -> usize {
        self.shared.world.unavailable()
    }

    /// Does something and says how many connections, guilds or sessions it reached.
    pub fn apply(&self, action: Action) -> usize {
        actions::apply(&self.shared, action)
    }

    /// Ambushes that have not struck yet.
    #[must_use]
    pub fn ambushes(&self) -> usize {
        self.shared.ambushes()
    }

    /// A fault, now; the number of connections it reached.
    pub fn inject(&self, target: Target, fault: Fault) -> usize {
        self.apply(Action::Fault { target, fault })
    }

    /// Another load.
    pub fn set_load(&self, load: Load) {
        self.shared.set_load(load);
    }

    /// `/gateway/bot` recommends this number of shards from here on.
    pub fn recommend(&self, shards: u32) {
        self.shared.recommended.store(shards, Ordering::Relaxed);
    }

    /// Somebody types a slash command, as in `ping` or `/find guild query:7`, in a guild (its
    /// number) or, with `None`, in a direct message. Options have the types they were registered
    /// with. The interaction's id; `None` while nobody is connected to see it, and for what is no
    /// command.
    pub fn type_command(&self, guild: Option<u32>, text: &str) -> Option<u64> {
        self.shared.type_command(guild, text)
    }

    /// What was generated for whom, and the rules broken. Copies everything.
    #[must_use]
    pub fn ledger(&self) -> LedgerSnapshot {
        self.shared.ledger()
    }

    /// How far each session is, without copying the ledger.
    #[must_use]
    pub fn progress(&self) -> Vec<Progress> {
        let sessions = self.shared.hub().sessions.clone();
        sessions.iter().map(|session| session.progress()).collect()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.shared)
    }

    /// Completes once something stopped the simulator: `POST /_sim/shutdown` or `shutdown`.
    pub async fn stopped(&self) {
        self.shared.cancel.cancelled().await;
    }

    /// Stops and waits until every task has ended and every port is free.
    pub async fn shutdown(self) {
        self.shared.cancel.cancel();
        if tokio::time::timeout(SHUTDOWN_WITHIN, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("tasks of the simulator outlived its shutdown");
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

async fn listen(config: &Config, port: u16) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(config.listen, port);
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}
