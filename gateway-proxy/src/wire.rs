//! The NATS client protocol, as much of it as the publisher and the commands need: reads INFO, PING,
//! MSG, HMSG, -ERR; writes CONNECT, SUB, PONG, HPUB. Bytes to values and back; only `connection` does
//! I/O.
//!
//! async-nats carries everything else. The publisher has its own connection because a client that
//! queues while disconnected sends old messages ahead of the ones published again, which inverts
//! their order, and because writing HPUB from prepared bytes costs half of what a header map does.
//! The commands have theirs because a subscription of async-nats keeps 9 KiB, and each shard has one.

pub(crate) mod connection;

use serde::{Deserialize, Serialize};

/// Longest control line accepted. INFO with many `connect_urls` is the longest; the server's own
/// limit for clients is 4 KiB, its INFO may be longer.
const LINE_MAX: usize = 64 * 1024;
/// Largest message accepted from the server by [`parse`]: acknowledgements and advisories.
const MESSAGE_MAX: usize = 1024 * 1024;

/// What the server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ServerInfo {
    /// Its name.
    #[serde(default)]
    pub(crate) server_name: String,
    /// Its version, like `2.15.1`.
    #[serde(default)]
    pub(crate) version: String,
    /// Largest message it takes, headers and payload together, in bytes.
    #[serde(default)]
    pub(crate) max_payload: usize,
    /// Whether it takes headers.
    #[serde(default)]
    pub(crate) headers: bool,
    /// Whether a client must use TLS.
    #[serde(default)]
    pub(crate) tls_required: bool,
    /// To be signed with the nkey.
    #[serde(default)]
    pub(crate) nonce: Option<String>,
    /// Other servers of the cluster.
    #[serde(default)]
    pub(crate) connect_urls: Vec<String>,
    /// Lame duck mode: it is about to shut down.
    #[serde(default)]
    pub(crate) ldm: bool,
}

/// What a client says about itself.
#[derive(Clone, Default, Serialize)]
pub(crate) struct Connect<'a> {
    pub(crate) verbose: bool,
    pub(crate) pedantic: bool,
    pub(crate) headers: bool,
    pub(crate) no_responders: bool,
    pub(crate) tls_required: bool,
    pub(crate) lang: &'a str,
    pub(crate) version: &'a str,
    pub(crate) name: &'a str,
    pub(crate) protocol: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sig: Option<String>,
}

/// One operation of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerOp<'a> {
    /// INFO, at the start and whenever the cluster changes.
    Info(Box<ServerInfo>),
    /// Wants a PONG.
    Ping,
    /// Answers a PING.
    Pong,
    /// Only in verbose mode.
    Ok,
    /// -ERR with the server's words.
    Err(&'a str),
    /// A message of a subscription.
    Message(Message<'a>),
    /// A message larger than the caller of [`parse_up_to`] wants: `bytes` and a line end follow, which
    /// the caller skips.
    Oversized {
        /// Whose, with an empty payload.
        message: Message<'a>,
        /// Headers and payload together.
        bytes: usize,
    },
}

/// A message of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// Where it was sent to.
    pub(crate) subject: &'a str,
    /// The subscription's number, as SUB gave it.
    pub(crate) sid: u64,
    /// Where its sender waits for an answer.
    pub(crate) reply: Option<&'a str>,
    /// `503` and the like, from a header-only status message.
    pub(crate) status: Option<u16>,
    /// Payload.
    pub(crate) payload: &'a [u8],
}

/// Bytes that are not the NATS protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// No line end within [`LINE_MAX`].
    #[error("the server sent a line of more than {LINE_MAX} bytes")]
    LineTooLong,
    /// A message above [`MESSAGE_MAX`].
    #[error("the server announced a message of {0} bytes")]
    MessageTooLarge(usize),
    /// An unknown or malformed operation.
    #[error("the server sent {0:?}, which is not the NATS protocol")]
    Malformed(String),
}

/// Reads the first operation of `input`. `Ok(None)`: more bytes are needed. The number is how many
/// bytes it took.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(ServerOp<'_>, usize)>, WireError> {
    match parse_up_to(input, MESSAGE_MAX)? {
        Some((ServerOp::Oversized { bytes, .. }, _)) => Err(WireError::MessageTooLarge(bytes)),
        other => Ok(other),
    }
}

