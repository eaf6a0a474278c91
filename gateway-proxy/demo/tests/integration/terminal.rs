//! The full-screen view in a terminal, which is given back whatever happens.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Room, patience};

/// What DEC terminals are told to enter and leave the alternate screen.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";
const SHOW_CURSOR: &str = "\u{1b}[?25h";

/// Presses keys in a terminal once a text is on its screen: what was written, and how it ended.
fn in_terminal(room: &Room, keys: &str, text: &str, args: &[&str]) -> (String, Value) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/terminal.py");
    let mut python: Command = room.bare("python3".as_ref());
    python
        .env("TERM", "xterm-256color")
        .env("WITHIN_S", patience().as_secs().to_string())
        .arg(script)
        .args([keys, text, env!("CARGO_BIN_EXE_demo")])
        .args(["--shards", "4", "--guilds", "40", "--rate", "100"])
        .args(args);
    let output = python.output().unwrap();
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = all.lines().last().unwrap_or_default();
    let end = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {all}\n{errors}"));
    (all, end)
}

#[track_caller]
fn gave_the_terminal_back(all: &str, end: &Value) {
    let (enter, leave) = (all.find(ENTER).unwrap(), all.rfind(LEAVE).unwrap());
    assert!(enter < leave, "{all}");
    assert!(all.rfind(SHOW_CURSOR).unwrap() > enter);
    assert_eq!(end["restored"], true, "{end}");
}

#[test]
fn q_ends_the_view_and_the_summary_follows() {
    let room = Room::new();
    let (all, end) = in_terminal(&room, "q", "● running", &[]);
    gave_the_terminal_back(&all, &end);
    assert_eq!(end["code"], 0, "{all}");
    let summary = all.rfind("clean: nothing lost").expect("a summary");
    assert!(summary > all.rfind(LEAVE).unwrap());
    room.expect_empty();
}

#[test]
fn ctrl_c_is_a_key_and_twice_is_at_once() {
    let room = Room::new();
    let (all, end) = in_terminal(&room, "\u{3}\u{3}", "● running", &[]);
    gave_the_terminal_back(&all, &end);
    assert_eq!(end["code"], 130, "{all}");
    room.expect_empty();
}

#[test]
fn a_closed_terminal_ends_the_demo() {
    let room = Room::new();
    let (all, end) = in_terminal(&room, "HANGUP", "● running", &[]);
    // It was under load: compared, and nobody to tell.
    assert_eq!(end["code"], 0, "{all}");
    room.expect_empty();
}

#[test]
fn a_dead_part_is_reported_below_a_restored_screen() {
    let room = Room::new();
    let (all, end) = in_terminal(&room, "KILL proxy-1", "gateway-proxy demo", &[]);
    gave_the_terminal_back(&all, &end);
    assert_eq!(end["code"], 1, "{all}");
    let said = all.rfind("ended unexpectedly").expect("who died");
    assert!(said > all.rfind(LEAVE).unwrap(), "{all}");
    room.expect_empty();
}
