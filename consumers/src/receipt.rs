//! What JetStream says of a delivery in the subject for its acknowledgement. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Message;

/// `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>`.
/// So many tokens stand behind `$JS.ACK`.
const TOKENS: usize = 7;
/// The same with domain and account behind `$JS.ACK` (NATS, ADR-15), and perhaps more at its end.
const TOKENS_WITH_DOMAIN: usize = 9;

/// One delivery of a stored message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt<'a> {
    pub(crate) stream: &'a str,
    /// How often it was delivered, this time included.
    pub(crate) delivered: u64,
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// When it was stored.
    pub(crate) published: SystemTime,
}

impl<'a> Receipt<'a> {
    /// `None` for a message that is no delivery.
    pub(crate) fn of(message: &'a Message) -> Option<Self> {
        Self::parse(message.reply.as_deref()?)
    }

    /// Looks at each byte once: searching for one token after the other costs as much as all the
    /// rest of handling an event.
    fn parse(reply: &'a str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let (mut ends, mut dots) = ([0; TOKENS_WITH_DOMAIN], 0);
        for (at, byte) in rest.bytes().enumerate() {
            if byte == b'.' {
                if let Some(end) = ends.get_mut(dots) {
                    *end = at;
                }
                dots += 1;
            }
        }
        let skipped = match dots + 1 {
            TOKENS => 0,
            TOKENS_WITH_DOMAIN.. => TOKENS_WITH_DOMAIN - TOKENS,
            _ => return None,
        };
        let token = |index: usize| {
            let index = skipped + index;
            let start = index.checked_sub(1).map_or(0, |before| ends[before] + 1);
            rest.get(start..ends[index])
        };
        let number = |index| token(index)?.parse::<u64>().ok();
        let stream = token(0)?;
        let (delivered, sequence, nanos) = (number(2)?, number(3)?, number(5)?);
        Some(Self {
            stream,
            delivered,
            sequence,
            published: UNIX_EPOCH + Duration::from_nanos(nanos),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_subject_are_read() {
        let expect = Receipt {
            stream: "DISCORD_EVENTS",
            delivered: 2,
            sequence: 41,
            published: UNIX_EPOCH + Duration::from_nanos(1_795_158_000_000_000_007),
        };
        let tail = "DISCORD_EVENTS.bench.2.41.7.1795158000000000007.5";
        for reply in [
            format!("$JS.ACK.{tail}"),
            format!("$JS.ACK._.hash.{tail}"),
            format!("$JS.ACK.hub.hash.{tail}.random"),
        ] {
            assert_eq!(Receipt::parse(&reply), Some(expect), "{reply}");
        }
        for other in ["", "_INBOX.x", "$JS.ACK.a.b.c", "$JS.ACK.a.b.x.1.1.1.1"] {
            assert_eq!(Receipt::parse(other), None, "{other}");
        }
    }
}
