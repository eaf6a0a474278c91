//! One WebSocket to Discord: dial, TLS, bytes in, text out, close with a code. What the bytes mean is
//! decided elsewhere.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::config::Compression;

/// Gateway version we speak.
pub(crate) const API_VERSION: u8 = 10;
/// How long TCP, TLS and the WebSocket upgrade may take together (twilight-gateway waits as long).
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a payload of at most 4 KiB may take to leave; longer means the connection is dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a close frame may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest WebSocket message accepted, in bytes. Discord names no limit; READY and GUILD_CREATE
/// reach some MB.
const MESSAGE_MAX: usize = 64 << 20;
/// Read buffer of a connection. tungstenite zero-fills it at every read, so a large one costs CPU
/// at every event and memory at every shard.
const READ_BUFFER: usize = 8 * 1024;

/// Opens connections that all have the same query parameters, as a RESUME must.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    tls: Arc<ClientConfig>,
    query: String,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{url:?} is not a gateway url: {reason}")]
    Url { url: String, reason: String },
    #[error("cannot reach {host}: {source}")]
    Io {
        host: String,
        source: std::io::Error,
    },
    #[error("no websocket from {host}: {source}")]
    WebSocket {
        host: String,
        source: Box<tungstenite::Error>,
    },
    #[error("no websocket from {host} within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout { host: String },
    #[error("this process stood still, and nobody says whose the shard is: {reason}")]
    NotConfirmed { reason: String },
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Received {
    /// Uncompressed: checked to be UTF-8.
    Text(tungstenite::Utf8Bytes),
    /// Compressed.
    Binary(bytes::Bytes),
    /// The connection ended, with Discord's code and words if it sent some.
    Closed {
        /// Close code.
        code: Option<u16>,
        /// For the log.
        reason: String,
    },
}

impl Dialer {
    pub(crate) fn new(compression: Compression) -> Self {
        let roots = rustls::RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let compress = match compression {
            Compression::Zstd => "&compress=zstd-stream",
            Compression::Zlib => "&compress=zlib-stream",
            Compression::None => "",
        };
        let query = format!("?v={API_VERSION}&encoding=json{compress}");
        Self {
            tls: Arc::new(tls),
            query,
        }
    }

    /// Connects to a gateway url, with or without a slash at its end.
    pub(crate) async fn dial(&self, url: &str) -> Result<Socket, DialError> {
        let bad = |reason: String| DialError::Url {
            url: url.to_owned(),
            reason,
        };
        let base = url
            .split('?')
            .next()
            .unwrap_or_default()
            .trim_end_matches('/');
        let full = format!("{base}/{}", self.query);
        let request = full
            .into_client_request()
            .map_err(|error| bad(error.to_string()))?;
        let host = request.uri().host().unwrap_or_default().to_owned();
        let default_port = match request.uri().scheme_str() {
            Some("wss") => 443,
            Some("ws") => 80,
            _ => return Err(bad("the scheme must be wss or ws".to_owned())),
        };
        let port = request.uri().port_u16().unwrap_or(default_port);
        let address = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let dial = async {
            let io = |source| DialError::Io {
                host: host.clone(),
                source,
            };
            let tcp = TcpStream::connect((address.as_str(), port))
                .await
                .map_err(io)?;
            tcp.set_nodelay(true).map_err(io)?;
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER)
                .write_buffer_size(0)
                .max_message_size(Some(MESSAGE_MAX))
                .max_frame_size(Some(MESSAGE_MAX));
            let tls = Connector::Rustls(self.tls.clone());
            let upgrade = tokio_tungstenite::client_async_tls_with_config(
                request,
                tcp,
                Some(config),
                Some(tls),
            );
            let (stream, _) = upgrade.await.map_err(|source| DialError::WebSocket {
                host: host.clone(),
                source: Box::new(source),
            })?;
            Ok(Socket { stream })
        };
        match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout { host: host.clone() }),
        }
    }
}

/// An open connection.
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    /// The next message. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Received {
        loop {
            let ended = |reason: String| Received::Closed { code: None, reason };
            return match self.stream.next().await {
                Some(Ok(Message::Text(text))) => Received::Text(text),
                Some(Ok(Message::Binary(bytes))) => Received::Binary(bytes),
                Some(Ok(Message::Close(Some(frame)))) => Received::Closed {
                    code: Some(frame.code.into()),
                    reason: frame.reason.as_str().to_owned(),
                },
                Some(Ok(Message::Close(None))) | None => ended("closed without a code".to_owned()),
                // tungstenite answers pings itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => ended(error.to_string()),
            };
        }
    }

    /// Sends a payload; `Err` says why the connection counts as dead.
    pub(crate) async fn send(&mut self, payload: String) -> Result<(), String> {
        let send = self.stream.send(Message::text(payload));
        match tokio::time::timeout(SEND_TIMEOUT, send).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "a payload did not leave within {} s",
                SEND_TIMEOUT.as_secs()
            )),
        }
    }

    /// Closes with a code and lets go without waiting for an answer. A connection that is dropped
    /// instead sends nothing, which keeps the session too.
    pub(crate) async fn close(mut self, code: u16) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        };
        let close = self.stream.send(Message::Close(Some(frame)));
        // A peer that does not read cannot be told; the session stays resumable either way.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, close).await);
    }
}
