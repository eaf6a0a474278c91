use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A server that upgrades any request and goes on with `then`.
async fn server<F: Future<Output = ()> + Send>(
    then: impl FnOnce(TcpStream, String) -> F + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let (_, key) = fields
            .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
            .unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        then(stream, answer).await;
    });
    url
}

async fn receive(socket: &mut Socket) -> Received {
    poll_fn(|context| socket.poll_receive(context)).await
}

#[tokio::test]
async fn a_message_that_comes_with_the_upgrade_is_not_lost() {
    let url = server(|mut stream, answer| async move {
        let mut bytes = answer.into_bytes();
        bytes.extend_from_slice(b"\x82\x05hello\x82\x03");
        stream.write_all(&bytes).await.unwrap();
        stream.write_all(b"you").await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    let mut socket = Dialer::new(Compression::Zstd).dial(&url).await.unwrap();
    for expect in [&b"hello"[..], b"you"] {
        assert!(matches!(receive(&mut socket).await, Received::Binary));
        assert_eq!(socket.message(), expect);
    }
    assert!(matches!(
        receive(&mut socket).await,
        Received::Closed { code: None, .. }
    ));
}

#[tokio::test]
async fn a_ping_is_answered_and_a_close_told_with_its_code() {
    let url = server(|mut stream, answer| async move {
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(b"\x89\x02ab").await.unwrap();
        let mut pong = [0; 8];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong[..2], [0x8a, 0x82]);
        let answered: Vec<u8> = (6..8).map(|at| pong[at] ^ pong[at - 4]).collect();
        assert_eq!(answered, b"ab");
        stream.write_all(b"\x88\x06\x0f\xa4over").await.unwrap();
        let mut close = [0; 8];
        stream.read_exact(&mut close).await.unwrap();
        assert_eq!(close[0], 0x88);
    })
    .await;
    let mut socket = Dialer::new(Compression::Zlib).dial(&url).await.unwrap();
    let Received::Closed { code, reason } = receive(&mut socket).await else {
        panic!("not closed");
    };
    assert_eq!((code, reason.as_str()), (Some(4004), "over"));
}

#[tokio::test]
async fn a_payload_arrives_as_text() {
    let (told, mut hears) = tokio::sync::mpsc::channel(1);
    let url = server(|mut stream, answer| async move {
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut frame = [0; 10];
        stream.read_exact(&mut frame).await.unwrap();
        told.send(frame).await.unwrap();
    })
    .await;
    let mut socket = Dialer::new(Compression::None).dial(&url).await.unwrap();
    socket.send("{op}".to_owned()).await.unwrap();
    let frame = hears.recv().await.unwrap();
    assert_eq!(frame[..2], [0x81, 0x84]);
    let text: Vec<u8> = (6..10).map(|at| frame[at] ^ frame[at - 4]).collect();
    assert_eq!(text, b"{op}");
}

#[tokio::test]
async fn an_answer_that_is_no_upgrade_is_an_error_that_says_so() {
    let url = server(|mut stream, _| async move {
        let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let error = Dialer::new(Compression::None).dial(&url).await.unwrap_err();
    let DialError::WebSocket { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(source.to_string().contains("403"), "{error}");
}
