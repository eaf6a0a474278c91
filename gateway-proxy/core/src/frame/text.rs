//! Strings of JSON text, their escapes resolved only when somebody looks.

use std::borrow::Cow;

/// The inside of a JSON string, as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) raw: &'a str,
    /// Whether it contains a backslash.
    pub(super) escaped: bool,
}

impl<'a> Text<'a> {
    /// The text with its escapes resolved; a lone surrogate becomes U+FFFD.
    pub(super) fn decode(self) -> Cow<'a, str> {
        if self.escaped {
            Cow::Owned(unescape(self.raw))
        } else {
            Cow::Borrowed(self.raw)
        }
    }

    pub(super) fn is(self, name: &str) -> bool {
        if self.escaped {
            // The shortest escape of a character is two bytes, the longest six per UTF-8 byte.
            self.raw.len() <= name.len() * 6 && unescape(self.raw) == name
        } else {
            self.raw == name
        }
    }
}

/// Resolves the escapes of a string that was scanned without an error.
fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let (character, after) = match escape.as_bytes().first() {
            Some(b'u') => unescape_unit(&escape[1..]),
            Some(b'b') => ('\u{8}', &escape[1..]),
            Some(b'f') => ('\u{c}', &escape[1..]),
            Some(b'n') => ('\n', &escape[1..]),
            Some(b'r') => ('\r', &escape[1..]),
            Some(b't') => ('\t', &escape[1..]),
            // Quote, backslash and slash stand for themselves.
            Some(other) => (char::from(*other), &escape[1..]),
            None => break,
        };
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// The character of four hexadecimal digits or, for a pair of surrogates, of two such groups with `\u`
/// between them, and what follows.
fn unescape_unit(escape: &str) -> (char, &str) {
    let unit = |text: &str| {
        text.get(..4)
            .and_then(|hex| u16::from_str_radix(hex, 16).ok())
    };
    let Some(first) = unit(escape) else {
        return (char::REPLACEMENT_CHARACTER, "");
    };
    let after = &escape[4..];
    let second = after.strip_prefix("\\u").and_then(unit);
    let pair = [first, second.unwrap_or_default()];
    match char::decode_utf16(pair).next() {
        Some(Ok(character)) if character.len_utf16() == 2 => (character, &after[6..]),
        Some(Ok(character)) => (character, after),
        _ => (char::REPLACEMENT_CHARACTER, after),
    }
}
