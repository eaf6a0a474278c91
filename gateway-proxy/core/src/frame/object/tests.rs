//! The fast check against the scanner, which reads byte by byte.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

use super::*;
use crate::frame::json::Scanner;

const FIXTURES: &str = include_str!("../../../tests/fixtures/frames.ndjson");

/// What the scanner says of the object that the text begins with.
fn reference(text: &str) -> Option<Object> {
    let (mut id, mut guild_id) = (None, None);
    let mut scanner = Scanner::new(text);
    let scanned = scanner.object(|key, scanner| {
        let at = scanner.position();
        if key.is("id") {
            id = Some(at);
        } else if key.is("guild_id") {
            guild_id = Some(at);
        }
        scanner.value().map(|_| ())
    });
    scanned.ok()?;
    let end = scanner.position();
    Some(Object { end, id, guild_id })
}

/// Both must say the same of text without white space between tokens.
fn check(text: &str) {
    let expected = reference(text);
    let found = read(text, 0);
    let Some(object) = expected else {
        assert_eq!(found, None, "{text}");
        return;
    };
    // What follows may leave it undecided.
    assert!(found.is_none() || found == expected, "{text}");
    assert_eq!(read(&text[..object.end], 0), expected, "{text}");
}

fn is_decided(text: &str) -> bool {
    read(text, 0).is_some()
}

#[test]
fn whatever_discord_sends_is_decided() {
    let mut decided = 0;
    for line in FIXTURES.lines() {
        let Some(start) = line.find("\"d\":{").map(|at| at + "\"d\":".len()) else {
            continue;
        };
        let found = read(line, start).expect(line);
        let expected = reference(&line[start..]).expect(line);
        let moved = |at: Option<usize>| at.map(|at| at + start);
        assert_eq!(
            (found.end, found.id, found.guild_id),
            (
                expected.end + start,
                moved(expected.id),
                moved(expected.guild_id)
            )
        );
        decided += 1;
    }
    assert!(decided > 70, "{decided}");
}

#[test]
fn a_fixture_cut_off_anywhere_is_not_decided() {
    for line in FIXTURES.lines().filter(|line| line.len() < 2000) {
        let Some(start) = line.find("\"d\":{").map(|at| at + "\"d\":".len()) else {
            continue;
        };
        let object = read(line, start).expect(line);
        for end in (start..object.end).filter(|end| line.is_char_boundary(*end)) {
            assert_eq!(read(&line[..end], start), None, "{}", &line[..end]);
        }
    }
}

#[test]
fn values_and_mistakes_are_told_apart_at_every_place_of_a_block() {
    for length in 0..150 {
        let padding = "p".repeat(length);
        for value in GOOD.iter().chain(BAD) {
            let texts = [
                format!("{{\"{padding}\":{value},\"id\":\"5\",\"z\":[]}}"),
                format!("{{\"{padding}\":[{{\"x\":{value}}}],\"guild_id\":5}},"),
                format!("{{\"guild_id\":\"5\",\"{padding}\":[0,{value},1]}}}}"),
            ];
            for text in texts {
                check(&text);
            }
        }
        for value in GOOD {
            let text = format!("{{\"{padding}\":{value}}}");
            assert!(is_decided(&text), "{text}");
        }
    }
}

#[test]
fn runs_of_backslashes_end_strings_or_do_not() {
    for length in 0..140 {
        for run in 0..9 {
            let text = format!(
                "{{\"a\":\"{}{}\",\"id\":\"\",\"b\":\"\"}}",
                "p".repeat(length),
                "\\".repeat(run)
            );
            check(&text);
            assert_eq!(is_decided(&text), run % 2 == 0, "{text}");
        }
    }
}

#[test]
fn what_is_strange_is_left_to_the_scanner() {
    let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(is_decided(&deep(60)));
    for depth in [64, 65, 1000] {
        assert!(!is_decided(&deep(depth)));
    }
    for strange in [
        "{ }",
        "{ \"a\":1}",
        "{\"a\" :1}",
        "{\"a\": 1}",
        "{\"a\":1 }",
        "{\"a\":\"b\" }",
        "{\"a\":[1, 2]}",
        "{\"a\":[]\n}",
        "{\"a\":\n[]}",
        "{\"guild\\u005fid\":\"5\"}",
        "{\"\\u0069\\u0064\":\"5\"}",
    ] {
        assert!(
            reference(strange).is_some() && !is_decided(strange),
            "{strange}"
        );
    }
}

#[test]
fn the_last_of_a_repeated_key_counts_and_inner_ones_do_not() {
    let text = r#"{"id":"1","a":{"id":"2","guild_id":"3"},"id":{"id":4},"guild_id":[],"b":["id"]}"#;
    let object = read(text, 0).unwrap();
    assert!(text[object.id.unwrap()..].starts_with("{\"id\":4}"));
    assert!(text[object.guild_id.unwrap()..].starts_with("[],"));
    check(text);
}

