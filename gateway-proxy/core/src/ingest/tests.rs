use super::*;

/// A message of so many bytes.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    number: u64,
    size: usize,
}

impl Size for Message {
    fn size(&self) -> usize {
        self.size
    }
}

struct Publisher {
    ingest: Ingest<Message>,
    now: Instant,
    pushed: u64,
}

/// What was written: batch sequence and operation.
type Written = Vec<(u64, Operation)>;

use Operation::{Append, Commit, Start};

impl Publisher {
    fn connected() -> Self {
        let mut publisher = Self {
            ingest: Ingest::default(),
            now: Instant::now(),
            pushed: 0,
        };
        publisher.ingest.handle_connected();
        publisher
    }

    fn push(&mut self, count: u64) {
        self.push_sized(count, 100);
    }

    fn push_sized(&mut self, count: u64, size: usize) {
        for _ in 0..count {
            self.pushed += 1;
            self.ingest.push(Message {
                number: self.pushed,
                size,
            });
        }
    }

    /// Writes until nothing may be written.
    fn write(&mut self) -> Written {
        let mut written = Vec::new();
        while let Some(write) = self.ingest.next_write(self.now) {
            written.push((write.batch_seq, write.operation));
        }
        written
    }

    /// An answer comes; returns the messages acknowledged and what follows.
    fn answer(&mut self, reply: Reply) -> (Vec<u64>, Outcome) {
        let mut acked = Vec::new();
        let outcome = self
            .ingest
            .handle_reply(reply, self.now, &mut |message: Message| {
                acked.push(message.number)
            });
        (acked, outcome)
    }

    fn done(&mut self, count: u64) -> (Vec<u64>, Outcome) {
        self.answer(Reply::Done {
            count,
            duplicate: false,
        })
    }

    fn flow(&mut self, seq: u64, messages: u16) -> Vec<u64> {
        let (acked, outcome) = self.answer(Reply::Flow { seq, messages });
        assert_eq!(outcome, Outcome::Continue);
        acked
    }

    fn reconnect(&mut self) -> Duration {
        let delay = self.ingest.handle_disconnected();
        self.ingest.handle_connected();
        delay
    }

    /// Everything queued, one batch after the other, each answered in full. How long the batches were.
    fn drain(&mut self) -> Vec<usize> {
        let mut batches = Vec::new();
        while !self.ingest.is_empty() {
            let mut written = self.write();
            self.flow(0, FLOW);
            written.extend(self.write());
            let (last, operation) = *written.last().unwrap();
            assert_eq!(operation, Commit);
            batches.push(written.len());
            assert_eq!(self.done(last).1, Outcome::Continue);
        }
        batches
    }
}

fn error(err_code: u32) -> ApiError {
    ApiError {
        code: 400,
        err_code,
        description: "refused".to_owned(),
    }
}

const TOO_LARGE: u32 = 10_054;
const UNKNOWN_BATCH: u32 = 10_208;

#[test]
fn a_lone_message_commits_itself() {
    let mut publisher = Publisher::connected();
    publisher.push(1);
    assert_eq!(publisher.write(), [(1, Commit)]);
    assert_eq!(publisher.done(1), (vec![1], Outcome::Continue));
    assert!(publisher.ingest.is_empty());
    assert_eq!(publisher.ingest.poll_timeout(), None);
}

#[test]
fn the_last_message_there_is_ends_the_batch() {
    let mut publisher = Publisher::connected();
    publisher.push(3);
    assert_eq!(publisher.write(), [(1, Start), (2, Append), (3, Commit)]);
    publisher.push(2);
    assert_eq!(publisher.write(), [], "one batch at a time");
    assert!(publisher.flow(0, 500).is_empty());
    assert_eq!(publisher.done(3), (vec![1, 2, 3], Outcome::Continue));
    assert_eq!(publisher.write(), [(1, Start), (2, Commit)]);
}

