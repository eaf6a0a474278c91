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
//! After trouble messages go one per batch for a while. The server does not store what follows a
//! message it refuses, and acknowledges nothing before it either, so that a refused message gets its
//! own answer only alone; and whatever keeps batches from working, one message at a time gets on.
//!
//! A stream with replicas asks for more: a leader answers a duplicate within a batch as stored although
//! the message it repeats may not have a quorum yet, and goes with that leader. Alone such a message is
//! refused until it is stored, so what was written on an earlier connection goes one per batch there.
//!
//! Messages stay in the queue until acknowledged; the queue's bound is the caller's byte budget.

mod reply;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use reply::{ApiError, Reply, ReplyError};

/// How often the server acknowledges inside a batch at most, in messages: what it grants a lone
/// publisher (`min(500, asked)`).
pub const FLOW: u16 = 500;
/// What is assumed of the flow until the server has said what it wants, which is 1 while others
/// publish: few enough that everybody may begin so, many enough that an ordinary batch need not wait.
const FLOW_UNKNOWN: u16 = 32;
/// Acknowledgements that may be outstanding, times the flow the server wants (ADR-50: 2 keeps the
/// server busy while an acknowledgement is on its way, 3 covers longer round trips).
const OUTSTANDING_ACKS: u64 = 3;
/// Bytes that may be outstanding, unless one message alone is larger: multi-MB GUILD_CREATEs must not
/// fill the server's ingest queue (128 MiB by default, shared by all publishers).
const OUTSTANDING_BYTES: usize = 16 << 20;
/// Silence of the server after which the connection is given up, besides the time that outstanding
/// bytes take at [`SLOWEST_LINK`].
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes per second below which a link does not count as working: a full window of a slower one
/// would be cut off and sent again for ever.
const SLOWEST_LINK: usize = 1 << 20;
/// Back-off after trouble: first delay, doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest back-off; short, because every event waits.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Messages sent alone after trouble: 1, then doubled while trouble goes on, up to 2 to this power.
const ALONE_DOUBLINGS_MAX: u32 = 6;

/// Places for messages that an empty queue keeps; those of a backlog are given back.
const QUEUE_KEEP: usize = 4096;

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
    /// Number of its batch, counted over all connections. In the batch id it tells late answers to
    /// an earlier batch from those to this one: see [`Ingest::is_current`].
    pub batch: u64,
    /// Its number in the batch, from 1.
    pub batch_seq: u64,
    /// Its operation.
    pub operation: Operation,
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
    /// No answer for too long.
    #[error("no acknowledgement for at least {} s", ACK_TIMEOUT.as_secs())]
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
    // Unacknowledged messages in order; the first `batch.outstanding()` of them are written.
    queue: VecDeque<M>,
    // False from trouble on until the next connection: nothing is written or believed meanwhile.
    connected: bool,
    batch: Option<Batch>,
    batches: u64,
    outstanding_bytes: usize,
    // Messages at the front of the queue that were written at some time, on any connection.
    written: usize,
    // How many messages still go one per batch.
    alone: usize,
    // The stream has replicas.
    replicated: bool,
    // Disconnections since a batch of several was stored.
    retries: u32,
    // Those of them at which something was outstanding.
    troubles: u32,
    blamed: Option<(u64, ApiError)>,
}

