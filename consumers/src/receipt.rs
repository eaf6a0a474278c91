//! What JetStream says of a delivery in the subject for its acknowledgement. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Message;

/// `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>`.
const TOKENS: usize = 9;
/// The same with domain and account behind `$JS.ACK` (NATS, ADR-15), and perhaps more at its end.
const TOKENS_WITH_DOMAIN: usize = 11;

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

    fn parse(reply: &'a str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let mut tokens = rest.split('.');
        match reply.bytes().filter(|byte| *byte == b'.').count() + 1 {
            TOKENS => {}
            TOKENS_WITH_DOMAIN.. => {
                tokens.nth(1)?;
            }
            _ => return None,
        }
        let stream = tokens.next()?;
        let mut number = |skip: usize| tokens.nth(skip)?.parse::<u64>().ok();
        let (delivered, sequence, nanos) = (number(1)?, number(0)?, number(1)?);
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
