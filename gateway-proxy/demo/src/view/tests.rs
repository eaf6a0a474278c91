use std::path::PathBuf;

use schemas::health::{Health, NatsHealth, ProcessStatus, ShardHealth};
use schemas::{ShardId, ShardState, Timestamp};
use testkit::simulator::InteractionStats;

use super::*;
use crate::args::{Parsed, parse};
use crate::member::Card;

const COUNT: u32 = 16;

fn settings() -> Settings {
    match parse(["demo", "--for", "30s"].map(Into::into).to_vec()) {
        Parsed::Run(settings) => settings,
        Parsed::Exit(_) => panic!("the flags are right"),
    }
}

fn shard(id: u32) -> ShardHealth {
    let text = format!(
        r#"{{"shard":[{id},{COUNT}],"status":"ready","guilds":20,"latency_ms":0.42,
            "events_per_second":31.25,"last_seq":1234567,"acknowledged_seq":1234560}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn proxy(number: u32) -> MemberSample {
    let first = (number - 1) * COUNT / 2;
    let last = first + COUNT / 2 - 1;
    let card = Card {
        name: format!("proxy-{number}"),
        role: Role::Proxy { first, last },
        pid: 4_194_304,
        log: PathBuf::new(),
    };
    let health = Health {
        version: "1".into(),
        proxy: "proxy".parse().unwrap(),
        status: ProcessStatus::Ready,
        started_at: Timestamp::from_unix_ms(0),
        uptime_s: 1,
        memory_bytes: 27_000_000,
        cpu_percent: 12.5,
        nats: NatsHealth::default(),
        total_shards: Some(COUNT),
        events_per_second: 250.0,
        startup: None,
        fleet: None,
        shards: (first..=last).map(shard).collect(),
    };
    MemberSample {
        card,
        http: Some("127.0.0.1:54321".parse().unwrap()),
        missing: Vec::new(),
        memory_bytes: Some(27_000_000),
        health: Some(health),
        answered: None,
    }
}

fn worker(number: u32) -> MemberSample {
    let card = Card {
        name: format!("worker-{number}"),
        role: Role::Worker,
        ..proxy(1).card
    };
    MemberSample {
        card,
        health: None,
        answered: Some(42),
        ..proxy(1)
    }
}

fn sample() -> Sample {
    let record = |n: u64| CommandRecord {
        id: n,
        name: "ping".into(),
        shard: ShardId::new(3, COUNT).unwrap(),
        latency_us: (n != 18).then_some(n * 1000),
        content: Some(format!("Pong! number {n} {}", "x".repeat(300))),
    };
    Sample {
        sent: 1_234_567,
        stored: 1_234_560,
        rate: 502.4,
        identifies: 16,
        starts_left: 984,
        commands: InteractionStats {
            typed: 84,
            answered: 84,
            p50_us: 4200,
            p99_us: 9800,
            last: (0..20).map(record).collect(),
            ..InteractionStats::default()
        },
        members: vec![proxy(1), proxy(2), worker(1), worker(2)],
        ..Sample::default()
    }
}

fn places_of_a_run() -> Places {
    Places {
        nats_url: "nats://127.0.0.1:12345".into(),
        nats_pid: Some(77),
        api_url: "http://127.0.0.1:23456/api/v10".into(),
        script: "/tmp/gateway-proxy-demo-4194304-01234567/subscribe.py".into(),
    }
}

fn screen(sample: &Sample, width: usize, height: usize) -> Vec<String> {
    let (settings, places) = (settings(), places_of_a_run());
    let model = Model {
        settings: &settings,
        places: &places,
        sample,
        phase: Phase::Running(Duration::from_secs(42)),
    };
    let lines = render(model, width, height);
    lines.iter().map(Line::plain).collect()
}

#[track_caller]
fn has(screen: &[String], parts: &[&str]) {
    let text = screen.join("\n");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn everything_fits_an_ordinary_terminal() {
    let screen = screen(&sample(), 80, 24);
    has(
        &screen,
        &[
            "running 00:42",
            "16/16 shards",
            "1,234,567",
            "502/s",
            "p50 4.2 ms",
            "identifies 16",
            "rules broken 0",
            "http://127.0.0.1:54321/health /metrics",
            "worker-2",
            "nats -s nats://127.0.0.1:12345 sub 'discord.shard.*.events'",
            "python3 /tmp/gateway-proxy-demo-4194304-01234567/subscribe.py",
            "http://127.0.0.1:23456/api/v10",
            "127.0.0.1:54321 pid 4194304",
            "250/s",
            "Pong! number 19",
        ],
    );
    // All shards, none summed up.
    let rows = screen
        .iter()
        .filter(|line| line.matches(" ready ").count() == 2);
    assert_eq!(rows.count(), 8, "{screen:#?}");
    has(&screen, &[" 15 ready "]);
}

#[test]
fn a_large_terminal_shows_more() {
    let small = screen(&sample(), 80, 24).join("\n");
    let large = screen(&sample(), 200, 50);
    has(
        &large,
        &["unacked", "session", "resumes", "Pong! number 0 "],
    );
    assert!(!small.contains("unacked") && !small.contains("Pong! number 0 "));
}

#[test]
fn no_size_is_exceeded() {
    let (full, empty) = (sample(), Sample::default());
    for width in (0..130).step_by(3).chain([39, 40, 71, 72, 80, 200, 400]) {
        for height in (0..40).chain([60, 200]) {
            for sample in [&full, &empty] {
                let screen = screen(sample, width, height);
                assert!(screen.len() <= height, "{width}x{height}: {screen:#?}");
                for line in &screen {
                    assert!(line.chars().count() <= width, "{width}x{height}: {line:?}");
                }
            }
        }
    }
}

#[test]
fn a_small_terminal_keeps_what_matters_most() {
    has(&screen(&sample(), 80, 3), &["running", "nats -s"]);
    has(&screen(&sample(), 80, 12), &["more, ", "ready", "lag 7"]);
    has(
        &screen(&sample(), 40, 24),
        &["proxy-1", "proxy-2", "running"],
    );
    has(&screen(&sample(), 20, 5), &["gateway-proxy demo"]);
}

#[test]
fn what_is_wrong_is_seen() {
    let mut sample = sample();
    sample.members[0].missing = vec!["shard 3: resuming".into()];
    let health = sample.members[0].health.as_mut().unwrap();
    health.shards[3].status = ShardState::Resuming;
    health.shards[3].reason = Some("op 7".into());
    sample.commands.unanswered = 1;
    has(
        &screen(&sample, 120, 30),
        &[
            "degraded",
            "15/16 shards",
            "shard 3: resuming",
            "resume ",
            "op 7",
            "late 1",
            "no answer",
        ],
    );
}

#[test]
fn before_anybody_answers_the_frame_stands() {
    let cards = sample()
        .members
        .into_iter()
        .map(|member| member.card)
        .collect();
    let screen = screen(&Sample::before(cards), 80, 24);
    has(&screen, &["no address yet", "0/16 shards", "starting"]);
    assert_eq!(screen.len(), 24);
}
