//! Kills NATS for minutes while events flow, and looks at what the proxy does with them: its memory
//! stays within `--buffer-bytes`, what Discord kept is stored afterwards, the rest is announced.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos::{Proxy, duration, proxy_instead, scratch};
use clap::Parser;
use nix::sys::signal::Signal;
use schemas::Prefix;
use testkit::audit::{AuditReport, audit, wait_caught_up};
use testkit::nats;
use testkit::simulator::{Config, Load, Rule, SessionState, Simulator};
use tokio::time::{Instant, sleep};

/// Flow before the outage, so that the memory of a working proxy is what growth is measured from.
const WARM_UP: Duration = Duration::from_secs(10);
/// Flow behind it, so that resuming and catching up happen under load.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long everything may take to be stored after that.
const SETTLE: Duration = Duration::from_secs(180);
/// Between two looks at the memory.
const SAMPLE: Duration = Duration::from_millis(100);
/// What a process may take beyond its buffer and what it took before: what the allocator keeps, buffers of
/// connections.
const SLACK: u64 = 16 << 20;

/// Kills NATS for minutes while events flow, and checks memory, losses and announcements.
#[derive(Clone, Debug, Parser)]
#[command(name = "outage", version)]
struct Options {
    /// How long NATS is away
    #[arg(long = "for", default_value = "5m", value_parser = duration)]
    lasts: Duration,
    /// Events per second over all shards
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// Shards of the proxy
    #[arg(long, default_value_t = 8)]
    shards: u32,
    /// Guilds of the bot
    #[arg(long, default_value_t = 160)]
    guilds: usize,
    /// The proxy's --buffer-bytes
    #[arg(long, default_value_t = 64 << 20)]
    buffer_bytes: u64,
    /// How long Discord keeps a session and its events for a RESUME
    #[arg(long, default_value = "3m", value_parser = duration)]
    replay_for: Duration,
    /// How many events of a session Discord keeps
    #[arg(long, default_value_t = 3_500)]
    replay_events: usize,
    /// Keep the proxy's log in this directory
    #[arg(long)]
    logs: Option<PathBuf>,
}

/// Resident memory of the proxy, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    before: u64,
    away: u64,
    after: u64,
}

impl Memory {
    fn peak(&self) -> u64 {
        self.away.max(self.after)
    }
}

fn main() -> ExitCode {
    if let Some(code) = proxy_instead() {
        return code;
    }
    chaos::main_with("outage", run(Options::parse()))
}

async fn run(options: Options) -> anyhow::Result<bool> {
    ensure!(options.shards > 0, "--shards must be above 0");
    let temporary = scratch("outage")?;
    let logs = options.logs.clone().unwrap_or_else(|| temporary.clone());
    std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let mut nats = nats::start(nats::Options::default()).await?;
    let simulator = Simulator::start(Config {
        guilds: options.guilds,
        shards: options.shards,
        max_concurrency: options.shards,
        replay_events: options.replay_events,
        replay_ttl: options.replay_for,
        ..Config::default()
    })
    .await?;
    let mut proxy = proxy(&options, &nats.url(), &simulator, &logs);
    proxy.start()?;
    let (report, memory) = tokio::select! {
        measured = measure(&options, &mut nats, &simulator, &mut proxy) => measured?,
        _ = tokio::signal::ctrl_c() => bail!("stopped by Ctrl-C; nothing was compared"),
    };
    proxy.signal(Signal::SIGTERM)?;
    proxy.ended().await?;
    let passed = summarise(&options, &report, memory);
    if passed && options.logs.is_none() {
        drop(std::fs::remove_dir_all(&temporary));
    } else {
        chaos::say(&format!("logs: {}", logs.display()));
    }
    Ok(passed)
}

