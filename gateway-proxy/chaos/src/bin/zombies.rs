//! Stops the proxy that holds the shards, lets another one take them, and lets the first go on: it must
//! neither publish twice or out of order nor destroy the sessions its successor holds.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos::{Proxy, duration, proxy_instead, say, scratch};
use clap::Parser;
use nix::sys::signal::Signal;
use schemas::Prefix;
use testkit::audit::{audit, wait_caught_up};
use testkit::nats;
use testkit::simulator::{Config, Load, SessionState, Simulator};
use tokio::time::{Instant, sleep, timeout};

/// How long a takeover, an end or the rest of the events may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Events flow this long before the next proxy is stopped.
const SETTLED: Duration = Duration::from_secs(2);
/// What a proxy that lost its shards to another ends with.
const LOST: i32 = 78;

/// Stops the proxy that holds the shards, starts another for them, and lets the first go on.
#[derive(Clone, Debug, Parser)]
#[command(name = "zombies", version)]
struct Options {
    /// How long each one stands still
    #[arg(long, value_delimiter = ',', default_value = "1s,5s,30s,3m", value_parser = duration)]
    freezes: Vec<Duration>,
    /// Shards of the bot
    #[arg(long, default_value_t = 8)]
    shards: u32,
    /// Events per second over all shards
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
}

fn main() -> ExitCode {
    if let Some(code) = proxy_instead() {
        return code;
    }
    chaos::main_with("zombies", run(Options::parse()))
}

async fn run(options: Options) -> anyhow::Result<bool> {
    let logs = scratch("zombies")?;
    let nats = nats::start(nats::Options::default()).await?;
    let simulator = Simulator::start(Config {
        guilds: options.shards as usize * 20,
        shards: options.shards,
        max_concurrency: options.shards,
        heartbeat_interval: Duration::from_secs(5),
        ..Config::default()
    })
    .await?;
    let mut holder = proxy(0, &nats.url(), &simulator, &logs);
    holder.start()?;
    all_connected(&simulator, options.shards, 0).await?;
    simulator.set_load(Load::rate(options.rate));
    say("| stood still | taken over after | ended after it went on | exit code |");
    say("|---|---|---|---|");
    let mut ended_well = true;
    for (number, freeze) in options.freezes.iter().enumerate() {
        sleep(SETTLED).await;
        let before = simulator.stats().resumes;
        holder.signal(Signal::SIGSTOP)?;
        let stopped = Instant::now();
        let mut next = proxy(number + 1, &nats.url(), &simulator, &logs);
        next.start()?;
        let resumes = before + u64::from(options.shards);
        all_connected(&simulator, options.shards, resumes).await?;
        let taken = stopped.elapsed();
        sleep(freeze.saturating_sub(taken)).await;
        holder.signal(Signal::SIGCONT)?;
        let on = Instant::now();
        let code = timeout(PATIENCE, holder.ended()).await.with_context(|| {
            format!("{} still runs {PATIENCE:?} after it went on", holder.name)
        })??;
        say(&format!(
            "| {freeze:?} | {taken:.0?} | {:.0?} | {code:?} |",
            on.elapsed()
        ));
        ended_well &= code == Some(LOST);
        if let Some(end) = next.died() {
            bail!(end);
        }
        holder = next;
    }
    sleep(SETTLED).await;
    simulator.set_load(Load::quiet());
    let client = nats::connect(&nats.url()).await?;
    let prefix = Prefix::default();
    wait_caught_up(&client, &prefix, &simulator, PATIENCE).await?;
    let report = audit(&client, &prefix, &simulator.ledger()).await?;
    drop(write!(std::io::stdout(), "\n{report}"));
    holder.signal(Signal::SIGTERM)?;
    holder.ended().await?;
    let spent = report.identifies.saturating_sub(options.shards as usize);
    say(&format!(
        "{} zombies: identifies spent {spent} (goal 0)",
        options.freezes.len()
    ));
    let passed = report.is_complete() && spent == 0 && ended_well;
    if passed {
        drop(std::fs::remove_dir_all(&logs));
    } else {
        say(&format!("logs: {}", logs.display()));
    }
    Ok(passed)
}

/// Waits until every shard has a live connection and so many sessions were resumed.
async fn all_connected(simulator: &Simulator, shards: u32, resumes: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let live = simulator.progress().into_iter();
        let live = live.filter(|session| session.state == SessionState::Connected);
        if live.count() == shards as usize && simulator.stats().resumes >= resumes {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the shards are not taken over within {PATIENCE:?}"
        );
        sleep(LOOK).await;
    }
}

fn proxy(number: usize, nats: &str, simulator: &Simulator, logs: &Path) -> Proxy {
    let name = format!("proxy-{number}");
    let args = [
        "run".to_owned(),
        format!("--nats-url={nats}"),
        format!("--api-url={}", simulator.api_url()),
        format!("--proxy-id={name}"),
        "--http=127.0.0.1:0".to_owned(),
    ];
    let log = logs.join(format!("{name}.log"));
    Proxy::new(name, args.to_vec(), simulator.token().to_owned(), log)
}
