//! One run: a fresh nats-server, simulator and contender; brought to rest, loaded, and compared with
//! the kernel's account before and after.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nats_server::Server;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::nats::Options;
use testkit::simulator::Load;
use tokio::process::{Child as Process, Command};
use tokio::time::{Instant, sleep};

use super::args::{Args, Contender};
use super::contender::{Acks, Running};
use super::corpus::{self, Corpus};
use super::events::Events;
use super::kernel::{Memory, Spent, Usage};
use super::latency::{Latency, Listener};
use super::peers;
use super::report::{Cost, Report, Run};
use super::say;
use super::simulator::{Simulator, unix_us};

/// Events per shard before a flood is measured: windows of the codecs and buffers are full then.
const WARM_UP_EVENTS: u64 = 1_000;
/// Time a paced load runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// Share of the rate below which a run is not what was asked for.
const HELD: f64 = 0.99;
/// Time without anything to do before memory at rest is read.
const REST: Duration = Duration::from_secs(3);
/// Until all shards are up and everything sent is stored.
const SETTLED_WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Samples per second of a profile: enough for percents within a run, few enough not to show.
const PERF_HZ: &str = "499";

/// Measures everything that was asked for, turn about, so that a noisy minute hits all alike.
pub(crate) async fn all(args: &Args) -> Result<Report> {
    let (mut contenders, left_out) = args.contenders();
    left_out.iter().for_each(|why| say(why));
    let foreign = [Contender::DiscordJs, Contender::DiscordPy];
    for peer in foreign {
        if contenders.contains(&peer)
            && let Err(error) = peers::program(peer).await
        {
            say(&format!("{} is left out: {error:#}", peer.name()));
            contenders.retain(|contender| *contender != peer);
        }
    }
    if contenders.is_empty() {
        bail!("nothing to measure");
    }
    let corpus = if contenders
        .iter()
        .all(|contender| *contender == Contender::Proxy)
    {
        None
    } else {
        say("taking the messages and the stream's settings from a short run of the proxy");
        Some(take_corpus(args).await.context("take the corpus")?)
    };
    let mut report = Report::new(args);
    for round in 1..=args.repeat {
        for contender in &contenders {
            let name = contender.name();
            say(&format!("{name} {round}/{}", args.repeat));
            match one(args, *contender, round, corpus.as_ref()).await {
                Ok(run) => report.add(run),
                // Others' trouble is not ours: the rest is measured.
                Err(error) if foreign.contains(contender) => {
                    say(&format!("{name} {round} came to nothing: {error:#}"));
                }
                Err(error) => return Err(error.context(format!("{name} {round}"))),
            }
        }
    }
    Ok(report)
}

/// What the run's processes are.
struct Rig {
    nats: Server,
    events: Events,
    simulator: Option<Simulator>,
    running: Running,
    // When the contender was started.
    started: std::time::Instant,
}

/// The account of each process at one moment.
struct Usages {
    client: Usage,
    nats: Usage,
    simulator: Option<Usage>,
}

/// The messages and the stream's settings, from a short run of the proxy.
pub(crate) async fn take_corpus(args: &Args) -> Result<Corpus> {
    let args = Args {
        idle: false,
        guilds_per_shard: args.guilds_per_shard.max(1),
        ..args.clone()
    };
    let mut rig = Rig::start(&args, Contender::Proxy, None).await?;
    rig.settle(&args).await?;
    let each = corpus::EVENTS.div_ceil(u64::from(args.shards));
    rig.set_load(&args, Load::flood(Some(each))).await?;
    rig.settle_after(&args, each * u64::from(args.shards))
        .await?;
    let corpus = Corpus::take(&rig.events).await?;
    rig.stop().await?;
    Ok(corpus)
}

async fn one(
    args: &Args,
    contender: Contender,
    round: u32,
    corpus: Option<&Corpus>,
) -> Result<Run> {
    let mut rig = Rig::start(args, contender, corpus).await?;
    let settled = rig.settle(args).await;
    settled.with_context(|| rig.running.complaint())?;
    let profile = match &args.perf {
        Some(directory) => {
            let name = format!("{}-{round}", contender.name());
            Some(Profile::start(directory, &name, rig.running.pid())?)
        }
        None => None,
    };
    let run = rig.load(args).await;
    let mut run = run.with_context(|| rig.running.complaint())?;
    if let Some(profile) = profile {
        profile.finish().await?;
    }
    run.contender = contender.name();
    run.round = round;
    run.memory = Memory::of(rig.running.pid())?;
    run.nats_memory = Memory::of(rig.nats_pid()?)?;
    if contender.has_shards() {
        run.rss_per_shard_kib = Some(run.memory.rss_kib as f64 / f64::from(args.shards));
    }
    (run.trouble, run.allocations) = rig.stop().await?;
    Ok(run)
}

