//! The hot path: one event's subject, appended to a buffer without formatting machinery.

use std::fmt;

use super::{NO_GUILD, Prefix};
use crate::GuildId;

/// Longest `<EVENT>` token; of a longer name it holds the beginning. Discord's longest has 38
/// characters, but a NATS server closes the connection on a control line above 4096 bytes, and one
/// absurd frame must not do that.
pub const EVENT_TOKEN_MAX: usize = 256;

/// Appends one event's subject: the hot path's form of [`Subject::Event`](super::Subject::Event), without formatting
/// machinery. `shard_root` is what [`event_root`] made, once per shard.
pub fn push_event_subject(
    out: &mut Vec<u8>,
    shard_root: &str,
    guild: Option<GuildId>,
    event: &str,
) {
    out.reserve(shard_root.len() + DECIMAL_DIGITS_MAX + 1 + event.len().min(EVENT_TOKEN_MAX) + 1);
    out.extend_from_slice(shard_root.as_bytes());
    match guild {
        Some(guild) => push_decimal(out, guild.get()),
        None => out.extend_from_slice(NO_GUILD.as_bytes()),
    }
    out.push(b'.');
    if is_token(event) {
        out.extend_from_slice(event.as_bytes());
    } else {
        out.extend(token_bytes(event));
    }
}

/// The part of an event subject that a shard's events share: `discord.shard.7.events.`.
#[must_use]
pub fn event_root(prefix: &Prefix, shard: u32) -> String {
    format!("{prefix}.shard.{shard}.events.")
}

/// `u64::MAX` has 20 digits.
const DECIMAL_DIGITS_MAX: usize = 20;

/// Appends a number in decimal.
pub fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    // Two digits per division: a snowflake has 19, and a division waits for the one before it.
    let mut digits = [0_u8; DECIMAL_DIGITS_MAX];
    let mut at = digits.len();
    while number >= 100 {
        let pair = (number % 100) as u8;
        number /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    let rest = number as u8;
    at -= 1;
    digits[at] = b'0' + rest % 10;
    if rest >= 10 {
        at -= 1;
        digits[at] = b'0' + rest / 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// An event name as a subject token: other characters become `_`, an empty name is `_`.
pub(super) struct EventToken<'a>(pub(super) &'a str);

impl fmt::Display for EventToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_token(self.0) {
            return f.write_str(self.0);
        }
        token_bytes(self.0).try_for_each(|byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

/// True when the name is its own token.
fn is_token(event: &str) -> bool {
    (1..=EVENT_TOKEN_MAX).contains(&event.len()) && event.bytes().all(is_plain)
}

fn token_bytes(event: &str) -> impl Iterator<Item = u8> {
    let event = if event.is_empty() { "_" } else { event };
    event.chars().take(EVENT_TOKEN_MAX).map(plain_byte)
}

fn plain_byte(c: char) -> u8 {
    match u8::try_from(c) {
        Ok(byte) if is_plain(byte) => byte,
        _ => b'_',
    }
}

pub(super) const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;

    #[test]
    fn event_names_become_one_token() {
        let check = |name: &str, expect: &str| {
            let mut out = Vec::new();
            push_event_subject(&mut out, &event_root(&Prefix::default(), 7), None, name);
            let expect = format!("discord.shard.7.events.none.{expect}");
            assert_eq!(String::from_utf8(out).unwrap(), expect);
            let subject = Subject::Event {
                shard: 7,
                guild: None,
                event: name,
            };
            assert_eq!(subject.with_prefix(&Prefix::default()), expect);
        };
        check("MESSAGE_CREATE", "MESSAGE_CREATE");
        check("lower-case-9", "lower-case-9");
        check("", "_");
        check("A.B*C>D E\tF", "A_B_C_D_E_F");
        check("A\r\nB", "A__B");
        check("É🦀x", "__x");
        check(&"A".repeat(256), &"A".repeat(256));
        check(&"A".repeat(257), &"A".repeat(256));
        check(&"é".repeat(5000), &"_".repeat(256));
    }

    #[test]
    fn decimals_of_every_length_are_written() {
        let mut number = 1_u64;
        let edges = std::iter::from_fn(|| {
            let this = number;
            number = number.checked_mul(10)?;
            Some([this - 1, this, this + 1])
        });
        for number in edges.flatten().chain([u64::MAX]) {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
