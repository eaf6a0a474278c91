//! Measures what a fleet promises: how soon the shards of a proxy that died deliver again, what a
//! rolling restart costs, how long a cold start takes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos::fleet::{Fleet, unix_us};
use chaos::{proxy_instead, say, scratch};
use clap::{Parser, ValueEnum};
use schemas::Prefix;
use testkit::audit::{AuditReport, audit, wait_caught_up};
use testkit::simulator::{Config, GuildBytes, Load, Pace, Rule, SessionState};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

/// Shards of a dead proxy deliver again within this.
const TAKEOVER_GOAL: Duration = Duration::from_secs(3);
/// The same when it coordinated.
const SUCCESSION_GOAL: Duration = Duration::from_secs(4);
/// The longest an event may wait in a planned move.
const PAUSE_GOAL: Duration = Duration::from_millis(250);
/// One IDENTIFY per bucket and 5 s (Discord, Gateway, Rate limits).
const WAVE: Duration = Duration::from_secs(5);
/// How much longer than the least a cold start may take.
const START_SHARE: f64 = 1.05;
/// Everything is stored within this after the load ended.
const SETTLE: Duration = Duration::from_secs(60);
/// Load before and after what is measured.
const STEADY: Duration = Duration::from_secs(3);
/// How long shards may stay silent before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures takeovers, rolling restarts and cold starts of a fleet of real processes.
#[derive(Clone, Debug, Parser)]
#[command(name = "failover", version)]
struct Options {
    /// What to measure; all without it
    #[arg(value_enum)]
    what: Vec<What>,
    /// Events per second and shard
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// kill -9 of a proxy with half of 64 shards, then of the one that coordinates
    Takeover,
    /// 4 proxies with 64 shards each are restarted one after the other under load
    Rolling,
    /// 256 shards start with `max_concurrency` 16
    ColdStart,
}

fn main() -> ExitCode {
    if let Some(code) = proxy_instead() {
        return code;
    }
    chaos::main_with("failover", run(Options::parse()))
}

async fn run(options: Options) -> anyhow::Result<bool> {
    let all = [What::Takeover, What::Rolling, What::ColdStart];
    let mut passed = true;
    for what in all {
        if !options.what.is_empty() && !options.what.contains(&what) {
            continue;
        }
        passed &= match what {
            What::Takeover => takeover(options.rate).await,
            What::Rolling => rolling(options.rate).await,
            What::ColdStart => cold_start().await,
        }?;
    }
    Ok(passed)
}

fn config(shards: u32, max_concurrency: u32) -> Config {
    Config {
        guilds: shards as usize * 4,
        shards,
        max_concurrency,
        heartbeat_interval: Duration::from_secs(10),
        guild_bytes: GuildBytes {
            median: 2_000,
            max: 20_000,
            ..GuildBytes::default()
        },
        ..Config::default()
    }
}

fn load(rate: f64) -> Load {
    Load {
        pace: Pace::RatePerShard {
            events_per_second: rate,
        },
        ..Load::quiet()
    }
}

/// kill -9 of a proxy that does not coordinate, then of the one that does.
async fn takeover(rate: f64) -> anyhow::Result<bool> {
    const SHARDS: u32 = 64;
    let logs = scratch("failover")?;
    let mut fleet = Fleet::new(config(SHARDS, SHARDS), &logs).await?;
    fleet.join("a")?;
    fleet.join("b")?;
    let mut state = fleet.balanced(2, SHARDS).await?;
    let identified = fleet.simulator.stats().identifies;
    fleet.simulator.set_load(load(rate));
    sleep(STEADY).await;
    say("| killed | shards | delivering again, first | all | goal |");
    say("|---|---|---|---|---|");
    let mut passed = true;
    for (coordinates, goal) in [(false, TAKEOVER_GOAL), (true, SUCCESSION_GOAL)] {
        let leader = state.coordinator.as_ref().context("nobody coordinates")?;
        let victim = state
            .workers
            .iter()
            .find(|worker| (worker.proxy == *leader) == coordinates)
            .context("no such proxy")?;
        let shards: BTreeSet<u32> = victim.shards.iter().copied().collect();
        let name = victim.proxy.to_string();
        let (first, all) = kill_and_wait(&mut fleet, &name, &shards).await?;
        let kind = if coordinates {
            "the coordinator"
        } else {
            "a member"
        };
        say(&format!(
            "| {kind} | {} | {first:.1?} | {all:.1?} | {goal:?} |",
            shards.len()
        ));
        passed &= all <= goal;
        fleet.join(&name)?;
        state = fleet.balanced(2, SHARDS).await?;
        sleep(STEADY).await;
    }
    let report = settle(&fleet).await?;
    let spent = fleet.simulator.stats().identifies - identified;
    say(&format!("identifies spent {spent} (goal 0)"));
    fleet.end().await?;
    Ok(conclude(&report, passed && spent == 0, &logs))
}