#[test]
fn a_duplicate_is_as_good_as_stored() {
    let mut publisher = Publisher::connected();
    publisher.push(1);
    publisher.write();
    let (acked, outcome) = publisher.answer(Reply::Done {
        count: 1,
        duplicate: true,
    });
    assert_eq!((acked, outcome), (vec![1], Outcome::Continue));
    publisher.push(1);
    publisher.write();
    let (acked, outcome) = publisher.answer(Reply::Done {
        count: 0,
        duplicate: true,
    });
    assert_eq!((acked, outcome), (vec![2], Outcome::Continue));
}

#[test]
fn without_a_connection_nothing_is_written_or_awaited() {
    let mut ingest = Ingest::new();
    ingest.push(Message { number: 1, size: 1 });
    let now = Instant::now();
    assert_eq!(ingest.next_write(now), None);
    assert_eq!(ingest.poll_timeout(), None);
    assert_eq!(ingest.handle_timeout(now), Outcome::Continue);
}

#[test]
fn before_the_server_says_its_flow_the_window_is_small() {
    let mut publisher = Publisher::connected();
    publisher.push(10_000);
    assert_eq!(publisher.write().len(), 96);
    publisher.flow(0, 500);
    assert_eq!(publisher.write().len(), 1_500 - 96);
}

#[test]
fn the_window_follows_the_flow_and_never_closes_before_an_answer_is_due() {
    let mut publisher = Publisher::connected();
    publisher.push(200_000);
    publisher.write();
    // The server acknowledges when so many are stored since its last acknowledgement; the client must
    // always have written that many.
    let (mut acknowledged, mut flow) = (0, 1);
    let mut written = 96;
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let next = acknowledged + u64::from(flow);
        assert!(
            written >= next,
            "stuck: {written} written, the next answer is at {next}"
        );
        acknowledged = next;
        flow = rng.u16(1..=500);
        publisher.flow(acknowledged, flow);
        written += publisher.write().len() as u64;
        assert!(written - acknowledged <= (3 * u64::from(flow)).max(1_500));
    }
}

#[test]
fn flows_outside_reason_are_taken_within_it() {
    let mut publisher = Publisher::connected();
    publisher.push(10_000);
    publisher.write();
    publisher.flow(90, 0);
    assert_eq!(
        publisher.write(),
        [],
        "a flow of at least 1: six are outstanding, three allowed"
    );
    publisher.flow(96, 0);
    assert_eq!(publisher.write().len(), 3);
    publisher.flow(99, u16::MAX);
    assert_eq!(publisher.write().len(), 1_500);
    publisher.flow(u64::MAX, 500);
    assert_eq!(
        publisher.ingest.len(),
        10_000 - 99 - 1_500,
        "never more than was written"
    );
}

#[test]
fn large_messages_end_their_batch_before_the_byte_window_is_exceeded() {
    let mut publisher = Publisher::connected();
    publisher.push_sized(10, OUTSTANDING_BYTES / 4);
    assert_eq!(publisher.drain(), [4, 4, 2]);
    let mut publisher = Publisher::connected();
    publisher.push_sized(1, 10);
    publisher.push_sized(1, OUTSTANDING_BYTES * 5);
    publisher.push_sized(2, 10);
    assert_eq!(
        publisher.drain(),
        [1, 1, 2],
        "one above the window goes alone"
    );
}

#[test]
fn silence_while_messages_are_out_gives_the_connection_up() {
    let mut publisher = Publisher::connected();
    publisher.push(2);
    assert_eq!(publisher.ingest.poll_timeout(), None);
    publisher.write();
    let deadline = publisher.ingest.poll_timeout().unwrap();
    assert_eq!(deadline, publisher.now + ACK_TIMEOUT);
    assert_eq!(
        publisher.ingest.handle_timeout(publisher.now),
        Outcome::Continue
    );
    let trouble = publisher.ingest.handle_timeout(deadline);
    assert_eq!(trouble, Outcome::Restart(Trouble::AckTimeout));
    assert_eq!(publisher.ingest.poll_timeout(), None);
    assert_eq!(publisher.ingest.in_flight(), 2);
}

