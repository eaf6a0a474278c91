//! The scenarios. Each run has a nats-server of its own; contenders take turns, so that a noisy minute
//! hits all alike.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::args::{Args, Scenario};
use super::pull::Pull;
use super::report::{Report, Row, Section};
use super::rig::{Rig, durables};
use super::worker::{Ages, Mode, Setup};
use crate::load::args::Args as LoadArgs;
use crate::load::child::Child;
use crate::load::contender::Running;
use crate::load::corpus::Corpus;
use crate::load::measure::{Profile, take_corpus};
use crate::load::report::Cost;
use crate::load::say;
use crate::load::simulator::Simulator;

/// Workers of events never call Discord.
const NO_API: &str = "http://127.0.0.1:9/api/v10";
const NO_TOKEN: &str = "unused";
/// Workers of `throughput`, one after the other.
const WORKERS: [usize; 3] = [1, 2, 4];
/// Workers of `held`.
const HOLDERS: usize = 2;
/// Between two looks at the backlog of `held`.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// After the last command, until its three seconds are over in any case.
const LAST_ANSWER: Duration = Duration::from_secs(4);

const DRAIN_ROWS: &[Row] = &[
    ("events/s", "/events_per_second", 0),
    ("**CPU µs per event**", "/client/cpu_us_per_event", 2),
    ("of it user", "/client/user_us_per_event", 2),
    ("of it system", "/client/system_us_per_event", 2),
    ("wake-ups per event", "/client/wakeups_per_event", 3),
    ("cores used", "/client/cores", 2),
    ("nats-server CPU µs per event", "/nats/cpu_us_per_event", 2),
    ("nats-server cores used", "/nats/cores", 2),
];
const HELD_ROWS: &[Row] = &[
    ("published events/s", "/published_per_second", 0),
    ("most events waiting or in hand", "/most_left", 0),
    ("stored → handler p50 ms", "/age/p50_ms", 2),
    ("stored → handler p99 ms", "/age/p99_ms", 2),
    ("stored → handler max ms", "/age/max_ms", 2),
    ("done after the last was published, ms", "/rest_ms", 0),
    (
        "CPU µs per event, both workers",
        "/client/cpu_us_per_event",
        2,
    ),
    ("cores used, both workers", "/client/cores", 2),
    ("nats-server CPU µs per event", "/nats/cpu_us_per_event", 2),
];
const INTERACTION_ROWS: &[Row] = &[
    ("events waiting at the beginning", "/left_before", 0),
    ("events waiting at the end", "/left_after", 0),
    ("/ping typed", "/typed", 0),
    ("answered in time", "/answered", 0),
    ("typed → answered p50 ms", "/p50_ms", 2),
    ("typed → answered p99 ms", "/p99_ms", 2),
    ("typed → answered max ms", "/max_ms", 2),
];

/// Measures everything that was asked for.
pub(crate) async fn all(args: &Args) -> Result<Report> {
    let load = load_args(args);
    say("taking the messages and the stream's settings from a short run of the proxy");
    let corpus = take_corpus(&load).await.context("take the corpus")?;
    let mut report = Report::new();
    for scenario in args.scenarios() {
        match scenario {
            Scenario::Overhead => report.add(overhead(args, &corpus).await?),
            Scenario::Throughput => {
                report.add(throughput(args, &corpus, 0).await?);
                report.add(throughput(args, &corpus, args.handler_ms).await?);
            }
            Scenario::Held => report.add(held(args, &corpus).await?),
            Scenario::Interactions => report.add(interactions(args, &load, &corpus).await?),
        }
    }
    Ok(report)
}

/// The simulator and the proxy are those of `load`.
fn load_args(args: &Args) -> LoadArgs {
    LoadArgs::parse_from(["load", "--shards", &args.shards.to_string()])
}

/// Who takes events out of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Pull(Pull),
    Shared,
    Ordered,
}

impl Contender {
    const ALL: [Self; 6] = [
        Self::Pull(Pull::Bare),
        Self::Pull(Pull::OneThread),
        Self::Pull(Pull::ByHand),
        Self::Shared,
        Self::Pull(Pull::Shards),
        Self::Ordered,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Pull(pull) => pull.name(),
            Self::Shared => "shared",
            Self::Ordered => "ordered",
        }
    }
}

async fn overhead(args: &Args, corpus: &Corpus) -> Result<Section> {
    let title = format!(
        "**overhead**: {} events that wait in the stream of {} shards, a handler that does nothing",
        args.events, args.shards
    );
    let relative = Some((Pull::Bare.name(), "/client/cpu_us_per_event"));
    let mut section = Section::new("overhead", title, DRAIN_ROWS, relative);
    for round in 1..=args.repeat {
        for contender in Contender::ALL {
            let name = contender.name();
            say(&format!("overhead: {name} {round}/{}", args.repeat));
            let profile = args.perf.as_deref();
            let profile = profile.map(|directory| (directory, format!("{name}-{round}")));
            let run = drain(args, corpus, contender, 1, 0, profile).await;
            section.add(name, run.with_context(|| format!("{name} {round}"))?);
        }
    }
    Ok(section)
}

