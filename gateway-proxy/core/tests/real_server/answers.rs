//! One test per thing [`gateway_proxy_core::ingest`] takes for granted about the server's answers.

use std::time::Duration;

use gateway_proxy_core::ingest::Reply;

use crate::client::Client;
use crate::start;

const START: u8 = 0;
const APPEND: u8 = 1;
const COMMIT: u8 = 2;
const PING: u8 = 4;

/// Above the stream's `max_msg_size`.
const TOO_LARGE: usize = 3_000;
const MAX_MSG_SIZE: i64 = 1_000;

/// An answer, with the batch sequence of the message it answers.
type Answer = (u64, Reply);

struct Stream {
    client: Client,
    // Distinguishes batch ids.
    batches: u32,
    // Kept last: the server goes when the test is over.
    _server: nats_server::Server,
}

impl Stream {
    fn new() -> Self {
        Self::with_limit(MAX_MSG_SIZE)
    }

    fn with_limit(max_msg_size: i64) -> Self {
        let server = start();
        let mut client = Client::connect(server.port());
        client.create_stream("S", max_msg_size);
        Self {
            client,
            batches: 0,
            _server: server,
        }
    }

    fn new_batch(&mut self) -> String {
        self.batches += 1;
        format!("{}x{}", self.client.inbox, self.batches)
    }

    /// Sends messages (sequence, operation, message id, size) of one batch and returns all answers.
    fn send(&mut self, batch: &str, messages: &[(u64, u8, &str, usize)]) -> Vec<Answer> {
        for (seq, operation, id, size) in messages {
            let reply = format!("{batch}.500.fail.{seq}.{operation}.$FI");
            self.client.publish("S.a", &reply, id, &vec![b'x'; *size]);
        }
        self.answers()
    }

    /// The same as a batch of its own, of small messages.
    fn batch(&mut self, ids: &[&str]) -> Vec<Answer> {
        let batch = self.new_batch();
        let last = ids.len();
        let messages: Vec<_> = (1..)
            .zip(ids)
            .map(|(seq, id)| {
                let operation = match seq {
                    _ if seq as usize == last => COMMIT,
                    1 => START,
                    _ => APPEND,
                };
                (seq, operation, *id, 3)
            })
            .collect();
        self.send(&batch, &messages)
    }

    /// Everything the stream has answered. An ordinary publish is answered behind all that.
    fn answers(&mut self) -> Vec<Answer> {
        let fence = format!("{}.fence", self.client.inbox);
        self.client.publish("S.fence", &fence, "", b"");
        let mut answers = Vec::new();
        loop {
            let message = self.client.next();
            if message.subject == fence {
                return answers;
            }
            let words: Vec<&str> = message.subject.rsplit('.').collect();
            let seq = words[2].parse().unwrap();
            let reply = Reply::parse(&message.payload, false).unwrap();
            answers.push((seq, reply));
        }
    }

    fn stored(&mut self) -> Vec<String> {
        let stored = self.client.stored("S");
        stored
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| !id.is_empty())
            .collect()
    }
}

const fn flow(seq: u64, messages: u16) -> Reply {
    Reply::Flow { seq, messages }
}

const fn done(count: u64) -> Reply {
    Reply::Done {
        count,
        duplicate: false,
    }
}

fn err_codes(answers: &[Answer]) -> Vec<(u64, u32)> {
    answers
        .iter()
        .filter_map(|(seq, reply)| match reply {
            Reply::Refused(error) => Some((*seq, error.err_code)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_lone_commit_is_answered_by_its_acknowledgement_only() {
    let mut stream = Stream::new();
    assert_eq!(stream.batch(&["a:1"]), [(1, done(1))]);
    let again = Reply::Done {
        count: 1,
        duplicate: true,
    };
    assert_eq!(stream.batch(&["a:1"]), [(1, again)]);
    assert_eq!(stream.stored(), ["a:1"]);
}

#[test]
fn a_batch_is_answered_at_its_start_and_its_end() {
    let mut stream = Stream::new();
    let answers = stream.batch(&["a:1", "a:2", "a:3"]);
    assert_eq!(answers, [(1, flow(0, 500)), (3, done(3))]);
    assert_eq!(stream.stored(), ["a:1", "a:2", "a:3"]);
}

#[test]
fn duplicates_anywhere_in_a_batch_count_as_stored() {
    let mut stream = Stream::new();
    stream.batch(&["a:1", "a:2", "a:3"]);
    for ids in [
        ["a:4", "a:2", "a:5"],
        ["a:6", "a:7", "a:5"],
        ["a:6", "a:7", "a:8"],
        ["a:6", "a:7", "a:8"],
    ] {
        let answers = stream.batch(&ids);
        assert_eq!(answers, [(1, flow(0, 500)), (3, done(3))], "{ids:?}");
    }
    let expect: Vec<_> = (1..=8).map(|seq| format!("a:{seq}")).collect();
    assert_eq!(stream.stored(), expect);
}

#[test]
fn a_batch_id_can_be_used_again_after_a_commit() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let first = stream.send(&batch, &[(1, START, "a:1", 3), (2, COMMIT, "a:2", 3)]);
    assert_eq!(first, [(1, flow(0, 500)), (2, done(2))]);
    let second = stream.send(&batch, &[(1, START, "a:3", 3), (2, COMMIT, "a:4", 3)]);
    assert_eq!(second, [(1, flow(0, 500)), (2, done(2))]);
    assert_eq!(stream.stored(), ["a:1", "a:2", "a:3", "a:4"]);
}

#[test]
fn a_batch_survives_a_pause_of_two_seconds() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let opened = stream.send(&batch, &[(1, START, "a:1", 3), (2, APPEND, "a:2", 3)]);
    assert_eq!(opened, [(1, flow(0, 500))]);
    // The pause is what is tested; no condition could stand for it.
    std::thread::sleep(Duration::from_secs(2));
    let closed = stream.send(&batch, &[(3, COMMIT, "a:3", 3)]);
    assert_eq!(closed, [(3, done(3))]);
}

#[test]
fn a_ping_repeats_the_last_flow_acknowledgement_and_acknowledges_nothing_more() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    stream.send(&batch, &[(1, START, "a:1", 3), (2, APPEND, "a:2", 3)]);
    assert_eq!(
        stream.send(&batch, &[(2, PING, "", 0)]),
        [(2, flow(0, 500))]
    );
}

#[test]
fn a_lone_oversized_message_is_refused_by_name() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let answers = stream.send(&batch, &[(1, COMMIT, "a:1", TOO_LARGE)]);
    assert_eq!(answers.len(), 1);
    assert_eq!(err_codes(&answers), [(1, 10_054)]);
    assert_eq!(stream.batch(&["a:2"]), [(1, done(1))]);
}

