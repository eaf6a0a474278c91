//! One run: start everything, follow the schedule, let it settle, compare.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use chaos::{Proxy, say};
use nix::sys::signal::Signal;
use schemas::Prefix;
use testkit::audit::{AuditReport, audit, wait_caught_up};
use testkit::nats;
use testkit::simulator::{Action, Config, Fault, GuildBytes, Load, Rule, Simulator, Target};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Options;
use crate::broker::Broker;
use crate::cable::Cable;
use crate::owners::Owners;
use crate::schedule::{Step, Targets, Trouble, schedule};

/// How long everything may take to be stored after the last trouble.
const SETTLE: Duration = Duration::from_secs(180);
/// Each is counted, so many are shown.
const INTRUSIONS_SHOWN: usize = 5;
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(30);

struct Run {
    simulator: Simulator,
    nats: Broker,
    proxies: Vec<Proxy>,
    // Processes that stand still, and until when.
    frozen_proxies: Vec<(usize, Instant)>,
    // Of a fleet; proxies that hold shards by hand do not move any.
    owners: Option<Owners>,
    // One per proxy of a fleet.
    cables: Vec<Cable>,
    // Those that are cut, and until when.
    cuts: Vec<(usize, Instant)>,
    nats_back: Option<Away>,
    struck: BTreeMap<String, u32>,
}

/// A server of the broker that does not answer: one at a time, so that a cluster keeps its majority.
#[derive(Clone, Copy)]
struct Away {
    server: usize,
    until: Instant,
    is: NatsIs,
}

#[derive(Clone, Copy)]
enum NatsIs {
    Dead,
    Frozen,
}

/// Runs once; true when nothing was lost, doubled or changed.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let directory = chaos::scratch("chaos")?;
    let logs = options.logs.clone().unwrap_or_else(|| directory.clone());
    std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let started = Instant::now();
    let mut run = Run::start(options, &logs).await?;
    let outcome = tokio::select! {
        outcome = run.torment(options) => outcome,
        _ = tokio::signal::ctrl_c() => bail!("stopped by Ctrl-C; nothing was compared"),
    };
    outcome?;
    let report = run.settle(options).await?;
    let clean = summarise(options, &run, &report, started.elapsed())?;
    if clean && options.logs.is_none() {
        drop(std::fs::remove_dir_all(&directory));
    } else {
        say(&format!("logs: {}", logs.display()));
    }
    Ok(clean)
}

impl Run {
    async fn start(options: &Options, logs: &Path) -> anyhow::Result<Self> {
        if options.fleet && options.nats_servers > 1 {
            bail!("--fleet cuts lines to one server: leave --nats-servers away");
        }
        let nats = Broker::start(options.nats_servers).await?;
        let simulator = Simulator::start(Config {
            guilds: options.guilds,
            shards: options.shards,
            max_concurrency: options.shards,
            seed: options.seed,
            heartbeat_interval: Duration::from_secs(2),
            guild_bytes: GuildBytes {
                max: 1_000_000,
                ..GuildBytes::default()
            },
            ..Config::default()
        })
        .await?;
        let per_proxy = options
            .shards
            .div_ceil(u32::try_from(options.proxies.max(1))?)
            .max(1);
        let owners = options.fleet.then(Owners::default);
        if let Some(owners) = &owners {
            owners.follow(&nats.url()).await?;
        }
        let (mut proxies, mut cables) = (Vec::new(), Vec::new());
        for index in 0..options.proxies.max(1) {
            let line = if let Some(owners) = &owners {
                let cable = Cable::to(&nats.url(), index, owners.clone()).await?;
                let url = cable.url();
                cables.push(cable);
                url
            } else {
                nats.url()
            };
            let place = Place {
                nats: line,
                replicas: nats.replicas(),
                index,
                per_proxy,
            };
            proxies.push(proxy(options, &place, &simulator, logs));
        }
        let mut run = Self {
            simulator,
            nats,
            proxies,
            frozen_proxies: Vec::new(),
            owners,
            cables,
            cuts: Vec::new(),
            nats_back: None,
            struck: BTreeMap::new(),
        };
        for proxy in &mut run.proxies {
            proxy.start()?;
        }
        Ok(run)
    }

    /// Follows the schedule.
    async fn torment(&mut self, options: &Options) -> anyhow::Result<()> {
        let steps = schedule(
            options.seed,
            options.lasts,
            options.every,
            Targets {
                proxies: self.proxies.len(),
                shards: options.shards,
                nats_servers: options.nats_servers,
                fleet: options.fleet,
            },
        );
        say(&format!(
            "seed {}: {} troubles within {:?}, {} events/s over {} shards, {} proxies, {} NATS",
            options.seed,
            steps.len(),
            options.lasts,
            options.rate,
            options.shards,
            self.proxies.len(),
            options.nats_servers,
        ));
        self.simulator.set_load(Load::rate(options.rate));
        let start = Instant::now();
        for step in steps {
            self.wait_until(start + step.at).await?;
            self.strike(&step).await?;
        }
        self.wait_until(start + options.lasts).await
    }