async fn throughput(args: &Args, corpus: &Corpus, handler_ms: u64) -> Result<Section> {
    let (key, handler) = match handler_ms {
        0 => ("throughput", "that does nothing".to_owned()),
        ms => ("throughput_waiting", format!("that waits {ms} ms")),
    };
    let title = format!(
        "**throughput**: {} events, workers of shared mode with a handler {handler}",
        args.events
    );
    let mut section = Section::new(key, title, DRAIN_ROWS, None);
    for round in 1..=args.repeat {
        for workers in WORKERS {
            let column = match workers {
                1 => "1 worker".to_owned(),
                more => format!("{more} workers"),
            };
            say(&format!(
                "throughput: {column}, handler {handler} {round}/{}",
                args.repeat
            ));
            let run = drain(args, corpus, Contender::Shared, workers, handler_ms, None).await;
            section.add(&column, run.with_context(|| column.clone())?);
        }
    }
    Ok(section)
}

/// Takes everything out of a stream that was filled beforehand.
async fn drain(
    args: &Args,
    corpus: &Corpus,
    contender: Contender,
    workers: usize,
    handler_ms: u64,
    profile: Option<(&Path, String)>,
) -> Result<Value> {
    let rig = Rig::start(corpus).await?;
    let by_shard = [Contender::Ordered, Contender::Pull(Pull::Shards)].contains(&contender);
    let durables = durables(by_shard.then_some(args.shards));
    let mut children = Vec::with_capacity(workers);
    for _ in 0..workers {
        children.push(match contender {
            Contender::Pull(how) => {
                rig.make_durables(&durables, by_shard).await?;
                rig.pulling(how, &durables).await?
            }
            Contender::Shared | Contender::Ordered => {
                let mode = match contender == Contender::Ordered {
                    true => Mode::Ordered,
                    false => Mode::Shared,
                };
                let setup = Setup {
                    mode: Some(mode),
                    commands: false,
                    shards: args.shards,
                    handler_ms,
                    concurrency: args.concurrency,
                    ages: false,
                };
                rig.worker(&setup, NO_API, NO_TOKEN).await?
            }
        });
    }
    rig.pause(&durables).await?;
    rig.fill(corpus, args.events).await?;
    let profile = match profile {
        Some((directory, name)) => Some(Profile::start(directory, &name, children[0].pid())?),
        None => None,
    };
    let (before, begun) = (rig.account(&children)?, Instant::now());
    rig.resume(&durables).await?;
    rig.drained(&durables, &mut children).await?;
    let (after, seconds) = (rig.account(&children)?, begun.elapsed().as_secs_f64());
    if let Some(profile) = profile {
        profile.finish().await?;
    }
    let (client, nats) = before.until(&after);
    let events = args.events as f64;
    end(children, contender).await?;
    rig.stop()?;
    Ok(json!({
        "workers": workers,
        "events_per_second": events / seconds,
        "seconds": seconds,
        "client": Cost::new(client, events),
        "nats": Cost::new(nats, events),
    }))
}

async fn end(children: Vec<Child>, contender: Contender) -> Result<()> {
    for child in children {
        match contender {
            Contender::Pull(_) => child.close().await?,
            Contender::Shared | Contender::Ordered => child.terminate().await.map(drop)?,
        }
    }
    Ok(())
}

async fn held(args: &Args, corpus: &Corpus) -> Result<Section> {
    let title = format!(
        "**held**: {} events/s for {} s, {HOLDERS} workers of shared mode with a handler that waits {} ms",
        args.rate, args.seconds, args.handler_ms
    );
    let mut section = Section::new("held", title, HELD_ROWS, None);
    for round in 1..=args.repeat {
        say(&format!("held: {round}/{}", args.repeat));
        section.add("shared", held_once(args, corpus).await?);
    }
    Ok(section)
}

