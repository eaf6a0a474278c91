//! Every fault, seen from the client.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::simulator::{
    Action, Config, ConnectFault, Entry, Fault, Load, Moment, Rule, ScriptStep, SessionState,
    Simulator, Step, Target, Until,
};

use crate::client::{Client, Event, Ready, eventually, heartbeat, identify, resume};

/// A session with its guilds loaded: the last `s` is 4.
async fn loaded(config: Config) -> (Simulator, Client, Ready) {
    let sim = Simulator::start(Config {
        guilds: 3,
        max_concurrency: 16,
        ..config
    })
    .await
    .unwrap();
    let (mut client, ready) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(4).await;
    (sim, client, ready)
}

fn hit(sim: &Simulator, fault: Fault) {
    assert_eq!(sim.inject(Target::All, fault), 1);
}

async fn resumes(sim: &Simulator, ready: &Ready, seq: u64) -> Client {
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(sim, &ready.session, seq)).await;
    client.expect_event("RESUMED").await;
    client
}

#[tokio::test]
async fn a_dropped_connection_has_no_close_frame_and_its_session_stays() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(&sim, Fault::DropTcp);
    assert_eq!(client.next().await, Event::Closed(None));
    resumes(&sim, &ready, 4).await;
}

#[tokio::test]
async fn each_close_code_can_be_sent() {
    for code in [
        1000, 1001, 4000, 4001, 4002, 4003, 4005, 4006, 4007, 4008, 4009, 4015, 4999,
    ] {
        let (sim, mut client, ready) = loaded(Config::default()).await;
        hit(&sim, Fault::Close { code });
        assert_eq!(client.next().await, Event::Closed(Some(code)));
        let gone = matches!(code, 4003 | 4006 | 4007);
        eventually("the session is let go", || {
            let state = sim.progress()[0].state;
            state
                == if gone {
                    SessionState::Ended
                } else {
                    SessionState::Disconnected
                }
        })
        .await;
        if !gone {
            resumes(&sim, &ready, 4).await;
        }
    }
}

#[tokio::test]
async fn op_7_is_followed_by_the_servers_own_close() {
    let grace = Duration::from_millis(100);
    let (sim, mut client, ready) = loaded(Config {
        reconnect_grace: grace,
        ..Config::default()
    })
    .await;
    let begun = Instant::now();
    hit(&sim, Fault::Reconnect);
    assert_eq!(client.json().await["op"], 7);
    assert_eq!(client.expect_close().await, Some(4000));
    assert!(begun.elapsed() >= grace);
    resumes(&sim, &ready, 4).await;
}

#[tokio::test]
async fn a_wave_reaches_one_connection_after_the_other() {
    let sim = Simulator::start(Config {
        max_concurrency: 16,
        ..Config::default()
    })
    .await
    .unwrap();
    let mut clients = Vec::new();
    for id in 0..4 {
        clients.push(Client::identified(&sim, [id, 4]).await.0);
    }
    let begun = Instant::now();
    let over_ms = 300;
    let wave = Action::Wave {
        target: Target::All,
        fault: Fault::Reconnect,
        over_ms,
    };
    assert_eq!(sim.apply(wave), 4);
    let mut at = Vec::new();
    for client in &mut clients {
        client.expect_op(7).await;
        at.push(begun.elapsed());
    }
    assert!(
        at[0] < at[3] && at[3] >= Duration::from_millis(300),
        "{at:?}"
    );
}

#[tokio::test]
async fn op_9_true_allows_a_resume_on_the_same_connection() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(&sim, Fault::InvalidSession { resumable: true });
    let invalid = client.json().await;
    assert_eq!((&invalid["op"], &invalid["d"]), (&json!(9), &json!(true)));
    client.send(&resume(&sim, &ready.session, 4)).await;
    client.expect_event("RESUMED").await;
}

#[tokio::test]
async fn op_9_false_ends_the_session() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(&sim, Fault::InvalidSession { resumable: false });
    assert_eq!(client.expect_op(9).await["d"], false);
    client.send(&resume(&sim, &ready.session, 4)).await;
    assert_eq!(client.expect_op(9).await["d"], false);
    let steps = sim.ledger().lifecycle;
    assert!(
        steps
            .iter()
            .any(|s| s.step == Step::Invalidated { resumable: false }),
        "{steps:?}"
    );
}

#[tokio::test]
async fn acks_can_be_late_or_missing() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(&sim, Fault::SwallowAcks { count: Some(1) });
    client.send(&heartbeat(Some(4))).await;
    assert!(client.is_silent(Duration::from_millis(60)).await);
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;

    hit(&sim, Fault::DelayAcks { ms: 80 });
    let begun = Instant::now();
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
    assert!(begun.elapsed() >= Duration::from_millis(80));
    hit(&sim, Fault::SwallowAcks { count: None });
    client.send(&heartbeat(Some(4))).await;
    assert!(client.is_silent(Duration::from_millis(60)).await);
    hit(&sim, Fault::Heal);
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
}

