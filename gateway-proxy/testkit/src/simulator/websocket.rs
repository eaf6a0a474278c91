//! The server's half of a WebSocket (RFC 6455), by hand: faults need every byte under control.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Longest HTTP request head accepted.
pub(crate) const HEAD_MAX: usize = 16 * 1024;
/// Longest payload a client may send (Discord, Gateway, Sending Events).
pub(crate) const CLIENT_PAYLOAD_MAX: usize = 4096;

/// Kind of a frame on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A whole text or binary message.
    Message(Vec<u8>),
    /// A message above [`CLIENT_PAYLOAD_MAX`]; the rest of the stream is not read.
    TooLarge(usize),
    /// To be answered with a pong of the same bytes.
    Ping(Vec<u8>),
    /// Nothing to do.
    Pong,
    /// The client's close frame and its code.
    Close(Option<u16>),
}

/// The client broke RFC 6455.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError;

/// Cuts a client's bytes into messages.
#[derive(Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    fragments: Vec<u8>,
    in_message: bool,
}

impl Reader {
    /// A reader that begins with bytes already received.
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Self {
            buffer,
            ..Self::default()
        }
    }

    /// Appends bytes from the socket.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, or `None` until more bytes are there.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, ProtocolError> {
        loop {
            let Some((head, length, masked_at)) = self.header()? else {
                return Ok(None);
            };
            let fin = head & 0x80 != 0;
            let kind = head & 0x0f;
            if kind < 8 && self.fragments.len() + length > CLIENT_PAYLOAD_MAX {
                return Ok(Some(Incoming::TooLarge(self.fragments.len() + length)));
            }
            let end = masked_at + 4 + length;
            if self.buffer.len() < end {
                return Ok(None);
            }
            let mask: [u8; 4] = [0, 1, 2, 3].map(|n| self.buffer[masked_at + n]);
            let payload = &self.buffer[masked_at + 4..end];
            let payload: Vec<u8> = payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask)
                .collect();
            self.buffer.drain(..end);
            if kind >= 8 {
                return control(kind, fin, payload).map(Some);
            }
            if (kind == 0) != self.in_message || kind > 2 {
                return Err(ProtocolError);
            }
            self.fragments.extend_from_slice(&payload);
            self.in_message = !fin;
            if fin {
                return Ok(Some(Incoming::Message(std::mem::take(&mut self.fragments))));
            }
        }
    }

    /// First byte, payload length and where the mask stands.
    fn header(&self) -> Result<Option<(u8, usize, usize)>, ProtocolError> {
        let &[head, second, ref rest @ ..] = self.buffer.as_slice() else {
            return Ok(None);
        };
        // Clients mask (RFC 6455, 5.1), and no extension was agreed on.
        if second & 0x80 == 0 || head & 0x70 != 0 {
            return Err(ProtocolError);
        }
        let (length, extra) = match (second & 0x7f, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, rest) => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            },
            (126, _) => return Ok(None),
            (short, _) => (u64::from(short), 0),
        };
        if self.buffer.len() < 2 + extra + 4 {
            return Ok(None);
        }
        Ok(Some((
            head,
            length.min(u64::from(u32::MAX)) as usize,
            2 + extra,
        )))
    }
}

fn control(kind: u8, fin: bool, payload: Vec<u8>) -> Result<Incoming, ProtocolError> {
    if !fin || payload.len() > 125 {
        return Err(ProtocolError);
    }
    match kind {
        8 => Ok(Incoming::Close(
            payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
        )),
        9 => Ok(Incoming::Ping(payload)),
        10 => Ok(Incoming::Pong),
        _ => Err(ProtocolError),
    }
}

/// Appends a frame's header.
pub(crate) fn push_header(out: &mut Vec<u8>, opcode: Opcode, fin: bool, length: usize) {
    out.push(u8::from(fin) << 7 | opcode as u8);
    if length < 126 {
        out.push(length as u8);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// Appends a whole message as one frame.
pub(crate) fn push_message(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    push_header(out, opcode, true, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame.
pub(crate) fn push_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason.as_bytes()[..reason.len().min(120)];
    push_header(out, Opcode::Close, true, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason);
}

/// A request to upgrade.
pub(crate) struct Upgrade {
    /// Path and query.
    pub(crate) target: String,
    /// `Sec-WebSocket-Key`; absent in a plain HTTP request.
    pub(crate) key: Option<String>,
}

/// Reads a request head up to its blank line; `None` where it is no HTTP request.
pub(crate) fn parse_head(head: &[u8]) -> Option<Upgrade> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut request = lines.next()?.split(' ');
    let (method, target) = (request.next()?, request.next()?);
    if method != "GET" {
        return None;
    }
    let key = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-key")
                .then(|| value.trim().to_owned())
        });
    Some(Upgrade {
        target: target.to_owned(),
        key,
    })
}

/// The answer that turns the connection into a WebSocket.
pub(crate) fn switching_protocols(key: &str) -> String {
    let accept = derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mask = [1, 2, 3, 4];
        out.push(head);
        if payload.len() < 126 {
            out.push(0x80 | payload.len() as u8);
        } else {
            out.push(0x80 | 126);
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        out
    }

    #[test]
    fn messages_come_whole_whatever_the_chunks() {
        let mut bytes = masked(0x01, b"{\"op\"");
        bytes.extend(masked(0x89, b"p"));
        bytes.extend(masked(0x80, b":1}"));
        bytes.extend(masked(0x82, &[7; 300]));
        bytes.extend(masked(0x88, &4000_u16.to_be_bytes()));
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for byte in bytes {
            reader.buffer.push(byte);
            while let Some(incoming) = reader.next().unwrap() {
                seen.push(incoming);
            }
        }
        let expect = [
            Incoming::Ping(b"p".to_vec()),
            Incoming::Message(b"{\"op\":1}".to_vec()),
            Incoming::Message(vec![7; 300]),
            Incoming::Close(Some(4000)),
        ];
        assert_eq!(seen, expect);
    }

    #[test]
    fn too_large_is_said_before_the_bytes_are_there() {
        let mut reader = Reader::new(masked(0x81, &[b'x'; 4097])[..20].to_vec());
        assert_eq!(reader.next(), Ok(Some(Incoming::TooLarge(4097))));
    }

    #[test]
    fn unmasked_frames_and_stray_continuations_are_refused() {
        let mut reader = Reader {
            buffer: vec![0x81, 0x01, b'x'],
            ..Reader::default()
        };
        assert_eq!(reader.next(), Err(ProtocolError));
        let mut reader = Reader {
            buffer: masked(0x80, b"x"),
            ..Reader::default()
        };
        assert_eq!(reader.next(), Err(ProtocolError));
    }

    #[test]
    fn the_handshake_answers_the_key_of_the_rfc() {
        let head = b"GET /?v=10&encoding=json HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let upgrade = parse_head(head).unwrap();
        assert_eq!(upgrade.target, "/?v=10&encoding=json");
        let answer = switching_protocols(&upgrade.key.unwrap());
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }
}
