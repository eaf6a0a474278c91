//! Every way the demo can end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Demo, Room};

/// The line of the summary, its number without separators.
#[track_caller]
fn summed_up(out: &str, name: &str) -> u64 {
    let line = out.lines().find(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name:?} in:\n{out}"));
    let value = line.trim_start()[name.len()..].split_whitespace().next();
    value.unwrap().replace(',', "").parse().unwrap()
}

#[test]
fn a_short_run_is_clean_and_says_what_it_did() {
    let room = Room::new();
    let mut command = room.bare(env!("CARGO_BIN_EXE_demo").as_ref());
    command.args(["--for", "5s", "--plain"]);
    let end = Demo::start(command).end();
    end.expect(
        0,
        &["clean: nothing lost", "subscribe with:", "proxy-2: pid "],
    );
    let events = summed_up(&end.out, "events sent");
    assert!(events > 5 * 250, "{events}");
    assert_eq!(summed_up(&end.out, "stored as sent"), events);
    assert_eq!(summed_up(&end.out, "identifies spent"), 16);
    assert!(summed_up(&end.out, "answered") >= 5);
    assert!(!end.out.contains('\u{1b}'), "escape codes: {}", end.out);
    assert_eq!(end.err, "");
    room.expect_empty();
}

#[test]
fn ctrl_c_sums_up_and_leaves_nothing() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&["--compression", "zlib"]));
    demo.under_load();
    assert!(room.processes().len() >= 6, "{:#?}", room.processes());
    demo.signal(Signal::SIGINT);
    demo.end()
        .expect(0, &["clean: nothing lost", "every command answered"]);
    room.expect_empty();
}

#[test]
fn a_terminated_demo_sums_up_too() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    demo.under_load();
    demo.signal(Signal::SIGTERM);
    demo.end().expect(0, &["clean: nothing lost"]);
    room.expect_empty();
}

#[test]
fn ctrl_c_during_the_start_leaves_nothing() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    demo.pid_of("proxy-1");
    demo.signal(Signal::SIGINT);
    demo.end().expect(130, &["stopped before everything was"]);
    room.expect_empty();
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    let proxy = demo.pid_of("proxy-1");
    demo.under_load();
    // A proxy that is frozen cannot end: the first Ctrl-C would wait for it.
    kill(proxy, Signal::SIGSTOP).unwrap();
    demo.signal(Signal::SIGINT);
    // Told apart from the first one, which might otherwise be merged with it.
    std::thread::sleep(Duration::from_millis(300));
    assert!(demo.child.try_wait().unwrap().is_none());
    let asked = Instant::now();
    demo.signal(Signal::SIGINT);
    demo.end().expect(130, &["stopped at once"]);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    room.expect_empty();
}

#[test]
fn a_killed_demo_takes_everything_with_it() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    demo.under_load();
    demo.signal(Signal::SIGKILL);
    let end = demo.end();
    assert_eq!(end.status.code(), None, "{end:?}");
    room.expect_empty();
}

#[test]
fn a_dead_part_ends_the_demo_and_is_named() {
    for (name, word) in [
        ("proxy-2", "its log"),
        ("worker-1", "its log"),
        ("nats-server", "nats"),
    ] {
        let room = Room::new();
        let mut demo = Demo::start(room.demo(&[]));
        let pid = if name == "nats-server" {
            let line = demo.line("nats-server 2.");
            let pid = line.split("pid ").nth(1).unwrap().split(',').next();
            nix::unistd::Pid::from_raw(pid.unwrap().parse().unwrap())
        } else {
            demo.pid_of(name)
        };
        demo.under_load();
        kill(pid, Signal::SIGKILL).unwrap();
        let said = format!("{name} (pid {pid}) ended unexpectedly");
        demo.end().expect(1, &[&said, word]);
        room.expect_empty();
    }
}

#[test]
fn what_breaks_the_order_of_things_is_no_clean_run() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    let address = demo.simulator();
    demo.under_load();
    // Discord is busy for so long that commands go unanswered.
    let fault = r#"{"action":"rest_fault","status":500,"count":1000,"retry_after_ms":0}"#;
    post(&address, "/_sim/actions", fault);
    demo.line("unanswered ");
    demo.signal(Signal::SIGINT);
    let end = demo.end();
    end.expect(1, &["NOT CLEAN", "commands were not answered within 3 s"]);
    assert_eq!(summed_up(&end.out, "lost"), 0);
    room.expect_empty();
}

#[test]
fn a_simulated_discord_that_is_shut_down_ends_the_demo() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    let address = demo.simulator();
    demo.under_load();
    post(&address, "/_sim/shutdown", "");
    demo.end()
        .expect(1, &["the simulated Discord was shut down"]);
    room.expect_empty();
}

/// Posts and expects success.
#[track_caller]
fn post(address: &str, path: &str, body: &str) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 20"), "{answer}");
}

#[test]
fn the_line_to_paste_shows_events() {
    let room = Room::new();
    let mut demo = Demo::start(room.demo(&[]));
    let line = demo.line("or:  python3 ");
    let script = line.split("python3 ").nth(1).unwrap().to_owned();
    demo.under_load();
    let mut python = room.bare("python3".as_ref());
    let mut python = python.arg(&script).spawn().unwrap();
    let mut lines = BufReader::new(python.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line = lines.next().expect("an event").unwrap();
        assert!(
            line.starts_with("discord.shard.") && line.ends_with(" bytes"),
            "{line}"
        );
    }
    drop(lines);
    // It ends by itself once nobody reads it or NATS is gone.
    demo.signal(Signal::SIGINT);
    demo.end().expect(0, &[]);
    python.wait().unwrap();
    room.expect_empty();
}

#[test]
fn kept_logs_stay() {
    let room = Room::new();
    let logs = room.dir().join("kept");
    let demo = Demo::start(room.demo(&["--for", "1s", "--keep-logs", &logs.to_string_lossy()]));
    demo.end().expect(0, &["logs are kept in "]);
    for name in ["proxy-1", "proxy-2", "worker-1", "worker-2", "nats-server"] {
        let text = fs::read_to_string(logs.join(format!("{name}.log"))).unwrap();
        assert!(text.lines().count() > 3, "{name}: {text}");
        assert!(!text.contains('\u{1b}'), "{name}: {text}");
        assert!(!text.contains("simulated.bot.token"), "{name}: {text}");
    }
    fs::remove_dir_all(&logs).unwrap();
    room.expect_empty();
}

#[test]
fn mistakes_are_explained() {
    let room = Room::new();
    Demo::start(room.demo(&["--speed", "9"]))
        .end()
        .expect(64, &["--speed"]);
    Demo::start(room.demo(&["--for", "soon"]))
        .end()
        .expect(64, &["--for", "30s"]);
    Demo::start(room.demo(&["--help"]))
        .end()
        .expect(0, &["--keep-logs", "Exit codes"]);
    let mut command = room.demo(&[]);
    command.env("NATS_SERVER", "/nowhere/nats-server");
    let end = Demo::start(command).end();
    end.expect(
        69,
        &[
            "no nats-server to start",
            "NATS_SERVER=/nowhere/nats-server",
        ],
    );
    let file = room.dir().join("file");
    fs::write(&file, "").unwrap();
    let end = Demo::start(room.demo(&["--keep-logs", &file.to_string_lossy()])).end();
    end.expect(69, &["cannot create", "file"]);
    fs::remove_file(&file).unwrap();
    room.expect_empty();
}
