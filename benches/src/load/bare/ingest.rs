//! Fast ingest (ADR-50) over a blocking socket, and nothing else: the least a client can spend.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gateway_proxy_core::ingest::{FLOW, Reply};
use schemas::subject::push_decimal;

/// Bytes per write.
const WRITE_BYTES: usize = 64 * 1024;
/// What is assumed of the flow until the server says more.
const FLOW_UNKNOWN: u64 = 32;
/// Acknowledgements outstanding at most (ADR-50).
const OUTSTANDING: u64 = 3;
/// A server that is silent for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct FastIngest {
    socket: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    // `_INBOX.<connection>`, and the same with `.<batch>.<flow>.fail.`
    inbox: String,
    reply: String,
    sent: u64,
    acked: u64,
    flow: u64,
    done: bool,
}

impl FastIngest {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).context("connect to NATS")?;
        socket.set_nodelay(true).context("set TCP_NODELAY")?;
        socket
            .set_read_timeout(Some(PATIENCE))
            .context("set a timeout")?;
        let id = std::process::id();
        let mut ingest = Self {
            socket,
            out: Vec::with_capacity(2 * WRITE_BYTES),
            input: Vec::new(),
            inbox: format!("_INBOX.bare{id}"),
            reply: format!("_INBOX.bare{id}.bare{id}-1.{FLOW}.fail."),
            sent: 0,
            acked: 0,
            flow: FLOW_UNKNOWN,
            done: false,
        };
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\
             \"no_responders\":true,\"lang\":\"bench\",\"version\":\"0\",\"protocol\":1}}\r\n\
             SUB _INBOX.bare{id}.> 1\r\nPING\r\n"
        );
        ingest.out.extend_from_slice(hello.as_bytes());
        ingest.flush()?;
        while !ingest.input.windows(6).any(|bytes| bytes == b"PONG\r\n") {
            ingest.read()?;
        }
        ingest.take_replies()?;
        Ok(ingest)
    }

    /// One message; the last of all commits the batch.
    pub(crate) fn publish(
        &mut self,
        subject: &[u8],
        id: (&str, u64),
        payload: &[u8],
        last: bool,
    ) -> Result<()> {
        const HEAD: &[u8] = b"NATS/1.0\r\nNats-Msg-Id: ";
        const END: &[u8] = b"\r\n\r\n";
        self.sent += 1;
        let mut seq = Vec::with_capacity(20);
        push_decimal(&mut seq, id.1);
        let header_len = HEAD.len() + id.0.len() + 1 + seq.len() + END.len();
        let operation = match (last, self.sent) {
            (true, _) => b'2',
            (false, 1) => b'0',
            (false, _) => b'1',
        };
        let out = &mut self.out;
        out.extend_from_slice(b"HPUB ");
        out.extend_from_slice(subject);
        out.push(b' ');
        out.extend_from_slice(self.reply.as_bytes());
        push_decimal(out, self.sent);
        out.extend_from_slice(&[b'.', operation]);
        out.extend_from_slice(b".$FI ");
        push_decimal(out, header_len as u64);
        out.push(b' ');
        push_decimal(out, (header_len + payload.len()) as u64);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(HEAD);
        out.extend_from_slice(id.0.as_bytes());
        out.push(b':');
        out.extend_from_slice(&seq);
        out.extend_from_slice(END);
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        if self.out.len() >= WRITE_BYTES || last {
            self.flush()?;
        }
        while self.sent - self.acked >= self.flow * OUTSTANDING && !last {
            self.flush()?;
            self.read()?;
            self.take_replies()?;
        }
        Ok(())
    }

    /// One message, published like any other and written at once. Its answer is for
    /// [`FastIngest::ignore_answers`].
    pub(super) fn publish_alone(
        &mut self,
        subject: &[u8],
        id: (&str, u64),
        payload: &[u8],
    ) -> Result<()> {
        self.sent += 1;
        let headers = format!("NATS/1.0\r\nNats-Msg-Id: {}:{}\r\n\r\n", id.0, id.1);
        let out = &mut self.out;
        out.extend_from_slice(b"HPUB ");
        out.extend_from_slice(subject);
        let (inbox, total) = (&self.inbox, headers.len() + payload.len());
        let rest = format!(" {inbox}.{} {} {total}\r\n", self.sent, headers.len());
        out.extend_from_slice(rest.as_bytes());
        out.extend_from_slice(headers.as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        self.flush()
    }

    /// Reads the answers in a thread of its own; what is stored is counted in the stream.
    pub(super) fn ignore_answers(&self) -> Result<()> {
        let mut socket = self.socket.try_clone().context("share the socket")?;
        socket
            .set_read_timeout(None)
            .context("take the timeout back")?;
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while socket.read(&mut chunk).is_ok_and(|read| read > 0) {}
        });
        Ok(())
    }

    /// Waits until everything is stored.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.flush()?;
        while !self.done {
            self.read()?;
            self.take_replies()?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.out).context("write to NATS")?;
        self.out.clear();
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        match self.socket.read(&mut chunk).context("read from NATS")? {
            0 => bail!("NATS closed the connection"),
            read => self.input.extend_from_slice(&chunk[..read]),
        }
        Ok(())
    }

    /// Takes every complete operation of the server.
    fn take_replies(&mut self) -> Result<()> {
        let mut used = 0;
        loop {
            let rest = &self.input[used..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                break;
            };
            let line = std::str::from_utf8(&rest[..end])
                .context("an operation of NATS")?
                .trim();
            let mut words = line.split(' ');
            let body = match words.next().unwrap_or_default() {
                "MSG" => words
                    .next_back()
                    .and_then(|word| word.parse::<usize>().ok()),
                "PING" => {
                    self.out.extend_from_slice(b"PONG\r\n");
                    None
                }
                "HMSG" | "-ERR" => bail!("NATS says {line}"),
                _ => None,
            };
            let start = end + 1;
            let Some(len) = body else {
                used += start;
                continue;
            };
            let Some(payload) = rest.get(start..start + len) else {
                break;
            };
            if rest.len() < start + len + 2 {
                break;
            }
            match Reply::parse(payload, false).context("an acknowledgement")? {
                Reply::Flow { seq, messages } => {
                    self.acked = seq;
                    self.flow = u64::from(messages).max(1);
                }
                Reply::Done { count, .. } if count == self.sent => self.done = true,
                other => bail!("NATS answers {other:?} after {} messages", self.sent),
            }
            used += start + len + 2;
        }
        self.input.drain(..used);
        Ok(())
    }
}
