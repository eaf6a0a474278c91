//! The connection to NATS for everything but the stream of events: JetStream's API, the KV bucket,
//! requests and replies. Checks at the start that the server can do what the product needs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{self, context::AccountErrorKind};
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError,
};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

pub use crate::config::{NatsAuth, NatsServer, NatsSettings};
use crate::exit::Fatal;
use crate::metrics::Metrics;
use crate::status::ProcessStatus;

/// Batch publishing, per-message TTL and limit markers came with this version.
pub const MINIMUM_VERSION: (u64, u64) = (2, 14);

/// Below this a large guild's GUILD_CREATE may not fit: with presences and members it has several
/// MB. NATS' own default is 1 MiB, and it advises against more than 8.
pub const MAX_PAYLOAD_WANTED: usize = 8_000_000;

/// Between attempts to connect at the start.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(2);

/// A request to JetStream's API waits this long; a cluster may be electing a leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A connected client and what the server said of itself.
#[derive(Clone, Debug)]
pub struct Nats {
    /// The client.
    pub client: Client,
    /// JetStream on it.
    pub jetstream: jetstream::Context,
    /// Largest payload and headers the server takes, in bytes.
    pub max_payload: usize,
    refusals: Refusals,
}

/// The last time the server said that we may not do something. Requests that are not permitted get
/// no answer; this is the reason to give.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Mutex<Option<String>>>);

impl Refusals {
    fn note(&self, text: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
    }

    fn last(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Nats {
    /// What the server refused last, if it refused anything.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.refusals.last()
    }

    /// The error for a request without an answer: not permitted, if the server said so.
    pub(crate) fn unanswered(&self, what: &str, error: &dyn std::fmt::Display) -> Fatal {
        match self.refused() {
            Some(refusal) => not_permitted(&refusal),
            None => Fatal::unreachable(
                format!("NATS did not answer: {what}: {error}"),
                "check the server's log and JetStream's health, or raise --startup-timeout",
            ),
        }
    }
}

/// Connects, and checks version, JetStream and permissions.
///
/// # Errors
/// [`Fatal::Unreachable`] when nobody answers for `startup_timeout`, [`Fatal::Unfit`] when the
/// server is too old, has no JetStream, or does not let us in.
pub async fn connect(
    settings: &NatsSettings,
    startup_timeout: Duration,
    process: &Arc<ProcessStatus>,
    metrics: &Metrics,
) -> Result<Nats, Fatal> {
    let deadline = Instant::now() + startup_timeout;
    let refusals = Refusals::default();
    let client = first_connection(settings, deadline, startup_timeout, || {
        options(settings, process, metrics, &refusals)
    })
    .await?;
    let info = client.server_info();
    process.set_nats_connected(true);
    process.set_nats_server(settings.display_urls(), info.version.clone());
    check_version(&info.version)?;
    let mut jetstream = jetstream::new(client.clone());
    jetstream.set_timeout(REQUEST_TIMEOUT);
    let nats = Nats {
        client,
        jetstream,
        max_payload: info.max_payload,
        refusals,
    };
    check_jetstream(&nats, deadline).await?;
    if info.max_payload < MAX_PAYLOAD_WANTED {
        tracing::warn!(
            max_payload = info.max_payload,
            wanted = MAX_PAYLOAD_WANTED,
            "a large guild's GUILD_CREATE has several MB; frames above max_payload are lost and \
             announced by PROXY_GAP: set `max_payload: 8MB` in the configuration of nats-server"
        );
    }
    let name = info.server_name;
    tracing::info!(server = %name, version = %info.version, "connected to NATS");
    Ok(nats)
}

/// Another connection, for what may not wait behind everything else. It is made in the background, on
/// the runtime that calls, and again whenever it is lost.
///
/// # Errors
/// [`Fatal::Bug`] when a URL that [`connect`] took cannot be used.
pub(crate) async fn connect_beside(settings: &NatsSettings, name: String) -> Result<Client, Fatal> {
    let options = credentials(settings)
        .name(name)
        .retry_on_initial_connect()
        .event_callback(|event| {
            tracing::debug!(%event, "the connection for the lease");
            std::future::ready(())
        });
    let connected = options.connect(servers(settings)?).await;
    connected.map_err(|error| Fatal::bug(format!("NATS took a connection and then none: {error}")))
}

fn servers(settings: &NatsSettings) -> Result<Vec<ServerAddr>, Fatal> {
    let servers = settings.servers().iter();
    servers
        .map(|server| server.url().parse())
        .collect::<Result<_, _>>()
        .map_err(|error| Fatal::bug(format!("NATS URL accepted but unusable: {error}")))
}

async fn first_connection(
    settings: &NatsSettings,
    deadline: Instant,
    startup_timeout: Duration,
    options: impl Fn() -> ConnectOptions,
) -> Result<Client, Fatal> {
    let servers = servers(settings)?;
    let mut backoff = BACKOFF_FIRST;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match tokio::time::timeout(left, options().connect(servers.clone())).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => ConnectError::new(ConnectErrorKind::TimedOut),
        };
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                return Err(Fatal::unfit(
                    format!(
                        "NATS at {} refuses the credentials: {error}",
                        settings.display_urls()
                    ),
                    "check --nats-creds, --nats-nkey, --nats-user and the password or token",
                ));
            }
            ConnectErrorKind::ServerParse
            | ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Tls
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => {}
        }
        if Instant::now() + backoff >= deadline {
            return Err(Fatal::unreachable(
                format!(
                    "NATS at {} was unreachable for {startup_timeout:?}: {error}",
                    settings.display_urls()
                ),
                "start nats-server, check --nats-url, or raise --startup-timeout",
            ));
        }
        tracing::warn!(%error, again_in = ?backoff, "connecting to NATS failed");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

