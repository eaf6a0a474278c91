//! [`Ingest`] driven against a real server: what is stored afterwards is everything, once, in order.

use std::time::{Duration, Instant};

use gateway_proxy_core::ingest::{ApiError, FLOW, Ingest, Outcome, Reply, Size};
use nats_server::Server;

use crate::client::{Client, Lost};
use crate::start;

/// Bytes encoded before they are sent.
const BURST: usize = 32 * 1024;
/// Far above what any test takes; a stall ends here.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Event {
    id: String,
    payload: Vec<u8>,
}

impl Size for Event {
    fn size(&self) -> usize {
        self.id.len() + self.payload.len()
    }
}

fn event(shard: &str, seq: u64, size: usize) -> Event {
    Event {
        id: format!("{shard}:{seq}"),
        payload: vec![b'x'; size],
    }
}

/// A publisher as the proxy has it, but blocking.
struct Publisher {
    ingest: Ingest<Event>,
    client: Option<Client>,
    port: u16,
    acked: Vec<String>,
}

impl Publisher {
    fn new(port: u16) -> Self {
        Self {
            ingest: Ingest::new(),
            client: None,
            port,
            acked: Vec::new(),
        }
    }

    fn lose_connection(&mut self) {
        self.client = None;
        self.ingest.handle_disconnected();
    }

    /// Encodes what may be written.
    fn encode(&mut self, inbox: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < BURST
            && let Some(write) = self.ingest.next_write(Instant::now())
        {
            let (batch, seq) = (write.batch, write.batch_seq);
            let operation = char::from(write.operation.token());
            let reply = format!("{inbox}x{batch}.{FLOW}.fail.{seq}.{operation}.$FI");
            Client::encode(
                &mut bytes,
                "S.a",
                &reply,
                &write.message.id,
                &write.message.payload,
            );
        }
        bytes
    }

    /// Writes what may be written and reads one answer, if one comes.
    fn turn(&mut self) -> Result<(), Lost> {
        let Some(mut client) = self.client.take() else {
            self.client = Some(Client::try_connect(self.port)?);
            self.ingest.handle_connected();
            return Ok(());
        };
        let bytes = self.encode(&client.inbox.clone());
        client.try_send(&bytes)?;
        let answer = client.try_next_within(Duration::from_millis(20))?;
        self.client = Some(client);
        let Some(answer) = answer else {
            return Ok(());
        };
        let reply = match answer.status {
            Some(code) => Reply::Refused(ApiError {
                code,
                err_code: 0,
                description: "no stream".to_owned(),
            }),
            None => Reply::parse(&answer.payload, false).unwrap(),
        };
        let acked = &mut self.acked;
        let outcome = self
            .ingest
            .handle_reply(reply, Instant::now(), &mut |event: Event| {
                acked.push(event.id)
            });
        match outcome {
            Outcome::Continue => Ok(()),
            Outcome::Restart(_) => Err(Lost),
            Outcome::Replace(_) => {
                let front = self.ingest.front_mut().unwrap();
                front.payload = b"gap".to_vec();
                front.id.push_str(":gap");
                Err(Lost)
            }
        }
    }

    fn try_turn(&mut self) {
        if self.turn().is_err() {
            self.lose_connection();
        }
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.ingest.is_empty() {
            assert!(Instant::now() < deadline, "stuck: {:?}", self.ingest.len());
            self.try_turn();
        }
    }
}

fn stream(server: &Server, max_msg_size: i64) {
    Client::connect(server.port()).create_stream("S", max_msg_size);
}

fn stored(server: &Server) -> Vec<String> {
    let stored = Client::connect(server.port()).stored("S");
    stored.into_iter().map(|(id, _)| id).collect()
}

fn ids(shard: &str, count: u64) -> Vec<String> {
    (1..=count).map(|seq| format!("{shard}:{seq}")).collect()
}

