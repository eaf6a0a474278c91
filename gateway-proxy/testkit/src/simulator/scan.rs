//! Finds the depth-1 members of a JSON object without building values, for recorded frames.
//!
//! Lenient about what stands inside values: it only tracks strings and nesting.

use std::ops::Range;

/// One member: its key without quotes and the span of its value.
pub(crate) struct Member<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: Range<usize>,
}

/// The depth-1 members of an object, or `None` where the text is no object.
pub(crate) fn members(text: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut at = skip_space(text, 0);
    if text.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    let mut found = Vec::new();
    loop {
        at = skip_space(text, at);
        match text.get(at)? {
            b'}' => return Some(found),
            b',' => at += 1,
            b'"' => {
                let key_end = skip_string(text, at)?;
                let key = &text[at + 1..key_end - 1];
                at = skip_space(text, key_end);
                if text.get(at) != Some(&b':') {
                    return None;
                }
                let start = skip_space(text, at + 1);
                at = skip_value(text, start)?;
                found.push(Member {
                    key,
                    value: start..at,
                });
            }
            _ => return None,
        }
    }
}

/// The value of one key; the last one where a key stands twice.
pub(crate) fn member(text: &[u8], key: &str) -> Option<Range<usize>> {
    members(text)?
        .into_iter()
        .rev()
        .find(|m| m.key == key.as_bytes())
        .map(|m| m.value)
}

/// The guild of a dispatch by the rule of the subjects: `d.id` for GUILD_CREATE, GUILD_UPDATE and
/// GUILD_DELETE, else top-level `d.guild_id`. 0 when there is none.
pub(crate) fn guild_of(event: &str, d: &[u8]) -> u64 {
    let key = match event {
        "GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE" => "id",
        _ => "guild_id",
    };
    let Some(span) = member(d, key) else { return 0 };
    let value = &d[span];
    let digits = match value {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    };
    schemas::GuildId::from_digits(digits).map_or(0, schemas::GuildId::get)
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// Position behind the closing quote of the string that starts at `at`.
fn skip_string(text: &[u8], mut at: usize) -> Option<usize> {
    at += 1;
    loop {
        match text.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

fn skip_value(text: &[u8], mut at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => skip_string(text, at),
        b'{' | b'[' => {
            let mut depth = 0_usize;
            loop {
                match text.get(at)? {
                    b'"' => {
                        at = skip_string(text, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let start = at;
            while text
                .get(at)
                .is_some_and(|b| !matches!(b, b',' | b'}' | b']') && !b.is_ascii_whitespace())
            {
                at += 1;
            }
            (at > start).then_some(at)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON with strings full of braces and quotes, four levels deep.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let text = "[a-d{}\\[\\],:\"\\\\ é]{0,8}";
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            text.prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map("[a-d\\{\\}]{1,4}|guild_id", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_are_those_of_a_whole_parser(value in json(), pretty in any::<bool>()) {
            let text = if pretty {
                serde_json::to_string_pretty(&value).unwrap()
            } else {
                value.to_string()
            };
            let found = members(text.as_bytes());
            let Some(object) = value.as_object() else {
                prop_assert!(found.is_none());
                return Ok(());
            };
            let found = found.unwrap();
            prop_assert_eq!(found.len(), object.len());
            for member in found {
                let key = std::str::from_utf8(member.key).unwrap();
                let value: serde_json::Value = serde_json::from_str(&text[member.value]).unwrap();
                prop_assert_eq!(&value, &object[key]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(found) = members(&bytes) {
                prop_assert!(found.iter().all(|member| member.value.end <= bytes.len()));
            }
        }
    }

    #[test]
    fn only_depth_one_members_count() {
        let text = br#" { "a" : {"guild_id":"1","x":"}\"{"} , "t":"X" ,"s":-3,"guild_id":"77"}"#;
        let keys: Vec<_> = members(text)
            .unwrap()
            .iter()
            .map(|m| m.key.to_vec())
            .collect();
        assert_eq!(
            keys,
            [
                b"a".to_vec(),
                b"t".to_vec(),
                b"s".to_vec(),
                b"guild_id".to_vec()
            ]
        );
        assert_eq!(guild_of("MESSAGE_CREATE", text), 77);
        assert_eq!(&text[member(text, "s").unwrap()], b"-3");
    }

    #[test]
    fn the_guild_rule_knows_its_exceptions() {
        assert_eq!(
            guild_of("GUILD_DELETE", br#"{"unavailable":true,"id":"5"}"#),
            5
        );
        assert_eq!(guild_of("CHANNEL_CREATE", br#"{"id":"5"}"#), 0);
        assert_eq!(guild_of("X", br#"{"guild_id":9}"#), 9);
        assert_eq!(guild_of("X", br#"{"guild_id":"0"}"#), 0);
        assert_eq!(guild_of("X", b"[1]"), 0);
    }

    #[test]
    fn broken_text_has_no_members() {
        for text in ["", "{", "[]", r#"{"a""#, r#"{"a":"#, r#"{"a":"b"#, "{1:2}"] {
            assert!(members(text.as_bytes()).is_none(), "{text}");
        }
    }
}
