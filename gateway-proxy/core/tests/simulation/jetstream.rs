//! A model of what nats-server does with fast-ingest batches: a transcription of its
//! `processJetStreamFastBatchMsg` and `fastBatchRegisterSequences`, for `gap = fail`. That it answers
//! like the real one is shown in `real_server`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use gateway_proxy_core::ingest::{ApiError, FLOW, Operation, Reply};

/// An idle batch is dropped after this.
const BATCH_LIFE: Duration = Duration::from_secs(10);

/// A message as it comes in.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) connection: u64,
    pub(crate) batch: u64,
    pub(crate) seq: u64,
    pub(crate) operation: Operation,
    /// The message id; the model stores nothing else.
    pub(crate) id: u64,
    pub(crate) too_large: bool,
}

/// An answer on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) connection: u64,
    pub(crate) batch: u64,
    pub(crate) reply: Reply,
}

#[derive(Default)]
struct Batch {
    // The names of the original.
    lseq: u64,
    pseq: u64,
    fseq: u64,
    pending: u32,
    ack_messages: u64,
    commit: bool,
    heard: Duration,
    // Of the last message persisted.
    reply: (u64, u64),
}

type BatchId = (u64, u64);

#[derive(Default)]
pub(crate) struct JetStream {
    pub(crate) stream: Vec<u64>,
    ids: BTreeSet<u64>,
    batches: BTreeMap<BatchId, Batch>,
    /// Other publishers with open batches.
    pub(crate) others: u64,
    /// Messages are stored only when a quorum has them.
    clustered: bool,
    proposals: VecDeque<Incoming>,
    /// There is no leader.
    pub(crate) leaderless: bool,
    /// The next message meets a lack of resources.
    pub(crate) exhausted: bool,
    pub(crate) answers: VecDeque<Answer>,
}

fn refused(code: u16, err_code: u32, description: &str) -> Reply {
    Reply::Refused(ApiError {
        code,
        err_code,
        description: description.to_owned(),
    })
}

impl JetStream {
    pub(crate) fn new(clustered: bool) -> Self {
        Self {
            clustered,
            ..Self::default()
        }
    }

    fn answer(&mut self, (connection, batch): BatchId, reply: Reply) {
        self.answers.push_back(Answer {
            connection,
            batch,
            reply,
        });
    }

    fn publishers(&self) -> u64 {
        self.batches.len() as u64 + self.others
    }

    fn initial_flow(&self) -> u64 {
        if self.publishers() > 1 {
            1
        } else {
            u64::from(FLOW)
        }
    }

    /// One message of a client.
    pub(crate) fn receive(&mut self, message: Incoming, now: Duration) {
        self.batches
            .retain(|_, batch| batch.commit || now - batch.heard <= BATCH_LIFE);
        let id = (message.connection, message.batch);
        if self.leaderless {
            return self.answer(id, refused(503, 0, "no responders"));
        }
        if std::mem::take(&mut self.exhausted) {
            return self.answer(id, refused(503, 10_023, "insufficient resources"));
        }
        if message.too_large {
            return self.answer(
                id,
                refused(400, 10_054, "message size exceeds maximum allowed"),
            );
        }
        if !self.batches.contains_key(&id) {
            if message.seq != 1 {
                return self.answer(id, refused(400, 10_208, "batch publish ID unknown"));
            }
            self.batches.insert(id, Batch::default());
            let ack_messages = self.initial_flow();
            self.batch(id).ack_messages = ack_messages;
        }
        let batch = self.batch(id);
        batch.heard = now;
        batch.reply = id;
        if batch.commit {
            return;
        }
        if message.seq != batch.lseq + 1 {
            if message.seq > batch.lseq + 1 {
                self.answer(id, Reply::Gap);
            }
            return self.commit(id);
        }
        batch.lseq += 1;
        let commit = message.operation == Operation::Commit;
        if message.seq == 1 && !commit {
            let messages = u16::try_from(batch.ack_messages).unwrap();
            self.answer(id, Reply::Flow { seq: 0, messages });
        }
        let staged = self
            .proposals
            .iter()
            .any(|proposal| proposal.id == message.id);
        if staged || self.ids.contains(&message.id) {
            return self.duplicate(id, &message, staged);
        }
        let batch = self.batch(id);
        batch.commit = commit;
        batch.pending += 1;
        self.proposals.push_back(message);
        if !self.clustered {
            self.apply(1);
        }
    }