#[test]
fn an_oversized_message_in_a_batch_is_a_gap_for_the_next_one() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let messages = [
        (1, START, "a:1", 3),
        (2, APPEND, "a:2", TOO_LARGE),
        (3, COMMIT, "a:3", 3),
    ];
    let answers = stream.send(&batch, &messages);
    assert_eq!(err_codes(&answers), [(2, 10_054)]);
    assert_eq!(answers[2..], [(3, Reply::Gap), (3, done(1))]);
    assert_eq!(stream.stored(), ["a:1"]);
}

#[test]
fn an_oversized_last_message_is_refused_and_nothing_before_it_acknowledged() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let messages = [(1, START, "a:1", 3), (2, COMMIT, "a:2", TOO_LARGE)];
    let answers = stream.send(&batch, &messages);
    assert_eq!(answers[0], (1, flow(0, 500)));
    assert_eq!(answers.len(), 2);
    assert_eq!(err_codes(&answers), [(2, 10_054)]);
}

#[test]
fn what_follows_a_refused_first_message_is_an_unknown_batch() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let messages = [
        (1, START, "a:1", TOO_LARGE),
        (2, APPEND, "a:2", 3),
        (3, COMMIT, "a:3", 3),
    ];
    let answers = stream.send(&batch, &messages);
    assert_eq!(err_codes(&answers), [(1, 10_054), (2, 10_208), (3, 10_208)]);
    assert_eq!(stream.stored(), [""; 0]);
}

#[test]
fn a_gap_ends_the_batch_with_what_came_before() {
    let mut stream = Stream::new();
    let batch = stream.new_batch();
    let messages = [
        (1, START, "a:1", 3),
        (3, APPEND, "a:3", 3),
        (4, COMMIT, "a:4", 3),
    ];
    let answers = stream.send(&batch, &messages);
    assert_eq!(answers[1..3], [(3, Reply::Gap), (3, done(1))]);
    assert_eq!(err_codes(&answers), [(4, 10_208)]);
    assert_eq!(stream.stored(), ["a:1"]);
}

#[test]
fn headers_above_64_kib_are_refused_by_name_or_by_batch_sequence() {
    let mut stream = Stream::with_limit(-1);
    let long = "x".repeat(70_000);
    let lone = stream.new_batch();
    let answers = stream.send(&lone, &[(1, COMMIT, &long, 3)]);
    assert_eq!(err_codes(&answers), [(1, 10_097)]);
    let batch = stream.new_batch();
    let answers = stream.send(&batch, &[(1, START, "a:1", 3), (2, APPEND, &long, 3)]);
    let Reply::Error { seq: 2, error } = &answers[1].1 else {
        panic!("{answers:?}");
    };
    assert_eq!(error.err_code, 10_097);
    assert_eq!(answers[2], (2, done(1)));
}

#[test]
fn the_flow_starts_at_one_beside_another_batch_and_doubles() {
    let mut stream = Stream::new();
    let other = stream.new_batch();
    stream.send(&other, &[(1, START, "a:1", 3)]);
    let batch = stream.new_batch();
    let ids: Vec<String> = (1..=20).map(|seq| format!("b:{seq}")).collect();
    let messages: Vec<_> = (1..)
        .zip(&ids)
        .map(|(seq, id)| (seq, if seq == 1 { START } else { APPEND }, id.as_str(), 3))
        .collect();
    let answers = stream.send(&batch, &messages);
    let expect = [
        (1, flow(0, 1)),
        (1, flow(1, 2)),
        (3, flow(3, 4)),
        (7, flow(7, 8)),
        (15, flow(15, 16)),
    ];
    assert_eq!(answers, expect);
}

#[test]
fn a_subject_without_a_stream_is_answered_with_503() {
    let mut stream = Stream::new();
    let reply = format!("{}x1.500.fail.1.2.$FI", stream.client.inbox);
    stream.client.publish("nowhere.a", &reply, "a:1", b"x");
    let message = stream.client.next();
    assert_eq!((message.subject, message.status), (reply, Some(503)));
}
