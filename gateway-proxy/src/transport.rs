//! One WebSocket to Discord: dial, TLS, bytes in, text out, close with a code. What the bytes mean is
//! decided elsewhere.

mod frames;
mod handshake;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::config::Compression;
use frames::{Incoming, Reader};

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
/// Code of a connection that ended without one (RFC 6455, 7.4.1): never sent.
const NO_CODE: u16 = 1005;

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
    Io { host: String, source: io::Error },
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
    /// Uncompressed: [`Socket::message`].
    Text,
    /// Compressed: [`Socket::message`].
    Binary,
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
        let secure = request.uri().scheme_str() == Some("wss");
        let dial = async {
            let io = |source| DialError::Io {
                host: host.clone(),
                source,
            };
            let tcp = TcpStream::connect((address.as_str(), port))
                .await
                .map_err(io)?;
            tcp.set_nodelay(true).map_err(io)?;
            let mut stream = if secure {
                let name = ServerName::try_from(address.clone());
                let name = name.map_err(|error| bad(error.to_string()))?;
                let connector = TlsConnector::from(self.tls.clone());
                Stream::Tls(Box::new(connector.connect(name, tcp).await.map_err(io)?))
            } else {
                Stream::Plain(tcp)
            };
            let upgraded = handshake::upgrade(request, &mut stream).await;
            let read = upgraded.map_err(|source| DialError::WebSocket {
                host: host.clone(),
                source: Box::new(source),
            })?;
            Ok(Socket {
                stream,
                reader: Reader::new(MESSAGE_MAX, read),
                out: Vec::new(),
            })
        };
        match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout { host: host.clone() }),
        }
    }
}

/// TCP, encrypted or not.
#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    reader: Reader,
    // Frames on their way out; empty but while something is sent.
    out: Vec<u8>,
}

impl Socket {
    /// The message that [`Socket::poll_receive`] told of last.
    pub(crate) fn message(&self) -> &[u8] {
        self.reader.message()
    }

    /// Lets go of memory that others of the thread can use; when this is not read for a while.
    pub(crate) fn settle(&mut self) {
        self.reader.settle();
    }

    /// The next message. Nothing is lost between two calls.
    pub(crate) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        let ended = |reason: String| Poll::Ready(Received::Closed { code: None, reason });
        loop {
            match self.reader.next() {
                Ok(Some(Incoming::Text)) => return Poll::Ready(Received::Text),
                Ok(Some(Incoming::Binary)) => return Poll::Ready(Received::Binary),
                Ok(Some(Incoming::Ping(payload))) => {
                    frames::push_pong(&mut self.out, &payload, mask());
                    self.try_write(context);
                }
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(close))) => {
                    let code = close.as_ref().map(|(code, _)| *code);
                    // If it can leave at once; the server has said its last word in any case.
                    let answer = code.filter(|code| *code != NO_CODE);
                    frames::push_close(&mut self.out, answer, mask());
                    self.try_write(context);
                    let reason = close
                        .map_or_else(|| "closed without a code".to_owned(), |(_, reason)| reason);
                    return Poll::Ready(Received::Closed { code, reason });
                }
                Ok(None) => {
                    let mut space = ReadBuf::new(self.reader.space());
                    let read = Pin::new(&mut self.stream).poll_read(context, &mut space);
                    let count = space.filled().len();
                    match read {
                        Poll::Pending => {
                            self.reader.settle();
                            self.try_write(context);
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(())) if count == 0 => {
                            return ended("closed without a code".to_owned());
                        }
                        Poll::Ready(Ok(())) => self.reader.filled(count),
                        Poll::Ready(Err(error)) => return ended(error.to_string()),
                    }
                }
                Err(error) => return ended(error.to_string()),
            }
        }
    }

    /// Writes what it can of what is on its way. An error shows when reading.
    fn try_write(&mut self, context: &mut Context<'_>) {
        if !self.out.is_empty() {
            drop(self.poll_write_out(context));
        }
    }

    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.out))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.out.drain(..count)),
            }
        }
        self.out = Vec::new();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Writes all that is on its way. Cancel-safe.
    async fn write_out(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_write_out(context)).await
    }

    /// Sends a payload; `Err` says why the connection counts as dead.
    pub(crate) async fn send(&mut self, payload: String) -> Result<(), String> {
        frames::push_text(&mut self.out, &payload, mask());
        match tokio::time::timeout(SEND_TIMEOUT, self.write_out()).await {
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
        frames::push_close(&mut self.out, Some(code), mask());
        // A peer that does not read cannot be told; the session stays resumable either way.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.write_out()).await);
    }
}

/// Any four bytes: they are to keep caches between us and the server from misreading frames.
fn mask() -> [u8; 4] {
    fastrand::u32(..).to_ne_bytes()
}

#[cfg(test)]
mod tests;