#[derive(Debug)]
struct Batch {
    sent: u64,
    acked: u64,
    flow: u16,
    // Nothing is added any more: it is being committed, or the server told of a gap.
    closing: bool,
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
            batches: 0,
            outstanding_bytes: 0,
            written: 0,
            alone: 0,
            replicated: false,
            retries: 0,
            troubles: 0,
            blamed: None,
        }
    }

    /// The same for a stream with replicas.
    #[must_use]
    pub const fn replicated() -> Self {
        let mut ingest = Self::new();
        ingest.replicated = true;
        ingest
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

    /// Messages written and not acknowledged yet, on this connection or an earlier one: the server
    /// may hold the first so many of the queue.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.written
    }

    /// The unacknowledged messages, oldest first.
    pub fn queued(&self) -> impl Iterator<Item = &M> {
        self.queue.iter()
    }

    /// The message [`Ingest::next_write`] looks at next.
    #[must_use]
    pub fn peek_unsent(&self) -> Option<&M> {
        self.queue.get(self.outstanding())
    }

    /// The same, to be replaced in place before it is written.
    pub fn unsent_mut(&mut self) -> Option<&mut M> {
        let index = self.outstanding();
        self.queue.get_mut(index)
    }

    /// The oldest unacknowledged message, to be replaced in place.
    pub fn front_mut(&mut self) -> Option<&mut M> {
        self.queue.front_mut()
    }

    /// True when this is the batch in flight. An answer to another one is not for
    /// [`Ingest::handle_reply`]: after a change of leader a replica may still speak of a batch that is
    /// long committed.
    #[must_use]
    pub const fn is_current(&self, batch: u64) -> bool {
        self.batch.is_some() && self.batches == batch
    }

    /// A connection is up: a new batch starts from the first unacknowledged message.
    pub fn handle_connected(&mut self) {
        self.connected = true;
        self.forget_batch();
        if self.replicated {
            // At most a window: nothing is written beyond it.
            self.alone = self.alone.max(self.written);
        }
    }

    /// The connection is gone, or is given up after [`Outcome::Restart`]. Returns how long to wait
    /// before the next.
    pub fn handle_disconnected(&mut self) -> Duration {
        self.connected = false;
        if self.outstanding() > 0 {
            self.distrust();
        }
        self.forget_batch();
        let delay = RETRY_FIRST
            .saturating_mul(1 << self.retries.min(10))
            .min(RETRY_MAX);
        self.retries = self.retries.saturating_add(1);
        delay
    }

    /// What the caller found by other means: the first `count` messages, of those
    /// [`Ingest::in_flight`], are stored. For an outage longer than the stream's duplicate window,
    /// after which publishing them again would store them twice. Only between two connections.
    pub fn confirm_stored(&mut self, count: usize, acked: &mut impl FnMut(M)) {
        if self.connected || self.batch.is_some() {
            return;
        }
        for message in self.queue.drain(..count.min(self.written)) {
            self.written -= 1;
            self.alone = self.alone.saturating_sub(1);
            acked(message);
        }
    }

    /// Takes messages out of the queue: stored by somebody else, or not ours to store any more. Only
    /// between two connections.
    pub fn take_out(&mut self, mut unwanted: impl FnMut(&M) -> bool, taken: &mut impl FnMut(M)) {
        if self.connected || self.batch.is_some() {
            return;
        }
        let written = self.written;
        for (index, message) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            if unwanted(&message) {
                self.written -= usize::from(index < written);
                taken(message);
            } else {
                self.queue.push_back(message);
            }
        }
        self.alone = self.alone.min(self.queue.len());
    }

    /// The next message to write. `None`: there is none, or the window is full, or a commit is on
    /// its way.
    pub fn next_write(&mut self, now: Instant) -> Option<Write<'_, M>> {
        if !self.connected {
            return None;
        }
        let outstanding = self.outstanding();
        let size = self.queue.get(outstanding)?.size();
        if self.batch.is_none() {
            self.batches += 1;
        }
        let batch = self.batch.get_or_insert(Batch {
            sent: 0,
            acked: 0,
            flow: FLOW_UNKNOWN,
            closing: false,
            heard: now,
        });
        let window = u64::from(batch.flow) * OUTSTANDING_ACKS;
        if batch.closing || outstanding as u64 >= window {
            return None;
        }
        if outstanding == 0 {
            batch.heard = now;
        }
        batch.sent += 1;
        self.outstanding_bytes += size;
        // What would be outstanding with the next message too; `None`: there is none.
        let with_next = self
            .queue
            .get(outstanding + 1)
            .map(|next| self.outstanding_bytes.saturating_add(next.size()));
        let operation = if self.alone > 0 || with_next.is_none_or(|bytes| bytes > OUTSTANDING_BYTES)
        {
            // Nothing else to send, or too large to wait for a flow acknowledgement: the end of
            // the batch is acknowledged at once.
            batch.closing = true;
            Operation::Commit
        } else if batch.sent == 1 {
            Operation::Start
        } else {
            Operation::Append
        };
        self.written = self.written.max(outstanding + 1);
        Some(Write {
            message: &self.queue[outstanding],
            batch: self.batches,
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
        if !self.connected {
            // Given up. The server may go on to acknowledge what follows a message it did not store.
            return Outcome::Continue;
        }
        batch.heard = now;
        match reply {
            Reply::Flow { seq, messages } => {
                batch.flow = messages.clamp(1, FLOW);
                if batch.sent == 1 && batch.closing {
                    // At a flow of 1 a lone duplicate is acknowledged before it is refused.
                    return Outcome::Continue;
                }
                let progress = seq.min(batch.sent) > batch.acked;
                self.acknowledge(seq, acked);
                if progress {
                    self.trust();
                }
                Outcome::Continue
            }
            Reply::Gap => {
                batch.closing = true;
                Outcome::Continue
            }
            Reply::Error { seq, error } => {
                batch.closing = true;
                self.blamed = Some((seq, error));
                Outcome::Continue
            }
            Reply::Done { count, duplicate } => self.handle_done(count, duplicate, acked),
            Reply::Refused(error) => {
                let only = batch.sent == 1 && batch.acked == 0;
                self.give_up();
                if !error.blames_message() {
                    return Outcome::Restart(Trouble::Refused(error));
                }
                if only {
                    return Outcome::Replace(error);
                }
                // One of those outstanding; alone, each gets its own answer.
                self.alone = self.alone.max(self.outstanding());
                Outcome::Restart(Trouble::Refused(error))
            }
        }
    }

    /// When to call [`Ingest::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let batch = self.batch.as_ref().filter(|_| self.connected)?;
        let transfer = Duration::from_secs((self.outstanding_bytes / SLOWEST_LINK) as u64);
        (batch.outstanding() > 0).then(|| batch.heard + ACK_TIMEOUT + transfer)
    }

    /// The deadline has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Outcome {
        match self.poll_timeout() {
            Some(deadline) if now >= deadline => {
                self.give_up();
                Outcome::Restart(Trouble::AckTimeout)
            }
            _ => Outcome::Continue,
        }
    }

    fn handle_done(&mut self, count: u64, duplicate: bool, acked: &mut impl FnMut(M)) -> Outcome {
        let Some(batch) = &self.batch else {
            return Outcome::Continue;
        };
        let (sent, committed) = (batch.sent, batch.closing);
        // A lone message that had been stored before may be answered without a count.
        let count = if duplicate && count == 0 {
            sent.min(1)
        } else {
            count.min(sent)
        };
        self.acknowledge(count, acked);
        let blamed = self.blamed.take();
        if let Some((seq, error)) = blamed {
            self.give_up();
            return if seq == count + 1 && error.blames_message() {
                Outcome::Replace(error)
            } else {
                Outcome::Restart(Trouble::Refused(error))
            };
        }
        if !committed || count < sent {
            self.give_up();
            return Outcome::Restart(Trouble::Incomplete {
                stored: count,
                sent,
            });
        }
        self.trust();
        self.alone = self.alone.saturating_sub(1);
        self.forget_batch();
        Outcome::Continue
    }

    fn acknowledge(&mut self, seq: u64, acked: &mut impl FnMut(M)) {
        let Some(batch) = &mut self.batch else { return };
        let seq = seq.min(batch.sent);
        while batch.acked < seq {
            let Some(message) = self.queue.pop_front() else {
                break;
            };
            batch.acked += 1;
            self.written = self.written.saturating_sub(1);
            self.outstanding_bytes = self.outstanding_bytes.saturating_sub(message.size());
            acked(message);
        }
        if self.queue.is_empty() && self.queue.capacity() > 2 * QUEUE_KEEP {
            self.queue.shrink_to(QUEUE_KEEP);
        }
    }

    fn outstanding(&self) -> usize {
        self.batch.as_ref().map_or(0, Batch::outstanding)
    }

    /// From here on nothing is written or believed until the next connection.
    const fn give_up(&mut self) {
        self.connected = false;
    }

    /// Batches work; that of a message alone says nothing about it.
    const fn trust(&mut self) {
        if self.alone == 0 {
            self.retries = 0;
            self.troubles = 0;
        }
    }

    fn distrust(&mut self) {
        self.alone = self.alone.max(1 << self.troubles.min(ALONE_DOUBLINGS_MAX));
        self.troubles = self.troubles.saturating_add(1);
    }

    fn forget_batch(&mut self) {
        self.batch = None;
        self.outstanding_bytes = 0;
        self.blamed = None;
    }
}

impl Batch {
    const fn outstanding(&self) -> usize {
        (self.sent - self.acked) as usize
    }
}