/// The same for connections on which anybody may send: messages of more than `max` bytes are no error
/// but [`ServerOp::Oversized`].
pub(crate) fn parse_up_to(
    input: &[u8],
    max: usize,
) -> Result<Option<(ServerOp<'_>, usize)>, WireError> {
    let Some(end) = input
        .iter()
        .take(LINE_MAX + 1)
        .position(|byte| *byte == b'\n')
    else {
        return if input.len() > LINE_MAX {
            Err(WireError::LineTooLong)
        } else {
            Ok(None)
        };
    };
    let raw = &input[..end];
    let line = raw.strip_suffix(b"\r").unwrap_or(raw);
    let malformed =
        || WireError::Malformed(String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned());
    let text = std::str::from_utf8(line).map_err(|_| malformed())?;
    let after_line = end + 1;
    let (verb, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let rest = rest.trim();
    // Servers write capitals, clients must take either.
    let is = |name: &str| verb.eq_ignore_ascii_case(name);
    let op = if is("MSG") {
        return message(rest, false, (input, after_line), max, malformed);
    } else if is("HMSG") {
        return message(rest, true, (input, after_line), max, malformed);
    } else if is("PING") {
        ServerOp::Ping
    } else if is("PONG") {
        ServerOp::Pong
    } else if is("+OK") {
        ServerOp::Ok
    } else if is("-ERR") {
        ServerOp::Err(rest.trim_matches('\''))
    } else if is("INFO") {
        let info = serde_json::from_str(rest).map_err(|_| malformed())?;
        ServerOp::Info(Box::new(info))
    } else {
        return Err(malformed());
    };
    Ok(Some((op, after_line)))
}

/// `MSG <subject> <sid> [reply] <bytes>` and `HMSG <subject> <sid> [reply] <header bytes> <bytes>`.
fn message<'a>(
    arguments: &'a str,
    with_headers: bool,
    (input, start): (&'a [u8], usize),
    max: usize,
    malformed: impl Fn() -> WireError,
) -> Result<Option<(ServerOp<'a>, usize)>, WireError> {
    let mut words = arguments.split_ascii_whitespace();
    let subject = words.next().ok_or_else(&malformed)?;
    // The rest is taken from the end, since the reply subject in the middle may be absent.
    let total: usize = words
        .next_back()
        .and_then(|word| word.parse().ok())
        .ok_or_else(&malformed)?;
    let header = if with_headers {
        words
            .next_back()
            .and_then(|word| word.parse().ok())
            .ok_or_else(&malformed)?
    } else {
        0
    };
    let sid = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(&malformed)?;
    if header > total {
        return Err(malformed());
    }
    let mut message = Message {
        subject,
        sid,
        reply: words.next(),
        status: None,
        payload: &[],
    };
    if total > max {
        let bytes = total;
        return Ok(Some((ServerOp::Oversized { message, bytes }, start)));
    }
    let end = start + total;
    if input.len() < end + 2 {
        return Ok(None);
    }
    if &input[end..end + 2] != b"\r\n" {
        return Err(malformed());
    }
    message.status = status(&input[start..start + header]);
    message.payload = &input[start + header..end];
    Ok(Some((ServerOp::Message(message), end + 2)))
}

/// `NATS/1.0 503` → 503.
fn status(headers: &[u8]) -> Option<u16> {
    let line = headers.split(|byte| *byte == b'\r').next()?;
    let text = std::str::from_utf8(line).ok()?.strip_prefix("NATS/1.0")?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Appends `HPUB <subject> <reply> <header bytes> <total bytes>\r\n<headers><payload>\r\n`. `headers`
/// ends with the empty line.
pub(crate) fn push_hpub(
    out: &mut Vec<u8>,
    subject: &[u8],
    reply: impl FnOnce(&mut Vec<u8>),
    headers: &[u8],
    payload: &[u8],
) {
    out.reserve(subject.len() + headers.len() + payload.len() + 128);
    out.extend_from_slice(b"HPUB ");
    out.extend_from_slice(subject);
    out.push(b' ');
    reply(out);
    out.push(b' ');
    schemas::subject::push_decimal(out, headers.len() as u64);
    out.push(b' ');
    schemas::subject::push_decimal(out, (headers.len() + payload.len()) as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_read_whole_or_not_at_all() {
        let bytes = b"MSG _INBOX.a.500.fail.7.2.$FI 1 5\r\nhello\r\nPING\r\n";
        for cut in 0..42 {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut}");
        }
        let (op, used) = parse(bytes).unwrap().unwrap();
        let subject = "_INBOX.a.500.fail.7.2.$FI";
        assert_eq!(
            op,
            ServerOp::Message(Message {
                subject,
                sid: 1,
                reply: None,
                status: None,
                payload: b"hello"
            })
        );
        assert_eq!(parse(&bytes[used..]), Ok(Some((ServerOp::Ping, 6))));
    }

    #[test]
    fn a_status_message_gives_its_status() {
        let bytes = b"HMSG inbox 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        let (op, used) = parse(bytes).unwrap().unwrap();
        assert_eq!(
            op,
            ServerOp::Message(Message {
                subject: "inbox",
                sid: 1,
                reply: None,
                status: Some(503),
                payload: b""
            })
        );
        assert_eq!(used, bytes.len());
    }

    #[test]
    fn a_request_says_whose_it_is_and_where_its_answer_goes() {
        let message = |bytes: &'static [u8]| match parse(bytes) {
            Ok(Some((ServerOp::Message(message), used))) if used == bytes.len() => message,
            other => panic!("{other:?}"),
        };
        let plain = message(b"MSG a.7 8 _INBOX.x 2\r\n{}\r\n");
        let headed = message(b"HMSG a.7 8 _INBOX.x 18 20\r\nNATS/1.0\r\nA: b\r\n\r\n{}\r\n");
        for message in [plain, headed] {
            assert_eq!((message.sid, message.reply), (8, Some("_INBOX.x")));
            assert_eq!((message.payload, message.status), (&b"{}"[..], None));
        }
        assert!(parse(b"MSG a notanumber 2\r\n{}\r\n").is_err());
    }

    #[test]
    fn a_message_larger_than_wanted_is_announced_before_it_is_there() {
        let line = b"MSG a 3 r 4000000\r\n";
        let (op, used) = parse_up_to(line, 100).unwrap().unwrap();
        let ServerOp::Oversized { message, bytes } = op else {
            panic!("{op:?}")
        };
        assert_eq!((message.sid, message.reply), (3, Some("r")));
        assert_eq!((bytes, used), (4_000_000, line.len()));
        assert_eq!(parse(line), Err(WireError::MessageTooLarge(4_000_000)));
    }

    #[test]
    fn errors_and_info_are_read() {
        let (op, _) = parse(b"-ERR 'Authorization Violation'\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(op, ServerOp::Err("Authorization Violation"));
        let (op, _) = parse(b"INFO {\"version\":\"2.15.1\",\"max_payload\":8388608}\r\n")
            .unwrap()
            .unwrap();
        let ServerOp::Info(info) = op else {
            panic!("{op:?}")
        };
        assert_eq!(
            (info.version.as_str(), info.max_payload),
            ("2.15.1", 8_388_608)
        );
    }

    #[test]
    fn other_protocols_are_refused_with_their_words() {
        assert_eq!(
            parse(b"HTTP/1.1 400 Bad Request\r\n"),
            Err(WireError::Malformed("HTTP/1.1 400 Bad Request".into()))
        );
        assert_eq!(
            parse(&vec![b'x'; LINE_MAX + 1]),
            Err(WireError::LineTooLong)
        );
        assert!(parse(b"MSG a 1 99999999\r\n").is_err());
        assert!(parse(b"MSG a 1\r\n").is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let seeds: [&[u8]; 3] = [
            b"HMSG inbox 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
            b"MSG a 1 b 3\r\nabc\r\n",
            b"INFO {}\r\n",
        ];
        for _ in 0..20_000 {
            let mut bytes = seeds[rng.usize(..3)].to_vec();
            for _ in 0..rng.usize(0..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            if let Ok(Some((_, used))) = parse(&bytes) {
                assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn a_publish_states_the_lengths_it_has() {
        let mut out = Vec::new();
        push_hpub(
            &mut out,
            b"a.b",
            |out| out.extend_from_slice(b"r"),
            b"NATS/1.0\r\n\r\n",
            b"xyz",
        );
        assert_eq!(out, b"HPUB a.b r 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n");
    }
}
