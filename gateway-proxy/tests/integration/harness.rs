//! Starts the built program, reads its log, and stands in for whom it talks to.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take; `TEST_PATIENCE` multiplies it on slow machines.
pub(crate) fn patience() -> Duration {
    let factor = std::env::var("TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(60).mul_f64(factor.unwrap_or(1.0))
}

/// Arguments and environment of one run. The environment of the test itself is not passed on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Run {
    pub(crate) fn new(args: &[&str]) -> Self {
        Self {
            args: args.iter().map(OsString::from).collect(),
            env: Vec::new(),
        }
    }

    /// `run` with everything a test wants: a token, a free port, short patience, a JSON log.
    pub(crate) fn proxy(nats_url: &str, api_url: &str) -> Self {
        Self::new(&[
            "run",
            "--http",
            "0",
            "--log",
            "json",
            "--startup-timeout",
            "20s",
        ])
        .env("DISCORD_TOKEN", "simulated.bot.token")
        .env("NATS_URL", nats_url)
        .env("DISCORD_API_URL", api_url)
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Replaces an option given before: clap takes each only once.
    pub(crate) fn with(mut self, flag: &str, value: &str) -> Self {
        match self.args.iter().position(|arg| arg == flag) {
            Some(at) => self.args[at + 1] = value.into(),
            None => self.args.extend([flag.into(), value.into()]),
        }
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-proxy"));
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().cloned());
        for name in [
            "PATH",
            "HOME",
            "NATS_SERVER",
            "LLVM_PROFILE_FILE",
            "CARGO_TARGET_DIR",
        ] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// Runs to the end.
    pub(crate) async fn finish(&self) -> Finished {
        let output = self.command().output();
        let output = tokio::time::timeout(patience(), output).await;
        let output = output.expect("the program ends in time").unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts and goes on.
    pub(crate) fn spawn(&self) -> Proxy {
        let mut child = self.command().spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        Self::follow(child, stderr)
    }

    /// Starts and goes on; what it prints for people takes the place of the log.
    pub(crate) fn spawn_printing(&self) -> Proxy {
        let mut child = self.command().stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self::follow(child, stdout)
    }

    fn follow(child: Child, output: impl AsyncRead + Unpin + Send + 'static) -> Proxy {
        let (log, _) = watch::channel(Vec::new());
        let lines = log.clone();
        let reading = CancellationToken::new();
        let ended = reading.clone().drop_guard();
        tokio::spawn(async move {
            let _ended = ended;
            let mut reader = BufReader::new(output).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.send_modify(|all: &mut Vec<String>| all.push(line));
            }
        });
        Proxy {
            child,
            log,
            reading,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Checks the exit code, and that the last line on standard error has all of `parts`.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("gateway-proxy: "), "{self:#?}");
        for part in parts {
            assert!(last.contains(part), "{part:?} is missing in: {last}");
        }
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    child: Child,
    log: watch::Sender<Vec<String>>,
    /// Cancelled when standard error is at its end.
    reading: CancellationToken,
}

impl Proxy {
    /// Waits for a log line whose message contains `text`.
    pub(crate) async fn logged(&self, text: &str) -> Value {
        let line = self.printed(text).await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
    }

    /// Waits for a line that contains `text`.
    pub(crate) async fn printed(&self, text: &str) -> String {
        let mut log = self.log.subscribe();
        let found = |lines: &Vec<String>| lines.iter().any(|line| line.contains(text));
        let waited = tokio::time::timeout(patience(), log.wait_for(found)).await;
        if waited.is_err() {
            panic!("{text:?} was not logged: {:#?}", self.log.borrow());
        }
        drop(waited);
        let lines = self.log.borrow();
        let line = lines.iter().find(|line| line.contains(text)).unwrap();
        line.clone()
    }

    /// The address of the HTTP endpoints, as logged.
    pub(crate) async fn http(&self) -> SocketAddr {
        let line = self.logged("HTTP endpoints").await;
        line["address"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("the program runs");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// The exit code; with the log in the message should it not come.
    pub(crate) async fn exit_code(mut self) -> Option<i32> {
        match tokio::time::timeout(patience(), self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => panic!("the program does not end: {:#?}", self.log.borrow()),
        }
    }

    /// Waits for the end; standard output is not kept.
    pub(crate) async fn finish(self) -> Finished {
        let log = self.log.clone();
        let reading = self.reading.clone();
        let code = self.exit_code().await;
        // The last line may still be on its way.
        let read = tokio::time::timeout(patience(), reading.cancelled()).await;
        assert!(read.is_ok(), "standard error stays open");
        let stderr = log.borrow().join("\n");
        Finished {
            code,
            stdout: String::new(),
            stderr,
        }
    }

    /// The whole log so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }
}

/// GETs a path: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(patience(), ask)
        .await
        .expect("an answer in time")
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Asks a path until the answer is as wanted.
pub(crate) async fn eventually(
    address: SocketAddr,
    path: &str,
    wanted: impl Fn(u16, &str) -> bool,
) -> String {
    let mut last = (0, String::new());
    let ask = async {
        loop {
            last = get(address, path).await;
            if wanted(last.0, &last.1) {
                return last.1.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(patience(), ask).await {
        Ok(body) => body,
        Err(_) => panic!("{path} does not become as wanted: {last:?}"),
    }
}

/// A REST server that answers everything the same way.
pub(crate) struct FakeDiscord {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    body: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeDiscord {
    pub(crate) async fn start(status: u16, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer {
            status,
            body: body.to_owned(),
            asked: Arc::clone(&asked),
        };
        let router = Router::new().fallback(reply).with_state(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    /// A gateway that nobody can connect to, and the given number of shards.
    pub(crate) async fn with_shards(shards: u32) -> Self {
        let body = serde_json::json!({
            "url": "ws://127.0.0.1:1",
            "shards": shards,
            "session_start_limit":
                {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 1},
        });
        Self::start(200, &body.to_string()).await
    }

    pub(crate) fn api_url(&self) -> String {
        format!("http://{}/api/v10", self.address)
    }

    /// Request line and the two headers Discord cares for, of every request.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn reply(State(answer): State<Answer>, request: axum::extract::Request) -> impl IntoResponse {
    let header = |name: &str| {
        let value = request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or("-").to_owned()
    };
    let line = format!(
        "{} {} {} {}",
        request.method(),
        request.uri(),
        header("authorization"),
        header("user-agent")
    );
    answer.asked.lock().unwrap().push(line);
    (answer.status, answer.body)
}

/// Something that greets like a nats-server of this version, and answers PING.
pub(crate) async fn fake_nats(version: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let info = serde_json::json!({
        "server_id": "X", "server_name": "old", "version": version, "proto": 1,
        "headers": true, "max_payload": 1_048_576, "jetstream": true,
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let info = info.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                write
                    .write_all(format!("INFO {info}\r\n").as_bytes())
                    .await?;
                let mut lines = BufReader::new(read).lines();
                while let Some(line) = lines.next_line().await? {
                    if line.starts_with("PING") {
                        write.write_all(b"PONG\r\n").await?;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    url
}

/// A port that nobody listens on: bound and let go.
pub(crate) async fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A file that goes with the test.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gateway-proxy-{:016x}", fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}
