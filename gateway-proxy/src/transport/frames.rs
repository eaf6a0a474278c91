//! The client's half of a WebSocket's framing (RFC 6455): bytes of the server to messages, our
//! payloads to bytes. No I/O.
//!
//! By hand, because of memory: a connection that waits holds no buffer. All connections of a thread
//! read into one chunk, which is handed on when everything in it is consumed, and messages are
//! looked at where they were read to.

use std::cell::RefCell;
use std::ops::Range;

/// Bytes read at once: hundreds of compressed events of a flood.
const CHUNK: usize = 32 * 1024;
/// Longest payload of a control frame (RFC 6455, 5.5).
const CONTROL_MAX: usize = 125;

thread_local! {
    /// The chunk of whoever reads next, if it is not in use.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A frame that ends something, or a whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A text message: [`Reader::message`]. Not checked to be UTF-8.
    Text,
    /// A binary message.
    Binary,
    /// To be answered with a pong of the same bytes.
    Ping(Vec<u8>),
    /// Nothing to do.
    Pong,
    /// The server closes, with its code and words if it sent some.
    Close(Option<(u16, String)>),
}

/// Bytes that are not what a WebSocket server sends, or too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FramingError {
    /// Reserved bits or opcodes: no extension was agreed on.
    #[error("the server uses a WebSocket extension that was not agreed on")]
    Reserved,
    /// Servers do not mask (RFC 6455, 5.1).
    #[error("the server masked a WebSocket frame")]
    Masked,
    /// A control frame that is fragmented or too long.
    #[error("the server sent a malformed WebSocket control frame")]
    Control,
    /// A continuation of nothing, or a new message inside another.
    #[error("the server mixed up the fragments of a WebSocket message")]
    Fragments,
    /// Above the limit.
    #[error("a WebSocket message of {0} bytes is too large")]
    TooLarge(u64),
}

/// The head of a frame.
struct Head {
    fin: bool,
    opcode: u8,
    // Bytes of the head itself, then of the payload.
    len: usize,
    payload: usize,
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Cuts a server's bytes into messages.
#[derive(Debug)]
pub(super) struct Reader {
    // All of it initialised; `from..to` is read and not consumed. Empty while nothing is.
    bytes: Vec<u8>,
    from: usize,
    to: usize,
    // What the frame at the front takes, as far as it is known.
    wanted: usize,
    // The message of the last `next`, in `bytes` or whole in `fragments`.
    message: Option<Range<usize>>,
    // Fragments of a message that goes on, and whether it is text.
    fragments: Vec<u8>,
    in_message: Option<bool>,
    limit: usize,
}

impl Reader {
    /// Messages may be `limit` bytes long. Begins with bytes that were read with the handshake.
    pub(super) fn new(limit: usize, read: Vec<u8>) -> Self {
        Self {
            from: 0,
            to: read.len(),
            bytes: read,
            wanted: 0,
            message: None,
            fragments: Vec::new(),
            in_message: None,
            limit,
        }
    }

    /// Where to read to: at least one byte. Then tell [`Reader::filled`].
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.message = None;
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
        if self.bytes.len() < CHUNK {
            let mut chunk = SPARE.take();
            chunk.resize(CHUNK, 0);
            let kept = self.from..self.to;
            chunk[..kept.len()].copy_from_slice(&self.bytes[kept]);
            self.moved_to_front();
            self.bytes = chunk;
        }
        if self.to == self.bytes.len() && self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            self.moved_to_front();
        }
        if self.to == self.bytes.len() {
            // By as much again, not by what the peer says that will come.
            let len = self.wanted.clamp(self.to + 1, 2 * self.to);
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[self.to..]
    }

    /// So many bytes were read.
    pub(super) fn filled(&mut self, count: usize) {
        self.to = (self.to + count).min(self.bytes.len());
    }