#[tokio::test]
async fn a_requested_heartbeat_is_acknowledged() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(&sim, Fault::RequestHeartbeat);
    assert_eq!(client.json().await["op"], 1);
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
}

#[tokio::test]
async fn a_half_open_socket_stays_open_and_silent() {
    let config = Config {
        heartbeat_interval: Duration::from_millis(500),
        ..Config::default()
    };
    let (sim, mut client, ready) = loaded(config).await;
    hit(
        &sim,
        Fault::HalfOpen {
            read: true,
            write: true,
        },
    );
    client.send(&heartbeat(Some(4))).await;
    eventually("the server gives the session up", || {
        sim.progress()[0].state == SessionState::Disconnected
    })
    .await;
    assert!(
        client.is_silent(Duration::from_millis(100)).await,
        "no close frame, no FIN"
    );
    resumes(&sim, &ready, 4).await;
}

#[tokio::test]
async fn only_writing_can_stop() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(
        &sim,
        Fault::HalfOpen {
            read: false,
            write: true,
        },
    );
    sim.apply(Action::Burst {
        event: "TYPING_START".to_owned(),
        per_guild: 1,
    });
    client.send(&heartbeat(Some(4))).await;
    eventually("the heartbeat is seen", || sim.stats().heartbeats == 1).await;
    assert!(client.is_silent(Duration::from_millis(60)).await);
    hit(&sim, Fault::Heal);
    assert_eq!(client.dispatches_to(7).await.len(), 3);
}

#[tokio::test]
async fn a_silent_shard_still_acknowledges() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(&sim, Fault::Silent { ms: 600 });
    sim.apply(Action::Burst {
        event: "TYPING_START".to_owned(),
        per_guild: 1,
    });
    let begun = Instant::now();
    client.send(&heartbeat(Some(4))).await;
    assert_eq!(client.json().await["op"], 11, "before any dispatch");
    assert_eq!(client.json().await["s"], 5);
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn corrupt_compression_cannot_be_read() {
    for compress in ["zlib-stream", "zstd-stream"] {
        let sim = Simulator::start(Config::default()).await.unwrap();
        let mut client = Client::open(sim.gateway_url(), Some(compress)).await;
        client.expect_op(10).await;
        client.send(&identify(&sim, [0, 1])).await;
        client.ready().await;
        client.dispatches_to(21).await;
        hit(&sim, Fault::CorruptCompression);
        assert_eq!(
            client.next().await,
            Event::Text("corrupt".to_owned()),
            "{compress}"
        );
        assert_eq!(sim.ledger().injected[0].fault, "corrupt_compression");
    }
}

#[tokio::test]
async fn bad_frames_are_bad_and_not_in_the_ledger() {
    let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok();
    for (fault, sound) in [
        (Fault::MalformedJson, false),
        (Fault::TruncatedJson, false),
        (Fault::UnknownOpcode, true),
        (Fault::MissingFields, true),
        (Fault::SeqBackwards { by: 2 }, true),
    ] {
        let (sim, mut client, _) = loaded(Config::default()).await;
        hit(&sim, fault.clone());
        let Event::Text(text) = client.next().await else {
            panic!("{fault:?} closed")
        };
        assert_eq!(is_json(&text), sound, "{text}");
        if let Fault::SeqBackwards { .. } = fault {
            assert!(text.contains("\"s\":2,"), "{text}");
            assert_eq!(sim.ledger().injected[0].seq, Some(2));
        }
        assert_eq!(sim.ledger().events(), 4, "{fault:?}");
        assert_eq!(sim.ledger().injected.len(), 1);
        sim.apply(Action::Burst {
            event: "TYPING_START".to_owned(),
            per_guild: 1,
        });
        assert_eq!(client.json().await["s"], 5, "the session goes on");
    }
}

#[tokio::test]
async fn a_frame_that_is_no_utf8_is_a_protocol_error_for_the_client() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(&sim, Fault::NonUtf8);
    assert_eq!(
        client.next().await,
        Event::Closed(None),
        "tungstenite refuses the frame"
    );
    drop(client);
    resumes(&sim, &ready, 4).await;
}

#[tokio::test]
async fn a_truncated_frame_ends_with_the_connection() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(&sim, Fault::TruncatedFrame);
    assert_eq!(client.next().await, Event::Closed(None));
    resumes(&sim, &ready, 4).await;
}

