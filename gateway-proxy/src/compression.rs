//! Turns what arrives on a gateway connection into JSON text: one inflater per connection.
//!
//! Discord compresses a connection as one stream, so the state of an inflater spans its messages
//! and dies with the connection (Discord, Gateway, Transport Compression). What is produced goes
//! into an [`OutputBuffer`] that all connections of a thread share: an idle connection keeps the
//! codec's window and nothing else. Every buffer has a limit, checked before more memory is spent.

mod zlib;
mod zstd;

use self::zlib::ZlibStream;
use self::zstd::ZstdStream;

/// Largest message after decompression. Discord documents no limit; READY and GUILD_CREATE reach a
/// few MB, and anything near this is a decompression bomb.
pub const OUTPUT_MAX: usize = 64 << 20;
/// Most compressed bytes kept while a zlib message is incomplete.
pub const INPUT_MAX: usize = 16 << 20;
/// Capacity an [`OutputBuffer`] keeps when only small messages pass through it.
const KEEP: usize = 256 << 10;
/// Small messages in a row after which a large buffer is given back: not between the GUILD_CREATEs
/// of a start, but soon after them.
const QUIET_AFTER: u32 = 64;

/// The decompression of one connection.
#[derive(Debug)]
pub struct Inflater {
    codec: Codec,
    output_max: usize,
    /// After an error the stream's context is lost.
    broken: bool,
}

#[derive(Debug)]
enum Codec {
    None,
    Zlib(ZlibStream),
    Zstd(ZstdStream),
}

/// Why a message could not be decompressed. The connection must be closed (resumably): the stream
/// cannot be picked up again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// Not the codec's format, or damaged; also a zstd window above 8 MiB.
    #[error("corrupt {codec} stream: {reason}")]
    Corrupt {
        /// `zlib` or `zstd`.
        codec: &'static str,
        /// What the codec says.
        reason: String,
    },
    /// The message would grow above the limit.
    #[error("message is larger than {limit} bytes after decompression")]
    OutputTooLarge {
        /// The limit.
        limit: usize,
    },
    /// A zlib message does not end.
    #[error("no end of a zlib message within {limit} compressed bytes")]
    InputTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The peer ended a stream that lasts as long as the connection.
    #[error("the {codec} stream ended before the connection")]
    Ended {
        /// `zlib` or `zstd`.
        codec: &'static str,
    },
    /// The codec's memory could not be allocated.
    #[error("no memory for a {codec} context")]
    NoMemory {
        /// `zlib` or `zstd`.
        codec: &'static str,
    },
    /// Used again after an error.
    #[error("the stream was lost by an earlier error")]
    Broken,
}

impl Inflater {
    /// No compression: messages are passed through.
    #[must_use]
    pub const fn none() -> Self {
        Self::with(Codec::None)
    }

    /// `compress=zlib-stream`.
    #[must_use]
    pub fn zlib() -> Self {
        Self::with(Codec::Zlib(ZlibStream::new()))
    }

    /// `compress=zstd-stream`.
    ///
    /// # Errors
    /// [`InflateError::NoMemory`].
    pub fn zstd() -> Result<Self, InflateError> {
        Ok(Self::with(Codec::Zstd(ZstdStream::new()?)))
    }

    const fn with(codec: Codec) -> Self {
        Self {
            codec,
            output_max: OUTPUT_MAX,
            broken: false,
        }
    }

    /// Another limit than [`OUTPUT_MAX`].
    #[must_use]
    pub const fn with_output_max(mut self, bytes: usize) -> Self {
        self.output_max = bytes;
        self
    }

    /// Takes one WebSocket message and returns the JSON text that is complete with it.
    ///
    /// That is one gateway message in most cases. Empty: a zlib message goes on in the next
    /// WebSocket message. Several: one after the other without anything between them, for
    /// `gateway_proxy_core::frame::Frames` to take apart.
    ///
    /// # Errors
    /// [`InflateError`]; after it only [`InflateError::Broken`].
    pub fn push<'b>(
        &mut self,
        message: &'b [u8],
        output: &'b mut OutputBuffer,
    ) -> Result<&'b [u8], InflateError> {
        if self.broken {
            return Err(InflateError::Broken);
        }
        let mut sink = output.start(self.output_max);
        let inflated = match &mut self.codec {
            Codec::None if message.len() <= self.output_max => return Ok(message),
            Codec::None => Err(InflateError::OutputTooLarge {
                limit: self.output_max,
            }),
            Codec::Zlib(stream) => stream.push(message, &mut sink),
            Codec::Zstd(stream) => stream.push(message, &mut sink),
        };
        self.broken = inflated.is_err();
        inflated?;
        Ok(&output.bytes)
    }
}

/// Where messages are decompressed to; reused by every connection of a thread.
///
/// It grows with the largest message up to the limit, and shrinks by itself some messages after a
/// burst of large ones.
#[derive(Debug, Default)]
pub struct OutputBuffer {
    bytes: Vec<u8>,
    /// Messages since the last one above [`KEEP`].
    quiet: u32,
}

impl OutputBuffer {
    /// An empty buffer; memory is taken with the first message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            quiet: 0,
        }
    }

    /// Bytes held at the moment.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back what a burst left, for a thread that goes idle after a large message.
    pub fn release(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
    }

    fn start(&mut self, limit: usize) -> Sink<'_> {
        self.quiet = if self.bytes.len() > KEEP {
            0
        } else {
            self.quiet.saturating_add(1)
        };
        self.bytes.clear();
        if self.quiet >= QUIET_AFTER && self.bytes.capacity() > KEEP {
            self.bytes.shrink_to(KEEP);
        }
        Sink {
            bytes: &mut self.bytes,
            limit,
        }
    }
}

/// The output of one message: bytes that grow up to a limit.
#[derive(Debug)]
struct Sink<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
}

impl Sink<'_> {
    /// First growth: most messages fit.
    const STEP_MIN: usize = 4 << 10;
    /// JSON of the gateway compresses five to eightfold.
    const USUAL_RATIO: usize = 8;

    /// Makes room for what so many compressed bytes usually become.
    fn expect(&mut self, compressed: usize) -> Result<(), InflateError> {
        let expected = compressed
            .saturating_mul(Self::USUAL_RATIO)
            .max(Self::STEP_MIN);
        self.room(expected)
    }

    /// Makes room for as much again.
    fn grow(&mut self) -> Result<(), InflateError> {
        self.room(self.bytes.len().max(Self::STEP_MIN))
    }

    /// At least one byte, and one byte beyond the limit at most: filling it proves the excess.
    fn room(&mut self, wanted: usize) -> Result<(), InflateError> {
        self.check()?;
        let most = self.limit - self.bytes.len() + 1;
        self.bytes.reserve_exact(wanted.min(most));
        Ok(())
    }

    fn check(&self) -> Result<(), InflateError> {
        if self.bytes.len() > self.limit {
            return Err(InflateError::OutputTooLarge { limit: self.limit });
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes.len() == self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests;