    /// Gives back what is not needed while nothing arrives.
    pub(super) fn settle(&mut self) {
        let rest = self.from..self.to;
        if rest.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
            (self.from, self.to) = (0, 0);
        } else if rest.len() < self.bytes.len() / 2 {
            let rest = self.bytes[rest].to_vec();
            self.moved_to_front();
            give_back(std::mem::replace(&mut self.bytes, rest));
        }
        self.message = None;
        if self.in_message.is_none() {
            self.fragments = Vec::new();
        }
    }

    /// The message that [`Reader::next`] told of last.
    pub(super) fn message(&self) -> &[u8] {
        match &self.message {
            Some(range) => &self.bytes[range.clone()],
            None => &self.fragments,
        }
    }

    /// The next message or control frame; `None` until more bytes are there.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, FramingError> {
        self.message = None;
        if self.in_message.is_none() {
            self.fragments.clear();
        }
        loop {
            let Some(head) = self.head()? else {
                return Ok(None);
            };
            let start = self.from + head.len;
            let payload = start..start + head.payload;
            if payload.end > self.to {
                return Ok(None);
            }
            self.from = payload.end;
            self.wanted = 0;
            if head.opcode >= CLOSE {
                return Ok(Some(control(head.opcode, &self.bytes[payload])));
            }
            if self.in_message.is_none() && head.fin {
                self.message = Some(payload);
                return Ok(Some(message(head.opcode == TEXT)));
            }
            self.fragments.extend_from_slice(&self.bytes[payload]);
            let text = *self.in_message.get_or_insert(head.opcode == TEXT);
            if head.fin {
                self.in_message = None;
                return Ok(Some(message(text)));
            }
        }
    }

    /// The head of the frame at the front, checked; `None` until it is there.
    fn head(&mut self) -> Result<Option<Head>, FramingError> {
        let &[first, second, ref rest @ ..] = &self.bytes[self.from..self.to] else {
            return Ok(None);
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 || !matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG) {
            return Err(FramingError::Reserved);
        }
        if second & 0x80 != 0 {
            return Err(FramingError::Masked);
        }
        let (len, payload) = match (second, rest) {
            (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
            }
            (126 | 127, _) => return Ok(None),
            (short, _) => (2, u64::from(short)),
        };
        if opcode >= CLOSE && (!fin || payload > CONTROL_MAX as u64) {
            return Err(FramingError::Control);
        }
        if opcode < CLOSE && (opcode == CONTINUATION) != self.in_message.is_some() {
            return Err(FramingError::Fragments);
        }
        let whole = payload.saturating_add(self.fragments.len() as u64);
        let payload = match usize::try_from(payload) {
            Ok(payload) if whole <= self.limit as u64 => payload,
            _ => return Err(FramingError::TooLarge(whole)),
        };
        self.wanted = len + payload;
        Ok(Some(Head {
            fin,
            opcode,
            len,
            payload,
        }))
    }

    const fn moved_to_front(&mut self) {
        self.to -= self.from;
        self.from = 0;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.bytes));
    }
}

/// Keeps one chunk for whoever reads next; buffers that grew for a large message are let go.
fn give_back(bytes: Vec<u8>) {
    if bytes.len() == CHUNK {
        // Gone when the thread ends.
        drop(SPARE.try_with(|spare| spare.replace(bytes)));
    }
}

const fn message(text: bool) -> Incoming {
    if text {
        Incoming::Text
    } else {
        Incoming::Binary
    }
}

fn control(opcode: u8, payload: &[u8]) -> Incoming {
    match (opcode, payload) {
        (PING, _) => Incoming::Ping(payload.to_vec()),
        (CLOSE, [a, b, words @ ..]) => Incoming::Close(Some((
            u16::from_be_bytes([*a, *b]),
            String::from_utf8_lossy(words).into_owned(),
        ))),
        (CLOSE, _) => Incoming::Close(None),
        _ => Incoming::Pong,
    }
}

/// Appends a text message as one masked frame.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str, mask: [u8; 4]) {
    push_frame(out, TEXT, text.as_bytes(), mask);
}

/// Appends the answer to a ping.
pub(super) fn push_pong(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    push_frame(out, PONG, payload, mask);
}

/// Appends a close frame.
pub(super) fn push_close(out: &mut Vec<u8>, code: Option<u16>, mask: [u8; 4]) {
    let code = code.map(u16::to_be_bytes);
    push_frame(out, CLOSE, code.as_ref().map_or(&[], |code| code), mask);
}

fn push_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    out.reserve(14 + payload.len());
    out.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len @ ..126), _) => out.push(0x80 | len),
        (_, Ok(len)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let mask = mask.iter().cycle();
    out.extend(payload.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod peer;
#[cfg(test)]
mod tests;
