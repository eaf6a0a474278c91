//! A throw-away blocking NATS client: as much of the protocol as these tests need, written by hand,
//! so that what goes over the wire is exactly what a test says.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long an answer may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// The connection is gone.
#[derive(Debug)]
pub(crate) struct Lost;

/// A message of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) subject: String,
    /// 503 and the like.
    pub(crate) status: Option<u16>,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// The payload as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

pub(crate) struct Client {
    socket: TcpStream,
    input: Vec<u8>,
    /// Prefix of this connection's reply subjects.
    pub(crate) inbox: String,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        Self::try_connect(port).unwrap()
    }

    pub(crate) fn try_connect(port: u16) -> Result<Self, Lost> {
        let socket = TcpStream::connect(("127.0.0.1", port)).map_err(|_| Lost)?;
        let inbox = format!("_INBOX.{:016x}", fastrand::u64(..));
        let mut client = Self {
            socket,
            input: Vec::new(),
            inbox,
        };
        // Any batch id of this connection begins with the inbox.
        let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
             \"no_responders\":true,\"lang\":\"test\",\"version\":\"0\",\"protocol\":1}\r\n\
             SUB _INBOX.> 1\r\nPING\r\n";
        client.try_send(hello.as_bytes())?;
        let deadline = Instant::now() + PATIENCE;
        while find(&client.input, b"PONG\r\n").is_none() {
            assert!(client.read(deadline)?, "no PONG");
        }
        Ok(client)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        self.socket.write_all(bytes).map_err(|_| Lost)
    }

    /// One message with its id, or without a header when the id is empty.
    pub(crate) fn encode(out: &mut Vec<u8>, subject: &str, reply: &str, id: &str, payload: &[u8]) {
        let headers = if id.is_empty() {
            "NATS/1.0\r\n\r\n".to_owned()
        } else {
            format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n")
        };
        let (head, total) = (headers.len(), headers.len() + payload.len());
        out.extend_from_slice(format!("HPUB {subject} {reply} {head} {total}\r\n").as_bytes());
        out.extend_from_slice(headers.as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    pub(crate) fn publish(&mut self, subject: &str, reply: &str, id: &str, payload: &[u8]) {
        let mut bytes = Vec::new();
        Self::encode(&mut bytes, subject, reply, id, payload);
        self.send(&bytes);
    }

    /// The next message to this connection, or `None` when none comes within `patience`.
    pub(crate) fn try_next_within(&mut self, patience: Duration) -> Result<Option<Message>, Lost> {
        let deadline = Instant::now() + patience;
        loop {
            match self.parse() {
                Some((_, message)) => return Ok(Some(message)),
                None if self.read(deadline)? => {}
                None => return Ok(None),
            }
        }
    }

    /// The next message to this connection.
    pub(crate) fn next(&mut self) -> Message {
        let next = self.try_next_within(PATIENCE).unwrap();
        next.expect("the server answers")
    }

    /// A request to JetStream's API.
    pub(crate) fn api(&mut self, subject: &str, request: &Value) -> Value {
        let body = request.to_string();
        let line = format!(
            "PUB $JS.API.{subject} {}.api {}\r\n{body}\r\n",
            self.inbox,
            body.len()
        );
        self.send(line.as_bytes());
        let answer = self.next();
        assert!(answer.subject.ends_with(".api"), "{answer:?}");
        let answer = answer.json();
        assert!(answer.get("error").is_none(), "{answer}");
        answer
    }

    /// A stream as the proxy makes it, of the subjects `<name>.>`.
    pub(crate) fn create_stream(&mut self, name: &str, max_msg_size: i64) {
        let config = json!({
            "name": name,
            "subjects": [format!("{name}.>")],
            "storage": "file",
            "retention": "limits",
            "duplicate_window": 120_000_000_000_u64,
            "max_msg_size": max_msg_size,
            "allow_batched": true,
            "allow_direct": true,
        });
        let answer = self.api(&format!("STREAM.CREATE.{name}"), &config);
        assert_eq!(answer["config"]["allow_batched"], true, "{answer}");
    }

    /// Everything stored: message id and payload, in order.
    pub(crate) fn stored(&mut self, name: &str) -> Vec<(String, String)> {
        let info = self.api(&format!("STREAM.INFO.{name}"), &json!({}));
        let last = info["state"]["last_seq"].as_u64().unwrap();
        (1..=last)
            .map(|seq| {
                let reply = format!("{}.get", self.inbox);
                let body = json!({"seq": seq}).to_string();
                let length = body.len();
                let line = format!("PUB $JS.API.DIRECT.GET.{name} {reply} {length}\r\n{body}\r\n");
                self.send(line.as_bytes());
                self.next_with_id()
            })
            .collect()
    }

    fn next_with_id(&mut self) -> (String, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((headers, message)) = self.parse() {
                let id = headers
                    .lines()
                    .find_map(|line| line.strip_prefix("Nats-Msg-Id: "))
                    .unwrap_or_default();
                let payload = String::from_utf8_lossy(&message.payload).into_owned();
                return (id.to_owned(), payload);
            }
            assert!(self.read(deadline).unwrap(), "no answer to a direct get");
        }
    }

    /// Headers and message. Those for other connections are passed over.
    fn parse(&mut self) -> Option<(String, Message)> {
        loop {
            let end = find(&self.input, b"\r\n")?;
            let line = String::from_utf8(self.input[..end].to_vec()).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let number = |back: usize| words[words.len() - back].parse::<usize>().unwrap();
            let (header, total) = match words[0] {
                "MSG" => (0, number(1)),
                "HMSG" => (number(2), number(1)),
                "-ERR" => panic!("the server said {line}"),
                // INFO, PING (these tests are shorter than its patience), PONG.
                _ => {
                    self.input.drain(..end + 2);
                    continue;
                }
            };
            let start = end + 2;
            if self.input.len() < start + total + 2 {
                return None;
            }
            let headers = String::from_utf8_lossy(&self.input[start..start + header]).into_owned();
            let status = headers
                .strip_prefix("NATS/1.0 ")
                .and_then(|rest| rest.get(..3))
                .and_then(|code| code.parse().ok());
            let message = Message {
                subject: words[1].to_owned(),
                status,
                payload: self.input[start + header..start + total].to_vec(),
            };
            self.input.drain(..start + total + 2);
            if message.subject.starts_with(&self.inbox) {
                return Some((headers, message));
            }
        }
    }

    /// False when the deadline came first.
    fn read(&mut self, deadline: Instant) -> Result<bool, Lost> {
        let mut buffer = [0; 64 * 1024];
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        self.socket.set_read_timeout(Some(left)).unwrap();
        match self.socket.read(&mut buffer) {
            Ok(0) => Err(Lost),
            Ok(read) => {
                self.input.extend_from_slice(&buffer[..read]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(_) => Err(Lost),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
