//! Fast-ingest batch publishing to JetStream (ADR-50), as decisions: what to write next, what is
//! acknowledged, when to start over.
//!
//! One [`Ingest`] is one ordered publisher of one stream over one connection. It guarantees order
//! and no loss by three rules:
//! - one batch is open at a time, with `gap = fail`: the server stores a contiguous prefix of it;
//! - a batch is committed with the last message there is, so that its acknowledgement comes at once
//!   (flow acknowledgements come only every `flow` messages, a ping repeats the last of them);
//! - on any trouble the connection is given up and a new batch starts, on a new connection, from the
//!   first unacknowledged message. `Nats-Msg-Id` removes what had been stored. Bytes of the old
//!   connection that the server still reads are a prefix of the same order, so they cannot invert it.
//!
//! Messages stay in the queue until acknowledged; the queue's bound is the caller's byte budget.

mod reply;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use reply::ReplyError;

/// How often the server acknowledges inside a batch at most, in messages: what it grants a lone
/// publisher (`min(500, asked)`).
pub const FLOW: u16 = 500;
/// Acknowledgements that may be outstanding, times the flow the server wants (ADR-50: 2 keeps the
/// server busy while an acknowledgement is on its way, 3 covers longer round trips).
const OUTSTANDING_ACKS: u64 = 3;
/// Bytes that may be outstanding: multi-MB GUILD_CREATEs must not fill the server's ingest queue
/// (128 MiB by default, shared by all publishers).
const OUTSTANDING_BYTES: usize = 16 << 20;
/// Silence of the server after which the connection is given up.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Back-off after trouble: first delay, doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest back-off; short, because every event waits.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What a queued message must tell.
pub trait Size {
    /// Bytes it takes on the wire.
    fn size(&self) -> usize;
}

/// What a message is in its batch: the operation token of the reply subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Starts a batch.
    Start,
    /// Appends to it.
    Append,
    /// Stores this message and ends the batch.
    Commit,
}

impl Operation {
    /// The token in the reply subject.
    #[must_use]
    pub const fn token(self) -> u8 {
        match self {
            Self::Start => b'0',
            Self::Append => b'1',
            Self::Commit => b'2',
        }
    }
}

/// One message to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Write<'a, M> {
    /// The message.
    pub message: &'a M,
    /// Its number in the batch, from 1.
    pub batch_seq: u64,
    /// Its operation.
    pub operation: Operation,
}

/// What the server answered on the batch's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `{"type":"ack"}`: stored up to `seq` of the batch; it wants `messages` between two of these.
    Flow {
        /// Batch sequence.
        seq: u64,
        /// Messages per acknowledgement.
        messages: u16,
    },
    /// `{"type":"gap"}`: informational; the batch's final answer follows.
    Gap,
    /// `{"type":"err"}`: informational, names the message that was refused.
    Error {
        /// Batch sequence of the refused message.
        seq: u64,
        /// The server's words.
        error: ApiError,
    },
    /// The batch ended with `count` messages stored.
    Done {
        /// Batch sequence of the last stored message.
        count: u64,
        /// It was a single message that had been stored before.
        duplicate: bool,
    },
    /// The batch was refused.
    Refused(ApiError),
}

/// An error of JetStream's API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description} ({err_code})")]
pub struct ApiError {
    /// HTTP-like class.
    pub code: u16,
    /// JetStream's own number.
    pub err_code: u32,
    /// Its words.
    pub description: String,
}

impl ApiError {
    /// True when the same message will be refused again: it alone is at fault.
    #[must_use]
    pub const fn blames_message(&self) -> bool {
        // 10054: the stream's max_msg_size is exceeded.
        self.err_code == 10_054
    }
}

/// What follows from a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do but to go on writing.
    Continue,
    /// Give the connection up; the reason for the log.
    Restart(Trouble),
    /// The message at the front of the queue will never be stored as it is: replace it, then give the
    /// connection up.
    Replace(ApiError),
}

/// Why a connection is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No answer for [`ACK_TIMEOUT`].
    #[error("no acknowledgement for {} s", ACK_TIMEOUT.as_secs())]
    AckTimeout,
    /// The server lost part of a batch.
    #[error("the server stored {stored} of {sent} messages of a batch")]
    Incomplete {
        /// Messages stored.
        stored: u64,
        /// Messages sent.
        sent: u64,
    },
    /// The server refused the batch.
    #[error("the server refused the batch: {0}")]
    Refused(#[source] ApiError),
}

/// The queue and the batch in flight.
#[derive(Debug)]
pub struct Ingest<M> {
    // Unacknowledged messages in order; the first `batch.sent - batch.acked` of them are written.
    queue: VecDeque<M>,
    connected: bool,
    batch: Option<Batch>,
    outstanding_bytes: usize,
    retries: u32,
    blamed: Option<(u64, ApiError)>,
}

#[derive(Debug)]
struct Batch {
    sent: u64,
    acked: u64,
    flow: u16,
    committing: bool,
    // The last sign of life of the server, or the last time nothing was outstanding.
    heard: Instant,
}

