//! The program, run as a program.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::client::Client;

/// Killed when a test fails before it ended by itself.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Fails where it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn program(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_discord-simulator"));
    command
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn exit_code(flags: &'static [&'static str]) -> (i32, String) {
    let output = spawn_blocking(|| program(flags).output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), text)
}

fn temp(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("discord-simulator-{}-{name}", std::process::id()))
}

#[tokio::test]
async fn it_prints_its_urls_runs_a_script_and_ends_with_ctrl_c() {
    let (script, ledger) = (temp("script.json"), temp("ledger.ndjson"));
    let step =
        r#"[{"after_events":4,"action":"fault","target":"all","fault":{"kind":"reconnect"}}]"#;
    std::fs::write(&script, step).unwrap();
    let paths = [script.to_str().unwrap(), ledger.to_str().unwrap()];
    let flags = [
        "--guilds",
        "3",
        "--print-urls",
        "--script",
        paths[0],
        "--ledger",
        paths[1],
    ];
    let mut program = Program(program(&flags).spawn().unwrap());
    let stdout = program.0.stdout.take().unwrap();
    let line = spawn_blocking(|| BufReader::new(stdout).lines().next().unwrap().unwrap());
    let urls: Value = serde_json::from_str(&line.await.unwrap()).unwrap();

    let mut client = Client::open(urls["gateway"].as_str().unwrap(), None).await;
    client.expect_op(10).await;
    let identify = serde_json::json!({"op": 2, "d": {
        "token": urls["token"], "intents": 1, "properties": {}, "shard": [0, 1],
    }});
    client.send(&identify).await;
    assert_eq!(client.ready().await.guilds.len(), 3);
    client.expect_op(7).await;

    kill(Pid::from_raw(program.0.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(client.expect_close().await, None);
    let status = spawn_blocking(move || program.0.wait().unwrap())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let text = std::fs::read_to_string(&ledger).unwrap();
    let events = text
        .lines()
        .filter(|line| line.contains("\"kind\":\"event\""))
        .count();
    assert_eq!(events, 4);
    std::fs::remove_file(script).unwrap();
    std::fs::remove_file(ledger).unwrap();
}

#[tokio::test]
async fn it_says_what_is_wrong_with_its_flags() {
    for (flags, code, says) in [
        (&["--no-such-flag"][..], 64, "--no-such-flag"),
        (&["--rate", "1", "--flood"], 64, "--flood"),
        (&["--script", "/no/such/file"], 64, "/no/such/file"),
        (&["--replay", "/no/such/file"], 64, "/no/such/file"),
        (&["--listen", "192.0.2.1"], 69, "192.0.2.1"),
    ] {
        let (exit, text) = exit_code(flags).await;
        assert_eq!(exit, code, "{flags:?}: {text}");
        assert!(text.contains(says), "{flags:?}: {text}");
    }
}

#[tokio::test]
async fn it_ends_by_itself_after_its_time() {
    assert_eq!(exit_code(&["--seconds", "0"]).await.0, 0);
}