#[test]
fn any_answer_is_a_sign_of_life_and_large_windows_get_time() {
    let mut publisher = Publisher::connected();
    publisher.push(100);
    publisher.write();
    publisher.now += secs(4);
    publisher.flow(0, 500);
    assert_eq!(
        publisher.ingest.poll_timeout(),
        Some(publisher.now + ACK_TIMEOUT)
    );
    let mut publisher = Publisher::connected();
    publisher.push_sized(1, SLOWEST_LINK * 30);
    publisher.write();
    assert_eq!(
        publisher.ingest.poll_timeout(),
        Some(publisher.now + ACK_TIMEOUT + secs(30))
    );
}

#[test]
fn after_idling_the_clock_starts_with_the_next_message() {
    let mut publisher = Publisher::connected();
    publisher.push(1);
    publisher.write();
    publisher.done(1);
    publisher.now += secs(3_600);
    publisher.push(1);
    publisher.write();
    assert_eq!(
        publisher.ingest.poll_timeout(),
        Some(publisher.now + ACK_TIMEOUT)
    );
}

#[test]
fn a_new_connection_begins_with_the_first_message_that_is_not_acknowledged() {
    let mut publisher = Publisher::connected();
    publisher.push(200);
    publisher.write();
    publisher.flow(50, 500);
    publisher.reconnect();
    let write = publisher.ingest.next_write(publisher.now).unwrap();
    assert_eq!((write.message.number, write.batch_seq), (51, 1));
    // The message alone, to see whether the server is well; then as before.
    assert_eq!(write.operation, Commit);
    assert_eq!(publisher.done(1), (vec![51], Outcome::Continue));
    assert_eq!(publisher.drain(), [149]);
}

#[test]
fn batches_are_numbered_over_all_connections() {
    let mut publisher = Publisher::connected();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        publisher.push(1);
        numbers.push(publisher.ingest.next_write(publisher.now).unwrap().batch);
        let number = *numbers.last().unwrap();
        assert!(publisher.ingest.is_current(number) && !publisher.ingest.is_current(number - 1));
        publisher.reconnect();
        assert!(!publisher.ingest.is_current(number));
    }
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn what_a_batch_lacks_is_sent_again_on_a_new_connection() {
    let mut publisher = Publisher::connected();
    publisher.push(5);
    publisher.write();
    assert_eq!(publisher.answer(Reply::Gap), (vec![], Outcome::Continue));
    let (acked, outcome) = publisher.done(2);
    assert_eq!(acked, [1, 2]);
    assert_eq!(
        outcome,
        Outcome::Restart(Trouble::Incomplete { stored: 2, sent: 5 })
    );
    assert_eq!(publisher.write(), [], "not on this connection");
    publisher.reconnect();
    assert_eq!(publisher.drain(), [1, 2]);
}

#[test]
fn a_gap_stops_the_batch_before_its_final_answer() {
    let mut publisher = Publisher::connected();
    publisher.push(500);
    publisher.write();
    publisher.answer(Reply::Gap);
    publisher.flow(10, 500);
    assert_eq!(publisher.write(), []);
}

#[test]
fn an_end_of_the_batch_that_was_not_asked_for_is_trouble() {
    let mut publisher = Publisher::connected();
    publisher.push(500);
    publisher.write();
    let (acked, outcome) = publisher.done(96);
    assert_eq!(acked.len(), 96);
    assert_eq!(
        outcome,
        Outcome::Restart(Trouble::Incomplete {
            stored: 96,
            sent: 96
        })
    );
}

#[test]
fn an_unknown_batch_starts_over() {
    let mut publisher = Publisher::connected();
    publisher.push(5);
    publisher.write();
    let unknown = error(UNKNOWN_BATCH);
    let (acked, outcome) = publisher.answer(Reply::Refused(unknown.clone()));
    assert_eq!(
        (acked, outcome),
        (vec![], Outcome::Restart(Trouble::Refused(unknown)))
    );
    assert_eq!(publisher.ingest.in_flight(), 5);
}

#[test]
fn after_trouble_nothing_the_old_connection_says_is_believed() {
    let mut publisher = Publisher::connected();
    publisher.push(5);
    publisher.write();
    publisher.answer(Reply::Refused(error(10_077)));
    // The server did not store one of them, but goes on behind it.
    assert_eq!(publisher.done(5), (vec![], Outcome::Continue));
    assert!(publisher.flow(5, 500).is_empty());
    assert_eq!(publisher.ingest.len(), 5);
}

