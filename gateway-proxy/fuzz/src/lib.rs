//! What every fuzz target does with its bytes. A panic is a finding.

use gateway_proxy::compression::{InflateError, Inflater, OutputBuffer};
use gateway_proxy_core::frame::{Frame, Frames, control};
use schemas::{MessageId, Prefix, Subject, subject};

/// Small, so that the fuzzer finds the limit.
const OUTPUT_MAX: usize = 1 << 16;

/// The frame view: what it accepts is JSON, is cut up consistently, and has a subject.
pub fn frame(data: &[u8]) {
    let parsed = Frame::parse(data);
    let all: Vec<_> = Frames::new(data).collect();
    let Ok(frame) = parsed else {
        assert!(
            all.len() != 1 || all[0].is_err(),
            "one frame for one reader, none for the other"
        );
        return;
    };
    assert_eq!(all, [Ok((data, frame.clone()))]);

    let again = [b"{\"op\":0,\"d\":", frame.data, b"}"].concat();
    let again = Frame::parse(&again).expect("`d` is JSON on its own");
    assert_eq!(again.data, frame.data);
    if let Err(error) = serde_json::from_slice::<serde_json::Value>(data) {
        // Numbers of any size and lone surrogates are in the grammar.
        let error = error.to_string();
        let limits = [
            "number out of range",
            "surrogate",
            "end of hex escape",
            "recursion limit",
        ];
        assert!(limits.iter().any(|limit| error.contains(limit)), "{error}");
    }

    let twice = [data, data].concat();
    assert_eq!(Frames::new(&twice).filter_map(Result::ok).count(), 2);

    let event = frame.event.as_deref().unwrap_or_default();
    check_subject(3, &frame, event);
    assert!(control::unavailable(frame.data).is_none() || frame.data[0] == b'{');
    assert_ne!(control::hello_interval(frame.data), Some(0));
    assert_eq!(
        control::invalid_session_resumable(frame.data),
        frame.data == b"true"
    );
    if let Ok(ready) = control::ready(frame.data) {
        assert!(!ready.session_id.is_empty());
        assert!(ready.guild_ids().len() <= ready.guilds);
    }
}

fn check_subject(shard: u32, frame: &Frame<'_>, event: &str) {
    let prefix = Prefix::default();
    let mut bytes = Vec::new();
    subject::push_event_subject(
        &mut bytes,
        &subject::event_root(&prefix, shard),
        frame.guild(),
        event,
    );
    let text = String::from_utf8(bytes).expect("a subject is ASCII");
    match Subject::parse(&prefix, &text) {
        Ok(Subject::Event {
            shard: 3, guild, ..
        }) => assert_eq!(guild, frame.guild()),
        other => panic!("{text} is read as {other:?}"),
    }
    let slow = Subject::Event {
        shard,
        guild: frame.guild(),
        event,
    };
    assert_eq!(slow.with_prefix(&prefix), text);
}

/// Subjects, prefixes and message ids: what is read is written the same way.
pub fn subjects(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let prefix: Prefix = match text.split_once('.').map(|(first, _)| first.parse()) {
        Some(Ok(prefix)) => prefix,
        _ => Prefix::default(),
    };
    if let Ok(subject) = Subject::parse(&prefix, &text) {
        assert_eq!(subject.with_prefix(&prefix), text);
    }
    let frame = Frame::parse(b"{\"op\":0}").expect("a frame");
    check_subject(3, &frame, &text);
    if let Ok(id) = MessageId::parse(&text) {
        let written = id.to_string();
        assert_eq!(MessageId::parse(&written), Ok(id));
    }
}

/// The zlib inflater over several messages.
pub fn inflate_zlib(data: &[u8]) {
    inflate(Inflater::zlib(), data);
}

/// The zstd inflater over several messages.
pub fn inflate_zstd(data: &[u8]) {
    inflate(Inflater::zstd().expect("memory for a context"), data);
}

/// The input is a list of messages, each behind its length in two bytes, little endian.
fn inflate(inflater: Inflater, mut data: &[u8]) {
    let mut inflater = inflater.with_output_max(OUTPUT_MAX);
    let mut output = OutputBuffer::new();
    let mut broken = false;
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        data = rest;
        match inflater.push(message, &mut output) {
            Ok(text) => {
                assert!(!broken && text.len() <= OUTPUT_MAX);
                Frames::new(text).for_each(drop);
            }
            Err(error) => {
                assert!(!broken || error == InflateError::Broken);
                broken = true;
            }
        }
        assert!(output.capacity() <= OUTPUT_MAX + 1);
    }
}
