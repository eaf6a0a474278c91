use super::*;

const LIMIT: usize = 1 << 20;

/// A frame as a server sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..126 => out.push(len as u8),
        len @ 126..65_536 => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// All that the bytes hold, with the messages' payloads; fed in pieces as `piece` says, as a socket does.
fn read_all(
    bytes: &[u8],
    mut piece: impl FnMut() -> usize,
) -> Result<Vec<(Incoming, Vec<u8>)>, FramingError> {
    let mut reader = Reader::new(LIMIT, Vec::new());
    let (mut rest, mut all) = (bytes, Vec::new());
    loop {
        while let Some(incoming) = reader.next()? {
            let payload = match incoming {
                Incoming::Text | Incoming::Binary => reader.message().to_vec(),
                _ => Vec::new(),
            };
            all.push((incoming, payload));
        }
        if rest.is_empty() {
            return Ok(all);
        }
        if piece().is_multiple_of(3) {
            reader.settle();
        }
        let space = reader.space();
        let count = piece().clamp(1, rest.len()).min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        reader.filled(count);
        rest = &rest[count..];
    }
}

/// Messages of all lengths and kinds, and what they are.
fn conversation() -> (Vec<u8>, Vec<(Incoming, Vec<u8>)>) {
    let mut bytes = Vec::new();
    let mut expect = Vec::new();
    for len in [
        0,
        1,
        125,
        126,
        127,
        300,
        65_535,
        65_536,
        200_000,
        5,
        CHUNK,
        CHUNK - 4,
    ] {
        let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
        bytes.extend(frame(0x82, &payload));
        expect.push((Incoming::Binary, payload));
    }
    bytes.extend(frame(0x01, b"{\"op\""));
    bytes.extend(frame(0x89, b"p"));
    bytes.extend(frame(0x00, b":"));
    bytes.extend(frame(0x8a, b""));
    bytes.extend(frame(0x80, b"11}"));
    expect.push((Incoming::Ping(b"p".to_vec()), Vec::new()));
    expect.push((Incoming::Pong, Vec::new()));
    expect.push((Incoming::Text, b"{\"op\":11}".to_vec()));
    bytes.extend(frame(0x82, b"x"));
    expect.push((Incoming::Binary, b"x".to_vec()));
    bytes.extend(frame(0x88, b"\x0f\xa4over"));
    expect.push((Incoming::Close(Some((4004, "over".to_owned()))), Vec::new()));
    (bytes, expect)
}

#[test]
fn messages_come_whole_whatever_the_chunks() {
    let (bytes, expect) = conversation();
    assert_eq!(read_all(&bytes, || usize::MAX).unwrap(), expect);
    let mut rng = fastrand::Rng::with_seed(1);
    for most in [3, 200, 5_000, 100_000] {
        let all = read_all(&bytes, || rng.usize(1..most)).unwrap();
        assert!(all == expect, "in pieces of up to {most} bytes");
    }
}

#[test]
fn a_connection_that_waits_holds_no_buffer() {
    let mut reader = Reader::new(LIMIT, Vec::new());
    for payload in [&b"abc"[..], &vec![1; 200_000]] {
        let bytes = frame(0x82, payload);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let space = reader.space();
            let count = rest.len().min(space.len()).min(1_000);
            space[..count].copy_from_slice(&rest[..count]);
            reader.filled(count);
            rest = &rest[count..];
            if reader.next().unwrap().is_some() {
                assert_eq!(reader.message(), payload);
            }
            reader.settle();
            assert!(reader.bytes.capacity() <= 4 * payload.len());
        }
        assert_eq!(reader.bytes.capacity(), 0);
    }
    // The beginning of a message is all that is kept of it.
    reader.space()[..3].copy_from_slice(&[0x82, 100, 1]);
    reader.filled(3);
    assert_eq!(reader.next(), Ok(None));
    reader.settle();
    assert_eq!(reader.bytes, [0x82, 100, 1]);
}

#[test]
fn what_came_with_the_handshake_is_read_first() {
    let mut bytes = frame(0x82, b"hello");
    bytes.extend(&frame(0x82, b"again")[..4]);
    let mut reader = Reader::new(LIMIT, bytes);
    assert_eq!(reader.next(), Ok(Some(Incoming::Binary)));
    assert_eq!(reader.message(), b"hello");
    assert_eq!(reader.next(), Ok(None));
    reader.space()[..3].copy_from_slice(b"ain");
    reader.filled(3);
    assert_eq!(reader.next(), Ok(Some(Incoming::Binary)));
    assert_eq!(reader.message(), b"again");
}

#[test]
fn what_no_server_sends_is_refused() {
    let refuse = |bytes: &[u8], why: FramingError| {
        assert_eq!(read_all(bytes, || 1), Err(why), "{bytes:x?}");
    };
    refuse(&[0x82, 0x81, 0, 0, 0, 0, 1], FramingError::Masked);
    refuse(&frame(0xc2, b"x"), FramingError::Reserved);
    refuse(&frame(0x83, b"x"), FramingError::Reserved);
    refuse(&frame(0x09, b"x"), FramingError::Control);
    refuse(&frame(0x89, &[0; 126]), FramingError::Control);
    refuse(&frame(0x80, b"x"), FramingError::Fragments);
    let nested = [frame(0x02, b"x"), frame(0x82, b"y")].concat();
    refuse(&nested, FramingError::Fragments);
}

#[test]
fn a_message_above_the_limit_is_refused_by_its_head() {
    let mut head = vec![0x82, 127];
    head.extend_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(read_all(&head, || 1), Err(FramingError::TooLarge(u64::MAX)));
    let half = vec![0; LIMIT / 2 + 1];
    let both = [frame(0x02, &half), frame(0x80, &half)].concat();
    let whole = 2 * half.len() as u64;
    assert_eq!(read_all(&both, || 4096), Err(FramingError::TooLarge(whole)));
}

#[test]
fn arbitrary_bytes_never_panic() {
    let (bytes, _) = conversation();
    let mut rng = fastrand::Rng::with_seed(2);
    for _ in 0..3_000 {
        let start = rng.usize(..bytes.len());
        let mut bytes = bytes[start..].to_vec();
        bytes.truncate(rng.usize(..20_000));
        for _ in 0..rng.usize(..4).min(bytes.len()) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        drop(read_all(&bytes, || rng.usize(1..3_000)));
    }
}

#[test]
fn what_we_send_is_masked_and_has_the_length_it_states() {
    let mask = [1, 2, 3, 4];
    let mut out = Vec::new();
    push_text(&mut out, "abcde", mask);
    assert_eq!(out[..6], [0x81, 0x85, 1, 2, 3, 4]);
    assert_eq!(out[6..], [b'a' ^ 1, b'b' ^ 2, b'c' ^ 3, b'd' ^ 4, b'e' ^ 1]);
    out.clear();
    push_text(&mut out, &"x".repeat(300), mask);
    assert_eq!(out[..4], [0x81, 0x80 | 126, 1, 44]);
    assert_eq!(out.len(), 8 + 300);
    out.clear();
    push_text(&mut out, &"x".repeat(70_000), mask);
    assert_eq!(out[..10], [0x81, 0x80 | 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
    out.clear();
    push_close(&mut out, Some(4000), mask);
    assert_eq!(out, [0x88, 0x82, 1, 2, 3, 4, 0x0f ^ 1, 0xa0 ^ 2]);
    out.clear();
    push_pong(&mut out, b"z", mask);
    assert_eq!(out, [0x8a, 0x81, 1, 2, 3, 4, b'z' ^ 1]);
}
