//! Asking a port whether the expected server answers there, and JetStream with it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// A local server answers within microseconds; a clustered one may wait for its meta leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Longest answer that is read: INFO and the account's JetStream state are about 1 KB each.
const ANSWER_MAX: u64 = 64 * 1024;

/// What answers on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server of that name, and JetStream answers.
    Ready,
    /// The server of that name, which wants credentials or TLS before it says more.
    Guarded,
    /// The server of that name, but JetStream does not answer yet.
    NoJetStream,
    /// Another program.
    Stranger,
}

/// Connects to the port on 127.0.0.1 and asks.
pub(crate) fn ask(port: u16, server_name: &str) -> io::Result<Answer> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(ANSWER_MAX));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.contains(&format!("\"server_name\":\"{server_name}\"")) {
        return Ok(Answer::Stranger);
    }
    if line.contains("\"auth_required\":true") || line.contains("\"tls_required\":true") {
        return Ok(Answer::Guarded);
    }
    stream.write_all(
        b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n\
          SUB _INBOX.probe 1\r\nPUB $JS.API.INFO _INBOX.probe 0\r\n\r\n",
    )?;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(Answer::NoJetStream);
        }
        if line.starts_with("PING") {
            stream.write_all(b"PONG\r\n")?;
        } else if line.starts_with("MSG _INBOX.probe") {
            line.clear();
            reader.read_line(&mut line)?;
            // Without a meta leader a cluster answers with an error.
            let ready = line.contains("\"type\"") && !line.contains("\"error\"");
            return Ok(if ready {
                Answer::Ready
            } else {
                Answer::NoJetStream
            });
        } else if line.starts_with("HMSG") || line.starts_with("-ERR") {
            return Ok(Answer::NoJetStream);
        }
    }
}
