//! `compress=zstd-stream`: one zstd frame per connection that never ends, its block flushed after
//! each gateway message, so that one WebSocket message is one gateway message.

use std::fmt;

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{InflateError, Sink};

/// Largest window the peer may ask for: 2^23 bytes, what RFC 8878 recommends to support. Discord's
/// is 2^18. It is the memory one connection costs.
const WINDOW_LOG_MAX: u32 = 23;
const CODEC: &str = "zstd";

pub(super) struct ZstdStream {
    context: DCtx<'static>,
}

impl ZstdStream {
    pub(super) fn new() -> Result<Self, InflateError> {
        let mut context = DCtx::try_create().ok_or(InflateError::NoMemory { codec: CODEC })?;
        context
            .reset(ResetDirective::SessionAndParameters)
            .map_err(corrupt)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(corrupt)?;
        Ok(Self { context })
    }

    pub(super) fn push(&mut self, input: &[u8], sink: &mut Sink<'_>) -> Result<(), InflateError> {
        let mut input = InBuffer::around(input);
        sink.expect(input.src.len())?;
        loop {
            let (read, length) = (input.pos, sink.bytes.len());
            let mut output = OutBuffer::around_pos(sink.bytes, length);
            self.context
                .decompress_stream(&mut output, &mut input)
                .map_err(corrupt)?;
            sink.check()?;
            if sink.is_full() {
                sink.grow()?;
            } else if input.pos == input.src.len() {
                // Room was left: nothing is held back.
                return Ok(());
            } else if input.pos == read && sink.bytes.len() == length {
                return Err(InflateError::Corrupt {
                    codec: CODEC,
                    reason: "no progress".into(),
                });
            }
        }
    }
}

impl fmt::Debug for ZstdStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdStream").finish_non_exhaustive()
    }
}

fn corrupt(code: usize) -> InflateError {
    InflateError::Corrupt {
        codec: CODEC,
        reason: get_error_name(code).to_owned(),
    }
}