#[tokio::test]
async fn a_bomb_is_small_on_the_wire_and_large_behind_it() {
    let sim = Simulator::start(Config::default()).await.unwrap();
    let mut client = Client::open(sim.gateway_url(), Some("zlib-stream")).await;
    client.expect_op(10).await;
    let before = sim.stats().wire_bytes;
    hit(&sim, Fault::DecompressionBomb { bytes: 8 << 20 });
    let Event::Text(text) = client.next().await else {
        panic!("closed")
    };
    assert!(text.len() > 8 << 20);
    assert!(sim.stats().wire_bytes - before < 100_000);
}

#[tokio::test]
async fn unusual_but_sound_events_are_in_the_ledger() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(&sim, Fault::UnknownEvent);
    let unknown = client.json().await;
    assert_eq!(
        (&unknown["s"], &unknown["t"]),
        (&json!(5), &json!("NEVER.HEARD OF"))
    );
    hit(&sim, Fault::OversizedEvent { bytes: 9 << 20 });
    let Event::Text(text) = client.next().await else {
        panic!("closed")
    };
    assert!(
        text.len() >= (9 << 20) - 100 && text.len() <= (9 << 20) + 100,
        "{}",
        text.len()
    );
    let entries = &sim.ledger().sessions[0].entries;
    assert_eq!(entries[5].flags, Entry::OVERSIZED);
    assert_eq!(entries[5].len as usize, text.len());
}

#[tokio::test]
async fn slow_writes_take_their_time() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(
        &sim,
        Fault::SlowWrites {
            bytes_per_second: 50_000,
        },
    );
    let begun = Instant::now();
    let pad = "x".repeat(15_000);
    sim.apply(Action::Dispatch {
        t: "X".to_owned(),
        d: json!({"pad": pad}),
    });
    client.dispatches_to(5).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200), "{took:?}");
}

#[tokio::test]
async fn slow_reads_delay_what_the_client_says() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    hit(
        &sim,
        Fault::SlowReads {
            bytes_per_second: 50,
        },
    );
    // Ordered behind the fault.
    hit(&sim, Fault::RequestHeartbeat);
    client.expect_op(1).await;
    let begun = Instant::now();
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
    assert!(
        begun.elapsed() >= Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let (sim, client, ready) = loaded(Config {
        backlog_events: 50,
        ..Config::default()
    })
    .await;
    let pad = "x".repeat(500_000);
    eventually("the backlog is full", || {
        sim.apply(Action::Dispatch {
            t: "X".to_owned(),
            d: json!({"pad": pad}),
        });
        sim.progress()[0].state == SessionState::Disconnected
    })
    .await;
    drop(client);
    let events = sim.progress()[0].events;
    resumes(&sim, &ready, events - 10).await;
}

#[tokio::test]
async fn connections_can_be_refused_for_a_while() {
    let (sim, mut client, _) = loaded(Config::default()).await;
    sim.apply(Action::RefuseConnects { ms: 150 });
    let refused = tokio_tungstenite::connect_async(format!("{}/?v=10", sim.gateway_url())).await;
    assert!(refused.is_err());
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
    tokio::time::sleep(Duration::from_millis(160)).await;
    Client::open(sim.gateway_url(), None)
        .await
        .expect_op(10)
        .await;
}

#[tokio::test]
async fn connections_can_begin_badly() {
    let grace = Duration::from_millis(80);
    let (sim, _client, _) = loaded(Config {
        reconnect_grace: grace,
        ..Config::default()
    })
    .await;
    let connects = |fault| Action::Connects { fault, count: 1 };
    sim.apply(connects(ConnectFault::ReconnectInsteadOfHello));
    let mut client = Client::open(sim.gateway_url(), None).await;
    assert_eq!(client.json().await["op"], 7);
    assert_eq!(client.next().await, Event::Closed(Some(4000)));

    sim.apply(connects(ConnectFault::ReconnectBeforeHello));
    let mut client = Client::open(sim.gateway_url(), None).await;
    assert_eq!(client.json().await["op"], 7);
    assert_eq!(client.json().await["op"], 10);

    sim.apply(connects(ConnectFault::NoHello));
    let mut client = Client::open(sim.gateway_url(), None).await;
    assert!(client.is_silent(Duration::from_millis(60)).await);

    sim.apply(connects(ConnectFault::Unavailable));
    let url = format!("{}/?v=10", sim.gateway_url());
    let refused = tokio_tungstenite::connect_async(url)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("503"), "{refused}");
    Client::open(sim.gateway_url(), None)
        .await
        .expect_op(10)
        .await;
}

#[tokio::test]
async fn a_script_acts_at_its_moments() {
    let step = |at_ms, after_events, action| ScriptStep {
        at_ms,
        after_events,
        action,
    };
    let close = |code| Action::Fault {
        target: Target::Shard(0),
        fault: Fault::Close { code },
    };
    let script = vec![
        step(None, Some(5), close(4000)),
        step(
            None,
            None,
            Action::Load {
                load: Load::flood(Some(10)),
            },
        ),
        step(Some(1), Some(1_000_000), close(4009)),
    ];
    let sim = Simulator::start(Config {
        guilds: 1,
        script,
        ..Config::default()
    })
    .await
    .unwrap();
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    assert_eq!(client.expect_close().await, Some(4000));
    assert_eq!(sim.ledger().broken(Rule::MissedHeartbeat), 0);
}

