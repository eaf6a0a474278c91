//! The program itself: exit codes, signals, and that no secret is logged.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::fake_discord::{Fault, TOKEN};
use crate::proxy::Process;
use crate::world::{World, patience, slowness};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumers"));
    command
        .env_clear()
        .env("DISCORD_TOKEN", TOKEN)
        .env("HTTP_LISTEN", "0");
    command.arg("commands").kill_on_drop(true);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn program_of(world: &World) -> Command {
    let mut command = program();
    command
        .env("NATS_URL", world.nats.url())
        .env("DISCORD_API_URL", world.discord.url());
    command
}

async fn ends_with(command: &mut Command, code: i32) -> String {
    let ended = timeout(patience(), command.output()).await;
    let Output { status, stderr, .. } = ended.expect("the program ends").unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(
        !stderr.contains(TOKEN),
        "the token is never shown: {stderr}"
    );
    stderr
}

/// A program that answers interactions.
async fn started(command: &mut Command) -> Process {
    let started = Process::spawn(command);
    started.logs("running").await;
    started
}

#[tokio::test]
async fn wrong_flags_end_with_64_and_name_the_key() {
    let text = ends_with(program().arg("--no-such-flag"), 64).await;
    assert!(text.contains("--no-such-flag"), "{text}");
    let text = ends_with(program().args(["--concurrency", "none"]), 64).await;
    assert!(text.contains("--concurrency"), "{text}");
    let text = ends_with(program().env("SUBJECT_PREFIX", "a.b"), 64).await;
    assert!(text.contains("SUBJECT_PREFIX"), "{text}");
    let text = ends_with(program().env_remove("DISCORD_TOKEN"), 64).await;
    assert!(text.contains("DISCORD_TOKEN"), "{text}");
    let mut bare = Command::new(env!("CARGO_BIN_EXE_consumers"));
    ends_with(bare.stdout(Stdio::piped()).stderr(Stdio::piped()), 64).await;
}

#[tokio::test]
async fn help_ends_with_0() {
    let output = program().arg("--help").output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("--nats-url") && text.contains("NATS_URL"),
        "{text}"
    );
}

#[tokio::test]
async fn unreachable_nats_or_discord_ends_with_69() {
    let mut nobody = program();
    // Port 1 is never listened on.
    nobody.args([
        "--nats-url",
        "nats://127.0.0.1:1",
        "--startup-timeout",
        "1s",
    ]);
    let text = ends_with(&mut nobody, 69).await;
    assert!(
        text.contains("127.0.0.1:1") && text.contains("--nats-url"),
        "{text}"
    );

    let world = World::start().await;
    let mut alone = program_of(&world);
    alone.args([
        "--api-url",
        "http://127.0.0.1:1/api/v10",
        "--startup-timeout",
        "1s",
    ]);
    let text = ends_with(&mut alone, 69).await;
    assert!(
        text.contains("Discord") && text.contains("Connection refused"),
        "{text}"
    );
}

#[tokio::test]
async fn a_refused_token_ends_with_77() {
    let world = World::start().await;
    let text = ends_with(program_of(&world).env("DISCORD_TOKEN", "another"), 77).await;
    assert!(
        text.contains("token") && !text.contains("another"),
        "{text}"
    );
}

#[tokio::test]
async fn surroundings_that_do_not_fit_end_with_78() {
    let world = World::without_stream().await;
    let text = ends_with(program_of(&world).args(["--startup-timeout", "1s"]), 78).await;
    assert!(text.contains("DISCORD_EVENTS"), "{text}");

    let old = fake_nats(r#"{"version":"2.9.25","jetstream":true}"#, "PONG\r\n").await;
    let text = ends_with(program_of(&world).env("NATS_URL", old), 78).await;
    assert!(text.contains("2.9.25"), "{text}");
    let plain = fake_nats(r#"{"version":"2.15.1"}"#, "PONG\r\n").await;
    let text = ends_with(program_of(&world).env("NATS_URL", plain), 78).await;
    assert!(text.contains("JetStream"), "{text}");
    let refusal = "-ERR 'Authorization Violation'\r\n";
    let closed = fake_nats(r#"{"version":"2.15.1","auth_required":true}"#, refusal).await;
    let text = ends_with(program_of(&world).env("NATS_URL", closed), 78).await;
    assert!(text.contains("--nats-user"), "{text}");
}

/// A server that greets with these facts and answers the client's first words with `answer`.
async fn fake_nats(info: &'static str, answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream
                .write_all(format!("INFO {info}\r\n").as_bytes())
                .await
                .unwrap();
            let mut words = [0; 4096];
            if stream.read(&mut words).await.is_ok() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            // Hold the connection until the client leaves.
            while matches!(stream.read(&mut words).await, Ok(read) if read > 0) {}
        }
    });
    url
}

#[tokio::test]
async fn sigterm_and_ctrl_c_end_with_0() {
    let world = World::start().await;
    for name in ["-TERM", "-INT"] {
        let program = started(&mut program_of(&world)).await;
        let id = world.type_command("ping").await;
        world.answer(id).await;
        program.signal(name);
        assert_eq!(program.ended().await, 0, "{name}");
    }
    world.settled("DISCORD_EVENTS").await;
}

#[tokio::test]
async fn a_signal_during_the_start_ends_with_0() {
    let world = World::without_stream().await;
    let mut asking = world.asked_for_the_consumer().await;
    let program = Process::spawn(&mut program_of(&world));
    let asked = timeout(patience(), asking.next()).await;
    asked.expect("the start waits for its stream").unwrap();
    assert_eq!(program.stop().await, 0);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let world = World::start().await;
    // Nothing responds to the callback, so the first signal waits for what is in flight.
    let silence = std::iter::repeat_n(Fault::TakenThenSilent, 10);
    world.discord.script(silence);
    let program = started(&mut program_of(&world)).await;
    let id = world.type_command("ping").await;
    world.answer(id).await;
    let asked = Instant::now();
    program.signal("-TERM");
    program.logs("a second signal stops at once").await;
    assert_eq!(program.stop().await, 143);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2) * slowness(), "{took:?}");
}