#[test]
fn a_lone_message_refused_for_its_size_is_to_be_replaced() {
    let mut publisher = Publisher::connected();
    publisher.push(1);
    publisher.write();
    let (_, outcome) = publisher.answer(Reply::Refused(error(TOO_LARGE)));
    assert_eq!(outcome, Outcome::Replace(error(TOO_LARGE)));
    publisher.ingest.front_mut().unwrap().size = 1;
    publisher.reconnect();
    assert_eq!(publisher.drain(), [1]);
}

#[test]
fn a_message_refused_for_its_size_within_a_batch_is_found_alone() {
    let mut publisher = Publisher::connected();
    publisher.push(5);
    publisher.write();
    // The answer does not say which.
    let (_, outcome) = publisher.answer(Reply::Refused(error(TOO_LARGE)));
    assert_eq!(
        outcome,
        Outcome::Restart(Trouble::Refused(error(TOO_LARGE)))
    );
    publisher.reconnect();
    publisher.push(10);
    for _ in 0..3 {
        assert_eq!(publisher.write(), [(1, Commit)]);
        assert_eq!(publisher.done(1).1, Outcome::Continue);
    }
    publisher.write();
    let (_, outcome) = publisher.answer(Reply::Refused(error(TOO_LARGE)));
    assert_eq!(outcome, Outcome::Replace(error(TOO_LARGE)));
    assert_eq!(publisher.ingest.front_mut().unwrap().number, 4);
    publisher.reconnect();
    assert_eq!(publisher.drain(), [1, 1, 10]);
}

#[test]
fn a_message_named_by_an_error_is_to_be_replaced_when_the_batch_ends_before_it() {
    let mut publisher = Publisher::connected();
    publisher.push(5);
    publisher.write();
    let named = Reply::Error {
        seq: 3,
        error: error(10_097),
    };
    assert_eq!(publisher.answer(named), (vec![], Outcome::Continue));
    let (acked, outcome) = publisher.done(2);
    assert_eq!(
        (acked, outcome),
        (vec![1, 2], Outcome::Replace(error(10_097)))
    );
    assert_eq!(publisher.ingest.front_mut().unwrap().number, 3);
    // Another error than one of the message itself is to be tried again.
    publisher.reconnect();
    publisher.write();
    publisher.answer(Reply::Error {
        seq: 1,
        error: error(10_023),
    });
    let (_, outcome) = publisher.done(0);
    assert_eq!(outcome, Outcome::Restart(Trouble::Refused(error(10_023))));
}

