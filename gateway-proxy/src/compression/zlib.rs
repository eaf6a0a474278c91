//! `compress=zlib-stream`: one deflate stream per connection, flushed after each gateway message.

use std::mem;

use flate2::{Decompress, FlushDecompress, Status};

use super::{INPUT_MAX, InflateError, Sink};

/// What a flush ends with, and with it a WebSocket message that completes a gateway message.
const SUFFIX: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
const CODEC: &str = "zlib";

#[derive(Debug)]
pub(super) struct ZlibStream {
    inflate: Decompress,
    /// Compressed bytes of a message whose suffix has not come yet.
    pending: Vec<u8>,
    /// Inflated beginning of a message that a false suffix cut: its bytes may occur inside a
    /// message, and a WebSocket message may end just there.
    beginning: Vec<u8>,
}

impl ZlibStream {
    pub(super) fn new() -> Self {
        let inflate = Decompress::new(true);
        Self {
            inflate,
            pending: Vec::new(),
            beginning: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, input: &[u8], sink: &mut Sink<'_>) -> Result<(), InflateError> {
        if self.pending.is_empty() && input.ends_with(&SUFFIX) {
            return self.complete(input, sink);
        }
        if self.pending.len() + input.len() > INPUT_MAX {
            return Err(InflateError::InputTooLarge { limit: INPUT_MAX });
        }
        self.pending.extend_from_slice(input);
        if self.pending.ends_with(&SUFFIX) {
            // Given back: split messages are the large and rare ones.
            let pending = mem::take(&mut self.pending);
            return self.complete(&pending, sink);
        }
        Ok(())
    }

    fn complete(&mut self, input: &[u8], sink: &mut Sink<'_>) -> Result<(), InflateError> {
        if !self.beginning.is_empty() {
            sink.bytes.append(&mut mem::take(&mut self.beginning));
        }
        self.inflate(input, sink)?;
        // Every gateway message is an object.
        if sink
            .bytes
            .trim_ascii_end()
            .last()
            .is_some_and(|last| *last != b'}')
        {
            self.beginning.extend_from_slice(sink.bytes);
            sink.bytes.clear();
        }
        Ok(())
    }

    fn inflate(&mut self, mut input: &[u8], sink: &mut Sink<'_>) -> Result<(), InflateError> {
        let corrupt = |reason: String| InflateError::Corrupt {
            codec: CODEC,
            reason,
        };
        sink.expect(input.len())?;
        loop {
            let (read, length) = (self.inflate.total_in(), sink.bytes.len());
            let flush = FlushDecompress::Sync;
            let status = self.inflate.decompress_vec(input, sink.bytes, flush);
            let status = status.map_err(|error| corrupt(error.to_string()))?;
            let read = usize::try_from(self.inflate.total_in() - read).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            sink.check()?;
            match status {
                Status::StreamEnd => return Err(InflateError::Ended { codec: CODEC }),
                Status::Ok | Status::BufError if sink.is_full() => sink.grow()?,
                Status::Ok | Status::BufError if input.is_empty() => return Ok(()),
                Status::Ok | Status::BufError => {
                    if read == 0 && sink.bytes.len() == length {
                        return Err(corrupt("no progress".to_owned()));
                    }
                }
            }
        }
    }
}
