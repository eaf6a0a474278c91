//! The upgrade to a WebSocket, by tungstenite, on a stream that gives it the answer's head and nothing
//! of what follows: a server may send its first message with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, error::ProtocolError};

/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";
const READ_CHUNK: usize = 1024;

/// Asks for the upgrade; returns what the server sent after its answer.
pub(super) async fn upgrade<S>(request: Request, stream: &mut S) -> Result<Vec<u8>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = HeadOf {
        stream,
        read: Vec::new(),
        given: 0,
        end: None,
    };
    let upgraded = tokio_tungstenite::client_async(request, &mut head).await?;
    drop(upgraded);
    let Some(end) = head.end else {
        return Err(Error::Protocol(ProtocolError::HandshakeIncomplete));
    };
    Ok(head.read.split_off(end))
}

/// Reads up to the end of an HTTP head, and keeps what came with it.
struct HeadOf<'a, S> {
    stream: &'a mut S,
    read: Vec<u8>,
    given: usize,
    // Where the head ends in `read`.
    end: Option<usize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadOf<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.given == this.end.unwrap_or(this.read.len()) {
            if this.end.is_some() || this.read.len() > HEAD_MAX {
                // Nothing more to give.
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; READ_CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *this.stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            // The end may lie across two reads.
            let from = this.read.len().saturating_sub(HEAD_END.len() - 1);
            this.read.extend_from_slice(chunk.filled());
            let mut windows = this.read[from..].windows(HEAD_END.len());
            let found = windows.position(|window| window == HEAD_END);
            this.end = found.map(|at| from + at + HEAD_END.len());
        }
        let end = this.end.unwrap_or(this.read.len());
        let count = buffer.remaining().min(end - this.given);
        buffer.put_slice(&this.read[this.given..this.given + count]);
        this.given += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadOf<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
