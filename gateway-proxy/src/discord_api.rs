//! The one REST question a proxy asks Discord: where the gateway is, how many shards the bot should
//! have, and how many sessions it may still start today (`GET /gateway/bot`).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::config::SHARDS_MAX;
use crate::exit::Fatal;

/// Discord wants `DiscordBot (url, version)` and blocks clients without it (Reference, User Agent).
pub const DISCORD_USER_AGENT: &str = concat!(
    "DiscordBot (https://docs.rs/gateway-proxy, ",
    env!("CARGO_PKG_VERSION"),
    ")"
);

/// One attempt may take this long: connect, TLS, request and answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer has about 200 bytes; anything beyond this is no gateway information.
const BODY_MAX_BYTES: usize = 64 * 1024;

/// Between attempts: doubles from the first to the last, plus up to a quarter of chance so that many
/// proxies started together do not ask together.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// How much of an unexpected answer an error quotes.
const QUOTED_CHARS: usize = 80;

/// What `GET /gateway/bot` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GatewayBot {
    /// Where to connect; `wss://`, or `ws://` for a simulator.
    pub url: String,
    /// Recommended number of shards; 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// The day's budget.
    pub session_start_limit: SessionStartLimit,
}

/// How many sessions may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SessionStartLimit {
    /// Per day.
    pub total: u32,
    /// Left today.
    pub remaining: u32,
    /// Milliseconds until `remaining` is `total` again.
    pub reset_after: u64,
    /// IDENTIFYs per five seconds; at least 1.
    pub max_concurrency: u32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 401 or 403.
    #[error("Discord answered {status} to GET {url}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What was asked.
        url: String,
    },
    /// 429.
    #[error("Discord limits requests to {url}, again in {retry_after:?}")]
    RateLimited {
        /// What was asked.
        url: String,
        /// How long to wait.
        retry_after: Duration,
    },
    /// A status that may pass: 5xx.
    #[error("{url} answered {status}")]
    Unavailable {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// Another status: this is not the API.
    #[error("{url} answered {status}: it is not Discord's API")]
    NotTheApi {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// An answer that is no gateway information.
    #[error("{url} answered something that is not gateway information: {problem}")]
    Malformed {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No answer in time.
    #[error("no answer from {url} within {within:?}")]
    TimedOut {
        /// What was asked.
        url: String,
        /// The limit.
        within: Duration,
    },
    /// No connection, or it broke.
    #[error("no connection to {url}: {problem}")]
    Transport {
        /// What was asked.
        url: String,
        /// The error and what caused it.
        problem: String,
    },
}

impl ApiError {
    /// True when asking again may succeed without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::NotTheApi { .. } => false,
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Malformed { .. }
            | Self::TimedOut { .. }
            | Self::Transport { .. } => true,
        }
    }
}

/// An HTTP and HTTPS connector that trusts the public certificates.
pub(crate) fn connector() -> HttpsConnector<HttpConnector> {
    hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .expect("ring supports the default TLS versions")
        .https_or_http()
        .enable_http1()
        .build()
}

/// A client of Discord's REST API.
#[derive(Clone)]
pub struct DiscordApi {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    gateway_bot: String,
    authorization: HeaderValue,
}

impl std::fmt::Debug for DiscordApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiscordApi")
            .field("gateway_bot", &self.gateway_bot)
            .finish_non_exhaustive()
    }
}

