//! What a session survives, where its events go, and what it may see.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::simulator::{Action, Config, Load, Rule, SessionState, Simulator, Step};

use crate::client::{Client, Ready, eventually, identify, resume};

async fn start(config: Config) -> Simulator {
    Simulator::start(Config {
        identify_window: Duration::ZERO,
        ..config
    })
    .await
    .unwrap()
}

/// Tries to resume on a fresh connection; the first answer.
async fn try_resume(sim: &Simulator, ready: &Ready, seq: u64) -> (Client, Value) {
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(sim, &ready.session, seq)).await;
    let answer = client.json().await;
    (client, answer)
}

fn burst(event: &str) -> Action {
    Action::Burst {
        event: event.to_owned(),
        per_guild: 1,
    }
}

fn ended(sim: &Simulator, session: &str) -> bool {
    sim.progress()
        .iter()
        .any(|p| p.id == session && p.state == SessionState::Ended)
}

#[tokio::test]
async fn closing_with_1000_or_1001_ends_a_session_and_other_codes_do_not() {
    for (code, survives) in [(1000, false), (1001, false), (4000, true), (4900, true)] {
        let sim = start(Config::default()).await;
        let (client, ready) = Client::identified(&sim, [0, 1]).await;
        client.close(code).await;
        let (_client, answer) = try_resume(&sim, &ready, 1).await;
        if survives {
            assert_ne!(answer["op"], 9, "{code}");
        } else {
            assert_eq!(
                (&answer["op"], &answer["d"]),
                (&json!(9), &json!(false)),
                "{code}"
            );
            let steps = sim.ledger().lifecycle;
            assert!(
                steps.iter().any(|s| s.step == Step::Destroyed { code }),
                "{steps:?}"
            );
        }
    }
}

#[tokio::test]
async fn events_pile_up_for_a_disconnected_session_until_its_buffer_is_full() {
    let sim = start(Config {
        guilds: 10,
        replay_events: 30,
        ..Config::default()
    })
    .await;
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(11).await;
    client.close(4000).await;
    sim.apply(burst("MESSAGE_CREATE"));
    sim.apply(burst("MESSAGE_CREATE"));
    let (mut client, first) = try_resume(&sim, &ready, 11).await;
    assert_eq!(first["s"], 12);
    client.dispatches_to(32).await;
    client.close(4000).await;

    for _ in 0..4 {
        sim.apply(burst("MESSAGE_CREATE"));
    }
    let (_client, answer) = try_resume(&sim, &ready, 32).await;
    assert_eq!((&answer["op"], &answer["d"]), (&json!(9), &json!(false)));
    let ledger = sim.ledger();
    // 72 were generated, the last 30 are held: 33 to 42 are gone.
    assert_eq!(ledger.sessions[0].lost, Some((33, 42)));
    let exceeded = Step::ReplayExceeded {
        first: 33,
        last: 42,
    };
    assert!(
        ledger
            .lifecycle
            .iter()
            .any(|record| record.step == exceeded)
    );
    assert!(!ledger.sessions[0].entries[50].is_written());
}

#[tokio::test]
async fn a_session_that_nobody_resumes_expires() {
    let sim = start(Config {
        replay_ttl: Duration::from_millis(100),
        ..Config::default()
    })
    .await;
    let (client, ready) = Client::identified(&sim, [0, 1]).await;
    client.close(4000).await;
    eventually("it ends", || ended(&sim, &ready.session)).await;
    let (_client, answer) = try_resume(&sim, &ready, 1).await;
    assert_eq!(answer["op"], 9);
    assert_eq!(sim.ledger().broken(Rule::UnknownSession), 1);
}

#[tokio::test]
async fn old_events_leave_the_buffer_of_a_connected_session() {
    let ttl = Duration::from_millis(800);
    let sim = start(Config {
        guilds: 3,
        replay_ttl: ttl,
        ..Config::default()
    })
    .await;
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(4).await;
    eventually("they are old", || sim.progress()[0].replayable_from == 5).await;
    client.close(4000).await;
    let (_client, answer) = try_resume(&sim, &ready, 1).await;
    assert_eq!(answer["op"], 9);
    assert_eq!(sim.ledger().sessions[0].lost, Some((2, 4)));
}