async fn measure(
    options: &Options,
    nats: &mut nats::Server,
    simulator: &Simulator,
    proxy: &mut Proxy,
) -> anyhow::Result<(AuditReport, Memory)> {
    let (lasts, rate) = (options.lasts, options.rate);
    connected(simulator, options.shards).await?;
    simulator.set_load(Load::rate(rate));
    let mut memory = Memory::default();
    watch(proxy, &mut memory.before, sleep(WARM_UP)).await?;
    chaos::say(&format!(
        "NATS goes away for {lasts:?}, at {rate} events/s over {} shards",
        options.shards
    ));
    tokio::task::block_in_place(|| nats.kill9())?;
    watch(proxy, &mut memory.away, sleep(lasts)).await?;
    tokio::task::block_in_place(|| nats.start_again())?;
    let returned = Instant::now();
    watch(proxy, &mut memory.after, sleep(AFTERMATH)).await?;
    simulator.set_load(Load::quiet());
    connected(simulator, options.shards).await?;
    let client = nats::connect(&nats.url()).await?;
    let prefix = Prefix::default();
    let catch_up = wait_caught_up(&client, &prefix, simulator, SETTLE);
    let caught_up = watch(proxy, &mut memory.after, catch_up).await?;
    match caught_up {
        Ok(()) => chaos::say(&format!(
            "caught up {:.1?} after it came back",
            returned.elapsed()
        )),
        Err(error) => chaos::say(&error.to_string()),
    }
    let report = audit(&client, &prefix, &simulator.ledger()).await?;
    Ok((report, memory))
}

/// Waits for something, and notes the most memory the proxy had meanwhile.
async fn watch<T>(
    proxy: &mut Proxy,
    peak: &mut u64,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        if let Some(end) = proxy.died() {
            bail!(end);
        }
        *peak = resident(proxy)?.max(*peak);
        tokio::select! {
            done = &mut work => return Ok(done),
            () = sleep(SAMPLE) => {}
        }
    }
}

/// Resident memory of the proxy in bytes, as the kernel counts it.
fn resident(proxy: &Proxy) -> anyhow::Result<u64> {
    let pid = proxy.pid().context("the proxy does not run")?;
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    Ok(kib.with_context(|| format!("no VmRSS in {path}"))? * 1024)
}

/// Waits until every shard has a session with a connection.
async fn connected(simulator: &Simulator, shards: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let live = simulator
            .progress()
            .into_iter()
            .filter(|session| session.state == SessionState::Connected);
        let live = live.count();
        if live == shards as usize {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "only {live} of {shards} shards are connected after {SETTLE:?}"
        );
        sleep(SAMPLE).await;
    }
}

fn proxy(options: &Options, nats: &str, simulator: &Simulator, logs: &Path) -> Proxy {
    let args = [
        "run".to_owned(),
        format!("--nats-url={nats}"),
        format!("--api-url={}", simulator.api_url()),
        format!("--buffer-bytes={}", options.buffer_bytes),
        "--proxy-id=patient".to_owned(),
        "--http=127.0.0.1:0".to_owned(),
        "--identify-reserve=0".to_owned(),
    ];
    Proxy::new(
        "patient".to_owned(),
        args.to_vec(),
        simulator.token().to_owned(),
        logs.join("patient.log"),
    )
}

fn summarise(options: &Options, report: &AuditReport, memory: Memory) -> bool {
    let bound = memory.before + options.buffer_bytes + SLACK;
    let rude: usize = report
        .violations
        .iter()
        .filter(|(rule, _)| !is_allowed(**rule))
        .map(|(_, count)| count)
        .sum();
    let wrong = [
        (!report.is_clean(), "the stream is not what Discord sent"),
        (rude > 0, "rules of Discord were broken"),
        (memory.peak() > bound, "the memory is above its bound"),
    ];
    let mut out = std::io::stdout().lock();
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    // A terminal that is gone is no reason to stop.
    drop(write!(out, "{report}"));
    drop(writeln!(
        out,
        "\n| outage s | events/s | sent | stored | lost, announced | undelivered | missing | gaps | gaps owed | identifies \
         | RSS before MiB | away | back | bound | verdict |\n{}",
        "|---".repeat(15) + "|"
    ));
    let found: Vec<&str> = wrong
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, what)| *what)
        .collect();
    let verdict = if found.is_empty() { "PASS" } else { "FAIL" };
    drop(writeln!(
        out,
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {verdict} |",
        options.lasts.as_secs(),
        options.rate,
        report.events,
        report.stored,
        report.declared_lost,
        report.undelivered,
        report.missing.count,
        report.gaps.len(),
        report.gaps_owed.count,
        report.identifies,
        mib(memory.before),
        mib(memory.away),
        mib(memory.after),
        mib(bound),
    ));
    for what in &found {
        drop(writeln!(out, "{what}"));
    }
    found.is_empty()
}

/// What an outage makes a client do: a session that ended while NATS was away is asked for before it is
/// known to be gone.
const fn is_allowed(rule: Rule) -> bool {
    matches!(rule, Rule::UnknownSession)
}
