//! The same bytes read by tungstenite and by us: the same messages, also when some of the bytes are wrong.

use std::io::{self, Read, Write};

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::*;

const LIMIT: usize = 200_000;

/// What was read, up to the first error or close.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    items: Vec<(char, Vec<u8>)>,
    failed: bool,
}

/// One frame of a server: head and payload, sound or not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        6 => Just(BINARY),
        2 => Just(CONTINUATION),
        1 => Just(PING),
        1 => Just(PONG),
        1 => 0_u8..16,
    ];
    let len = prop_oneof![
        0_usize..130,
        120_usize..400,
        65_500_usize..65_600,
        Just(LIMIT + 1)
    ];
    let fin = prop::bool::weighted(0.7);
    (fin, opcode, len, any::<u8>()).prop_map(|(fin, opcode, len, byte)| {
        let len = if opcode >= CLOSE { len % 130 } else { len };
        let mut out = vec![u8::from(fin) << 7 | opcode];
        match len {
            0..126 => out.push(len as u8),
            126..65_536 => {
                out.push(126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            _ => {
                out.push(127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend((0..len).map(|at| byte.wrapping_add(at as u8)));
        out
    })
}

/// Gives the bytes in pieces, and after the last one says that more may come.
struct Pieces<'a> {
    rest: &'a [u8],
    rng: fastrand::Rng,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = self.rest.len().min(buffer.len());
        let count = self.rng.usize(1..=most);
        let (now, later) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.rest = later;
        Ok(count)
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `None`: it judged the content of a message, which we do not.
fn theirs(mut pieces: Pieces<'_>) -> Option<Heard> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let mut socket = WebSocket::from_raw_socket(&mut pieces, Role::Client, Some(config));
    let mut heard = Heard::default();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => heard.items.push(('t', text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => heard.items.push(('b', bytes.to_vec())),
            Ok(Message::Ping(bytes)) => heard.items.push(('i', bytes.to_vec())),
            Ok(Message::Pong(_)) => heard.items.push(('o', Vec::new())),
            Ok(Message::Close(_)) | Err(Error::Utf8(_)) => return None,
            Ok(Message::Frame(_)) => unreachable!("not read from a socket"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Some(heard);
            }
            Err(_) => {
                heard.failed = true;
                return Some(heard);
            }
        }
    }
}

fn ours(mut pieces: Pieces<'_>) -> Heard {
    let mut reader = Reader::new(LIMIT, Vec::new());
    let mut heard = Heard::default();
    loop {
        match reader.next() {
            Ok(Some(Incoming::Text)) => heard.items.push(('t', reader.message().to_vec())),
            Ok(Some(Incoming::Binary)) => heard.items.push(('b', reader.message().to_vec())),
            Ok(Some(Incoming::Ping(bytes))) => heard.items.push(('i', bytes)),
            Ok(Some(Incoming::Pong)) => heard.items.push(('o', Vec::new())),
            Ok(Some(Incoming::Close(_))) => return heard,
            Ok(None) => match pieces.read(reader.space()) {
                Ok(count) => reader.filled(count),
                Err(_) => return heard,
            },
            Err(_) => {
                heard.failed = true;
                return heard;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_tungstenite_reads_is_what_we_read(
        frames in prop::collection::vec(any_frame(), 0..8),
        wrong in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
        seed in any::<u64>(),
    ) {
        let mut bytes = frames.concat();
        if let Some((at, byte)) = wrong && !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let pieces = || Pieces { rest: &bytes, rng: fastrand::Rng::with_seed(seed) };
        let Some(theirs) = theirs(pieces()) else { return Ok(()) };
        let ours = ours(pieces());
        prop_assert_eq!(&ours.items, &theirs.items);
        // We look at a head as soon as it is there; they wait for the frame.
        prop_assert!(ours.failed || !theirs.failed);
    }
}