#[tokio::test]
async fn targets_choose_connections() {
    let sim = Simulator::start(Config {
        identify_window: Duration::ZERO,
        ..Config::default()
    })
    .await
    .unwrap();
    let (_a, first) = Client::identified(&sim, [0, 2]).await;
    let (_b, _) = Client::identified(&sim, [1, 2]).await;
    let (_c, _) = Client::identified(&sim, [0, 4]).await;
    let _unidentified = Client::open(sim.gateway_url(), None).await;
    eventually("all are there", || sim.stats().connections == 4).await;
    for (target, expect) in [
        (Target::All, 4),
        (Target::Shard(0), 2),
        (Target::ShardOf([0, 4]), 1),
        (Target::Session(first.session.clone()), 1),
        (Target::Shard(9), 0),
    ] {
        assert_eq!(
            sim.inject(target.clone(), Fault::Heal),
            expect,
            "{target:?}"
        );
    }
}

fn happen(sim: &Simulator) {
    let action = Action::Dispatch {
        t: "MESSAGE_CREATE".to_owned(),
        d: json!({"content": "x"}),
    };
    assert_eq!(sim.apply(action), 1);
}

/// Sessions may follow each other at once.
fn without_window() -> Config {
    Config {
        identify_window: Duration::ZERO,
        ..Config::default()
    }
}

#[tokio::test]
async fn withheld_until_a_resume_dispatches_are_replayed() {
    let (sim, mut client, ready) = loaded(Config::default()).await;
    hit(
        &sim,
        Fault::Withhold {
            until: Until::Resume,
        },
    );
    happen(&sim);
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 4)).await;
    let replayed = client.expect_event("MESSAGE_CREATE").await;
    assert_eq!(replayed["s"], 5);
    client.expect_event("RESUMED").await;
}

#[tokio::test]
async fn withheld_until_a_new_session_dispatches_have_no_place_in_the_old_one() {
    let (sim, _, ready) = loaded(Config::default()).await;
    hit(
        &sim,
        Fault::Withhold {
            until: Until::NewSession,
        },
    );
    eventually("events are withheld", || {
        happen(&sim);
        sim.progress()[0].withheld > 0
    })
    .await;
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 4)).await;
    let resumed = client.expect_event("RESUMED").await;
    let last = sim.progress()[0].events;
    assert_eq!(resumed["s"], last);
    happen(&sim);
    client.send(&heartbeat(Some(4))).await;
    client.expect_op(11).await;
    hit(&sim, Fault::Heal);
    eventually("events come again", || {
        happen(&sim);
        sim.progress()[0].events > last
    })
    .await;
    client.expect_event("MESSAGE_CREATE").await;
}

#[tokio::test]
async fn a_shard_can_be_silenced_for_ever() {
    let (sim, _, _) = loaded(without_window()).await;
    hit(
        &sim,
        Fault::Withhold {
            until: Until::Never,
        },
    );
    eventually("events are withheld", || {
        happen(&sim);
        sim.progress()[0].withheld > 0
    })
    .await;
    let (mut client, _) = Client::identified(&sim, [0, 1]).await;
    client.dispatches_to(4).await;
    happen(&sim);
    assert_eq!(
        (sim.progress()[1].events, sim.progress()[1].withheld),
        (4, 1)
    );
}

#[tokio::test]
async fn an_ambush_strikes_after_so_many_dispatches_of_a_resume() {
    let (sim, mut client, ready) = loaded(without_window()).await;
    let ambush = |moment| Action::Ambush {
        target: Target::Shard(0),
        moment,
        fault: Fault::Close { code: 4000 },
    };
    sim.apply(ambush(Moment::Resume(2)));
    sim.apply(ambush(Moment::Identify(0)));
    assert_eq!(sim.ambushes(), 2);
    hit(&sim, Fault::DropTcp);
    assert_eq!(client.next().await, Event::Closed(None));
    let mut client = Client::open(&ready.resume_url, None).await;
    client.expect_op(10).await;
    client.send(&resume(&sim, &ready.session, 1)).await;
    client.dispatches_to(3).await;
    assert_eq!(client.expect_close().await, Some(4000));
    let mut client = Client::open(sim.gateway_url(), None).await;
    client.expect_op(10).await;
    client.send(&identify(&sim, [0, 1])).await;
    assert_eq!(client.expect_close().await, Some(4000));
    assert_eq!(sim.ambushes(), 0);
}