async fn held_once(args: &Args, corpus: &Corpus) -> Result<Value> {
    let rig = Rig::start(corpus).await?;
    let durables = durables(None);
    let setup = Setup {
        mode: Some(Mode::Shared),
        commands: false,
        shards: args.shards,
        handler_ms: args.handler_ms,
        concurrency: args.concurrency,
        ages: true,
    };
    let mut workers = Vec::with_capacity(HOLDERS);
    for _ in 0..HOLDERS {
        workers.push(rig.worker(&setup, NO_API, NO_TOKEN).await?);
    }
    let events = (args.rate * args.seconds as f64) as u64;
    let mut publisher = rig.publisher(corpus, events, Some(args.rate)).await?;
    let before = rig.account(&workers)?;
    publisher.go().await?;
    let mut most_left = 0;
    while rig.events.stored().await?.messages < events {
        publisher.check()?;
        most_left = most_left.max(rig.left(&durables).await?);
        sleep(LOOK_EVERY).await;
    }
    let done = publisher.says(|line| line.strip_prefix("done ")?.parse::<f64>().ok());
    let seconds = done.await?;
    let published = Instant::now();
    rig.drained(&durables, &mut workers).await?;
    let rest = published.elapsed();
    let after = rig.account(&workers)?;
    let ages = ages(&mut workers).await?;
    let (client, nats) = before.until(&after);
    if ages.events < events {
        bail!("{} of {events} events were handled", ages.events);
    }
    publisher.close().await.context("end the publisher")?;
    end(workers, Contender::Shared).await?;
    rig.stop()?;
    Ok(json!({
        "published_per_second": events as f64 / seconds,
        "most_left": most_left,
        "age": {
            "p50_ms": ages.p50_us as f64 / 1e3,
            "p99_ms": ages.p99_us as f64 / 1e3,
            "max_ms": ages.max_us as f64 / 1e3,
        },
        "rest_ms": rest.as_secs_f64() * 1e3,
        "client": Cost::new(client, events as f64),
        "nats": Cost::new(nats, events as f64),
    }))
}

/// What the workers noted; of quantiles the worst.
async fn ages(workers: &mut [Child]) -> Result<Ages> {
    let mut all = Ages::default();
    for worker in workers {
        worker.go().await?;
        let pick = |line: &str| serde_json::from_str(line.strip_prefix("ages ")?).ok();
        let ages: Ages = worker.says(pick).await?;
        all = Ages {
            events: all.events + ages.events,
            p50_us: all.p50_us.max(ages.p50_us),
            p99_us: all.p99_us.max(ages.p99_us),
            max_us: all.max_us.max(ages.max_us),
        };
    }
    Ok(all)
}

async fn interactions(args: &Args, load: &LoadArgs, corpus: &Corpus) -> Result<Section> {
    let title = format!(
        "**interactions**: {} commands/s for {} s in front of {} events; the same worker process",
        args.commands, args.seconds, args.backlog
    );
    let mut section = Section::new("interactions", title, INTERACTION_ROWS, None);
    for round in 1..=args.repeat {
        for working in [false, true] {
            let column = match working {
                false => "the backlog waits".to_owned(),
                true => format!("is handled, {} ms each", args.handler_ms),
            };
            say(&format!("interactions: {column} {round}/{}", args.repeat));
            let run = interactions_once(args, load, corpus, working).await;
            section.add(&column, run.with_context(|| column.clone())?);
        }
    }
    Ok(section)
}

async fn interactions_once(
    args: &Args,
    load: &LoadArgs,
    corpus: &Corpus,
    working: bool,
) -> Result<Value> {
    let rig = Rig::start(corpus).await?;
    rig.make_durables(&durables(None), false).await?;
    rig.fill(corpus, args.backlog).await?;
    let simulator = Simulator::start(load).await?;
    let (said, url) = (simulator.said(), rig.url());
    let mut proxy = Running::proxy(load, &url, said).await?;
    proxy.ready().await?;
    let durables = durables(None);
    let setup = Setup {
        mode: working.then_some(Mode::Shared),
        commands: true,
        shards: args.shards,
        handler_ms: args.handler_ms,
        concurrency: args.concurrency,
        ages: false,
    };
    let worker = rig.worker(&setup, &said.api, &said.token).await?;
    let left_before = rig.left(&durables).await?;
    type_commands(args, load, &simulator).await?;
    let left_after = rig.left(&durables).await?;
    sleep(LAST_ANSWER).await;
    let stats: Value = simulator.control().json("/stats").await?;
    let stats = &stats["interactions"];
    let ms = |key: &str| stats[key].as_f64().unwrap_or(f64::NAN) / 1e3;
    let run = json!({
        "left_before": left_before,
        "left_after": left_after,
        "typed": stats["typed"],
        "answered": stats["answered"],
        "p50_ms": ms("p50_us"),
        "p99_ms": ms("p99_us"),
        "max_ms": ms("max_us"),
    });
    worker
        .terminate()
        .await
        .map(drop)
        .context("end the worker")?;
    proxy.stop().await.context("end the proxy")?;
    simulator.stop().await.context("end the simulator")?;
    rig.stop()?;
    if run["answered"] != run["typed"] {
        say(&format!(
            "note: answered {} of {}",
            run["answered"], run["typed"]
        ));
    }
    Ok(run)
}

/// Somebody types `/ping`, in one guild after the other.
async fn type_commands(args: &Args, load: &LoadArgs, simulator: &Simulator) -> Result<()> {
    let guilds = u64::from(load.shards * load.guilds_per_shard);
    let mut tick = interval(Duration::from_secs_f64(1.0 / args.commands));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..(args.commands * args.seconds as f64) as u64 {
        tick.tick().await;
        let action = json!({"action": "command", "text": "/ping", "guild": number % guilds});
        let body = action.to_string();
        simulator
            .control()
            .post("/actions", body.as_bytes())
            .await?;
    }
    Ok(())
}
