//! From JSON to WebSocket messages, in the compression the client asked for.
//!
//! One encoder per socket: the context of a transport compression never outlives its connection.

use std::io;

use flate2::{Compress, Compression as Level, FlushCompress};
use serde::Serialize;
use zstd::stream::raw::{CParameter, Encoder as Zstd, InBuffer, Operation, OutBuffer};

use super::config::Compression;
use super::websocket::{Opcode, push_header, push_message};

/// Payload compression leaves small messages as text, as Discord does.
const PAYLOAD_COMPRESSION_MIN: usize = 1024;
/// Fewest spare bytes offered to a compressor.
const SPARE: usize = 4096;
/// First byte of a block of the reserved type, in deflate and in zstd alike: no decoder goes on.
const RESERVED_BLOCK: u8 = 0b110;
/// A bomb is compressed in pieces of this size.
const BOMB_PIECE: usize = 1 << 20;

/// `compress=` of the connection's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// No transport compression.
    None,
    /// One zlib stream per connection.
    ZlibStream,
    /// One zstd stream per connection.
    ZstdStream,
}

/// Writes messages of one connection.
pub(crate) struct Encoder {
    mode: Mode,
    settings: Compression,
    packed: Vec<u8>,
    /// Logical messages in `packed` that wait for company.
    waiting: usize,
}

enum Mode {
    Plain,
    Payload,
    Zlib(Box<Compress>),
    Zstd(Box<Zstd<'static>>),
}

impl Encoder {
    pub(crate) fn new(transport: Transport, settings: Compression) -> io::Result<Self> {
        let mode = match transport {
            Transport::None => Mode::Plain,
            Transport::ZlibStream => Mode::Zlib(Box::new(Compress::new(
                Level::new(settings.zlib_level),
                true,
            ))),
            Transport::ZstdStream => {
                let mut encoder = Zstd::new(settings.zstd_level)?;
                encoder.set_parameter(CParameter::WindowLog(settings.zstd_window_log))?;
                Mode::Zstd(Box::new(encoder))
            }
        };
        Ok(Self {
            mode,
            settings,
            packed: Vec::new(),
            waiting: 0,
        })
    }

    /// IDENTIFY's `compress`; ignored under a transport compression.
    pub(crate) fn enable_payload_compression(&mut self) {
        if matches!(self.mode, Mode::Plain) {
            self.mode = Mode::Payload;
        }
    }

    /// Appends one message.
    pub(crate) fn message(&mut self, json: &[u8], out: &mut Vec<u8>) {
        match &mut self.mode {
            Mode::Plain => push_message(out, Opcode::Text, json),
            Mode::Payload if json.len() < PAYLOAD_COMPRESSION_MIN => {
                push_message(out, Opcode::Text, json);
            }
            Mode::Payload => {
                self.packed.clear();
                let mut zlib = Compress::new(Level::new(self.settings.zlib_level), true);
                deflate(&mut zlib, json, FlushCompress::Finish, &mut self.packed);
                push_message(out, Opcode::Binary, &self.packed);
            }
            Mode::Zlib(zlib) => {
                let half = if self.settings.zlib_inner_suffix {
                    json.len() / 2
                } else {
                    0
                };
                if half > 0 {
                    deflate(zlib, &json[..half], FlushCompress::Sync, &mut self.packed);
                }
                deflate(zlib, &json[half..], FlushCompress::Sync, &mut self.packed);
                self.waiting += 1;
                if self.waiting >= self.settings.zlib_coalesce {
                    self.finish(out);
                }
            }
            Mode::Zstd(zstd) => {
                self.packed.clear();
                compress(zstd, json, true, &mut self.packed);
                push_message(out, Opcode::Binary, &self.packed);
            }
        }
    }

    /// Sends what waits for company.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        let piece = self.settings.zlib_split.unwrap_or(usize::MAX).max(1);
        for part in self.packed.chunks(piece) {
            push_message(out, Opcode::Binary, part);
        }
        self.packed.clear();
    }

    /// Appends a message that no decoder of this connection can read.
    pub(crate) fn corrupt(&mut self, out: &mut Vec<u8>) {
        self.finish(out);
        match &self.mode {
            Mode::Plain => push_message(out, Opcode::Text, b"\x06}corrupt{"),
            Mode::Payload => push_message(out, Opcode::Binary, b"\x06corrupt"),
            // The decoder stands at a block's beginning: the next byte is a block header.
            Mode::Zlib(_) | Mode::Zstd(_) => {
                push_message(
                    out,
                    Opcode::Binary,
                    &[RESERVED_BLOCK, 1, 2, 3, 0, 0, 0xff, 0xff],
                );
            }
        }
    }