impl Rig {
    async fn start(args: &Args, contender: Contender, corpus: Option<&Corpus>) -> Result<Self> {
        let nats = testkit::nats::start(Options::default())
            .await
            .context("start NATS")?;
        let url = nats.url();
        let simulator = if contender.has_shards() {
            Some(
                Simulator::start(args)
                    .await
                    .context("start the simulator")?,
            )
        } else {
            None
        };
        if contender != Contender::Proxy {
            let stream = corpus.context("no stream to copy")?.stream.clone();
            Events::create(&url, stream).await?;
        }
        let started = std::time::Instant::now();
        let running = match (contender, &simulator) {
            (Contender::Proxy, Some(discord)) => Running::proxy(args, &url, discord.said()).await,
            (Contender::Twilight, Some(discord)) => {
                Running::twilight(args, &url, discord.said()).await
            }
            (Contender::DiscordJs | Contender::DiscordPy, Some(discord)) => {
                Running::foreign(args, contender, &url, discord.said()).await
            }
            (Contender::Path | Contender::Publish | Contender::Single, _) => {
                let path = &corpus.context("no messages to publish")?.path;
                Running::bare(args, contender, nats.port(), path, args.events()).await
            }
            (_, None) => bail!("no simulator"),
        };
        let mut running = running.context("start it")?;
        running.ready().await?;
        let events = Events::open(&url).await?;
        Ok(Self {
            nats,
            events,
            simulator,
            running,
            started,
        })
    }

    fn nats_pid(&self) -> Result<u32> {
        self.nats.pid().context("the nats-server is gone")
    }

    /// Waits until all shards are connected and the stream holds exactly what was sent.
    async fn settle(&mut self, args: &Args) -> Result<()> {
        self.settle_after(args, 0).await
    }