#[test]
fn the_wait_for_a_connection_doubles_until_batches_work_again() {
    let mut publisher = Publisher::connected();
    let waits: Vec<_> = (0..8).map(|_| publisher.reconnect().as_millis()).collect();
    assert_eq!(waits, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
    publisher.push(2);
    publisher.drain();
    assert_eq!(publisher.reconnect(), RETRY_FIRST);
}

#[test]
fn while_trouble_goes_on_more_and_more_goes_alone_so_that_it_gets_on() {
    let mut publisher = Publisher::connected();
    publisher.push(1_000);
    let mut alone = Vec::new();
    for _ in 0..9 {
        let mut count = 0;
        while publisher.write().len() == 1 {
            publisher.done(1);
            count += 1;
        }
        alone.push(count);
        // Every batch of several fails.
        publisher.answer(Reply::Refused(error(UNKNOWN_BATCH)));
        publisher.reconnect();
    }
    assert_eq!(alone, [0, 1, 2, 4, 8, 16, 32, 64, 64]);
}

#[test]
fn connections_that_fail_say_nothing_about_batches() {
    let mut publisher = Publisher::connected();
    for _ in 0..20 {
        publisher.reconnect();
    }
    publisher.push(100);
    assert_eq!(publisher.drain(), [100]);
}

#[test]
fn what_is_found_stored_after_an_outage_is_not_sent_again() {
    let mut publisher = Publisher::connected();
    publisher.push(10);
    publisher.write();
    publisher.push(5);
    publisher.ingest.handle_disconnected();
    assert_eq!(publisher.ingest.in_flight(), 10);
    let mut acked = Vec::new();
    publisher
        .ingest
        .confirm_stored(4, &mut |message| acked.push(message.number));
    assert_eq!(acked, [1, 2, 3, 4]);
    assert_eq!(publisher.ingest.in_flight(), 6);
    // What was never written cannot be stored.
    publisher
        .ingest
        .confirm_stored(99, &mut |message| acked.push(message.number));
    assert_eq!((acked.len(), publisher.ingest.len()), (10, 5));
    publisher.ingest.handle_connected();
    publisher
        .ingest
        .confirm_stored(1, &mut |message| acked.push(message.number));
    assert_eq!(acked.len(), 10, "only between two connections");
}

#[test]
fn in_flight_remembers_what_an_earlier_connection_wrote() {
    let mut publisher = Publisher::connected();
    publisher.push(10);
    publisher.write();
    publisher.reconnect();
    publisher.write();
    assert_eq!(publisher.ingest.in_flight(), 10);
    publisher.done(1);
    assert_eq!(publisher.ingest.in_flight(), 9);
}

#[test]
fn the_message_before_writing_can_be_looked_at_and_replaced() {
    let mut publisher = Publisher::connected();
    publisher.push(2);
    assert_eq!(publisher.ingest.peek_unsent().unwrap().number, 1);
    publisher.ingest.next_write(publisher.now);
    publisher.ingest.unsent_mut().unwrap().size = 7;
    assert_eq!(
        publisher.ingest.peek_unsent(),
        Some(&Message { number: 2, size: 7 })
    );
    publisher.write();
    assert_eq!(publisher.ingest.peek_unsent(), None);
    assert_eq!(publisher.ingest.queued().count(), 2);
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn with_replicas_what_was_written_before_goes_alone_until_it_is_stored() {
    let mut publisher = Publisher::connected();
    publisher.ingest.replicated = true;
    publisher.push(10);
    assert_eq!(publisher.write().len(), 10);
    publisher.reconnect();
    publisher.push(5);
    let refused = Reply::Refused(error(10_158));
    assert_eq!(publisher.write(), [(1, Commit)]);
    let (acked, outcome) = publisher.answer(refused);
    assert!(acked.is_empty() && matches!(outcome, Outcome::Restart(_)));
    publisher.reconnect();
    let mut batches = vec![1; 10];
    batches.push(5);
    assert_eq!(publisher.drain(), batches);
}

#[test]
fn a_lone_duplicate_acknowledged_at_a_flow_of_one_is_not_stored_yet() {
    let mut publisher = Publisher::connected();
    publisher.push(1);
    assert_eq!(publisher.write(), [(1, Commit)]);
    assert_eq!(publisher.flow(1, 2), [0; 0]);
    assert_eq!(publisher.done(1), (vec![1], Outcome::Continue));
}

#[test]
fn no_event_waits_for_the_next_one_to_be_acknowledged() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut publisher = Publisher::connected();
        let mut batch = Written::new();
        for _ in 0..300 {
            publisher.push(rng.u64(0..40));
            batch.extend(publisher.write());
            let Some((last, operation)) = batch.last().copied() else {
                continue;
            };
            // Everything is written: only a commit is answered at once.
            let all_written = publisher.ingest.peek_unsent().is_none();
            assert!(!all_written || operation == Commit, "seed {seed}");
            if operation == Commit {
                publisher.done(last);
                batch.clear();
            } else {
                publisher.flow(rng.u64(0..=last), rng.u16(1..=FLOW));
            }
        }
    }
}

#[test]
fn the_places_of_a_backlog_are_given_back() {
    let mut publisher = Publisher::connected();
    publisher.push(100_000);
    publisher.write();
    publisher.flow(10, 500);
    let mut stored = 10;
    while !publisher.ingest.is_empty() {
        let written = publisher.write();
        let Some((last, operation)) = written.last() else {
            panic!("{stored} stored, nothing to write");
        };
        stored = *last;
        if *operation == Commit {
            publisher.done(stored);
        } else {
            publisher.flow(stored, 500);
        }
    }
    assert_eq!(stored, 100_000);
    assert!(publisher.ingest.queue.capacity() <= 2 * QUEUE_KEEP);
}