/// How long after the kill the first of these shards delivered, and the last of them.
async fn kill_and_wait(
    fleet: &mut Fleet,
    name: &str,
    shards: &BTreeSet<u32>,
) -> anyhow::Result<(Duration, Duration)> {
    let killed = unix_us(OffsetDateTime::now_utc());
    fleet.kill(name).await?;
    let from = fleet.stream().await?.cached_info().state.last_sequence;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut first: BTreeMap<u32, i128> = BTreeMap::new();
        // What the dead one had sent may be stored after it died: only what Discord had later counts.
        let queued = fleet.queued();
        for event in fleet.stored_from(from).await? {
            let ready = queued.get(&event.session);
            let ready = ready.and_then(|queued| queued.get(event.seq as usize - 1));
            if shards.contains(&event.shard) && ready.is_some_and(|at| *at > killed) {
                first.entry(event.shard).or_insert(event.at_us - killed);
            }
        }
        if first.len() == shards.len() {
            let times = first.values();
            return Ok((
                micros(times.clone().min().copied()),
                micros(times.max().copied()),
            ));
        }
        ensure!(
            Instant::now() < deadline,
            "only {} of {} shards deliver again within {PATIENCE:?}",
            first.len(),
            shards.len()
        );
        sleep(Duration::from_millis(200)).await;
    }
}

fn micros(us: Option<i128>) -> Duration {
    Duration::from_micros(us.and_then(|us| u64::try_from(us).ok()).unwrap_or(0))
}

/// Drains and starts one proxy after the other; no event may wait long.
async fn rolling(rate: f64) -> anyhow::Result<bool> {
    const PROXIES: usize = 4;
    const SHARDS: u32 = 256;
    let logs = scratch("failover")?;
    let mut fleet = Fleet::new(config(SHARDS, SHARDS), &logs).await?;
    let names = ["a", "b", "c", "d"];
    for name in names {
        fleet.join(name)?;
    }
    fleet.balanced(PROXIES, SHARDS).await?;
    let identified = fleet.simulator.stats().identifies;
    fleet.simulator.set_load(load(rate));
    sleep(STEADY).await;
    let from = fleet.stream().await?.cached_info().state.last_sequence;
    let calm = longest_waits(&fleet, from.saturating_sub(5_000)).await?;
    let began = Instant::now();
    for name in names {
        fleet.drain(name).await?;
        fleet.join(name)?;
        fleet.balanced(PROXIES, SHARDS).await?;
    }
    let took = began.elapsed();
    sleep(STEADY).await;
    let waits = longest_waits(&fleet, from).await?;
    let report = settle(&fleet).await?;
    let spent = fleet.simulator.stats().identifies - identified;
    let mut sorted: Vec<Duration> = waits.values().copied().collect();
    sorted.sort_unstable();
    let longest = sorted.last().copied().unwrap_or_default();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    say(&format!(
        "rolling restart of {PROXIES} proxies with {} shards each in {took:.1?} at {:.0} events/s",
        SHARDS as usize / PROXIES,
        rate * f64::from(SHARDS)
    ));
    say("| longest wait of an event | of all shards | of the median shard | before | goal |");
    say("|---|---|---|---|---|");
    say(&format!(
        "| | {longest:.0?} | {median:.0?} | {:.0?} | {PAUSE_GOAL:?} |",
        calm.values().max().copied().unwrap_or_default()
    ));
    say(&format!("identifies spent {spent} (goal 0)"));
    fleet.end().await?;
    Ok(conclude(
        &report,
        spent == 0 && longest <= PAUSE_GOAL,
        &logs,
    ))
}

