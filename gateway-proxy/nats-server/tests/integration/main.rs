//! A real server through its whole life, and nothing of it left behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nats_server::{Cluster, Options, Server, StartError, SyncInterval};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

const CHILD_ENV: &str = "NATS_SERVER_TEST_CHILD";
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_server_is_ready_when_start_returns_and_gone_after_drop() {
    let server = Server::start(Options::default()).unwrap();
    let pid = server.pid().unwrap();
    let store = server.store_dir();
    let info = client(&server).1;
    assert!(info.contains("\"jetstream\":true") && info.contains("\"max_payload\":8388608"));
    assert!(server.log().contains("Server is ready"));
    assert!(store.exists());
    drop(server);
    assert!(!alive(pid));
    assert!(!store.exists());
}

#[test]
fn stored_messages_survive_a_kill_and_a_restart_on_the_same_port() {
    let options = Options {
        sync_interval: Some(SyncInterval::Always),
        ..Options::default()
    };
    let mut server = Server::start(options).unwrap();
    let create = r#"{"name":"S","subjects":["s"],"storage":"file"}"#;
    assert!(request(&server, "$JS.API.STREAM.CREATE.S", create).contains("\"config\""));
    assert!(request(&server, "s", "kept").contains("\"seq\":1"));
    let (port, pid) = (server.port(), server.pid().unwrap());

    assert!(matches!(
        server.start_again(),
        Err(StartError::StillRunning { .. })
    ));
    server.kill9().unwrap();
    assert!(!alive(pid) && server.pid().is_none() && !server.is_running());
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    assert!(request(&server, "s", "two").contains("\"seq\":2"));

    server.stop().unwrap();
    assert!(server.log().contains("Server Exiting"), "{}", server.log());
    server.start_again().unwrap();
    assert!(request(&server, "s", "three").contains("\"seq\":3"));
}

#[test]
fn a_paused_server_does_not_answer_until_it_is_resumed() {
    let mut server = Server::start(Options::default()).unwrap();
    let mut stream = client(&server).0;
    server.pause().unwrap();
    assert!(server.is_running());
    stream.get_mut().write_all(b"PING\r\n").unwrap();
    stream
        .get_mut()
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // What it sent before it was paused may still come; an answer may not.
    let mut lines = stream.by_ref().lines();
    assert!(
        lines
            .by_ref()
            .map_while(Result::ok)
            .all(|line| line != "PONG")
    );
    server.resume().unwrap();
    stream.get_mut().set_read_timeout(Some(DEADLINE)).unwrap();
    assert!(
        stream
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .any(|line| line == "PONG")
    );
    // A paused server is stopped and dropped like any other.
    server.pause().unwrap();
    server.stop().unwrap();
}

