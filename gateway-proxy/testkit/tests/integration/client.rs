//! A raw gateway client: sends what it is told, decodes what comes, knows no rules.

use std::time::Duration;

use flate2::{Decompress, FlushDecompress};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use testkit::simulator::{ALL_INTENTS, Simulator};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use zstd::stream::raw::{Decoder, InBuffer, Operation as _, OutBuffer};

/// Nothing on loopback takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a socket brought.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Text(String),
    Closed(Option<u16>),
}

enum Inflater {
    None,
    Zlib {
        context: Box<Decompress>,
        held: Vec<u8>,
    },
    Zstd(Box<Decoder<'static>>),
}

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    inflater: Inflater,
}

/// READY's essentials.
pub(crate) struct Ready {
    pub(crate) session: String,
    pub(crate) resume_url: String,
    pub(crate) guilds: Vec<String>,
}

impl Client {
    /// Opens `base/?v=10&encoding=json[&compress=…]` and reads nothing.
    pub(crate) async fn open(base: &str, compress: Option<&str>) -> Self {
        let compress_param = compress
            .map(|c| format!("&compress={c}"))
            .unwrap_or_default();
        Self::open_query(
            &format!("{base}/?v=10&encoding=json{compress_param}"),
            compress,
        )
        .await
    }

    pub(crate) async fn open_query(url: &str, compress: Option<&str>) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None);
        let (socket, _) = connect_async_with_config(url, Some(config), false)
            .await
            .unwrap();
        let inflater = match compress {
            Some("zlib-stream") => Inflater::Zlib {
                context: Box::new(Decompress::new(true)),
                held: Vec::new(),
            },
            Some("zstd-stream") => Inflater::Zstd(Box::new(Decoder::new().unwrap())),
            _ => Inflater::None,
        };
        Self { socket, inflater }
    }

    /// Opens, reads HELLO and identifies.
    pub(crate) async fn identified(simulator: &Simulator, shard: [u32; 2]) -> (Self, Ready) {
        let mut client = Self::open(simulator.gateway_url(), None).await;
        client.expect_op(10).await;
        client.send(&identify(simulator, shard)).await;
        let ready = client.ready().await;
        (client, ready)
    }

    pub(crate) async fn ready(&mut self) -> Ready {
        let ready = self.expect_event("READY").await;
        let guilds = ready["d"]["guilds"].as_array().unwrap();
        Ready {
            session: ready["d"]["session_id"].as_str().unwrap().to_owned(),
            resume_url: ready["d"]["resume_gateway_url"]
                .as_str()
                .unwrap()
                .to_owned(),
            guilds: guilds
                .iter()
                .map(|g| g["id"].as_str().unwrap().to_owned())
                .collect(),
        }
    }

    pub(crate) async fn send(&mut self, value: &Value) {
        self.send_text(value.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn close(mut self, code: u16) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        };
        self.socket.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// The next message or the end, whatever it is.
    pub(crate) async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.next_forever())
            .await
            .expect("the simulator says nothing")
    }

    async fn next_forever(&mut self) -> Event {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Event::Text(text.to_string()),
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(text) = self.inflate(&bytes) {
                        return Event::Text(text);
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    return Event::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Event::Closed(None),
            }
        }
    }

    /// Nothing for a moment.
    pub(crate) async fn is_silent(&mut self, during: Duration) -> bool {
        timeout(during, self.next_forever()).await.is_err()
    }

    fn inflate(&mut self, bytes: &[u8]) -> Option<String> {
        match &mut self.inflater {
            Inflater::None => {
                // Payload compression: a document of its own.
                inflate_all(&mut Decompress::new(true), bytes)
            }
            Inflater::Zlib { context, held } => {
                held.extend_from_slice(bytes);
                if !held.ends_with(&[0, 0, 0xff, 0xff]) {
                    return None;
                }
                let inflated = inflate_all(context, held);
                held.clear();
                Some(inflated.unwrap_or_else(|| "corrupt".to_owned()))
            }
            Inflater::Zstd(context) => {
                let mut out = Vec::with_capacity(64 << 10);
                let mut input = InBuffer::around(bytes);
                loop {
                    out.reserve(64 << 10);
                    let at = out.len();
                    let mut room = OutBuffer::around_pos(&mut out, at);
                    if context.run(&mut input, &mut room).is_err() {
                        return Some("corrupt".to_owned());
                    }
                    if input.pos == bytes.len() && out.len() < out.capacity() {
                        return Some(String::from_utf8(out).expect("JSON is UTF-8"));
                    }
                }
            }
        }
    }

    /// The next message, which must be JSON.
    pub(crate) async fn json(&mut self) -> Value {
        match self.next().await {
            Event::Text(text) => serde_json::from_str(&text).unwrap(),
            Event::Closed(code) => panic!("closed with {code:?}"),
        }
    }

    /// The next message with this op; others are skipped.
    pub(crate) async fn expect_op(&mut self, op: u64) -> Value {
        loop {
            let value = self.json().await;
            if value["op"] == op {
                return value;
            }
        }
    }

    /// The next dispatch with this name; others are skipped.
    pub(crate) async fn expect_event(&mut self, name: &str) -> Value {
        loop {
            let value = self.json().await;
            if value["t"] == name {
                return value;
            }
        }
    }

    /// The close code; messages before it are skipped.
    pub(crate) async fn expect_close(&mut self) -> Option<u16> {
        loop {
            if let Event::Closed(code) = self.next().await {
                return code;
            }
        }
    }

    /// Reads dispatches up to and including sequence `last`; returns their texts.
    pub(crate) async fn dispatches_to(&mut self, last: u64) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        loop {
            let Event::Text(text) = self.next().await else {
                panic!("closed after {}", seen.len())
            };
            let value: Value = serde_json::from_str(&text).unwrap();
            let Some(seq) = value["s"].as_u64() else {
                continue;
            };
            seen.push((seq, text));
            if seq >= last {
                return seen;
            }
        }
    }
}

fn inflate_all(zlib: &mut Decompress, bytes: &[u8]) -> Option<String> {
    let mut out = Vec::new();
    let start = zlib.total_in();
    loop {
        out.reserve(64 << 10);
        let rest = &bytes[(zlib.total_in() - start) as usize..];
        zlib.decompress_vec(rest, &mut out, FlushDecompress::Sync)
            .ok()?;
        if zlib.total_in() - start == bytes.len() as u64 && out.len() < out.capacity() {
            return String::from_utf8(out).ok();
        }
    }
}

/// An IDENTIFY with all intents.
pub(crate) fn identify(simulator: &Simulator, shard: [u32; 2]) -> Value {
    json!({"op": 2, "d": {
        "token": simulator.token(), "intents": ALL_INTENTS, "shard": shard,
        "properties": {"os": "linux", "browser": "test", "device": "test"},
    }})
}

pub(crate) fn resume(simulator: &Simulator, session: &str, seq: u64) -> Value {
    json!({"op": 6, "d": {"token": simulator.token(), "session_id": session, "seq": seq}})
}

pub(crate) fn heartbeat(seq: Option<u64>) -> Value {
    json!({"op": 1, "d": seq})
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