#[test]
fn everything_is_stored_once_in_order_and_acknowledged() {
    let server = start();
    stream(&server, -1);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut publisher = Publisher::new(server.port());
    let mut seq = 0;
    while seq < 6_000 {
        for _ in 0..rng.u64(0..900) {
            seq += 1;
            publisher.ingest.push(event("a", seq, rng.usize(0..300)));
        }
        for _ in 0..rng.u32(0..5) {
            publisher.try_turn();
        }
    }
    publisher.drain();
    assert_eq!(publisher.acked, ids("a", seq));
    assert_eq!(stored(&server), ids("a", seq));
}

#[test]
fn two_publishers_of_one_stream_do_not_stall_each_other() {
    let server = start();
    stream(&server, -1);
    let mut publishers = [Publisher::new(server.port()), Publisher::new(server.port())];
    for seq in 1..=2_000 {
        publishers[0].ingest.push(event("a", seq, 100));
        publishers[1].ingest.push(event("b", seq, 100));
    }
    let deadline = Instant::now() + PATIENCE;
    while publishers
        .iter()
        .any(|publisher| !publisher.ingest.is_empty())
    {
        assert!(Instant::now() < deadline, "stuck");
        publishers.iter_mut().for_each(Publisher::try_turn);
    }
    let stored = stored(&server);
    for shard in ["a", "b"] {
        let of_shard = stored.iter().filter(|id| id.starts_with(shard));
        assert!(of_shard.eq(&ids(shard, 2_000)), "{shard}");
    }
}

#[test]
fn frames_above_the_streams_limit_are_replaced_where_they_stand() {
    let server = start();
    stream(&server, 1_000);
    let mut publisher = Publisher::new(server.port());
    let oversized = |seq: u64| [1, 2, 250, 499, 500].contains(&seq);
    for seq in 1..=500 {
        let size = if oversized(seq) { 2_000 } else { 10 };
        publisher.ingest.push(event("a", seq, size));
    }
    publisher.drain();
    let expect: Vec<_> = (1..=500)
        .map(|seq| {
            if oversized(seq) {
                format!("a:{seq}:gap")
            } else {
                format!("a:{seq}")
            }
        })
        .collect();
    assert_eq!(stored(&server), expect);
}

#[test]
fn a_killed_server_costs_neither_messages_nor_order() {
    let mut server = start();
    stream(&server, -1);
    let mut publisher = Publisher::new(server.port());
    let mut seq = 0;
    for _ in 0..3 {
        for _ in 0..2_000 {
            seq += 1;
            publisher.ingest.push(event("a", seq, 200));
        }
        // Into the middle of a batch: some answers came, some did not.
        let until = publisher.acked.len() + 500;
        let deadline = Instant::now() + PATIENCE;
        while publisher.acked.len() < until {
            assert!(Instant::now() < deadline, "stuck");
            publisher.try_turn();
        }
        server.kill9().unwrap();
        publisher.try_turn();
        server.start_again().unwrap();
    }
    publisher.drain();
    assert_eq!(stored(&server), ids("a", seq));
}

#[test]
fn a_connection_cut_at_any_byte_costs_neither_messages_nor_order() {
    let server = start();
    stream(&server, -1);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut publisher = Publisher::new(server.port());
    let mut seq = 0;
    // Kept open, so that the server reads what they sent while the next one is at work.
    let mut cut = Vec::new();
    for _ in 0..40 {
        for _ in 0..rng.u64(1..200) {
            seq += 1;
            publisher.ingest.push(event("a", seq, rng.usize(0..100)));
        }
        let mut client = Client::connect(server.port());
        publisher.ingest.handle_connected();
        let bytes = publisher.encode(&client.inbox.clone());
        client.send(&bytes[..rng.usize(..=bytes.len())]);
        cut.push(client);
        publisher.lose_connection();
        if rng.bool() {
            for _ in 0..rng.u32(0..20) {
                publisher.try_turn();
            }
            if publisher.client.is_some() {
                publisher.lose_connection();
            }
        }
    }
    publisher.drain();
    assert_eq!(stored(&server), ids("a", seq));
}
