//! One connection for the commands: its buffers, and what the server's bytes say.

use std::time::Instant;

use schemas::GatewayCommand;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::outage::{Pulse, Refusals};
use crate::wire::connection::{Connection, Stream};
use crate::wire::{self, Message, ServerOp, WireError};

/// Bytes read at once.
const READ_CHUNK: usize = 16 * 1024;
/// Largest request that is read, with its headers; of a larger one only the first line is. Four times
/// what Discord takes, so that the shard can say by how much a payload is too large.
pub(super) const REQUEST_MAX: usize = 4 * GatewayCommand::MAX_BYTES;
/// An answer as it is written: `PUB <inbox> <bytes>\r\n<answer>\r\n`.
pub(super) type Answer = Box<[u8]>;
/// Bytes prepared before they are written.
pub(super) const WRITE_BURST: usize = 32 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("connection to NATS lost: {0}")]
    Io(#[from] std::io::Error),
    #[error("NATS closed the connection")]
    Closed,
    #[error("{0}")]
    Protocol(#[from] WireError),
    #[error("NATS says: {0}")]
    Server(String),
    #[error("NATS did not answer a PING")]
    Silent,
    #[error("the NATS server is about to shut down")]
    LameDuck,
}

/// What the server sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    Request(Message<'a>),
    /// One above [`REQUEST_MAX`]: its payload is skipped.
    TooLarge {
        message: Message<'a>,
        bytes: usize,
    },
    Ping,
    LameDuck,
    Error(&'a str),
}

/// Bytes of the server that are not understood yet: at most one request, or the longest line, and one
/// read.
#[derive(Debug, Default)]
pub(super) struct Feed {
    bytes: Vec<u8>,
    // Of a request that is too large.
    skip: usize,
}

impl Feed {
    /// Yields what is there in whole.
    pub(super) fn take(&mut self, mut each: impl FnMut(Incoming<'_>)) -> Result<(), WireError> {
        let mut used = 0;
        loop {
            let skipped = self.skip.min(self.bytes.len() - used);
            used += skipped;
            self.skip -= skipped;
            let Some((op, length)) = wire::parse_up_to(&self.bytes[used..], REQUEST_MAX)? else {
                break;
            };
            used += length;
            match op {
                ServerOp::Message(message) => each(Incoming::Request(message)),
                ServerOp::Oversized { message, bytes } => {
                    // The line end that follows goes too.
                    self.skip = bytes.saturating_add(2);
                    each(Incoming::TooLarge { message, bytes });
                }
                ServerOp::Ping => each(Incoming::Ping),
                ServerOp::Info(info) if info.ldm => each(Incoming::LameDuck),
                ServerOp::Err(text) => each(Incoming::Error(text)),
                ServerOp::Info(_) | ServerOp::Pong | ServerOp::Ok => {}
            }
        }
        self.bytes.drain(..used);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(READ_CHUNK);
        }
        Ok(())
    }

    /// Waits for more; 0 at the end of the stream. Nothing is lost if the wait is given up.
    pub(super) async fn read(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> std::io::Result<usize> {
        self.bytes.reserve(READ_CHUNK);
        reader.read_buf(&mut self.bytes).await
    }
}

/// One connection.
pub(super) struct Link {
    pub(super) reader: ReadHalf<Box<dyn Stream>>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    pub(super) feed: Feed,
    pub(super) output: Output,
    pub(super) pulse: Pulse,
    pub(super) refusals: Refusals,
}

impl Link {
    pub(super) fn new(connection: Connection, now: Instant) -> Self {
        Self {
            reader: connection.reader,
            writer: connection.writer,
            feed: Feed {
                bytes: connection.leftover,
                skip: 0,
            },
            output: Output::new(connection.encrypted),
            pulse: Pulse::new(now),
            refusals: Refusals::default(),
        }
    }

    /// The next moment something is due without anything coming in.
    pub(super) fn poll_timeout(&self) -> Instant {
        let pulse = self.pulse.poll_timeout();
        let retry = self.refusals.poll_timeout();
        retry.map_or(pulse, |at| at.min(pulse))
    }
}

/// What is being written: whole lines, and the answers among them once more, in case the connection
/// breaks before they are out.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    answers: Vec<Answer>,
    // The first `written` bytes are on their way.
    written: usize,
    unflushed: bool,
    // Writes may stay behind until flushed.
    encrypted: bool,
}

impl Output {
    fn new(encrypted: bool) -> Self {
        Self {
            encrypted,
            ..Self::default()
        }
    }

    pub(super) fn push_answer(&mut self, answer: Answer) {
        self.bytes.extend_from_slice(&answer);
        self.answers.push(answer);
    }

    /// Whether there is something to write.
    pub(super) const fn is_pending(&self) -> bool {
        self.written < self.bytes.len() || self.unflushed
    }

    /// The answers that may not have gone out.
    pub(super) fn into_answers(self) -> Vec<Answer> {
        self.answers
    }

    /// Writes what it can, or flushes what is written. Nothing is lost if the wait is given up.
    pub(super) async fn write(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), End> {
        if self.written < self.bytes.len() {
            let count = writer.write(&self.bytes[self.written..]).await?;
            if count == 0 {
                return Err(End::Closed);
            }
            self.written += count;
            self.unflushed = self.encrypted;
        } else {
            writer.flush().await?;
            self.unflushed = false;
        }
        if !self.is_pending() {
            self.written = 0;
            self.bytes.clear();
            self.bytes.shrink_to(WRITE_BURST);
            self.answers = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a feed makes of these bytes, given piece by piece.
    fn said(bytes: &[u8], piece: usize) -> Vec<String> {
        let mut feed = Feed::default();
        let mut said = Vec::new();
        for piece in bytes.chunks(piece) {
            feed.bytes.extend_from_slice(piece);
            let each = |incoming: Incoming<'_>| {
                said.push(match incoming {
                    Incoming::Request(message) => {
                        format!("{} {}", message.sid, message.payload.len())
                    }
                    Incoming::TooLarge { message, bytes } => {
                        format!("{} above by {bytes}", message.sid)
                    }
                    other => format!("{other:?}"),
                });
            };
            feed.take(each).unwrap();
            assert!(feed.bytes.len() <= REQUEST_MAX + 100);
        }
        assert!(feed.bytes.is_empty());
        said
    }

    #[test]
    fn a_request_that_is_too_large_is_skipped_and_the_next_is_read() {
        let large = "x".repeat(5 * REQUEST_MAX);
        let header = "NATS/1.0\r\nA: b\r\n\r\n";
        let (length, whole) = (large.len(), header.len() + 2);
        let text = format!(
            "MSG a 7 r {length}\r\n{large}\r\nHMSG a 8 r {} {whole}\r\n{header}{{}}\r\nPING\r\n\
             PONG\r\n+OK\r\nINFO {{\"ldm\":true}}\r\n-ERR 'Stale Connection'\r\n",
            header.len(),
        );
        let expected = [
            format!("7 above by {length}"),
            "8 2".to_owned(),
            "Ping".to_owned(),
            "LameDuck".to_owned(),
            "Error(\"Stale Connection\")".to_owned(),
        ];
        for piece in [1, 7, 1000, text.len()] {
            assert_eq!(said(text.as_bytes(), piece), expected, "{piece}");
        }
    }

    #[tokio::test]
    async fn answers_are_kept_until_all_is_written() {
        for encrypted in [false, true] {
            let (mut near, mut far) = tokio::io::duplex(4);
            let mut output = Output::new(encrypted);
            output.push_answer(b"PUB a 1\r\nx\r\n"[..].into());
            output.write(&mut near).await.unwrap();
            assert!(output.is_pending());
            assert_eq!(output.answers.len(), 1);
            let rest = async {
                while output.is_pending() {
                    output.write(&mut near).await.unwrap();
                }
            };
            let mut seen = [0; 12];
            let (read, ()) = tokio::join!(far.read_exact(&mut seen), rest);
            read.unwrap();
            assert_eq!(&seen, b"PUB a 1\r\nx\r\n");
            assert!(output.into_answers().is_empty());
        }
    }
}