fn options(
    settings: &NatsSettings,
    process: &Arc<ProcessStatus>,
    metrics: &Metrics,
    refusals: &Refusals,
) -> ConnectOptions {
    let observer = Observer {
        process: Arc::clone(process),
        metrics: metrics.clone(),
        refusals: refusals.clone(),
        lost: AtomicBool::new(false),
    };
    credentials(settings)
        .name(format!("gateway-proxy {}", process.proxy()))
        .event_callback(move |event| {
            observer.observe(&event);
            std::future::ready(())
        })
}

fn credentials(settings: &NatsSettings) -> ConnectOptions {
    let options = ConnectOptions::new()
        .tls_client_config(settings.tls().as_ref().clone())
        .require_tls(settings.requires_tls());
    match settings.auth() {
        NatsAuth::None => options,
        NatsAuth::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        NatsAuth::Token(token) => options.token(token.expose_secret().to_owned()),
        NatsAuth::Creds { jwt, key } => {
            let key = Arc::clone(key);
            options.jwt(jwt.expose_secret().to_owned(), move |nonce| {
                let key = Arc::clone(&key);
                async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
        }
        NatsAuth::Nkey { key } => options.nkey(key.seed().unwrap_or_default()),
    }
}

/// Notes what happens to the connection.
struct Observer {
    process: Arc<ProcessStatus>,
    metrics: Metrics,
    refusals: Refusals,
    /// True from the loss of the connection until the next one.
    lost: AtomicBool,
}

impl Observer {
    fn observe(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.process.set_nats_connected(true);
                if self.lost.swap(false, Ordering::Relaxed) {
                    self.metrics.nats_reconnects.increment();
                    tracing::info!("NATS connection is up again");
                }
            }
            Event::Disconnected => {
                self.process.set_nats_connected(false);
                self.lost.store(true, Ordering::Relaxed);
                tracing::warn!("NATS connection is down, reconnecting");
            }
            Event::ServerError(error) => {
                if let ServerError::Other(text) = error
                    && text.to_ascii_lowercase().contains("permissions violation")
                {
                    self.refusals.note(text);
                }
                tracing::warn!(%error, "NATS server reports an error");
            }
            Event::ClientError(error) => tracing::warn!(%error, "NATS client reports an error"),
            Event::LameDuckMode => tracing::info!("NATS server is shutting down, moving on"),
            Event::SlowConsumer(subscription) => {
                tracing::warn!(
                    subscription,
                    "messages were dropped: a subscription is read too slowly"
                );
            }
            Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
        }
    }
}

/// `2.15.1`, `2.14.0-RC.1`; a text of another shape passes, its features are checked by using them.
fn check_version(version: &str) -> Result<(), Fatal> {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        tracing::warn!(version, "the NATS server's version has an unknown form");
        return Ok(());
    };
    if (major, minor) >= MINIMUM_VERSION {
        return Ok(());
    }
    let (wanted_major, wanted_minor) = MINIMUM_VERSION;
    Err(Fatal::unfit(
        format!("nats-server is {version}, but {wanted_major}.{wanted_minor} or newer is needed"),
        "update nats-server (https://github.com/nats-io/nats-server/releases)",
    ))
}

async fn check_jetstream(nats: &Nats, deadline: Instant) -> Result<(), Fatal> {
    let no_jetstream = |problem: String| {
        Fatal::unfit(
            problem,
            "start nats-server with JetStream (`-js`, or a `jetstream {}` block) and enable it for the account",
        )
    };
    let mut backoff = BACKOFF_FIRST;
    loop {
        let Err(error) = nats.jetstream.query_account().await else {
            return Ok(());
        };
        match error.kind() {
            AccountErrorKind::JetStreamUnavailable if !nats.client.server_info().jetstream => {
                return Err(no_jetstream(
                    "nats-server runs without JetStream".to_owned(),
                ));
            }
            AccountErrorKind::JetStream(error) if error.code() == 503 => {
                // A cluster without a leader says the same for a moment; the loop decides.
                if !error.to_string().contains("temporarily") {
                    return Err(no_jetstream(format!("JetStream is not available: {error}")));
                }
            }
            AccountErrorKind::JetStream(error) => {
                return Err(no_jetstream(format!("JetStream is not available: {error}")));
            }
            AccountErrorKind::JetStreamUnavailable
            | AccountErrorKind::TimedOut
            | AccountErrorKind::Other => {}
        }
        if let Some(refusal) = nats.refused() {
            return Err(not_permitted(&refusal));
        }
        if Instant::now() + backoff >= deadline {
            return Err(nats.unanswered("JetStream's account information", &error));
        }
        tracing::warn!(%error, again_in = ?backoff, "JetStream does not answer");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

/// The server said which subject; the operator needs to hear it.
pub(crate) fn not_permitted(refusal: &str) -> Fatal {
    Fatal::unfit(
        format!("NATS does not permit what the proxy needs: {refusal}"),
        "grant the user publish and subscribe on the subjects of the prefix, $JS.API.>, $KV.> and _INBOX.>",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_below_the_minimum_are_refused_by_name() {
        for good in ["2.14.0", "2.15.1", "2.14.0-RC.1", "3.0.0", "dev"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for old in ["2.13.9", "2.9.25", "1.4.1", "0.9"] {
            let fatal = check_version(old).unwrap_err();
            assert_eq!(fatal.code(), 78);
            assert!(fatal.to_string().contains(old), "{fatal}");
        }
    }
}