impl<M: Size> Default for Ingest<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Size> Ingest<M> {
    /// An empty queue without a connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            connected: false,
            batch: None,
            outstanding_bytes: 0,
            retries: 0,
            blamed: None,
        }
    }

    /// Appends a message.
    pub fn push(&mut self, message: M) {
        self.queue.push_back(message);
    }

    /// Messages not acknowledged yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True when everything is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages written and not acknowledged yet: after trouble the server may hold some of them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.batch.as_ref().map_or(0, Batch::outstanding)
    }

    /// The unacknowledged messages, oldest first.
    pub fn queued(&self) -> impl Iterator<Item = &M> {
        self.queue.iter()
    }

    /// The oldest unacknowledged message, to be replaced in place.
    pub fn front_mut(&mut self) -> Option<&mut M> {
        self.queue.front_mut()
    }

    /// A connection is up: a new batch starts from the first unacknowledged message.
    pub fn handle_connected(&mut self) {
        self.connected = true;
        self.batch = None;
        self.outstanding_bytes = 0;
        self.blamed = None;
    }

    /// The connection is gone, or is given up after [`Outcome::Restart`]. Returns how long to wait
    /// before the next.
    pub fn handle_disconnected(&mut self) -> Duration {
        self.connected = false;
        self.batch = None;
        self.outstanding_bytes = 0;
        let delay = RETRY_FIRST
            .saturating_mul(1 << self.retries.min(10))
            .min(RETRY_MAX);
        self.retries = self.retries.saturating_add(1);
        delay
    }

    /// The next message to write. `None`: there is none, or the window is full, or a commit is on
    /// its way.
    pub fn next_write(&mut self, now: Instant) -> Option<Write<'_, M>> {
        if !self.connected {
            return None;
        }
        let unsent = self.queue.len() - self.in_flight();
        if unsent == 0 {
            return None;
        }
        let batch = self.batch.get_or_insert(Batch {
            sent: 0,
            acked: 0,
            flow: FLOW,
            committing: false,
            heard: now,
        });
        if batch.committing {
            return None;
        }
        let outstanding = batch.outstanding();
        let message = &self.queue[outstanding];
        let window = u64::from(batch.flow.max(1)) * OUTSTANDING_ACKS;
        let full = outstanding as u64 >= window || self.outstanding_bytes >= OUTSTANDING_BYTES;
        if outstanding > 0 && full {
            return None;
        }
        if outstanding == 0 {
            batch.heard = now;
        }
        batch.sent += 1;
        self.outstanding_bytes += message.size();
        let operation = if unsent == 1 || self.outstanding_bytes >= OUTSTANDING_BYTES {
            // Nothing else to send, or too large to wait for a flow acknowledgement: the end of the
            // batch is acknowledged at once.
            batch.committing = true;
            Operation::Commit
        } else if batch.sent == 1 {
            Operation::Start
        } else {
            Operation::Append
        };
        Some(Write {
            message,
            batch_seq: batch.sent,
            operation,
        })
    }

    /// An answer of the server. Acknowledged messages are given to `acked`, oldest first.
    pub fn handle_reply(
        &mut self,
        reply: Reply,
        now: Instant,
        acked: &mut impl FnMut(M),
    ) -> Outcome {
        let Some(batch) = &mut self.batch else {
            return Outcome::Continue;
        };
        batch.heard = now;
        match reply {
            Reply::Flow { seq, messages } => {
                batch.flow = messages.max(1);
                self.acknowledge(seq, acked);
                Outcome::Continue
            }
            Reply::Gap => Outcome::Continue,
            Reply::Error { seq, error } => {
                self.blamed = Some((seq, error));
                Outcome::Continue
            }
            Reply::Done { count, duplicate } => {
                let sent = batch.sent;
                // A lone message that had been stored before is answered without a count.
                let count = if duplicate && count == 0 {
                    sent.min(1)
                } else {
                    count.min(sent)
                };
                let committed = batch.committing && count == sent;
                self.acknowledge(count, acked);
                let outcome = self.judge(count);
                self.batch = None;
                self.outstanding_bytes = 0;
                match outcome {
                    None if committed => {
                        self.retries = 0;
                        Outcome::Continue
                    }
                    None => Outcome::Restart(Trouble::Incomplete {
                        stored: count,
                        sent,
                    }),
                    Some(outcome) => outcome,
                }
            }
            Reply::Refused(error) => {
                let only = batch.acked == 0 && batch.sent == 1;
                if only && error.blames_message() {
                    return Outcome::Replace(error);
                }
                Outcome::Restart(Trouble::Refused(error))
            }
        }
    }

    /// When to call [`Ingest::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let batch = self.batch.as_ref()?;
        (batch.outstanding() > 0).then(|| batch.heard + ACK_TIMEOUT)
    }

    /// The deadline has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Outcome {
        match self.poll_timeout() {
            Some(deadline) if now >= deadline => Outcome::Restart(Trouble::AckTimeout),
            _ => Outcome::Continue,
        }
    }

    fn acknowledge(&mut self, seq: u64, acked: &mut impl FnMut(M)) {
        let Some(batch) = &mut self.batch else { return };
        let seq = seq.min(batch.sent);
        while batch.acked < seq {
            let Some(message) = self.queue.pop_front() else {
                break;
            };
            batch.acked += 1;
            self.outstanding_bytes = self.outstanding_bytes.saturating_sub(message.size());
            acked(message);
        }
    }

    fn judge(&mut self, count: u64) -> Option<Outcome> {
        let (seq, error) = self.blamed.take()?;
        Some(if seq == count + 1 && error.blames_message() {
            Outcome::Replace(error)
        } else {
            Outcome::Restart(Trouble::Refused(error))
        })
    }
}

impl Batch {
    const fn outstanding(&self) -> usize {
        (self.sent - self.acked) as usize
    }
}
