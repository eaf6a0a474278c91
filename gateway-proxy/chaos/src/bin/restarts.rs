//! Kills a proxy with SIGKILL while every socket is flooded, again and again, and measures how long
//! after its next start the first new event is stored, and the first of every shard.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, stream::Stream};
use chaos::{Proxy, duration, proxy_instead, scratch};
use clap::Parser;
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use schemas::{Prefix, Subject};
use testkit::audit::{audit, wait_caught_up};
use testkit::nats;
use testkit::simulator::{Config, Load, SessionState, Simulator};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

/// What the first event after a start may take.
const GOAL: Duration = Duration::from_secs(2);
/// How long a shard may take to deliver again before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The stream stands still when it did not grow between two looks this far apart.
const STILL: Duration = Duration::from_millis(50);
/// A flood writes as fast as sockets take it, which Discord never does: between the last stored event and
/// the kill lie the publish buffer and what the kernel holds of every socket, more than the buffer of
/// a small bot's session. What Discord no longer has cannot be resumed, and is not measured here.
const REPLAY_EVENTS: usize = 1_000_000;

/// Kills a proxy at full flood, again and again, and measures how soon it delivers again.
#[derive(Clone, Debug, Parser)]
#[command(name = "restarts", version)]
struct Options {
    /// How often
    #[arg(long, default_value_t = 20)]
    times: u32,
    /// Shards of the proxy
    #[arg(long, default_value_t = 8)]
    shards: u32,
    /// Flood between two kills
    #[arg(long, default_value = "1s", value_parser = duration)]
    flood: Duration,
    /// zstd, zlib or none
    #[arg(long, default_value = "zstd")]
    compression: String,
}

struct Round {
    stored_before: u64,
    first: Duration,
    all: Duration,
}

fn main() -> ExitCode {
    if let Some(code) = proxy_instead() {
        return code;
    }
    chaos::main_with("restarts", run(Options::parse()))
}

async fn run(options: Options) -> anyhow::Result<bool> {
    ensure!(options.times > 0, "--times must be above 0");
    let logs = scratch("restarts")?;
    let nats = nats::start(nats::Options::default()).await?;
    let simulator = Simulator::start(Config {
        guilds: options.shards as usize * 20,
        shards: options.shards,
        max_concurrency: options.shards,
        replay_events: REPLAY_EVENTS,
        ..Config::default()
    })
    .await?;
    let mut proxy = proxy(&options, &nats.url(), &simulator, &logs);
    proxy.start()?;
    connected(&simulator, options.shards).await?;
    simulator.set_load(Load::flood(None));
    let client = nats::connect(&nats.url()).await?;
    let prefix = Prefix::default();
    let stream = jetstream::new(client.clone())
        .get_stream(prefix.event_stream(None))
        .await?;
    chaos::say("| kill | events stored before | first new event | every shard |");
    chaos::say("|---|---|---|---|");
    let mut rounds = Vec::new();
    for number in 1..=options.times {
        sleep(options.flood).await;
        let round = kill_and_start(&mut proxy, &stream, &prefix, options.shards).await?;
        chaos::say(&format!(
            "| {number} | {} | {:.0?} | {:.0?} |",
            round.stored_before, round.first, round.all
        ));
        rounds.push(round);
    }
    simulator.set_load(Load::quiet());
    wait_caught_up(&client, &prefix, &simulator, PATIENCE).await?;
    let report = audit(&client, &prefix, &simulator.ledger()).await?;
    drop(write!(std::io::stdout(), "\n{report}"));
    let spent = report.identifies.saturating_sub(options.shards as usize);
    let slowest = rounds.iter().map(|round| round.first).max();
    let slowest = slowest.unwrap_or_default();
    chaos::say(&format!(
        "{} kills: slowest first event {slowest:.0?} (goal {GOAL:?}), identifies spent {spent} (goal 0)",
        rounds.len()
    ));
    proxy.signal(Signal::SIGTERM)?;
    proxy.ended().await?;
    let passed = report.is_clean() && spent == 0 && slowest <= GOAL;
    if passed {
        drop(std::fs::remove_dir_all(&logs));
    } else {
        chaos::say(&format!("logs: {}", logs.display()));
    }
    Ok(passed)
}

/// Kills it, waits until what it had sent is stored, starts it, and reads what it stores first.
async fn kill_and_start(
    proxy: &mut Proxy,
    stream: &Stream,
    prefix: &Prefix,
    shards: u32,
) -> anyhow::Result<Round> {
    proxy.signal(Signal::SIGKILL)?;
    proxy.ended().await?;
    let mut last = 0;
    loop {
        let now = stream.get_info().await?.state.last_sequence;
        if now == last {
            break;
        }
        last = now;
        sleep(STILL).await;
    }
    let started = OffsetDateTime::now_utc();
    proxy.start()?;
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: last + 1,
        },
        headers_only: true,
        ..OrderedConfig::default()
    };
    let read = first_events(stream, config, prefix, shards, started);
    let (first, all) = timeout(PATIENCE, read)
        .await
        .with_context(|| format!("not every shard delivers again within {PATIENCE:?}"))??;
    Ok(Round {
        stored_before: last,
        first,
        all,
    })
}

/// How long after `started` the first dispatch was stored, and the first of the last shard.
async fn first_events(
    stream: &Stream,
    config: OrderedConfig,
    prefix: &Prefix,
    shards: u32,
    started: OffsetDateTime,
) -> anyhow::Result<(Duration, Duration)> {
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;
    let (mut seen, mut first) = (BTreeSet::new(), None);
    while let Some(message) = messages.next().await {
        let message = message?;
        let Ok(Subject::Event { shard, event, .. }) = Subject::parse(prefix, &message.subject)
        else {
            bail!("{} is no event", message.subject);
        };
        if event.starts_with("PROXY_") || !seen.insert(shard) {
            continue;
        }
        let stored = message
            .info()
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .published;
        let after = Duration::try_from(stored - started).unwrap_or_default();
        let first = *first.get_or_insert(after);
        if seen.len() == shards as usize {
            return Ok((first, after));
        }
    }
    bail!("the stream's messages end")
}

/// Waits until every shard has a session.
async fn connected(simulator: &Simulator, shards: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let live = simulator
            .progress()
            .into_iter()
            .filter(|session| session.state == SessionState::Connected && session.unsent == 0);
        if live.count() == shards as usize {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the shards do not start within {PATIENCE:?}"
        );
        sleep(STILL).await;
    }
}

fn proxy(options: &Options, nats: &str, simulator: &Simulator, logs: &Path) -> Proxy {
    let args = [
        "run".to_owned(),
        format!("--nats-url={nats}"),
        format!("--api-url={}", simulator.api_url()),
        format!("--compression={}", options.compression),
        "--proxy-id=flooded".to_owned(),
        "--http=127.0.0.1:0".to_owned(),
    ];
    Proxy::new(
        "flooded".to_owned(),
        args.to_vec(),
        simulator.token().to_owned(),
        logs.join("flooded.log"),
    )
}
