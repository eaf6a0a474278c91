//! A connection to NATS of our own: dial, TLS, authenticate; and which server is next.

use std::time::Duration;

use rustls_pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Connect, ServerInfo, ServerOp, WireError};
use crate::config::{NatsAuth, NatsServer, NatsSettings};

/// How long dialling and authenticating one server may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of the handshake at most: INFO and a PONG.
const HANDSHAKE_MAX: usize = 128 * 1024;
/// Servers of the cluster remembered besides those configured.
const OTHERS_MAX: usize = 16;

/// A byte stream, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose<'a> {
    /// Its name in the server's list of connections.
    pub(crate) name: &'a str,
    /// Lines of the protocol that follow CONNECT, to be refused together with it.
    pub(crate) first: &'a str,
    /// What becomes of bytes that the kernel still holds when the connection is given up.
    pub(crate) at_end: AtEnd,
}

/// What becomes of bytes that are not sent yet when a connection is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEnd {
    /// They still arrive.
    Finish,
    /// They never do.
    Reset,
}

/// An authenticated connection.
pub(crate) struct Connection {
    pub(crate) reader: ReadHalf<Box<dyn Stream>>,
    pub(crate) writer: WriteHalf<Box<dyn Stream>>,
    /// What arrived behind the handshake.
    pub(crate) leftover: Vec<u8>,
    pub(crate) info: ServerInfo,
    /// Writes may stay behind until flushed.
    pub(crate) encrypted: bool,
}

/// Which server to dial: those of the configuration first; the others of the cluster only while these
/// do not answer.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    next: usize,
    // Servers of the cluster that one of them named.
    others: Vec<NatsServer>,
}

impl Rotation {
    /// The one whose turn it is.
    pub(crate) fn next(&mut self, configured: &[NatsServer]) -> NatsServer {
        let known = configured.len() + self.others.len();
        let index = self.next % known;
        self.next = self.next.wrapping_add(1);
        let server = configured.get(index);
        server
            .unwrap_or_else(|| &self.others[index - configured.len()])
            .clone()
    }

    /// Remembers whom a server named.
    pub(crate) fn learn(&mut self, info: &ServerInfo, tls: bool) {
        self.others = others(info, tls);
    }
}

/// The other servers of the cluster, as one of them names them: `host:port`.
fn others(info: &ServerInfo, tls: bool) -> Vec<NatsServer> {
    let server = |url: &String| {
        let (host, port) = url.rsplit_once(':')?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = port.parse().ok()?;
        (!host.is_empty()).then_some(NatsServer { host, port, tls })
    };
    info.connect_urls
        .iter()
        .filter_map(server)
        .take(OTHERS_MAX)
        .collect()
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no answer from {server} within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout { server: String },
    #[error("cannot reach {server}: {source}")]
    Io {
        server: String,
        source: std::io::Error,
    },
    #[error("{server} is not a NATS server: {source}")]
    Protocol { server: String, source: WireError },
    #[error("{server} refuses the connection: {message}")]
    Refused { server: String, message: String },
    #[error("{server} closed the connection during the handshake")]
    Closed { server: String },
    #[error("cannot sign the nonce of {server}: {message}")]
    Signature { server: String, message: String },
}

/// Connects to one server.
pub(crate) async fn connect(
    settings: &NatsSettings,
    server: &NatsServer,
    purpose: Purpose<'_>,
) -> Result<Connection, ConnectError> {
    let handshake = handshake(settings, server, purpose);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                server: server.url(),
            })
        })
}

async fn handshake(
    settings: &NatsSettings,
    server: &NatsServer,
    purpose: Purpose<'_>,
) -> Result<Connection, ConnectError> {
    let url = server.url();
    let io = |source| ConnectError::Io {
        server: url.clone(),
        source,
    };
    let tcp = TcpStream::connect((server.host.as_str(), server.port))
        .await
        .map_err(io)?;
    tcp.set_nodelay(true).map_err(io)?;
    if purpose.at_end == AtEnd::Reset {
        tcp.set_zero_linger().map_err(io)?;
    }
    let mut stream: Box<dyn Stream> = Box::new(tcp);
    let mut input = Vec::new();
    let info = read_info(&mut stream, &mut input, &url).await?;
    let encrypted = info.tls_required || server.tls || settings.requires_tls();
    if encrypted {
        let host = ServerName::try_from(server.host.clone())
            .map_err(|error| io(std::io::Error::other(error)))?;
        let connector = TlsConnector::from(settings.tls().clone());
        stream = Box::new(connector.connect(host, stream).await.map_err(io)?);
        input.clear();
    }
    let hello = hello(settings, &info, purpose.name, &url)?;
    let text = format!("{hello}{}PING\r\n", purpose.first);
    stream.write_all(text.as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    await_pong(&mut stream, &mut input, &url).await?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connection {
        reader,
        writer,
        leftover: input,
        info,
        encrypted,
    })
}

