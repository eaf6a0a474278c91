//! The reply subjects of fast ingest (ADR-50): what a message is in its batch, written into the
//! subject its answer comes back on.
//!
//! `_INBOX.<connection>.<batch id>.<flow>.fail.<sequence>.<operation>.$FI`

use gateway_proxy_core::ingest::{FLOW, Write};
use schemas::subject::push_decimal;

/// Entropy of a connection's id: 16 characters of 62 are 95 bits.
const ID_LEN: usize = 16;

/// The inbox of one connection.
#[derive(Debug)]
pub(super) struct Inbox {
    // `_INBOX.<connection>`
    root: String,
    // `_INBOX.<connection>.<connection>-`, to be followed by the batch's number: batch ids share one
    // space on the server, so that the connection's id stands in them too.
    head: String,
}

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// Number of the batch.
    pub(super) batch: u64,
    /// The message it answers is a batch of its own, answered like an ordinary publish.
    pub(super) single: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(ID_LEN)
            .collect();
        let root = format!("_INBOX.{id}");
        let head = format!("{root}.{id}-");
        Self { root, head }
    }

    /// What to subscribe to.
    pub(super) fn wildcard(&self) -> String {
        format!("{}.>", self.root)
    }

    /// Appends the reply subject of one message.
    pub(super) fn push_reply<M>(&self, out: &mut Vec<u8>, write: &Write<'_, M>) {
        out.extend_from_slice(self.head.as_bytes());
        push_decimal(out, write.batch);
        out.push(b'.');
        push_decimal(out, u64::from(FLOW));
        out.extend_from_slice(b".fail.");
        push_decimal(out, write.batch_seq);
        out.push(b'.');
        out.push(write.operation.token());
        out.extend_from_slice(b".$FI");
    }

    /// Reads the reply subject of an answer; `None`: not one of this connection's.
    pub(super) fn parse(&self, subject: &str) -> Option<About> {
        let mut words = subject.strip_prefix(&self.head)?.split('.');
        let batch = words.next()?.parse().ok()?;
        let rest = [
            words.next()?,
            words.next()?,
            words.next()?,
            words.next()?,
            words.next()?,
        ];
        let single = matches!(rest, [_, "fail", "1", "2", "$FI"]);
        (rest[4] == "$FI").then_some(About { batch, single })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_proxy_core::ingest::Operation;

    #[test]
    fn an_answer_finds_its_batch() {
        let inbox = Inbox::new();
        let mut subject = Vec::new();
        let write = Write {
            message: &(),
            batch: 12,
            batch_seq: 3,
            operation: Operation::Append,
        };
        inbox.push_reply(&mut subject, &write);
        let subject = String::from_utf8(subject).unwrap();
        assert!(subject.ends_with("-12.500.fail.3.1.$FI"), "{subject}");
        assert_eq!(
            inbox.parse(&subject),
            Some(About {
                batch: 12,
                single: false
            })
        );
        assert_eq!(Inbox::new().parse(&subject), None);
        let lone = subject.replace(".3.1.$FI", ".1.2.$FI");
        assert_eq!(
            inbox.parse(&lone),
            Some(About {
                batch: 12,
                single: true
            })
        );
    }

    #[test]
    fn subjects_of_others_are_not_ours() {
        let inbox = Inbox::new();
        for subject in ["", "_INBOX.x", "_INBOX.x.y-1.500.fail.1.2.$FI", "a.b.c"] {
            assert_eq!(inbox.parse(subject), None, "{subject}");
        }
    }
}