    fn batch(&mut self, id: BatchId) -> &mut Batch {
        self.batches.get_mut(&id).unwrap()
    }

    fn duplicate(&mut self, id: BatchId, message: &Incoming, staged: bool) {
        let commit = message.operation == Operation::Commit;
        let batch = self.batch(id);
        if batch.pending == 0 {
            batch.pseq = message.seq;
            self.check_flow(id);
        }
        if !commit {
            return;
        }
        if message.seq == 1 {
            self.batches.remove(&id);
            let reply = if staged {
                refused(409, 10_158, "duplicate message id is in process")
            } else {
                Reply::Done {
                    count: 1,
                    duplicate: true,
                }
            };
            return self.answer(id, reply);
        }
        self.commit(id);
    }

    /// Ends the batch with what it has; answers now if that is all stored.
    fn commit(&mut self, id: BatchId) {
        let batch = self.batch(id);
        batch.commit = true;
        if batch.lseq == batch.pseq {
            let count = batch.lseq;
            self.batches.remove(&id);
            self.answer(
                id,
                Reply::Done {
                    count,
                    duplicate: false,
                },
            );
        }
    }

    fn check_flow(&mut self, id: BatchId) {
        let most = (u64::from(FLOW) / self.publishers()).max(1);
        let batch = self.batch(id);
        if batch.pseq < batch.fseq + batch.ack_messages {
            return;
        }
        batch.fseq += (batch.pseq - batch.fseq) / batch.ack_messages * batch.ack_messages;
        if batch.ack_messages < most {
            batch.ack_messages = (batch.ack_messages * 2).min(most);
        } else if batch.ack_messages > most {
            batch.ack_messages = (batch.ack_messages / 2).max(most);
        }
        self.send_flow(id);
    }

    fn send_flow(&mut self, id: BatchId) {
        let batch = self.batch(id);
        let (seq, reply) = (batch.fseq, batch.reply);
        let messages = u16::try_from(batch.ack_messages).unwrap();
        self.answer(reply, Reply::Flow { seq, messages });
    }

    /// A quorum has the next proposals.
    pub(crate) fn apply(&mut self, count: usize) {
        for _ in 0..count {
            let Some(message) = self.proposals.pop_front() else {
                return;
            };
            self.stream.push(message.id);
            self.ids.insert(message.id);
            self.persisted((message.connection, message.batch), &message);
        }
    }

    pub(crate) const fn is_clustered(&self) -> bool {
        self.clustered
    }

    pub(crate) fn proposed(&self) -> usize {
        self.proposals.len()
    }

    fn persisted(&mut self, id: BatchId, message: &Incoming) {
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        batch.pending = batch.pending.saturating_sub(1);
        batch.pseq = if batch.pending == 0 {
            batch.lseq
        } else {
            message.seq
        };
        if batch.lseq == batch.pseq && batch.commit {
            let count = batch.lseq;
            self.batches.remove(&id);
            return self.answer(
                id,
                Reply::Done {
                    count,
                    duplicate: false,
                },
            );
        }
        self.check_flow(id);
    }

    /// Another replica leads: proposals without a quorum are gone, and it speaks up about the batches
    /// it knows.
    pub(crate) fn change_leader(&mut self) {
        self.proposals.clear();
        let known: Vec<BatchId> = self.batches.keys().copied().collect();
        for id in known {
            let flow = self.initial_flow();
            let batch = self.batch(id);
            batch.commit = false;
            batch.pending = 0;
            batch.ack_messages = flow;
            batch.fseq = batch.pseq;
            batch.lseq = batch.pseq;
            self.send_flow(id);
        }
    }

    /// Killed and started again: what was stored is there, everything else is gone.
    pub(crate) fn restart(&mut self) {
        self.proposals.clear();
        self.batches.clear();
        self.answers.clear();
        self.others = 0;
    }
}
