//! The frame view against hand-written shapes, and against a naive reference that builds the whole
//! JSON value.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Real shapes of every documented event that fits, and of the other opcodes.
const FIXTURES: &str = include_str!("../../tests/fixtures/frames.ndjson");

fn guild_of(frame: &str) -> Option<u64> {
    Frame::parse(frame.as_bytes())
        .unwrap_or_else(|e| panic!("{frame}: {e:?}"))
        .guild()
        .map(GuildId::get)
}

fn error_of(frame: &str) -> FrameError {
    Frame::parse(frame.as_bytes()).expect_err(frame)
}

/// `op`, `s`, `t` and the guild.
type Read = (u64, Option<u64>, Option<String>, Option<u64>);

/// What a program says that builds the whole value. `None` where `parse` must fail.
fn reference(bytes: &[u8]) -> Option<Read> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let frame = value.as_object()?;
    let op = frame.get("op")?.as_u64()?;
    let seq = match frame.get("s") {
        None | Some(Value::Null) => None,
        Some(seq) => Some(seq.as_u64()?),
    };
    let event = match frame.get("t") {
        None | Some(Value::Null) => (op == 0).then(String::new),
        Some(event) => Some(event.as_str()?.to_owned()),
    };
    let key = match event.as_deref() {
        Some("GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE") => "id",
        _ => "guild_id",
    };
    let guild = match frame.get("d").and_then(|d| d.get(key)) {
        Some(Value::String(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok()
        }
        Some(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    Some((op, seq, event, guild.filter(|id| *id != 0)))
}

/// The reference refuses some texts that the grammar allows; about those it has nothing to say.
fn is_beyond_reference(bytes: &[u8]) -> bool {
    let error = serde_json::from_slice::<Value>(bytes)
        .err()
        .map(|error| error.to_string());
    let limits = [
        "number out of range",
        "surrogate",
        "end of hex escape",
        "recursion limit",
    ];
    error.is_some_and(|error| limits.iter().any(|limit| error.contains(limit)))
}

fn check_against_reference(bytes: &[u8]) {
    if is_beyond_reference(bytes) {
        return;
    }
    let text = String::from_utf8_lossy(bytes);
    match (Frame::parse(bytes), reference(bytes)) {
        (Ok(frame), Some(expected)) => {
            let guild = frame.guild().map(GuildId::get);
            let event = frame.event.map(Cow::into_owned);
            assert_eq!((frame.op, frame.seq, event, guild), expected, "{text}");
            let data: Value = serde_json::from_slice(frame.data).unwrap();
            let whole: Value = serde_json::from_slice(bytes).unwrap();
            assert_eq!(Some(&data), whole.get("d").or(Some(&Value::Null)), "{text}");
        }
        (Err(_), None) => {}
        (frame, expected) => panic!("{text}\n{frame:?}\n{expected:?}"),
    }
}

#[test]
fn every_fixture_is_read_as_the_reference_reads_it() {
    let mut guilds = 0;
    for line in FIXTURES.lines() {
        check_against_reference(line.as_bytes());
        let frame = Frame::parse(line.as_bytes()).unwrap();
        guilds += usize::from(frame.guild().is_some());
    }
    assert!(guilds > 70, "{guilds}");
}

#[test]
fn a_guild_id_that_is_not_a_key_of_d_is_not_the_events_guild() {
    let none = [
        // Shapes of the documented traps.
        r#"{"t":"RATE_LIMITED","s":1,"op":0,"d":{"opcode":8,"meta":{"guild_id":"5"}}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"message_reference":{"guild_id":"5"}}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"referenced_message":{"guild_id":"5"}}}"#,
        r#"{"t":"INTERACTION_CREATE","s":1,"op":0,"d":{"data":{"guild_id":"5"},"guild":{"id":"5"}}}"#,
        r#"{"t":"INTERACTION_CREATE","s":1,"op":0,"d":{"message":{"guild_id":"5"}}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"stickers":[{"guild_id":"5"}]}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"user":{"primary_guild":{"identity_guild_id":"5"}}}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"identity_guild_id":"5"}}"#,
        r#"{"t":"THREAD_MEMBERS_UPDATE","s":1,"op":0,"d":{"id":"5"}}"#,
        r#"{"t":"VOICE_CHANNEL_STATUS_UPDATE","s":1,"op":0,"d":{"id":"5"}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"content":"\"guild_id\":\"5\""}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"content":"\\","nonce":"\"guild_id\":\"5\""}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":[{"guild_id":"5"}]}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"guild_id":"5","d":{}}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0,"d":"guild_id"}"#,
        r#"{"t":"MESSAGE_CREATE","s":1,"op":0}"#,
        // Values outside the rule.
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":null}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":""}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"0"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":0}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":-5}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":5.0}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":5e0}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":" 5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"+5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"18446744073709551616"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":18446744073709551616}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":["5"]}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":{"guild_id":"5"}}}"#,
        r#"{"t":"GUILD_DELETE","s":1,"op":0,"d":{"guild_id":"5"}}"#,
    ];
    for frame in none {
        assert_eq!(guild_of(frame), None, "{frame}");
        check_against_reference(frame.as_bytes());
    }
}

