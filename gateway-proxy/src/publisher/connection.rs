//! The publisher's connection to NATS: dial, TLS, authenticate, subscribe to the answers.

use std::time::Duration;

use rustls_pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::inbox::Inbox;
use crate::config::{NatsAuth, NatsServer, NatsSettings};
use crate::wire::{self, Connect, ServerInfo, ServerOp, WireError};

/// How long dialling and authenticating one server may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of the handshake at most: INFO and a PONG.
const HANDSHAKE_MAX: usize = 128 * 1024;
/// Servers of the cluster remembered besides those configured.
const OTHERS_MAX: usize = 16;

/// A byte stream, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An authenticated connection, subscribed to its inbox.
pub(super) struct Connection {
    pub(super) reader: ReadHalf<Box<dyn Stream>>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    /// What arrived behind the handshake.
    pub(super) leftover: Vec<u8>,
    pub(super) inbox: Inbox,
    pub(super) info: ServerInfo,
    /// Writes may stay behind until flushed.
    pub(super) encrypted: bool,
}

/// The other servers of the cluster, as one of them names them: `host:port`.
pub(super) fn others(info: &ServerInfo, tls: bool) -> Vec<NatsServer> {
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
pub(super) enum ConnectError {
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
pub(super) async fn connect(
    settings: &NatsSettings,
    server: &NatsServer,
    name: &str,
) -> Result<Connection, ConnectError> {
    let handshake = handshake(settings, server, name);
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
    name: &str,
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
    // What the kernel still holds when the connection is given up is not to arrive later, after the
    // events of whoever holds the shards then: it is reset, not finished.
    tcp.set_zero_linger().map_err(io)?;
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
    let inbox = Inbox::new();
    let hello = hello(settings, &info, name, &url)?;
    let text = format!("{hello}SUB {} 1\r\nPING\r\n", inbox.wildcard());
    stream.write_all(text.as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    await_pong(&mut stream, &mut input, &url).await?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connection {
        reader,
        writer,
        leftover: input,
        inbox,
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
                other @ ServerOp::Message { .. } => return Err(unexpected(&other, url)),
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
    wire::parse(input).map_err(|source| ConnectError::Protocol {
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
        let info = ServerInfo {
            connect_urls: vec!["10.0.0.2:4222".into(), "[::1]:4223".into(), "odd".into()],
            ..ServerInfo::default()
        };
        let known: Vec<_> = others(&info, false).iter().map(NatsServer::url).collect();
        assert_eq!(known, ["nats://10.0.0.2:4222", "nats://[::1]:4223"]);
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
