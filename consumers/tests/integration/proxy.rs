//! Proxies, directories and workers as processes of their own, so that they can be killed.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use testkit::simulator::Simulator;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::world::{held_within, http_get, patience};

/// Where the child reads its arguments from, separated by spaces.
const PROXY_ARGS: &str = "TEST_PROXY_ARGS";

/// Not a test: what this binary does when it is started as a proxy. Run by hand it does nothing.
#[test]
#[ignore = "not a test: the proxy that other tests start as a process"]
fn as_a_proxy() {
    let Ok(args) = std::env::var(PROXY_ARGS) else {
        return;
    };
    let args = args.split(' ').map(Into::into);
    let code = gateway_proxy::main_with(args);
    assert_eq!(code, std::process::ExitCode::SUCCESS);
}

/// A process, and what it has logged.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// A proxy with all intents between the simulator and this NATS.
    pub(crate) fn proxy(nats_url: &str, simulator: &Simulator, more: &[&str]) -> Self {
        let mut args = vec![
            "gateway-proxy",
            "run",
            "--http",
            "0",
            "--intents",
            "53608447",
        ];
        args.extend(more);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "proxy::as_a_proxy", "--ignored", "--nocapture"])
            .env_clear()
            .env(PROXY_ARGS, args.join(" "))
            .env("DISCORD_TOKEN", simulator.token())
            .env("DISCORD_API_URL", simulator.api_url())
            .env("NATS_URL", nats_url);
        Self::spawn(&mut command)
    }

    /// `consumers directory`.
    pub(crate) fn directory(nats_url: &str, simulator: &Simulator, more: &[&str]) -> Self {
        Self::consumers("directory", nats_url, simulator, more)
    }

    /// `consumers <verb>`.
    pub(crate) fn consumers(
        verb: &str,
        nats_url: &str,
        simulator: &Simulator,
        more: &[&str],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consumers"));
        command
            .args([verb, "--http", "0"])
            .args(more)
            .env_clear()
            .env("DISCORD_TOKEN", simulator.token())
            .env("DISCORD_API_URL", simulator.api_url())
            .env("NATS_URL", nats_url);
        Self::spawn(&mut command)
    }

    /// Anything, with its log and its end in this test's hands.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        for name in ["PATH", "LLVM_PROFILE_FILE", "RUST_LOG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    /// Waits until the process has logged this.
    pub(crate) async fn logs(&self, text: &str) {
        self.logs_within(1, text).await;
    }

    /// The same with so many times the patience.
    pub(crate) async fn logs_within(&self, times: u32, text: &str) {
        let logged = async || self.log().contains(text).then_some(());
        if held_within(times, logged).await.is_none() {
            panic!("{text:?} is not in: {}", self.log());
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What the process counts under this name on its `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let log = self.log();
        let address = log.split("http=").nth(1).unwrap();
        let address = address.split_whitespace().next().unwrap();
        let (_, text) = http_get(address.parse().unwrap(), "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    }

    /// kill -9.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// As `kill` does it.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args([name, &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    /// SIGTERM, and the end of the process: its exit code.
    pub(crate) async fn stop(self) -> i32 {
        self.signal("-TERM");
        self.ended().await
    }

    /// Waits for the end of the process; its exit code.
    pub(crate) async fn ended(mut self) -> i32 {
        let ended = tokio::time::timeout(patience(), self.child.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("the process does not end: {}", self.log()))
            .unwrap()
            .code()
            .unwrap()
    }
}