#[test]
fn the_guild_is_found_wherever_it_stands() {
    let five = [
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":5}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"member":{"guild_id":"6","a":[{"guild_id":"7"}]},"guild_id":"5"}}"#,
        r#"{"op":0,"d":{"guild_id":"5"},"s":1,"t":"X"}"#,
        r#"{"d":{"id":"5","guild_id":"6"},"t":"GUILD_CREATE","op":0,"s":1}"#,
        r#"{"t":"GUILD_UPDATE","s":1,"op":0,"d":{"roles":[{"id":"6"}],"id":"5"}}"#,
        r#"{"t":"GUILD_DELETE","s":1,"op":0,"d":{"id":"5","unavailable":true}}"#,
        r#"{"t":"GUILD_\u0044ELETE","s":1,"op":0,"d":{"id":"5"}}"#,
        " { \"t\" : \"X\" ,\n\"s\":1,\t\"op\": 0 , \"d\" : { \"guild_id\" : \"5\" } } \r\n",
        r#"{"t":"X","s":1,"op":0,"d":{"guild\u005fid":"5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"\u0067\u0075\u0069\u006c\u0064\u005f\u0069\u0064":"5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"\u0035"}}"#,
        r#"{"\u0074":"X","s":1,"op":0,"\u0064":{"guild_id":"5"}}"#,
        r#"{"t":"X","s":1,"op":0,"new":{"d":{"guild_id":"6"}},"d":{"guild_id":"5"},"more":[]}"#,
        // The last of a repeated key counts.
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"6","guild_id":"5"}}"#,
        r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"6"},"d":{"guild_id":"5"}}"#,
        r#"{"t":"GUILD_CREATE","s":1,"op":0,"t":"X","d":{"id":"6","guild_id":"5"}}"#,
    ];
    for frame in five {
        assert_eq!(guild_of(frame), Some(5), "{frame}");
        check_against_reference(frame.as_bytes());
    }
    let last = r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"5"},"d":{}}"#;
    assert_eq!(guild_of(last), None);
    let largest = r#"{"t":"X","s":1,"op":0,"d":{"guild_id":"18446744073709551615"}}"#;
    assert_eq!(guild_of(largest), Some(u64::MAX));
}