    /// Waits, ending freezes and outages on the way.
    async fn wait_until(&mut self, at: Instant) -> anyhow::Result<()> {
        loop {
            let proxies = self.frozen_proxies.iter().chain(&self.cuts);
            let next = proxies
                .map(|(_, until)| *until)
                .chain(self.nats_back.map(|away| away.until))
                .min()
                .filter(|next| *next < at);
            sleep_until(next.unwrap_or(at)).await;
            self.undo_due(Instant::now())?;
            if next.is_none() {
                return Ok(());
            }
        }
    }

    fn undo_due(&mut self, now: Instant) -> anyhow::Result<()> {
        let due: Vec<_> = self
            .frozen_proxies
            .extract_if(.., |(_, until)| *until <= now)
            .collect();
        for (index, _) in due {
            self.proxies[index].signal(Signal::SIGCONT)?;
        }
        for (index, _) in self.cuts.extract_if(.., |(_, until)| *until <= now) {
            self.cables[index].join();
        }
        if let Some(away) = self.nats_back
            && away.until <= now
        {
            self.nats_back = None;
            let server = self.nats.server(away.server);
            match away.is {
                NatsIs::Dead => tokio::task::block_in_place(|| server.start_again())?,
                NatsIs::Frozen => server.resume()?,
            }
        }
        for proxy in &mut self.proxies {
            if let Some(end) = proxy.died() {
                bail!(end);
            }
        }
        Ok(())
    }

    async fn strike(&mut self, step: &Step) -> anyhow::Result<()> {
        *self.struck.entry(step.trouble.kind()).or_default() += 1;
        let now = Instant::now();
        match &step.trouble {
            Trouble::KillProxy { proxy } => {
                self.thaw(*proxy)?;
                self.proxies[*proxy].signal(Signal::SIGKILL)?;
                self.proxies[*proxy].ended().await?;
                self.proxies[*proxy].start()?;
            }
            Trouble::DrainProxy { proxy } => {
                self.thaw(*proxy)?;
                let draining = &mut self.proxies[*proxy];
                draining.signal(Signal::SIGTERM)?;
                let code = timeout(DRAIN, draining.ended()).await;
                let code = code.with_context(|| format!("{} does not end", draining.name))??;
                // None: it had just been started and did not listen for signals yet.
                if code.is_some_and(|code| code != 0) {
                    bail!("{} drained with {code:?}", draining.name);
                }
                draining.start()?;
            }
            Trouble::FreezeProxy { proxy, lasts } => {
                self.proxies[*proxy].signal(Signal::SIGSTOP)?;
                self.frozen_proxies.push((*proxy, now + *lasts));
            }
            Trouble::CutProxy { proxy, lasts } => {
                self.cables[*proxy].cut();
                self.cuts.retain(|(cut, _)| cut != proxy);
                self.cuts.push((*proxy, now + *lasts));
            }
            Trouble::KillNats { server, away } if self.nats_back.is_none() => {
                tokio::task::block_in_place(|| self.nats.server(*server).kill9())?;
                self.nats_is(*server, now + *away, NatsIs::Dead);
            }
            Trouble::FreezeNats { server, lasts } if self.nats_back.is_none() => {
                self.nats.server(*server).pause()?;
                self.nats_is(*server, now + *lasts, NatsIs::Frozen);
            }
            // It is away already.
            Trouble::KillNats { .. } | Trouble::FreezeNats { .. } => {}
            Trouble::Discord(action) => {
                self.simulator.apply(action.clone());
            }
        }
        Ok(())
    }

    fn nats_is(&mut self, server: usize, until: Instant, is: NatsIs) {
        self.nats_back = Some(Away { server, until, is });
    }

    fn thaw(&mut self, proxy: usize) -> anyhow::Result<()> {
        self.frozen_proxies.retain(|(frozen, _)| *frozen != proxy);
        self.proxies[proxy].signal(Signal::SIGCONT)
    }

    /// Ends every trouble and the load, waits until everything is stored, compares.
    async fn settle(&mut self, options: &Options) -> anyhow::Result<AuditReport> {
        let far = Instant::now() + Duration::from_secs(3_600);
        self.undo_due(far)?;
        self.simulator.apply(Action::Fault {
            target: Target::All,
            fault: Fault::Heal,
        });
        self.simulator.set_load(Load::quiet());
        let client = nats::connect(&self.nats.url()).await?;
        let prefix = Prefix::default();
        self.all_shards_live(options).await?;
        // Those of a proxy that was killed between IDENTIFY and storing READY: nobody knows them.
        self.simulator.apply(Action::ExpireSessions);
        if let Err(error) = wait_caught_up(&client, &prefix, &self.simulator, SETTLE).await {
            say(&format!("{error}"));
        }
        Ok(audit(&client, &prefix, &self.simulator.ledger()).await?)
    }

