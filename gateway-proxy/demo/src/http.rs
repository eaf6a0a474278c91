//! A GET on loopback: the demo looks at its parts through the endpoints that everybody has.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A process that answers slower is shown as not answering.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// 256 shards at ~400 bytes are 0.1 MB.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// Status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let asked = timeout(ANSWER_WITHIN, ask(address, path)).await;
    asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection, in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_MAX_BYTES)
        .read_to_end(&mut answer)
        .await?;
    parse(answer).ok_or_else(|| io::Error::other("no HTTP answer"))
}

fn parse(mut answer: Vec<u8>) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = b"HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\n{}\r\n\r\n".to_vec();
        assert_eq!(parse(answer), Some((503, b"{}\r\n\r\n".to_vec())));
        assert_eq!(parse(b"SSH-2.0\r\n".to_vec()), None);
    }
}