#[test]
fn a_dispatch_without_a_name_has_the_empty_name() {
    for frame in [
        r#"{"op":0,"s":1}"#,
        r#"{"op":0,"s":1,"t":null}"#,
        r#"{"op":0,"s":1,"t":""}"#,
    ] {
        let parsed = Frame::parse(frame.as_bytes()).unwrap();
        assert_eq!(
            (parsed.event.as_deref(), parsed.data),
            (Some(""), &b"null"[..]),
            "{frame}"
        );
    }
    let parsed = Frame::parse(br#"{"op":11}"#).unwrap();
    assert_eq!((parsed.op, parsed.seq, parsed.event), (11, None, None));
}

#[test]
fn data_is_the_value_as_it_stands() {
    let frame = Frame::parse(br#"{"d": {"a": [1, 2]} ,"op":0}"#).unwrap();
    assert_eq!(frame.data, br#"{"a": [1, 2]}"#);
    let frame = Frame::parse(br#"{"op":9,"d": false }"#).unwrap();
    assert_eq!(frame.data, b"false");
}

#[test]
fn errors_say_what_is_wrong() {
    let wrong = |frame: &str| match error_of(frame) {
        FrameError::WrongType { field, .. } => field,
        other => panic!("{frame}: {other:?}"),
    };
    for op in [
        "-1",
        "1.0",
        "1e3",
        "99999999999999999999",
        "\"0\"",
        "null",
        "[]",
        "-0",
    ] {
        assert_eq!(wrong(&format!("{{\"op\":{op}}}")), "op", "{op}");
    }
    for seq in [
        "-1",
        "1.0",
        "1e3",
        "99999999999999999999",
        "\"1\"",
        "true",
        "{}",
    ] {
        assert_eq!(wrong(&format!("{{\"op\":0,\"s\":{seq}}}")), "s", "{seq}");
    }
    assert_eq!(wrong(r#"{"op":0,"t":5}"#), "t");
    assert_eq!(error_of(r#"{"s":1}"#), FrameError::MissingOp);
    for other in ["[]", "7", "null", "hello", "\"{}\"", "}"] {
        assert_eq!(error_of(other), FrameError::NotObject, "{other}");
    }
    assert_eq!(error_of(r#"{"op":0} x"#), FrameError::Trailing { at: 8 });
    assert_eq!(
        error_of(r#"{"op":0}{"op":0}"#),
        FrameError::Trailing { at: 8 }
    );
    assert_eq!(
        Frame::parse(b"{\"op\":0,\"t\":\"\xff\"}"),
        Err(FrameError::NotUtf8 { at: 13 })
    );
    assert!(matches!(
        error_of(""),
        FrameError::NotJson(JsonError::Truncated { at: 0 })
    ));
}

#[test]
fn malformed_json_anywhere_in_the_frame_is_an_error() {
    let values = [
        "",
        "tru",
        "nul",
        "truex",
        "+1",
        "01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-",
        "0x1",
        "--1",
        "1.e5",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u12\"",
        "\"a\u{1}\"",
        "\"\n\"",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[",
        "]",
        "{\"a\":1,}",
        "{\"a\"}",
        "{a:1}",
        "{\"a\":}",
        "{\"a\" 1}",
        "{,}",
        "{1:2}",
        "[}",
        "{]",
        "[1}",
        "{\"a\":1]",
        "[[]",
        "[]]",
        "NaN",
        "Infinity",
        "undefined",
        "/**/1",
        "\u{feff}1",
        "\u{a0}1",
    ];
    for value in values {
        for frame in [
            format!(r#"{{"t":"X","s":1,"op":0,"d":{value}}}"#),
            format!(r#"{{"t":"X","s":1,"op":0,"d":{{"guild_id":"5","x":{value}}}}}"#),
            format!(r#"{{"t":"X","s":1,"op":0,"d":{{"x":[{{"y":{value}}}],"guild_id":"5"}}}}"#),
            format!(r#"{{"x":{value},"t":"X","s":1,"op":0,"d":{{}}}}"#),
        ] {
            error_of(&frame);
            assert_eq!(reference(frame.as_bytes()), None, "{frame}");
        }
    }
}

#[test]
fn depth_is_bounded_by_nothing_but_length() {
    for depth in [1, 63, 64, 65, 127, 128, 129, 1000, 100_000] {
        let (open, close) = ("[{\"a\":".repeat(depth), "}]".repeat(depth));
        let frame = format!(r#"{{"op":0,"d":{{"x":{open}1{close},"guild_id":"5"}}}}"#);
        assert_eq!(guild_of(&frame), Some(5));
        let frame = format!(r#"{{"op":0,"d":{{"x":{open}1}}{close},"guild_id":"5"}}}}"#);
        assert!(Frame::parse(frame.as_bytes()).is_err());
        assert!(Frame::parse(open.as_bytes()).is_err());
    }
}

#[test]
fn every_truncation_of_every_fixture_is_an_error() {
    for line in FIXTURES.lines() {
        let bytes = line.as_bytes();
        for end in 0..bytes.len() {
            Frame::parse(&bytes[..end]).unwrap_err();
        }
    }
}

#[test]
fn strings_of_every_length_end_where_they_end() {
    for length in 0..40 {
        for special in [
            "\"",
            "\\\\",
            "\\\"",
            "\\u0041",
            "\u{1}",
            "é",
            "\u{1F600}",
            "\u{7f}",
        ] {
            let text = format!("{}{special}{}", "a".repeat(length), "b".repeat(length % 9));
            let frame = format!(r#"{{"op":0,"t":"{text}","d":{{"guild_id":"5"}}}}"#);
            check_against_reference(frame.as_bytes());
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_found_wherever_they_stand() {
    let broken = [
        &b"\xff"[..],
        b"\xc3",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\x80",
    ];
    for length in 0..150 {
        for broken in broken {
            let mut frame = br#"{"op":0,"d":{"content":""#.to_vec();
            frame.resize(frame.len() + length, b'a');
            let at = frame.len();
            frame.extend_from_slice(broken);
            frame.extend_from_slice(br#"","guild_id":"5"}}"#);
            assert_eq!(Frame::parse(&frame), Err(FrameError::NotUtf8 { at }));
        }
    }
}

#[test]
fn escapes_in_the_name_are_resolved() {
    let name = |text: &str| {
        let frame = format!(r#"{{"op":0,"t":"{text}"}}"#);
        Frame::parse(frame.as_bytes())
            .unwrap()
            .event
            .unwrap()
            .into_owned()
    };
    assert_eq!(
        name(r#"\"\\\/\b\f\n\r\té\u00e9\ud83d\ude00"#),
        "\"\\/\u{8}\u{c}\n\r\téé😀"
    );
    // Valid by the grammar, though no text.
    for (lone, expected) in [
        (r"\ud800", "\u{fffd}"),
        (r"\ud800\u0041", "\u{fffd}A"),
        (r"\ude00x", "\u{fffd}x"),
        (r"\ud800\ud83d\ude00", "\u{fffd}😀"),
    ] {
        assert_eq!(name(lone), expected);
    }
}

#[test]
fn several_frames_in_one_text_are_taken_apart() {
    let ops = |text: &str| -> Vec<Result<(String, u64), FrameError>> {
        let frames = Frames::new(text.as_bytes());
        frames
            .map(|frame| frame.map(|(raw, f)| (str::from_utf8(raw).unwrap().to_owned(), f.op)))
            .collect()
    };
    let ok = |raw: &str, op| Ok((raw.to_owned(), op));
    assert_eq!(ops(""), []);
    assert_eq!(ops(" \n"), []);
    assert_eq!(ops(r#" {"op":1} "#), [ok(r#" {"op":1} "#, 1)]);
    assert_eq!(
        ops("{\"op\":1}{\"op\":2}\n{\"op\":3}\n"),
        [
            ok("{\"op\":1}", 1),
            ok("{\"op\":2}\n", 2),
            ok("{\"op\":3}\n", 3)
        ]
    );
    // What came before an error counts, what follows does not.
    assert_eq!(
        ops(r#"{"op":1}{"s":2}{"op":3}"#),
        [ok(r#"{"op":1}"#, 1), Err(FrameError::MissingOp)]
    );
    assert_eq!(
        ops(r#"{"op":1} x"#),
        [ok(r#"{"op":1} "#, 1), Err(FrameError::NotObject)]
    );
    let not_utf8: Vec<_> = Frames::new(b"{\"op\":1}\xff").collect();
    assert_eq!(not_utf8, [Err(FrameError::NotUtf8 { at: 8 })]);
}

#[test]
fn all_fixtures_in_one_text_are_taken_apart() {
    let joined: String = FIXTURES.lines().collect();
    let raws = Frames::new(joined.as_bytes()).map(|frame| frame.unwrap().0);
    assert!(raws.eq(FIXTURES.lines().map(str::as_bytes)));
}

proptest! {
    #[test]
    fn arbitrary_frames_are_read_as_the_reference_reads_them(frame in any_frame()) {
        check_against_reference(frame.as_bytes());
    }

    #[test]
    fn usual_frames_and_what_is_nearly_one_are_read_as_the_reference_reads_them(
        begin in proptest::sample::select(&["{", "{", "{", " {", "{ ", "[", ""][..]),
        name in proptest::sample::select(&["X", "GUILD_CREATE", "", "A\\u0042", "é", "A\"", "A\\"][..]),
        seq in proptest::sample::select(
            &["1", "0", "01", "", "-1", "1.0", "9999999999999999999", "18446744073709551616", "null"][..]
        ),
        op in proptest::sample::select(&["0", "0", "0", "1", "00", "0.0", ""][..]),
        data in proptest::sample::select(
            &["{}", r#"{"guild_id":"5","id":"6"}"#, r#"{"id":7}"#, "null", "[]", "{", "{}}", r#"{"id":"\u0035"}"#][..]
        ),
        end in proptest::sample::select(&["}", "}", "}", r#","op":9}"#, "} ", " }", "", "}}", r#"}{"op":1}"#][..]),
    ) {
        let frame = format!(r#"{begin}"t":"{name}","s":{seq},"op":{op},"d":{data}{end}"#);
        check_against_reference(frame.as_bytes());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_against_reference(&bytes);
    }

    #[test]
    fn arbitrary_json_like_text_never_panics(text in r#"[{}\[\]",:\\ 0-9a-utdop"]{0,60}"#) {
        check_against_reference(text.as_bytes());
        check_against_reference(format!("{{\"op\":0,\"d\":{text}}}").as_bytes());
    }

    #[test]
    fn mutated_fixtures_are_read_as_the_reference_reads_them(
        line in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let lines: Vec<&str> = FIXTURES.lines().collect();
        let mut bytes = line.get(&lines).as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check_against_reference(&bytes);
    }
}

/// A frame with keys in any order, white space, escapes, and values of any kind where the
/// interesting ones belong.
fn any_frame() -> impl Strategy<Value = String> {
    let text = |choices: &'static [&'static str]| {
        proptest::sample::select(choices).prop_map(str::to_owned)
    };
    let id = text(&[
        "\"5\"",
        "5",
        "0",
        "null",
        "\"1234567890123456789\"",
        "\"\\u0031\"",
        "1e3",
        "-1",
        "5.5",
        "18446744073709551615",
        "18446744073709551616",
        "\"x\"",
        "\"\"",
        "true",
        "[5]",
    ]);
    let key = text(&[
        "guild_id",
        "id",
        "guild\\u005fid",
        "\\u0069d",
        "content",
        "guild",
        "guild_idx",
        "",
        "\\\"guild_id\\\"",
        "d",
        "op",
    ]);
    let inner = (key, prop_oneof![id, any_json()]);
    let data = prop_oneof![
        8 => proptest::collection::vec(inner, 0..6).prop_map(object),
        1 => any_json(),
    ];
    let op = text(&["0", "0", "0", "0", "1", "11", "-1", "1.0", "null", "\"0\""]);
    let seq = text(&[
        "1",
        "null",
        "42",
        "18446744073709551615",
        "18446744073709551616",
        "1e2",
    ]);
    let event = text(&[
        "\"GUILD_CREATE\"",
        "\"GUILD_DELETE\"",
        "\"MESSAGE_CREATE\"",
        "null",
        "\"\"",
        "5",
        "\"GUILD\\u005fUPDATE\"",
        "\"a b\"",
    ]);
    let keyed = |key: &'static [&'static str], value: BoxedStrategy<String>| {
        proptest::collection::vec((text(key), value), 0..3)
    };
    (
        keyed(&["op", "op", "op", "\\u006fp"], op.boxed()),
        keyed(&["s"], seq.boxed()),
        keyed(&["t", "\\u0074"], event.boxed()),
        keyed(&["d", "d", "\\u0064"], data.boxed()),
        keyed(&["x", "meta", "guild_id", "dd"], any_json().boxed()),
    )
        .prop_map(|(op, seq, event, data, other)| [op, seq, event, data, other].concat())
        .prop_shuffle()
        .prop_map(object)
}

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| Value::from(n).to_string()),
        any::<String>().prop_map(|s| Value::from(s).to_string()),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5)
                .prop_map(|values| format!("[ {} ]", values.join("\n,"))),
            proptest::collection::vec(("[a-z_]{0,9}", inner), 0..5).prop_map(object),
        ]
    })
}

/// Keys may be given twice; white space is put where it may stand.
fn object(fields: Vec<(String, String)>) -> String {
    let fields: Vec<String> = fields
        .into_iter()
        .map(|(key, value)| format!("\"{key}\"\t: {value} "))
        .collect();
    format!("{{{}}}", fields.join(",\r\n"))
}