    /// Waits until every shard has a session that lives.
    async fn all_shards_live(&self, options: &Options) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let live = self
                .simulator
                .progress()
                .into_iter()
                .filter(|session| session.state == testkit::simulator::SessionState::Connected)
                .map(|session| session.shard.id())
                .collect::<std::collections::BTreeSet<_>>();
            if live.len() == options.shards as usize {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "only {} of {} shards came back: {live:?}",
                    live.len(),
                    options.shards
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Where a proxy stands.
struct Place {
    nats: String,
    replicas: usize,
    index: usize,
    per_proxy: u32,
}

fn proxy(options: &Options, place: &Place, simulator: &Simulator, logs: &Path) -> Proxy {
    let first = place.index as u32 * place.per_proxy;
    let last = (first + place.per_proxy)
        .min(options.shards)
        .saturating_sub(1);
    let name = format!("proxy-{}", place.index);
    let mut args = vec![
        "run".to_owned(),
        format!("--nats-url={}", place.nats),
        format!("--api-url={}", simulator.api_url()),
        format!("--shards={}", options.shards),
        format!("--compression={}", options.compression),
        format!("--replicas={}", place.replicas),
        format!("--proxy-id={name}"),
        "--http=127.0.0.1:0".to_owned(),
        "--identify-reserve=0".to_owned(),
        "--startup-timeout=60s".to_owned(),
    ];
    args.push(if options.fleet {
        "--fleet".to_owned()
    } else {
        format!("--shard-ids={first}-{last}")
    });
    let token = simulator.token().to_owned();
    Proxy::new(name.clone(), args, token, logs.join(format!("{name}.log")))
}

fn summarise(
    options: &Options,
    run: &Run,
    report: &AuditReport,
    took: Duration,
) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    let struck: u32 = run.struck.values().sum();
    writeln!(out, "{struck} troubles in {took:.1?}:")?;
    for (kind, count) in &run.struck {
        writeln!(out, "  {count:>4} × {kind}")?;
    }
    writeln!(out, "{report}")?;
    let rude: usize = report
        .violations
        .iter()
        .filter(|(rule, _)| !is_allowed(**rule, run))
        .map(|(_, count)| count)
        .sum();
    let intruders = intruders(&mut out, run)?;
    let clean = report.is_honest() && rude == 0 && intruders.is_none_or(|count| count == 0);
    let intruders = intruders.map_or_else(|| "–".to_owned(), |count| count.to_string());
    writeln!(
        out,
        "| seed | troubles | events | lost | doubled | out of order | altered | wrong subject | unknown | gaps | gaps owed | identifies | rude | not by the owner |"
    )?;
    writeln!(
        out,
        "| {} | {struck} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {rude} | {intruders} |",
        options.seed,
        report.events,
        report.missing.count,
        report.duplicated.count,
        report.out_of_order.count,
        report.altered.count,
        report.wrong_subject.count,
        report.unknown_events,
        report.gaps.len(),
        report.gaps_owed.count,
        report.identifies,
    )?;
    Ok(clean)
}

/// Events of a fleet that were published by somebody else than their shard's owner: counted, some shown.
fn intruders(out: &mut impl std::io::Write, run: &Run) -> anyhow::Result<Option<usize>> {
    let Some(owners) = &run.owners else {
        return Ok(None);
    };
    let name = |proxy: usize| run.proxies[proxy].name.clone();
    let (published, intrusions) = owners.compare(name);
    writeln!(
        out,
        "{published} events published, {} of them not by the shard's owner",
        intrusions.len()
    )?;
    for intrusion in intrusions.iter().take(INTRUSIONS_SHOWN) {
        writeln!(out, "  {intrusion}")?;
    }
    Ok(Some(intrusions.len()))
}

/// What the schedule itself makes a client break: a process that stands still sends no heartbeats, asked
/// for or not, and Discord's documentation sends a client whose resume url cannot be reached back to the
/// first url.
fn is_allowed(rule: Rule, run: &Run) -> bool {
    match rule {
        Rule::MissedHeartbeat | Rule::HeartbeatRequest => run.struck.contains_key("freeze proxy"),
        // A session that ended while its proxy was away is asked for before it is known to be gone.
        Rule::ResumeOnMainUrl | Rule::UnknownSession => true,
        _ => false,
    }
}