/// By shard, how long its slowest event waited from when Discord had it until it was stored.
async fn longest_waits(fleet: &Fleet, from: u64) -> anyhow::Result<BTreeMap<u32, Duration>> {
    let stored = fleet.stored_from(from).await?;
    let queued = fleet.queued();
    let mut longest: BTreeMap<u32, i128> = BTreeMap::new();
    for event in stored {
        let ready = queued.get(&event.session);
        if let Some(at) = ready.and_then(|queued| queued.get(event.seq as usize - 1)) {
            let wait = longest.entry(event.shard).or_default();
            *wait = (*wait).max(event.at_us - at);
        }
    }
    let durations = longest.into_iter();
    Ok(durations
        .map(|(shard, us)| (shard, micros(Some(us))))
        .collect())
}

/// All shards of a new bot, as fast as Discord lets them.
async fn cold_start() -> anyhow::Result<bool> {
    const SHARDS: u32 = 256;
    const CONCURRENCY: u32 = 16;
    let logs = scratch("failover")?;
    let mut fleet = Fleet::new(config(SHARDS, CONCURRENCY), &logs).await?;
    for name in ["a", "b"] {
        fleet.join(name)?;
    }
    let deadline = Instant::now() + WAVE * SHARDS / CONCURRENCY * 2;
    loop {
        let progress = fleet.simulator.progress().into_iter();
        let live = progress.filter(|session| session.state == SessionState::Connected);
        if live.count() == SHARDS as usize {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "the shards do not start in twice the least time"
        );
        sleep(Duration::from_millis(100)).await;
    }
    let report = settle(&fleet).await?;
    let ledger = fleet.simulator.ledger();
    let times = ledger.identifies.iter().map(|identify| identify.at_us);
    let (first, last) = (times.clone().min(), times.max());
    let span = first.zip(last).map_or(0, |(first, last)| last - first);
    let took = Duration::from_micros(span) + WAVE;
    let least = WAVE * (SHARDS / CONCURRENCY);
    let refused = ledger.identifies.iter().filter(|i| !i.accepted).count();
    say(&format!(
        "cold start of {SHARDS} shards, max_concurrency {CONCURRENCY}: {took:.1?} from the first IDENTIFY to the end of the \
         last one's window, least {least:?} (goal {START_SHARE} times that), {refused} refused (goal 0)"
    ));
    fleet.end().await?;
    let in_time = took.as_secs_f64() <= least.as_secs_f64() * START_SHARE;
    Ok(conclude(&report, in_time && refused == 0, &logs))
}

/// Ends the load and compares Discord's ledger with the stream.
async fn settle(fleet: &Fleet) -> anyhow::Result<AuditReport> {
    fleet.simulator.set_load(Load::quiet());
    let prefix = Prefix::default();
    wait_caught_up(fleet.client(), &prefix, &fleet.simulator, SETTLE).await?;
    Ok(audit(fleet.client(), &prefix, &fleet.simulator.ledger()).await?)
}

/// Says what the audit found; true when all is well.
fn conclude(report: &AuditReport, reached: bool, logs: &std::path::Path) -> bool {
    let rude = report
        .violations
        .keys()
        .any(|rule| *rule != Rule::ResumeOnMainUrl);
    let passed = reached && report.is_clean() && !rude;
    drop(writeln!(std::io::stdout(), "{report}"));
    if passed {
        drop(std::fs::remove_dir_all(logs));
    } else {
        say(&format!("NOT reached; logs: {}", logs.display()));
    }
    passed
}