fn hello(
    settings: &NatsSettings,
    info: &ServerInfo,
    name: &str,
    url: &str,
) -> Result<String, ConnectError> {
    let mut connect = Connect {
        headers: true,
        no_responders: true,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        name,
        protocol: 1,
        ..Connect::default()
    };
    let sign = |key: &nkeys::KeyPair| {
        let nonce = info.nonce.as_deref().unwrap_or_default();
        key.sign(nonce.as_bytes())
            .map(|signature| base64_url(&signature))
            .map_err(|error| ConnectError::Signature {
                server: url.to_owned(),
                message: error.to_string(),
            })
    };
    match settings.auth() {
        NatsAuth::None => {}
        NatsAuth::UserPassword { user, password } => {
            connect.user = Some(user);
            connect.pass = Some(password.expose_secret());
        }
        NatsAuth::Token(token) => connect.auth_token = Some(token.expose_secret()),
        NatsAuth::Creds { jwt, key } => {
            connect.jwt = Some(jwt.expose_secret());
            connect.sig = Some(sign(key)?);
        }
        NatsAuth::Nkey { key } => {
            connect.nkey = Some(key.public_key());
            connect.sig = Some(sign(key)?);
        }
    }
    let json = serde_json::to_string(&connect).expect("strings and numbers always serialise");
    Ok(format!("CONNECT {json}\r\n"))
}

async fn read_info(
    stream: &mut Box<dyn Stream>,
    input: &mut Vec<u8>,
    url: &str,
) -> Result<ServerInfo, ConnectError> {
    loop {
        if let Some((op, used)) = parse(input, url)? {
            return match op {
                ServerOp::Info(info) => {
                    let info = *info;
                    input.drain(..used);
                    Ok(info)
                }
                other => Err(unexpected(&other, url)),
            };
        }
        read_more(stream, input, url).await?;
    }
}

async fn await_pong(
    stream: &mut Box<dyn Stream>,
    input: &mut Vec<u8>,
    url: &str,
) -> Result<(), ConnectError> {
    loop {
        while let Some((op, used)) = parse(input, url)? {
            let done = match op {
                ServerOp::Pong => true,
                ServerOp::Err(message) => {
                    let message = message.to_owned();
                    return Err(ConnectError::Refused {
                        server: url.to_owned(),
                        message,
                    });
                }
                ServerOp::Info(_) | ServerOp::Ok | ServerOp::Ping => false,
                other @ (ServerOp::Message(_) | ServerOp::Oversized { .. }) => {
                    return Err(unexpected(&other, url));
                }
            };
            input.drain(..used);
            if done {
                return Ok(());
            }
        }
        read_more(stream, input, url).await?;
    }
}

fn parse<'a>(input: &'a [u8], url: &str) -> Result<Option<(ServerOp<'a>, usize)>, ConnectError> {
    super::parse(input).map_err(|source| ConnectError::Protocol {
        server: url.to_owned(),
        source,
    })
}

fn unexpected(op: &ServerOp<'_>, url: &str) -> ConnectError {
    let text = format!("{op:?}");
    let source = WireError::Malformed(text.chars().take(80).collect());
    ConnectError::Protocol {
        server: url.to_owned(),
        source,
    }
}

async fn read_more(
    stream: &mut Box<dyn Stream>,
    input: &mut Vec<u8>,
    url: &str,
) -> Result<(), ConnectError> {
    let io = |source| ConnectError::Io {
        server: url.to_owned(),
        source,
    };
    if input.len() > HANDSHAKE_MAX {
        let source = WireError::LineTooLong;
        return Err(ConnectError::Protocol {
            server: url.to_owned(),
            source,
        });
    }
    match stream.read_buf(input).await.map_err(io)? {
        0 => Err(ConnectError::Closed {
            server: url.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Base64 with the URL alphabet and no padding, as NATS wants signatures.
fn base64_url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0_u32, |group, byte| (group << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            let sextet = (group >> (18 - 6 * index)) & 63;
            text.push(char::from(ALPHABET[sextet as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_cluster_is_remembered() {
        let named = info(&["10.0.0.2:4222", "[::1]:4223", "odd"]);
        let known: Vec<_> = others(&named, false).iter().map(NatsServer::url).collect();
        assert_eq!(known, ["nats://10.0.0.2:4222", "nats://[::1]:4223"]);
    }

    #[test]
    fn servers_take_turns_and_those_of_the_configuration_come_first() {
        let configured: Vec<_> = others(&info(&["10.0.0.1:1", "10.0.0.2:2"]), false);
        let mut rotation = Rotation::default();
        let mut ports = |count: usize| {
            let next = || rotation.next(&configured).port;
            std::iter::repeat_with(next).take(count).collect::<Vec<_>>()
        };
        assert_eq!(ports(3), [1, 2, 1]);
        rotation.learn(&info(&["10.0.0.3:3"]), false);
        let mut ports = || rotation.next(&configured).port;
        let mut turn = [ports(), ports(), ports()];
        turn.sort_unstable();
        assert_eq!(turn, [1, 2, 3]);
    }

    fn info(urls: &[&str]) -> ServerInfo {
        ServerInfo {
            connect_urls: urls.iter().map(ToString::to_string).collect(),
            ..ServerInfo::default()
        }
    }

    #[test]
    fn signatures_are_written_as_nats_reads_them() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"\xfb\xff", "-_8"),
        ] {
            assert_eq!(base64_url(bytes), text);
        }
    }
}
