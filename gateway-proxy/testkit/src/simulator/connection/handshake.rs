//! From an accepted TCP connection to HELLO.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::super::compress::{Encoder, Transport};
use super::super::faults::ConnectFault;
use super::super::ledger::Rule;
use super::super::session::Params;
use super::super::state::{ConnectionHandle, ORDERS_MAX, Shared};
use super::super::websocket::{HEAD_MAX, Reader, parse_head, switching_protocols};
use super::{Connection, Lasting};

/// A client that says nothing is dropped.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the simulator stops.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    on_resume_url: bool,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if shared
            .hub()
            .refuse_until
            .is_some_and(|until| until > Instant::now())
        {
            reset(&stream);
            continue;
        }
        shared.counters.connects.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let cancel = shared.cancel.clone();
            let opened = tokio::select! {
                () = cancel.cancelled() => None,
                opened = timeout(HANDSHAKE_WITHIN, open(shared, stream, on_resume_url)) => {
                    opened.ok().and_then(Result::ok).flatten()
                }
            };
            if let Some(connection) = opened {
                connection.run().await;
            }
        });
    }
}

/// The next close of this socket sends RST instead of FIN.
pub(super) fn reset(stream: &TcpStream) {
    // Only fails on a socket that is already gone.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Upgrades to WebSocket and sends HELLO. `None` where the connection ended before.
async fn open(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    on_resume_url: bool,
) -> io::Result<Option<Connection>> {
    let Some((target, rest, fault)) = upgrade(&shared, &mut stream).await? else {
        return Ok(None);
    };
    let params = parse_params(&target);
    let transport = params
        .as_ref()
        .map_or(Transport::None, |params| params.transport);
    let encoder = Encoder::new(transport, shared.config.compression)?;
    let (orders_in, orders) = mpsc::channel(ORDERS_MAX);
    let id = {
        let mut hub = shared.hub();
        hub.last_connection += 1;
        let id = hub.last_connection;
        hub.connections.insert(
            id,
            ConnectionHandle {
                orders: orders_in,
                session: None,
            },
        );
        id
    };
    let refused = params.as_ref().err().map(|refusal| (refusal.0, refusal.1));
    let version = Params {
        version: 10,
        transport,
    };
    let mut connection = Connection {
        id,
        stream,
        orders,
        wake: Arc::new(Notify::new()),
        params: params.unwrap_or(version),
        on_resume_url,
        reader: Reader::new(rest),
        encoder,
        out: Vec::new(),
        sent: 0,
        scratch: Vec::new(),
        session: None,
        more: false,
        blocked: false,
        sends: std::collections::VecDeque::new(),
        presence_updates: std::collections::VecDeque::new(),
        last_heartbeat: Instant::now(),
        heartbeat_wanted: None,
        late_acks: std::collections::VecDeque::new(),
        grace: None,
        lasting: Lasting::default(),
        abandoned: None,
        end: None,
        ambush: None,
        within: None,
        shared,
    };
    match refused {
        Some((rule, code)) => {
            connection.violation(rule, target);
            connection.close(code, "Invalid API version or encoding.");
        }
        None => connection.greet(fault),
    }
    Ok(Some(connection))
}

impl Connection {
    fn greet(&mut self, fault: Option<ConnectFault>) {
        let reconnect = fault == Some(ConnectFault::ReconnectInsteadOfHello)
            || fault == Some(ConnectFault::ReconnectBeforeHello);
        if reconnect {
            self.reconnect();
        }
        if fault.is_none() || fault == Some(ConnectFault::ReconnectBeforeHello) {
            let interval = self.shared.config.heartbeat_interval.as_millis();
            let hello = format!(
                "{{\"t\":null,\"s\":null,\"op\":10,\"d\":{{\"heartbeat_interval\":{interval},\
                 \"_trace\":[\"[\\\"gateway-sim-0000\\\",{{\\\"micros\\\":0.0}}]\"]}}}}"
            );
            self.control(&hello);
        }
        // What came together with the request, if anything.
        self.messages();
    }
}

/// The HTTP half: the request's target, what came behind it, and the fault this connection meets.
async fn upgrade(
    shared: &Shared,
    stream: &mut TcpStream,
) -> io::Result<Option<(String, Vec<u8>, Option<ConnectFault>)>> {
    stream.set_nodelay(true)?;
    let (head, rest) = read_head(stream).await?;
    let upgrade = parse_head(&head);
    let Some((upgrade, key)) = upgrade.and_then(|u| u.key.clone().map(|key| (u, key))) else {
        stream
            .write_all(refusal("426 Upgrade Required").as_bytes())
            .await?;
        return Ok(None);
    };
    let fault = next_connect_fault(shared);
    if fault == Some(ConnectFault::Unavailable) {
        stream
            .write_all(refusal("503 Service Unavailable").as_bytes())
            .await?;
        return Ok(None);
    }
    stream
        .write_all(switching_protocols(&key).as_bytes())
        .await?;
    Ok(Some((upgrade.target, rest, fault)))
}

fn refusal(status: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nUpgrade: websocket\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

/// The request head, and what came behind it.
async fn read_head(stream: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(1024);
    while bytes.len() < HEAD_MAX {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((bytes, rest));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn next_connect_fault(shared: &Shared) -> Option<ConnectFault> {
    let mut hub = shared.hub();
    let (fault, left) = hub.connect_faults.first_mut()?;
    let fault = *fault;
    *left = left.saturating_sub(1);
    if *left == 0 {
        hub.connect_faults.remove(0);
    }
    Some(fault)
}

/// `v`, `encoding` and `compress` of the URL, or the rule broken and the close code.
fn parse_params(target: &str) -> Result<Params, (Rule, u16)> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let (mut version, mut transport, mut json) = (None, Ok(Transport::None), true);
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "v" => version = value.parse::<u32>().ok(),
            "encoding" => json = value == "json",
            "compress" => {
                transport = match &*value {
                    "zlib-stream" => Ok(Transport::ZlibStream),
                    "zstd-stream" => Ok(Transport::ZstdStream),
                    _ => Err((Rule::BadEncoding, 4002)),
                };
            }
            _ => {}
        }
    }
    if version != Some(10) {
        return Err((Rule::BadVersion, 4012));
    }
    if !json {
        return Err((Rule::BadEncoding, 4002));
    }
    Ok(Params {
        version: 10,
        transport: transport?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_says_version_encoding_and_compression() {
        let transport = |target: &str| parse_params(target).map(|params| params.transport);
        assert_eq!(transport("/?v=10&encoding=json"), Ok(Transport::None));
        assert_eq!(
            transport("/?encoding=json&v=10&compress=zstd-stream"),
            Ok(Transport::ZstdStream)
        );
        assert_eq!(
            transport("/?v=10&compress=zlib-stream"),
            Ok(Transport::ZlibStream)
        );
        assert_eq!(
            transport("/?v=10&compress=lzma"),
            Err((Rule::BadEncoding, 4002))
        );
        assert_eq!(
            transport("/?v=10&encoding=etf"),
            Err((Rule::BadEncoding, 4002))
        );
        assert_eq!(
            transport("/?v=9&encoding=json"),
            Err((Rule::BadVersion, 4012))
        );
        assert_eq!(transport("/"), Err((Rule::BadVersion, 4012)));
    }
}