impl DiscordApi {
    /// A client that asks `api_url` (such as `https://discord.com/api/v10`) with this token.
    ///
    /// # Errors
    /// [`Fatal::Usage`] when the token cannot stand in a header.
    pub fn new(api_url: &Url, token: &SecretString) -> Result<Self, Fatal> {
        let text = format!("Bot {}", token.expose_secret());
        let mut authorization = HeaderValue::try_from(text).map_err(|_| {
            Fatal::usage(
                "the bot's token has characters that no token has",
                "check --token-file or DISCORD_TOKEN",
            )
        })?;
        authorization.set_sensitive(true);
        let client = Client::builder(TokioExecutor::new()).build(connector());
        let base = api_url.as_str().trim_end_matches('/');
        Ok(Self {
            client,
            gateway_bot: format!("{base}/gateway/bot"),
            authorization,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn gateway_bot(&self) -> Result<GatewayBot, ApiError> {
        self.ask(ATTEMPT_TIMEOUT).await
    }

    /// Asks until there is an answer, at most for `startup_timeout`.
    ///
    /// # Errors
    /// [`Fatal::Refused`] for 401 and 403, [`Fatal::Usage`] when `--api-url` is not the API,
    /// [`Fatal::Unreachable`] when time is up.
    pub async fn gateway_bot_within(&self, startup_timeout: Duration) -> Result<GatewayBot, Fatal> {
        let deadline = Instant::now() + startup_timeout;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.ask(ATTEMPT_TIMEOUT.min(left)).await {
                Ok(gateway) => return Ok(gateway),
                Err(error) => error,
            };
            if !error.is_retryable() {
                return Err(error.into());
            }
            let wait = match error {
                ApiError::RateLimited { retry_after, .. } => retry_after,
                _ => backoff.mul_f64(1.0 + fastrand::f64() / 4.0),
            };
            backoff = (backoff * 2).min(BACKOFF_LAST);
            if Instant::now() + wait >= deadline {
                return Err(Fatal::unreachable(
                    format!("Discord was unreachable for {startup_timeout:?}: {error}"),
                    "check the network and --api-url, or raise --startup-timeout",
                ));
            }
            tracing::warn!(%error, again_in = ?wait, "asking Discord for the gateway failed");
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask(&self, within: Duration) -> Result<GatewayBot, ApiError> {
        let url = &self.gateway_bot;
        let timed_out = |_| ApiError::TimedOut {
            url: url.clone(),
            within,
        };
        tokio::time::timeout(within, self.ask_patiently())
            .await
            .map_err(timed_out)?
    }

    async fn ask_patiently(&self) -> Result<GatewayBot, ApiError> {
        let url = || self.gateway_bot.clone();
        let transport = |error: &dyn std::error::Error| ApiError::Transport {
            url: url(),
            problem: schemas::exit::with_causes(error),
        };
        let request = Request::get(&self.gateway_bot)
            .header(AUTHORIZATION, &self.authorization)
            .header(USER_AGENT, DISCORD_USER_AGENT)
            .header(ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|error| transport(&error))?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| transport(&error))?;
        let status = response.status();
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(ApiError::Refused { status, url: url() });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = retry_after(&response);
                return Err(ApiError::RateLimited {
                    url: url(),
                    retry_after,
                });
            }
            _ if status.is_server_error() => {
                return Err(ApiError::Unavailable { url: url(), status });
            }
            _ => return Err(ApiError::NotTheApi { url: url(), status }),
        }
        let body = Limited::new(response.into_body(), BODY_MAX_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| ApiError::Malformed {
            url: url(),
            problem: format!("{error} (at most {BODY_MAX_BYTES} bytes are read)"),
        })?;
        GatewayBot::parse(&body.to_bytes()).map_err(|problem| ApiError::Malformed {
            url: url(),
            problem,
        })
    }
}

impl From<ApiError> for Fatal {
    fn from(error: ApiError) -> Self {
        let problem = error.to_string();
        match error {
            ApiError::Refused { .. } => Self::refused(
                problem,
                "set the bot's current token (--token-file, DISCORD_TOKEN_FILE or DISCORD_TOKEN)",
            ),
            ApiError::NotTheApi { .. } => Self::usage(
                format!("--api-url: {problem}"),
                "see --help for its default",
            ),
            ApiError::RateLimited { .. }
            | ApiError::Unavailable { .. }
            | ApiError::Malformed { .. }
            | ApiError::TimedOut { .. }
            | ApiError::Transport { .. } => {
                Self::unreachable(problem, "check the network and --api-url")
            }
        }
    }
}

impl GatewayBot {
    /// Reads and checks the body.
    fn parse(body: &[u8]) -> Result<Self, String> {
        let mut gateway: Self =
            serde_json::from_slice(body).map_err(|error| format!("{error} in {}", quoted(body)))?;
        let url = Url::parse(&gateway.url).ok();
        if !url.is_some_and(|url| matches!(url.scheme(), "wss" | "ws") && url.has_host()) {
            return Err(format!("its url {:?} is not a WebSocket's", gateway.url));
        }
        if !(1..=SHARDS_MAX).contains(&gateway.shards) {
            return Err(format!("{} shards", gateway.shards));
        }
        let limit = &mut gateway.session_start_limit;
        if limit.max_concurrency == 0 {
            return Err("a max_concurrency of 0".to_owned());
        }
        limit.remaining = limit.remaining.min(limit.total);
        Ok(gateway)
    }
}

/// Seconds, possibly with a fraction (Discord, Rate Limits).
fn retry_after<B>(response: &Response<B>) -> Duration {
    let header = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    let seconds = header.and_then(|text| text.trim().parse::<f64>().ok());
    seconds
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .unwrap_or(BACKOFF_LAST)
}

/// The beginning of a body, printable.
fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let short: String = text.chars().take(QUOTED_CHARS).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"url":"wss://gateway.discord.gg","shards":9,"session_start_limit":
        {"total":1000,"remaining":999,"reset_after":14400000,"max_concurrency":1},"new":null}"#;

    #[test]
    fn the_documented_answer_is_read() {
        let gateway = GatewayBot::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(
            (gateway.url.as_str(), gateway.shards),
            ("wss://gateway.discord.gg", 9)
        );
        assert_eq!(gateway.session_start_limit.remaining, 999);
    }

    #[test]
    fn answers_that_would_mislead_are_refused() {
        for (from, to) in [
            ("wss://gateway.discord.gg", "https://gateway.discord.gg"),
            ("wss://gateway.discord.gg", ""),
            ("\"shards\":9", "\"shards\":0"),
            ("\"shards\":9", "\"shards\":4000000000"),
            ("\"shards\":9", "\"shards\":-1"),
            ("\"max_concurrency\":1", "\"max_concurrency\":0"),
            ("\"total\":1000,", ""),
        ] {
            let body = GOOD.replace(from, to);
            assert!(GatewayBot::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(GatewayBot::parse(b"<html>").unwrap_err().contains("<html>"));
        assert!(GatewayBot::parse(b"\xff").is_err());
    }

    #[test]
    fn more_remaining_than_total_is_cut_to_the_total() {
        let body = GOOD.replace("\"remaining\":999", "\"remaining\":5000");
        let limit = GatewayBot::parse(body.as_bytes())
            .unwrap()
            .session_start_limit;
        assert_eq!(limit.remaining, 1000);
    }

    #[test]
    fn retry_after_takes_fractions_and_survives_nonsense() {
        let response = |value: &str| {
            Response::builder()
                .header(RETRY_AFTER, value)
                .body(())
                .unwrap()
        };
        assert_eq!(retry_after(&response("1.5")), Duration::from_millis(1_500));
        for nonsense in ["-1", "soon", "NaN", "1e400"] {
            assert_eq!(retry_after(&response(nonsense)), BACKOFF_LAST, "{nonsense}");
        }
    }

    #[test]
    fn the_client_never_shows_its_token() {
        let url = Url::parse("http://127.0.0.1:1/api").unwrap();
        let api = DiscordApi::new(&url, &SecretString::from("very-secret")).unwrap();
        assert!(!format!("{api:?}").contains("very-secret"));
        assert!(DiscordApi::new(&url, &SecretString::from("a\u{7f}\u{1}b")).is_err());
    }
}