#[tokio::test]
async fn a_session_resumed_elsewhere_closes_the_older_socket() {
    let sim = start(Config {
        guilds: 2,
        ..Config::default()
    })
    .await;
    let (mut older, ready) = Client::identified(&sim, [0, 1]).await;
    older.dispatches_to(3).await;
    let (mut newer, answer) = try_resume(&sim, &ready, 3).await;
    assert_eq!(answer["t"], "RESUMED");
    assert_eq!(older.expect_close().await, Some(4009));
    sim.apply(burst("MESSAGE_CREATE"));
    assert_eq!(newer.dispatches_to(6).await.len(), 2);
    assert!(
        sim.ledger()
            .lifecycle
            .iter()
            .any(|record| record.step == Step::TakenOver)
    );
}

#[tokio::test]
async fn the_wrong_url_is_noticed_both_ways() {
    let sim = start(Config::default()).await;
    let (client, ready) = Client::identified(&sim, [0, 1]).await;
    assert_ne!(ready.resume_url, sim.gateway_url());
    client.close(4000).await;
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    client.expect_event("RESUMED").await;
    assert_eq!(sim.ledger().broken(Rule::ResumeOnMainUrl), 1);

    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&identify(&sim, [1, 2])).await;
    client.ready().await;
    assert_eq!(sim.ledger().broken(Rule::IdentifyOnResumeUrl), 1);
}

#[tokio::test]
async fn a_resume_needs_the_same_query_parameters() {
    let sim = start(Config::default()).await;
    let (client, ready) = Client::identified(&sim, [0, 1]).await;
    client.close(4000).await;
    let mut client = Client::open(&ready.resume_url, Some("zstd-stream")).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    assert_eq!(client.expect_op(9).await["d"], false);
    assert_eq!(sim.ledger().broken(Rule::ResumeParams), 1);
}

#[tokio::test]
async fn sessions_of_one_tuple_and_of_other_counts_each_get_their_copy() {
    let sim = start(Config {
        guilds: 30,
        ..Config::default()
    })
    .await;
    let mut clients = Vec::new();
    for shard in [[0, 1], [0, 1], [0, 2], [1, 2]] {
        let (mut client, ready) = Client::identified(&sim, shard).await;
        let guilds = ready.guilds.len() as u64;
        client.dispatches_to(1 + guilds).await;
        clients.push((client, guilds));
    }
    assert_eq!(clients[2].1 + clients[3].1, 30);
    sim.apply(burst("MESSAGE_CREATE"));
    for (client, guilds) in &mut clients {
        assert_eq!(
            client.dispatches_to(1 + 2 * *guilds).await.len() as u64,
            *guilds
        );
    }
    let message = json!({"id": "1", "content": "direct"});
    sim.apply(Action::Dispatch {
        t: "MESSAGE_CREATE".to_owned(),
        d: message,
    });
    for (client, _) in &mut clients[..3] {
        assert_eq!(
            client.expect_event("MESSAGE_CREATE").await["d"]["content"],
            "direct"
        );
    }
    assert!(
        clients[3].0.is_silent(Duration::from_millis(100)).await,
        "shard 1 gets no DMs"
    );
}

#[tokio::test]
async fn intents_filter_events_and_strip_contents() {
    let sim = start(Config {
        guilds: 1,
        ..Config::default()
    })
    .await;
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    let mut hello = identify(&sim, [0, 1]);
    hello["d"]["intents"] = json!(1 | 1 << 9);
    client.send(&hello).await;
    client.expect_event("GUILD_CREATE").await;
    for event in [
        "TYPING_START",
        "PRESENCE_UPDATE",
        "GUILD_MEMBER_ADD",
        "MESSAGE_CREATE",
    ] {
        sim.apply(burst(event));
    }
    let message = client.json().await;
    assert_eq!(
        (&message["t"], &message["s"]),
        (&json!("MESSAGE_CREATE"), &json!(3))
    );
    assert_eq!(message["d"]["content"], "");
    sim.apply(burst("UNKNOWN_FUTURE_EVENT"));
    assert_eq!(
        client.json().await["t"],
        "UNKNOWN_FUTURE_EVENT",
        "no intent: always sent"
    );
}