#[test]
fn a_store_and_a_log_of_the_caller_are_kept() {
    let dir = env::temp_dir().join(format!("nats-server-kept-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (store, log) = (dir.join("store"), dir.join("log"));
    let options = Options {
        store_dir: Some(store.clone()),
        log_file: Some(log.clone()),
        name: Some("mine".into()),
        max_payload: 4096,
        extra_config: "debug: true".into(),
        ..Options::default()
    };
    let server = Server::start(options).unwrap();
    assert_eq!(server.name(), "mine");
    assert!(client(&server).1.contains("\"max_payload\":4096"));
    drop(server);
    assert!(store.is_dir());
    assert!(fs::read_to_string(&log).unwrap().contains("[DBG]"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_refused_configuration_and_a_taken_port_are_clear_errors() {
    let options = Options {
        extra_config: "no_such_option: {".into(),
        ..Options::default()
    };
    let error = Server::start(options).unwrap_err();
    let named = |log: &str| log.contains("Parse error on line");
    assert!(
        matches!(&error, StartError::Ended { log, .. } if named(log)),
        "{error}"
    );

    let first = Server::start(Options::default()).unwrap();
    let options = Options {
        port: Some(first.port()),
        ..Options::default()
    };
    let error = Server::start(options).unwrap_err();
    assert!(
        matches!(error, StartError::PortInUse { port } if port == first.port()),
        "{error}"
    );

    let options = Options {
        binary: Some("/bin/cat".into()),
        ..Options::default()
    };
    assert!(matches!(
        Server::start(options),
        Err(StartError::Ended { .. })
    ));
}

#[test]
fn a_server_that_wants_credentials_counts_as_ready() {
    let extra_config = "authorization { user: \"u\", password: \"p\" }".to_owned();
    let server = Server::start(Options {
        extra_config,
        ..Options::default()
    })
    .unwrap();
    assert!(client(&server).1.contains("\"auth_required\":true"));
}

#[test]
fn three_servers_hold_a_stream_with_three_replicas() {
    let mut cluster = Cluster::start(3).unwrap();
    let create = r#"{"name":"R","subjects":["r"],"storage":"file","num_replicas":3}"#;
    let answer = request(&cluster.servers()[0], "$JS.API.STREAM.CREATE.R", create);
    assert!(answer.contains("\"num_replicas\":3"), "{answer}");
    cluster.servers_mut()[0].kill9().unwrap();
    let deadline = Instant::now() + DEADLINE;
    // A leader may have to be elected first.
    while !request(&cluster.servers()[1], "r", "still stored").contains("\"seq\":") {
        assert!(Instant::now() < deadline, "no leader");
    }
    cluster.servers_mut()[0].start_again().unwrap();
    assert_eq!(cluster.url().split(',').count(), 3);
}

#[test]
fn no_process_is_left_when_the_owner_is_killed_or_panics() {
    for ending in ["wait to be killed", "panic"] {
        let mut owner = Owner::start(ending);
        if ending != "panic" {
            assert!(alive(owner.pid) && owner.dir.exists());
            owner.child.kill().unwrap();
        }
        owner.expect_ended();
        wait_until(|| !alive(owner.pid));
        wait_until(|| !owner.dir.exists());
    }
}

#[test]
fn no_process_is_left_when_its_directory_was_removed_before_the_owner_died() {
    let mut owner = Owner::start("wait to be killed");
    fs::remove_dir_all(&owner.dir).unwrap();
    assert!(alive(owner.pid));
    owner.child.kill().unwrap();
    owner.expect_ended();
    wait_until(|| !alive(owner.pid));
}

/// A process that owns a server.
struct Owner {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Of the server.
    pid: u32,
    /// What the server has for itself.
    dir: PathBuf,
}

impl Owner {
    fn start(ending: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "owner_that_ends_badly",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD_ENV, ending)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let line = (&mut stdout)
            .lines()
            .map(Result::unwrap)
            .find(|line| line.contains("server="));
        let line = line.expect("the child tells what it started");
        let mut words = line[line.find("server=").unwrap() + 7..].split(' ');
        let pid = words.next().unwrap().parse().unwrap();
        let store = PathBuf::from(words.next().unwrap());
        let dir = store.parent().unwrap().to_owned();
        Self {
            child,
            stdout,
            pid,
            dir,
        }
    }

    fn expect_ended(&mut self) {
        // Nothing of the server holds the pipe a test runner reads.
        self.stdout.read_to_end(&mut Vec::new()).unwrap();
        assert!(!self.child.wait().unwrap().success());
    }
}

/// Only does something when started by [`Owner::start`].
#[test]
fn owner_that_ends_badly() {
    let Ok(ending) = env::var(CHILD_ENV) else {
        return;
    };
    let server = Server::start(Options::default()).unwrap();
    println!(
        "server={} {} ",
        server.pid().unwrap(),
        server.store_dir().display()
    );
    assert_ne!(ending, "panic");
    loop {
        thread::park();
    }
}

#[test]
fn many_servers_start_at_the_same_time() {
    let ports: Vec<u16> = thread::scope(|scope| {
        let start = || scope.spawn(|| Server::start(Options::default()).unwrap().port());
        let starting: Vec<_> = (0..6).map(|_| start()).collect();
        starting
            .into_iter()
            .map(|started| started.join().unwrap())
            .collect()
    });
    assert_eq!(ports.len(), 6);
}

fn alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None) != Err(Errno::ESRCH) && !zombie(pid)
}

fn zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn wait_until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}");
        thread::yield_now();
    }
}

/// A connection that has read the server's INFO.
fn client(server: &Server) -> (BufReader<TcpStream>, String) {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut info = String::new();
    reader.read_line(&mut info).unwrap();
    (reader, info)
}

fn request(server: &Server, subject: &str, payload: &str) -> String {
    let (mut stream, _) = client(server);
    let text = format!(
        "CONNECT {{\"headers\":true,\"no_responders\":true}}\r\nSUB i 1\r\nPUB {subject} i {}\r\n{payload}\r\n",
        payload.len()
    );
    stream.get_mut().write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    loop {
        answer.clear();
        assert_ne!(
            stream.read_line(&mut answer).unwrap(),
            0,
            "connection closed"
        );
        if answer.starts_with("MSG i") {
            answer.clear();
            stream.read_line(&mut answer).unwrap();
            return answer;
        }
        if answer.starts_with("HMSG") || answer.starts_with("-ERR") {
            return answer;
        }
    }
}
