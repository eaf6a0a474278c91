//! The connection to NATS: made within the startup timeout, checked for what we need, kept for
//! ever. Tells when it was lost and made again, because pull requests do not survive that.

use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, jetstream};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::Config;
use crate::exit::Fatal;

/// Oldest server with everything the system uses (batch publishing, per-key TTL, limit markers).
const MIN_VERSION: (u32, u32) = (2, 14);
/// Pause between tries to connect at the start.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);
/// Longest time for one try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause before a lost connection is tried again: interactions live for 3 seconds.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often a silent connection is checked; two missed answers count as lost.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// What the connection is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) connected: bool,
    /// Grows with every connection: a pull request belongs to one of them.
    pub(crate) connections: u64,
}

/// A connection that has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) state: watch::Receiver<LinkState>,
}

impl Link {
    /// Waits for a connection; `None` when there will be none any more.
    pub(crate) async fn connected(&self) -> Option<LinkState> {
        let mut state = self.state.clone();
        state
            .wait_for(|state| state.connected)
            .await
            .map(|state| *state)
            .ok()
    }

    /// Waits until this connection has been replaced by another one.
    pub(crate) async fn replaced(&self, connection: LinkState) {
        let mut state = self.state.clone();
        let other = |state: &LinkState| state.connections != connection.connections;
        if state.wait_for(other).await.is_err() {
            // The client is gone and with it every connection.
            std::future::pending::<()>().await;
        }
    }
}

/// Connects, trying again until `deadline`.
pub(crate) async fn connect(config: &Config, deadline: Instant) -> Result<Link, Fatal> {
    let (announce, state) = watch::channel(LinkState::default());
    let client = loop {
        let options = options(config, announce.clone())?;
        let connecting = options.connect(config.nats.clone());
        let limit = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let problem = match timeout_at(limit, connecting).await {
            Ok(Ok(client)) => break client,
            Ok(Err(error)) if is_refusal(error.kind()) => {
                return Err(Fatal::unfit(
                    format!("NATS at {} refuses us: {error}", addresses(config)),
                    "check --nats-creds, --nats-user, NATS_PASSWORD and the TLS files",
                ));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        let next = Instant::now() + CONNECT_PAUSE;
        if next >= deadline {
            let problem = format!("no NATS at {}: {problem}", addresses(config));
            return Err(Fatal::unreachable(
                problem,
                "check --nats-url and that nats-server runs",
            ));
        }
        tracing::warn!(servers = addresses(config), problem, "waiting for NATS");
        sleep_until(next).await;
    };
    check(&client)?;
    let jetstream = jetstream::new(client.clone());
    let link = Link {
        client,
        jetstream,
        state,
    };
    // The client announces its connection right after making it; pulling counts on having seen it.
    match timeout_at(deadline, link.connected()).await {
        Ok(Some(_)) => Ok(link),
        Ok(None) | Err(_) => Err(Fatal::unreachable(
            format!(
                "the connection to NATS at {} was lost at once",
                addresses(config)
            ),
            "check --nats-url and the server's log",
        )),
    }
}

fn options(config: &Config, state: watch::Sender<LinkState>) -> Result<ConnectOptions, Fatal> {
    let auth = &config.nats_auth;
    let mut options = ConnectOptions::new()
        .name(format!("consumers {}", config.worker_id))
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            note(&state, &event);
            std::future::ready(())
        });
    if let Some(creds) = &auth.creds {
        options = options
            .credentials(creds.expose_secret())
            .map_err(|error| {
                Fatal::usage(
                    format!("the file of --nats-creds holds no credentials: {error}"),
                    "name the .creds file that nsc or your NATS operator made",
                )
            })?;
    }
    if let Some(seed) = &auth.nkey {
        options = options.nkey(seed.expose_secret().to_owned());
    }
    if let Some((user, password)) = &auth.user {
        options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
    }
    if let Some(token) = &auth.token {
        options = options.token(token.expose_secret().to_owned());
    }
    if let Some(ca) = &auth.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((cert, key)) = &auth.client_cert {
        options = options
            .add_client_certificate(cert.clone(), key.clone())
            .require_tls(true);
    }
    Ok(options)
}

fn reconnect_pause(tries: usize) -> Duration {
    let doublings = u32::try_from(tries).unwrap_or(u32::MAX).min(8);
    (Duration::from_millis(10) * 2_u32.pow(doublings)).min(RECONNECT_PAUSE_MAX)
}

fn note(state: &watch::Sender<LinkState>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            state.send_modify(|state| {
                state.connected = true;
                state.connections += 1;
            });
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("connection to NATS lost");
            state.send_modify(|state| state.connected = false);
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => tracing::debug!(%error, "NATS client error"),
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "NATS messages were dropped: reading too slowly"
            );
        }
        Event::LameDuckMode | Event::Draining => tracing::info!("the NATS server is stopping"),
    }
}

const fn is_refusal(kind: ConnectErrorKind) -> bool {
    matches!(
        kind,
        ConnectErrorKind::AuthorizationViolation
            | ConnectErrorKind::Authentication
            | ConnectErrorKind::Tls
    )
}

fn check(client: &Client) -> Result<(), Fatal> {
    let server = client.server_info();
    if version(&server.version).is_none_or(|version| version < MIN_VERSION) {
        let (major, minor) = MIN_VERSION;
        return Err(Fatal::unfit(
            format!("NATS server {} is too old", server.version),
            format!("run nats-server {major}.{minor} or newer"),
        ));
    }
    if !server.jetstream {
        return Err(Fatal::unfit(
            "the NATS server runs without JetStream",
            "start it with -js or a jetstream block in its configuration",
        ));
    }
    Ok(())
}

/// Major and minor of a version such as `2.14.0-RC.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The servers without user and password.
pub(crate) fn addresses(config: &Config) -> String {
    let hosts = config
        .nats
        .iter()
        .map(|server| format!("{}:{}", server.host(), server.port()));
    hosts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("2.14.0"), Some((2, 14)));
        assert_eq!(version("v2.9.25"), Some((2, 9)));
        assert_eq!(version("2.15.1-RC.1"), Some((2, 15)));
        assert_eq!(version("dev"), None);
        assert!(version("2.9.25") < version("2.14.0"));
    }

    #[test]
    fn pauses_before_a_reconnect_grow_and_stay_within_the_window_of_interactions() {
        assert!(reconnect_pause(1) < Duration::from_millis(50));
        assert_eq!(reconnect_pause(20), RECONNECT_PAUSE_MAX);
        assert_eq!(reconnect_pause(usize::MAX), RECONNECT_PAUSE_MAX);
    }
}
