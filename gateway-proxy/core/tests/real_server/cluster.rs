//! What a leader without a quorum answers: why messages that were written before go alone when the
//! stream has replicas.

use std::time::{Duration, Instant};

use gateway_proxy_core::ingest::Reply;
use nats_server::{Cluster, Server};
use serde_json::json;

use crate::client::Client;

/// A leader without followers steps down after 10 s; everything below takes milliseconds, and this is
/// how long silence is waited for.
const SILENCE: Duration = Duration::from_millis(500);
const ELECTION: Duration = Duration::from_secs(60);

/// Three servers with the stream `S`, and the name of its leader.
fn start() -> (Cluster, String) {
    let cluster = Cluster::start(3).unwrap();
    let mut client = Client::connect(cluster.servers()[0].port());
    let config = json!({
        "name": "S",
        "subjects": ["S.>"],
        "storage": "file",
        "num_replicas": 3,
        "duplicate_window": 120_000_000_000_u64,
        "allow_batched": true,
        "allow_direct": true,
    });
    client.api("STREAM.CREATE.S", &config);
    let deadline = Instant::now() + ELECTION;
    loop {
        let info = client.api("STREAM.INFO.S", &json!({}));
        let current = |replica: &serde_json::Value| replica["current"] == true;
        let replicas = info["cluster"]["replicas"].as_array();
        if let (Some(leader), Some(replicas)) = (info["cluster"]["leader"].as_str(), replicas)
            && replicas.iter().all(current)
        {
            return (cluster, leader.to_owned());
        }
        assert!(Instant::now() < deadline, "no leader: {info}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn publish(client: &mut Client, batch: u32, messages: &[(u64, u8, &str)]) {
    for (seq, operation, id) in messages {
        let reply = format!("{}x{batch}.500.fail.{seq}.{operation}.$FI", client.inbox);
        client.publish("S.a", &reply, id, b"x");
    }
}

fn next(client: &mut Client) -> Reply {
    Reply::parse(&client.next().payload, false).unwrap()
}

#[test]
fn a_duplicate_without_a_quorum_counts_as_stored_in_a_batch_and_is_refused_alone() {
    const START: u8 = 0;
    const COMMIT: u8 = 2;
    let (mut cluster, leader) = start();
    let is_leader = |server: &&Server| server.name() == leader;
    let port = cluster.servers().iter().find(is_leader).unwrap().port();
    let mut first = Client::connect(port);
    let mut second = Client::connect(port);
    for server in cluster.servers_mut() {
        if server.name() != leader {
            server.pause().unwrap();
        }
    }
    publish(&mut first, 1, &[(1, START, "a:1"), (2, COMMIT, "a:2")]);
    let opened = next(&mut first);
    assert!(matches!(opened, Reply::Flow { seq: 0, .. }), "{opened:?}");
    let silence = first.try_next_within(SILENCE).unwrap();
    assert_eq!(silence, None, "stored without a quorum");

    // Alone. Beside the first batch the flow is 1, so that it is acknowledged before it is refused.
    publish(&mut second, 2, &[(1, COMMIT, "a:1")]);
    let early = next(&mut second);
    assert!(matches!(early, Reply::Flow { seq: 1, .. }), "{early:?}");
    let refused = next(&mut second);
    let Reply::Refused(error) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.err_code, 10_158);

    publish(&mut second, 3, &[(1, START, "a:1"), (2, COMMIT, "a:2")]);
    let mut answers = Vec::new();
    while !matches!(answers.last(), Some(Reply::Done { .. })) {
        answers.push(next(&mut second));
    }
    let done = Reply::Done {
        count: 2,
        duplicate: false,
    };
    assert_eq!(answers.last(), Some(&done), "no quorum has them");
    let info = second.api("STREAM.INFO.S", &json!({}));
    assert_eq!(info["state"]["messages"], 0, "{info}");
}