proptest! {
    #[test]
    fn any_object_without_white_space_is_decided(text in any_object()) {
        check(&text);
        prop_assert!(is_decided(&text), "{}", text);
    }

    #[test]
    fn changed_objects_are_read_as_the_scanner_reads_them(
        text in any_object(),
        changes in proptest::collection::vec((any::<Index>(), select(b"{}[]:,\"\\01-e.nua".as_slice())), 1..4),
    ) {
        check(&changed(&text, &changes));
    }

    #[test]
    fn changed_fixtures_are_read_as_the_scanner_reads_them(
        line in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), select(b"{}[]:,\"\\01-e.nua".as_slice())), 1..4),
    ) {
        let data: Vec<&str> = FIXTURES
            .lines()
            .filter_map(|line| line.find("\"d\":{").map(|at| &line[at + "\"d\":".len()..]))
            .collect();
        check(&changed(data[line.index(data.len())], &changes));
    }

    #[test]
    fn tokens_in_any_order_are_read_as_the_scanner_reads_them(
        tokens in proptest::collection::vec(select(TOKENS), 0..60),
    ) {
        check(&format!("{{\"{}", tokens.concat()));
        check(&format!("{{\"a\":{}}}", tokens.concat()));
    }
}

/// Values.
const GOOD: &[&str] = &[
    "{}",
    "[]",
    "[[]]",
    "[{}]",
    "{\"a\":{}}",
    "[1,\"a\",null,{\"b\":[true]},[]]",
    "null",
    "true",
    "false",
    "0",
    "7",
    "-0",
    "10",
    "-1.25e+10",
    "12.5",
    "120e-3",
    "1234567890123456789012345",
    "1E9",
    "\"\"",
    "\"a\"",
    "\"\\\"\"",
    "\"\\\\\"",
    "\"\\\\\\\"\"",
    "\"\\\\\\\\\"",
    "\"{\\\"id\\\":[\"",
    "\"\\u12aF\"",
    "\"\\b\\f\\n\\r\\t\\/\"",
    "\"é\u{1f600}\"",
    "{\"id\":1,\"guild_id\":2}",
    "[\"id\",\"guild_id\"]",
    "\"id\"",
    "{\"a\":\"b\",\"c\":\"d\"}",
    "[\"a\",\"b\"]",
    "[[1],[2],{\"a\":[{}]}]",
];

/// What is no value, nor several.
const BAD: &[&str] = &[
    "",
    ",",
    ":",
    "[,]",
    "[1,]",
    "[,1]",
    "[1",
    "1]",
    "{,}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{\"a\",\"b\"}",
    "{\"a\":\"b\":1}",
    "{\"a\":\"b\",\"c\"}",
    "{\"a\"1}",
    "{\"a\"\"b\"}",
    "{a:1}",
    "{1:2}",
    "{7}",
    "{null,\"a\":1}",
    "{\"a\":1,2}",
    "{\"a\":[],true}",
    "{[]:1}",
    "{{}:1}",
    "{[]}",
    "{{}}",
    "[\"a\":1]",
    "[1,\"a\":1]",
    "[1:2]",
    "[}",
    "{]",
    "[1}",
    "{\"a\":1]",
    "[[]",
    "[]]",
    "[]1",
    "1[]",
    "[][]",
    "{}{}",
    "\"a\"\"b\"",
    "\"a\"1",
    "1\"a\"",
    "\"a\"[]",
    "[]\"a\"",
    "\"a",
    "\"\\\"",
    "\"\\x\"",
    "\"\\u12g4\"",
    "\"\\u12\"",
    "\\\"a\"",
    "\"\u{1}\"",
    "\"\n\"",
    "tru",
    "truee",
    "nul",
    "nulll",
    "null,",
    "fals",
    "falsey",
    "t",
    "TRUE",
    "01",
    "1.",
    ".5",
    "-",
    "+1",
    "1e",
    "1e+",
    "--1",
    "0x1",
    "1-",
    "00",
    "12a",
    "1 2",
    "1,2:3",
    "é",
    "'a'",
    "1\\",
    "{\"a\"::1}",
    "[1,,2]",
    "{\"a\":1,,\"b\":2}",
    "\u{7f}",
    "\u{feff}1",
    "\u{a0}",
];

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ",",
    ":",
    "\"",
    "\"a\"",
    "\"id\"",
    "\"b\":",
    "\"guild_id\":",
    "{\"c\":",
    "[\"d\"",
    "[]",
    "{}",
    "0",
    "-1.5",
    "null",
    "true",
    "\\",
    "\\\"",
    "é",
    "xxxxxxxxxxxxxxxxxxxxxxxx",
];

/// Puts ASCII in place of characters, so that the text stays text.
fn changed(text: &str, changes: &[(Index, u8)]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for (at, byte) in changes {
        let at = at.index(characters.len());
        characters[at] = char::from(*byte);
    }
    characters.into_iter().collect()
}

/// An object as Discord would write it.
fn any_object() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        "[a-z\"\\\\{}\\[\\],:é]{0,80}",
        any::<String>().prop_map(|text| text.chars().filter(|c| !c.is_control()).collect()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u8..10).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let key = || {
        prop_oneof![
            Just("id".to_owned()),
            Just("guild_id".to_owned()),
            "[a-z_]{0,12}"
        ]
    };
    let value = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((key(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    proptest::collection::vec((key(), value), 0..12).prop_map(|fields| {
        // Keys may be given twice.
        let fields: Vec<String> = fields
            .into_iter()
            .map(|(key, value)| format!("\"{key}\":{value}"))
            .collect();
        format!("{{{}}}", fields.join(","))
    })
}
