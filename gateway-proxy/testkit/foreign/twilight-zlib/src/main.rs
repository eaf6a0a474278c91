//! twilight-gateway, unchanged, with zlib-stream against the simulator: connect, load guilds, op 7,
//! a dropped TCP connection, events after each.
//!
//! `cargo run -- http://127.0.0.1:PORT/api/v10 simulated.bot.token`

use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use twilight_gateway::{
    ConfigBuilder, Event, EventTypeFlags, Intents, Shard, ShardId, StreamExt as _,
};

const PATIENCE: Duration = Duration::from_secs(20);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One request to the control endpoints; the body of the answer.
async fn control(host: &str, method: &str, path: &str, body: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(host).await?;
    let head = format!(
        "{method} /_sim/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    if head.starts_with("HTTP/1.1 20") {
        Ok(body.to_owned())
    } else {
        Err(answer.into())
    }
}

async fn until(shard: &mut Shard, what: &str, found: impl Fn(&Event) -> bool) -> Outcome<()> {
    loop {
        let next = timeout(PATIENCE, shard.next_event(EventTypeFlags::all())).await;
        let event = next
            .map_err(|_| format!("no {what}"))?
            .ok_or("the shard ended")??;
        if found(&event) {
            return Ok(());
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    // twilight makes a TLS connector even for ws://.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "a TLS provider is installed already")?;
    let mut args = std::env::args().skip(1);
    let (api, token) = (args.next().ok_or("api url?")?, args.next().ok_or("token?")?);
    let host = api
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let urls = control(&host, "GET", "urls", "").await?;
    let gateway = urls
        .split("\"gateway\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let config = ConfigBuilder::new(token, Intents::all())
        .proxy_url(gateway.ok_or("no gateway url")?.to_owned())
        .build();
    let mut shard = Shard::with_config(ShardId::ONE, config);
    until(&mut shard, "GUILD_CREATE", |event| {
        matches!(event, Event::GuildCreate(_))
    })
    .await?;
    for fault in [
        r#"{"kind":"reconnect"}"#,
        r#"{"kind":"drop_tcp"}"#,
        r#"{"kind":"close","code":4000}"#,
    ] {
        let action = format!(r#"{{"action":"fault","target":"all","fault":{fault}}}"#);
        control(&host, "POST", "actions", &action).await?;
        until(&mut shard, "RESUMED", |event| {
            matches!(event, Event::Resumed)
        })
        .await?;
        control(
            &host,
            "POST",
            "actions",
            r#"{"action":"burst","event":"TYPING_START"}"#,
        )
        .await?;
        until(&mut shard, "TYPING_START", |event| {
            matches!(event, Event::TypingStart(_))
        })
        .await?;
    }
    let violations = control(&host, "GET", "violations", "").await?;
    if violations.trim() != "[]" {
        return Err(violations.into());
    }
    println!("zlib-stream: 3 resumes, events after each, no rule broken");
    Ok(())
}