    /// The same, after at least so many events were made.
    async fn settle_after(&mut self, args: &Args, events: u64) -> Result<()> {
        let Some(simulator) = &self.simulator else {
            return Ok(());
        };
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            let stats = simulator.stats().await?;
            let stored = self.events.dispatches().await?;
            let connected = stats.connected() == args.shards as usize;
            let sent = stats.unsent() == 0 && stats.events_queued >= events;
            if connected && sent && stored == stats.events_queued {
                return Ok(());
            }
            if stored > stats.events_queued && simulator.stats().await?.events_queued < stored {
                bail!(
                    "{stored} events are stored, {} were sent",
                    stats.events_queued
                );
            }
            self.running.check()?;
            if Instant::now() > deadline {
                bail!(
                    "not settled: {} of {} shards, {stored} of {} events stored",
                    stats.connected(),
                    args.shards,
                    stats.events_queued
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn set_load(&self, args: &Args, load: Load) -> Result<()> {
        let simulator = self.simulator.as_ref().context("no simulator")?;
        simulator.set_load(load.mix(args.mix.mix())).await
    }

    fn usages(&self) -> Result<Usages> {
        Ok(Usages {
            client: Usage::of(self.running.pid())?,
            nats: Usage::of(self.nats_pid()?)?,
            simulator: match &self.simulator {
                Some(simulator) => Some(Usage::of(simulator.pid())?),
                None => None,
            },
        })
    }

    async fn load(&mut self, args: &Args) -> Result<Run> {
        if args.idle {
            self.idle().await
        } else if args.storm {
            self.storm().await
        } else if let Some(rate) = args.rate {
            self.paced(args, rate).await
        } else {
            self.flood(args).await
        }
    }

    async fn idle(&self) -> Result<Run> {
        sleep(REST).await;
        Ok(Run::default())
    }

    /// What everything until now has cost: the start is the load.
    async fn storm(&self) -> Result<Run> {
        let client = Usage::of(self.running.pid())?.since(&Usage::none(self.started));
        let stats = self.simulator()?.stats().await?;
        let events = stats.events_queued as f64;
        let cost = Cost::new(client, events);
        Ok(Run {
            events,
            seconds: client.seconds,
            events_per_second: events / client.seconds,
            bytes_per_event: stats.json_bytes as f64 / events.max(1.0),
            json_mb_per_cpu_second: Some(stats.json_bytes as f64 / client.cpu_us.max(1.0)),
            client: Some(cost),
            ..Run::default()
        })
    }

    async fn flood(&mut self, args: &Args) -> Result<Run> {
        let shards = u64::from(args.shards);
        if self.simulator.is_some() {
            self.set_load(args, Load::flood(Some(WARM_UP_EVENTS)))
                .await?;
            self.settle_after(args, WARM_UP_EVENTS * shards).await?;
        }
        let base = self.events.stored().await?;
        let acks = self.running.acks().await?;
        let before = self.usages()?;
        let begun_us = unix_us();
        if self.simulator.is_some() {
            let each = WARM_UP_EVENTS + args.events_per_shard;
            self.set_load(args, Load::flood(Some(each))).await?;
        } else {
            self.running.go().await?;
        }
        let running = &mut self.running;
        let wanted = base.messages + args.events();
        let stored = self.events.wait_for(wanted, || running.check()).await?;
        let after = self.usages()?;
        let acks = self.ack_latency(acks).await?;
        self.settle(args).await?;
        let seconds = stored.last_unix_us.saturating_sub(begun_us) as f64 / 1e6;
        let mut run = before.until(&after, args.events() as f64);
        run.events_per_second = args.events() as f64 / seconds.max(1e-6);
        run.seconds = seconds;
        run.bytes_per_event = (stored.bytes - base.bytes) as f64 / args.events() as f64;
        run.ack = acks;
        Ok(run)
    }

    /// A rate that the contender keeps by itself.
    async fn kept(&mut self, args: &Args) -> Result<Run> {
        self.running.go().await?;
        sleep(WARM_UP).await;
        let first = self.events.stored().await?;
        let before = self.usages()?;
        sleep(args.duration).await;
        let after = self.usages()?;
        let last = self.events.stored().await?;
        let events = last.messages.saturating_sub(first.messages) as f64;
        let mut run = before.until(&after, events);
        run.events_per_second = events / run.seconds;
        Ok(run)
    }

    async fn paced(&mut self, args: &Args, rate: f64) -> Result<Run> {
        if self.simulator.is_none() {
            return self.kept(args).await;
        }
        self.set_load(args, Load::rate(rate)).await?;
        sleep(WARM_UP).await;
        let acks = self.running.acks().await?;
        let first = self.simulator()?.stats().await?;
        let before = self.usages()?;
        sleep(args.duration).await;
        let after = self.usages()?;
        let last = self.simulator()?.stats().await?;
        let acks = self.ack_latency(acks).await?;
        let latency = self.latency(args).await?;
        self.set_load(args, Load::quiet()).await?;
        self.settle(args).await?;
        let events = (last.events_written - first.events_written) as f64;
        let mut run = before.until(&after, events);
        run.events_per_second = events / run.seconds;
        if run.events_per_second < rate * HELD {
            say(&format!(
                "note: {:.0} of {rate} events/s: the machine or the contender did not keep up, and \
                 what is behind does more per wake-up: this run says little",
                run.events_per_second
            ));
        }
        run.bytes_per_event = (last.json_bytes - first.json_bytes) as f64 / events;
        run.ack = acks;
        run.latency = latency;
        Ok(run)
    }

    /// With a subscriber, which costs CPU of its own: not while that is measured.
    async fn latency(&self, args: &Args) -> Result<Option<Latency>> {
        if args.latency_for.is_zero() {
            return Ok(None);
        }
        let listener = Listener::start(&self.nats.url()).await?;
        sleep(args.latency_for).await;
        let written = self.simulator()?.written().await?;
        listener.finish(&written).await
    }

    async fn ack_latency(
        &self,
        before: Option<Acks>,
    ) -> Result<Option<super::contender::AckLatency>> {
        let after = self.running.acks().await?;
        Ok(before
            .zip(after)
            .and_then(|(before, after)| after.since(&before)))
    }

    fn simulator(&self) -> Result<&Simulator> {
        self.simulator.as_ref().context("no simulator")
    }

    /// Everything ends in order; what was dropped on the way here is killed.
    /// Returns what the simulated Discord had to complain about, and how often the contender allocated.
    async fn stop(mut self) -> Result<(Option<u64>, Option<u64>)> {
        let allocations = self.running.stop().await.context("stop it")?;
        let mut trouble = None;
        if let Some(simulator) = self.simulator.take() {
            let stats = simulator.stats().await?;
            trouble = Some(stats.resumes + stats.violations);
            if stats.resumes > 0 || stats.violations > 0 {
                say(&format!(
                    "note: {} resumes, {} rules broken",
                    stats.resumes, stats.violations
                ));
            }
            simulator.stop().await.context("stop the simulator")?;
        }
        drop(self.events);
        self.nats.stop().context("stop NATS")?;
        Ok((trouble, allocations))
    }
}

impl Usages {
    fn until(&self, after: &Self, events: f64) -> Run {
        let cost = |spent: Spent| Cost::new(spent, events);
        let simulator = self.simulator.as_ref().zip(after.simulator.as_ref());
        let client = after.client.since(&self.client);
        Run {
            events,
            seconds: client.seconds,
            client: Some(cost(client)),
            nats: Some(cost(after.nats.since(&self.nats))),
            simulator: simulator.map(|(before, after)| cost(after.since(before))),
            ..Run::default()
        }
    }
}

/// `perf record` beside a run.
pub(crate) struct Profile {
    process: Process,
}

impl Profile {
    pub(crate) fn start(directory: &Path, name: &str, pid: u32) -> Result<Self> {
        std::fs::create_dir_all(directory).context("create the directory of profiles")?;
        let path = directory.join(format!("{name}.perf"));
        let mut command = Command::new("perf");
        command.args(["record", "-F", PERF_HZ, "--call-graph", "dwarf,16384", "-p"]);
        command.arg(pid.to_string()).arg("-o").arg(path);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().context("start perf")?;
        Ok(Self { process })
    }

    pub(crate) async fn finish(mut self) -> Result<()> {
        if let Some(pid) = self.process.id() {
            let pid = Pid::from_raw(i32::try_from(pid).context("a process id")?);
            kill(pid, Signal::SIGINT).context("end perf")?;
        }
        self.process.wait().await.context("wait for perf")?;
        Ok(())
    }
}

impl Args {
    /// Events of a flood.
    fn events(&self) -> u64 {
        self.events_per_shard.saturating_mul(u64::from(self.shards))
    }
}