#[tokio::test]
async fn an_outage_takes_guilds_away_and_brings_them_back() {
    let sim = start(Config {
        guilds: 4,
        ..Config::default()
    })
    .await;
    sim.apply(Action::Outage {
        guilds: 1,
        ms: None,
    });
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    assert_eq!(ready.guilds.len(), 4);
    let gone = client.expect_event("GUILD_DELETE").await;
    assert_eq!(
        (&gone["d"]["id"], &gone["d"]["unavailable"]),
        (&json!(ready.guilds[0]), &json!(true))
    );
    client.dispatches_to(5).await;
    sim.apply(Action::Outage {
        guilds: 2,
        ms: Some(30),
    });
    let gone = client.expect_event("GUILD_DELETE").await;
    assert_eq!(gone["d"]["id"], ready.guilds[1]);
    for guild in &ready.guilds[..2] {
        assert_eq!(&client.expect_event("GUILD_CREATE").await["d"]["id"], guild);
    }
}

#[tokio::test]
async fn paced_load_reaches_every_session_and_goes_on_while_it_is_away() {
    let sim = start(Config {
        guilds: 20,
        load: Load::rate(2000.0),
        ..Config::default()
    })
    .await;
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    let frames = client.dispatches_to(300).await;
    assert!(frames.iter().zip(2..).all(|((seq, _), n)| *seq == n));
    client.close(4000).await;
    let before = sim.progress()[0].events;
    eventually("events pile up", || sim.progress()[0].events > before + 100).await;
    let (_client, answer) = try_resume(&sim, &ready, 300).await;
    assert_eq!(answer["s"], 301);
}

#[tokio::test]
async fn a_flood_stops_at_its_number_across_sessions() {
    let sim = start(Config {
        guilds: 3,
        load: Load::flood(Some(2000)),
        ..Config::default()
    })
    .await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(2004).await;
    assert!(client.is_silent(Duration::from_millis(100)).await);
    client.close(1000).await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(4).await;
    assert!(client.is_silent(Duration::from_millis(100)).await);
    sim.set_load(Load::flood(Some(10)));
    client.dispatches_to(14).await;
}

#[tokio::test]
async fn the_same_seed_floods_the_same_payloads() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let sim = start(Config {
            guilds: 3,
            load: Load::flood(Some(300)),
            ..Config::default()
        })
        .await;
        let (mut client, _) = Client::identified(&sim, [0, 1]).await;
        runs.push(client.dispatches_to(304).await);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn a_recording_is_played_with_the_sessions_own_sequence() {
    let path = std::env::temp_dir().join(format!("recording-{}.ndjson", std::process::id()));
    let line = r#"{"t":"MESSAGE_CREATE","s":4711,"op":0,"d":{"content":"recorded","id":"9"}}"#;
    std::fs::write(&path, format!("{line}\n{line}\n")).unwrap();
    let config = Config {
        guilds: 0,
        playback: Some(path.clone()),
        ..Config::default()
    };
    let sim = start(Config {
        load: Load::flood(None),
        ..config
    })
    .await;
    std::fs::remove_file(&path).unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let frames = client.dispatches_to(3).await;
    assert_eq!(frames[0].1, line.replace("4711", "2"));
    assert_eq!(frames[1].1, line.replace("4711", "3"));
    assert!(client.is_silent(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_stopped_simulator_frees_its_ports_and_its_clients() {
    let sim = start(Config::default()).await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    let gateway = sim.gateway_url().to_owned();
    sim.shutdown().await;
    assert_eq!(client.expect_close().await, None);
    let port: u16 = gateway.rsplit(':').next().unwrap().parse().unwrap();
    let again = Simulator::start(Config {
        gateway_port: port,
        ..Config::default()
    })
    .await
    .unwrap();
    let reached = Client::open(again.gateway_url(), None)
        .await
        .expect_op(10)
        .await;
    assert_eq!(reached["op"], 10);
}