    /// Appends a message as it stands, outside any compression.
    pub(crate) fn raw(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
        self.finish(out);
        push_message(out, opcode, payload);
    }

    /// Appends the first half of a message: the frame's header promises more than comes.
    pub(crate) fn truncated(&mut self, json: &[u8], out: &mut Vec<u8>) {
        self.finish(out);
        let mut whole = Vec::new();
        self.message(json, &mut whole);
        self.finish(&mut whole);
        out.extend_from_slice(&whole[..whole.len() / 2]);
    }

    /// Appends a small message that inflates to `bytes`; without compression it is that large.
    pub(crate) fn bomb(&mut self, bytes: usize, out: &mut Vec<u8>) {
        self.finish(out);
        let head = br#"{"t":null,"s":null,"op":11,"d":""#;
        let piece = vec![b' '; BOMB_PIECE];
        let pieces = bytes.div_ceil(BOMB_PIECE);
        self.packed.clear();
        match &mut self.mode {
            Mode::Plain | Mode::Payload => {
                push_header(
                    out,
                    Opcode::Text,
                    true,
                    head.len() + pieces * BOMB_PIECE + 2,
                );
                out.extend_from_slice(head);
                (0..pieces).for_each(|_| out.extend_from_slice(&piece));
                out.extend_from_slice(b"\"}");
            }
            Mode::Zlib(zlib) => {
                deflate(zlib, head, FlushCompress::None, &mut self.packed);
                for _ in 0..pieces {
                    deflate(zlib, &piece, FlushCompress::None, &mut self.packed);
                }
                deflate(zlib, b"\"}", FlushCompress::Sync, &mut self.packed);
                push_message(out, Opcode::Binary, &self.packed);
                self.packed.clear();
            }
            Mode::Zstd(zstd) => {
                compress(zstd, head, false, &mut self.packed);
                (0..pieces).for_each(|_| compress(zstd, &piece, false, &mut self.packed));
                compress(zstd, b"\"}", true, &mut self.packed);
                push_message(out, Opcode::Binary, &self.packed);
            }
        }
    }
}

/// Appends compressed input. A compressor in memory cannot fail.
fn deflate(zlib: &mut Compress, input: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
    let mut rest = input;
    loop {
        out.reserve(SPARE.max(rest.len() / 2));
        let before = zlib.total_in();
        zlib.compress_vec(rest, out, flush)
            .expect("deflate into memory");
        rest = &rest[(zlib.total_in() - before) as usize..];
        // Room left in the output means that everything is out.
        if rest.is_empty() && out.len() < out.capacity() {
            return;
        }
    }
}

/// Appends compressed input, flushed as a block where asked.
fn compress(zstd: &mut Zstd<'static>, input: &[u8], flush: bool, out: &mut Vec<u8>) {
    let mut input = InBuffer::around(input);
    while input.pos < input.src.len() {
        out.reserve(SPARE);
        let at = out.len();
        let mut room = OutBuffer::around_pos(out, at);
        zstd.run(&mut input, &mut room).expect("zstd into memory");
    }
    // What is left in the compressor; it only shrinks.
    let mut left = usize::from(flush);
    while left > 0 {
        out.reserve(SPARE);
        let at = out.len();
        let mut room = OutBuffer::around_pos(out, at);
        left = zstd.flush(&mut room).expect("zstd into memory");
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};
    use zstd::stream::raw::Decoder;

    use super::*;

    /// Payloads of the WebSocket messages in `bytes`.
    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, at) = match bytes[1] {
                126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
                127 => (
                    u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize,
                    10,
                ),
                short => (usize::from(short), 2),
            };
            found.push(bytes[at..at + length].to_vec());
            bytes = &bytes[at + length..];
        }
        found
    }

    fn inflate(zlib: &mut Decompress, input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(1 << 22);
        zlib.decompress_vec(input, &mut out, FlushDecompress::Sync)
            .ok()?;
        Some(out)
    }

    fn unzstd(zstd: &mut Decoder<'_>, input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(1 << 22);
        let mut input = InBuffer::around(input);
        while input.pos < input.src.len() {
            let at = out.len();
            zstd.run(&mut input, &mut OutBuffer::around_pos(&mut out, at))
                .ok()?;
        }
        Some(out)
    }

    fn messages() -> Vec<Vec<u8>> {
        (0..50)
            .map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}", "ab".repeat(n * n)).into())
            .collect()
    }

    #[test]
    fn zlib_stream_flushes_every_message() {
        let mut encoder = Encoder::new(Transport::ZlibStream, Compression::default()).unwrap();
        let mut zlib = Decompress::new(true);
        for message in messages() {
            let mut out = Vec::new();
            encoder.message(&message, &mut out);
            let payload = payloads(&out);
            assert_eq!(payload.len(), 1);
            assert!(payload[0].ends_with(&[0, 0, 0xff, 0xff]));
            assert_eq!(inflate(&mut zlib, &payload[0]).unwrap(), message);
        }
    }

    #[test]
    fn zlib_messages_can_be_split_joined_and_hold_the_suffix_inside() {
        let settings = Compression {
            zlib_split: Some(7),
            zlib_coalesce: 2,
            zlib_inner_suffix: true,
            ..Compression::default()
        };
        let mut encoder = Encoder::new(Transport::ZlibStream, settings).unwrap();
        let mut zlib = Decompress::new(true);
        let mut out = Vec::new();
        encoder.message(b"{\"first\":1}", &mut out);
        assert!(out.is_empty(), "waits for company");
        encoder.message(b"{\"second\":2}", &mut out);
        let parts = payloads(&out);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= 7));
        let whole = parts.concat();
        let suffixes = whole
            .windows(4)
            .filter(|w| *w == [0, 0, 0xff, 0xff])
            .count();
        assert_eq!(suffixes, 4);
        assert_eq!(
            inflate(&mut zlib, &whole).unwrap(),
            b"{\"first\":1}{\"second\":2}"
        );
    }

    #[test]
    fn zstd_stream_flushes_a_block_and_never_ends_its_frame() {
        let mut encoder = Encoder::new(Transport::ZstdStream, Compression::default()).unwrap();
        let mut zstd = Decoder::new().unwrap();
        for message in messages() {
            let mut out = Vec::new();
            encoder.message(&message, &mut out);
            let payload = payloads(&out);
            assert_eq!(unzstd(&mut zstd, &payload[0]).unwrap(), message);
        }
    }

    #[test]
    fn payload_compression_makes_independent_messages() {
        let mut encoder = Encoder::new(Transport::None, Compression::default()).unwrap();
        encoder.enable_payload_compression();
        let large = "x".repeat(5000).into_bytes();
        for _ in 0..2 {
            let mut out = Vec::new();
            encoder.message(&large, &mut out);
            assert_eq!(out[0], 0x82);
            let inflated = inflate(&mut Decompress::new(true), &payloads(&out)[0]).unwrap();
            assert_eq!(inflated, large);
        }
        let mut out = Vec::new();
        encoder.message(b"{}", &mut out);
        assert_eq!(out, [0x81, 2, b'{', b'}']);
    }

    #[test]
    fn corruption_is_always_noticed() {
        let mut encoder = Encoder::new(Transport::ZlibStream, Compression::default()).unwrap();
        let mut zlib = Decompress::new(true);
        let mut out = Vec::new();
        encoder.message(b"{\"a\":1}", &mut out);
        inflate(&mut zlib, &payloads(&out)[0]).unwrap();
        out.clear();
        encoder.corrupt(&mut out);
        assert!(inflate(&mut zlib, &payloads(&out)[0]).is_none());

        let mut encoder = Encoder::new(Transport::ZstdStream, Compression::default()).unwrap();
        let mut zstd = Decoder::new().unwrap();
        out.clear();
        encoder.message(b"{\"a\":1}", &mut out);
        unzstd(&mut zstd, &payloads(&out)[0]).unwrap();
        out.clear();
        encoder.corrupt(&mut out);
        assert!(unzstd(&mut zstd, &payloads(&out)[0]).is_none());
    }

    #[test]
    fn a_bomb_is_small_on_the_wire() {
        for transport in [Transport::ZlibStream, Transport::ZstdStream] {
            let mut encoder = Encoder::new(transport, Compression::default()).unwrap();
            let mut out = Vec::new();
            encoder.bomb(64 << 20, &mut out);
            assert!(out.len() < 1 << 20, "{transport:?}: {}", out.len());
        }
    }
}
