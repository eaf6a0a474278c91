//! What an operator asks of a running fleet, from any machine that reaches NATS: `status`, `monitor`,
//! `drain`, `migrate`, `restart`. Reads the bucket and asks the coordinator; changes nothing by itself.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use clap::{Arg, ArgAction, ArgMatches, Command};
use schemas::control::{DrainRequest, FleetReply, FleetVerb, MigrateRequest, RestartRequest};
use schemas::{Prefix, ProxyId, ShardId};
use serde::Serialize;

use crate::config::{OperatorConfig, with_operator_settings};
use crate::exit::Fatal;
use crate::fleet::bucket::Bucket;
use crate::fleet::states::{Snapshot, States};
use crate::fleet::table;
use crate::metrics::Metrics;
use crate::nats::{self, Nats};
use crate::status::{ProcessStatus, unix_ms};

/// How long NATS may be unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request waits for the coordinator.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests before nobody counts as coordinating: an election takes two or three seconds.
const ATTEMPTS: u32 = 4;
/// Between two of them.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);
/// How long a drain is watched: its grace period, and some time to be noticed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// A drain that the proxy may not have heard of is asked for again.
const DRAIN_AGAIN: Duration = Duration::from_secs(3);
/// How long a move is watched.
const MOVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the bucket is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often `monitor` draws.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// To the upper left corner, and what comes after it is cleared: the picture does not flicker.
const HOME: &str = "\x1b[H\x1b[J";

/// The verbs.
pub(super) fn commands() -> Vec<Command> {
    let shard = || {
        Arg::new("shard")
            .value_name("SHARD")
            .help("Number of the shard")
            .required(true)
            .value_parser(clap::value_parser!(u32))
    };
    let proxy = || {
        Arg::new("proxy")
            .value_name("PROXY")
            .help("Its --proxy-id")
            .required(true)
            .value_parser(clap::value_parser!(ProxyId))
    };
    let status = Command::new("status")
        .about("Show the proxies and shards of the fleet")
        .arg(
            Arg::new("json")
                .long("json")
                .help("As /cluster/state has it")
                .action(ArgAction::SetTrue),
        );
    let monitor = Command::new("monitor").about("Show the same, and keep it up to date");
    let drain = Command::new("drain")
        .about("Hand every shard of a proxy over to others and end it")
        .arg(proxy());
    let migrate = Command::new("migrate")
        .about("Move one shard to a certain proxy")
        .arg(shard())
        .arg(proxy());
    let restart = Command::new("restart")
        .about("Connect one shard anew")
        .arg(shard())
        .arg(
            Arg::new("fresh-session")
                .long("fresh")
                .help("With a new session (IDENTIFY) instead of RESUME; announced as a gap")
                .action(ArgAction::SetTrue),
        );
    [status, monitor, drain, migrate, restart]
        .into_iter()
        .map(with_operator_settings)
        .collect()
}

/// Runs one of [`commands`]; `None`: it is none of them.
pub(super) fn run(verb: &str, flags: &ArgMatches) -> Option<Result<(), Fatal>> {
    let names = commands();
    names.iter().find(|command| command.get_name() == verb)?;
    Some(run_verb(verb, flags))
}

fn run_verb(verb: &str, flags: &ArgMatches) -> Result<(), Fatal> {
    let config = OperatorConfig::load(flags, &|name| std::env::var_os(name))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::bug(format!("cannot make a runtime: {error}")))?;
    runtime.block_on(async {
        let desk = Desk::open(config).await?;
        let shard = || flags.get_one::<u32>("shard").copied().unwrap_or_default();
        let proxy = || flags.get_one::<ProxyId>("proxy").cloned();
        let missing = || Fatal::bug("clap requires a proxy");
        match verb {
            "status" => desk.status(flags.get_flag("json")).await,
            "monitor" => desk.monitor().await,
            "drain" => desk.drain(proxy().ok_or_else(missing)?).await,
            "migrate" => desk.migrate(shard(), proxy().ok_or_else(missing)?).await,
            _ => desk.restart(shard(), flags.get_flag("fresh-session")).await,
        }
    })
}

/// A connection to the fleet.
struct Desk {
    nats: Nats,
    prefix: Prefix,
    states: States,
}

impl Desk {
    async fn open(config: OperatorConfig) -> Result<Self, Fatal> {
        let name = "operator"
            .parse()
            .map_err(|_| Fatal::bug("the operator's name is one"))?;
        let process = ProcessStatus::new(name);
        let metrics = Metrics::new(std::sync::Arc::clone(&process));
        let connected = nats::connect(&config.nats, CONNECT_TIMEOUT, &process, &metrics).await;
        let nats = connected.map_err(|fatal| match fatal {
            // The advice to `run` names a flag that these verbs lack.
            Fatal::Unreachable { problem, .. } => {
                Fatal::unreachable(problem, "check --nats-url, and that nats-server runs")
            }
            other => other,
        })?;
        let bucket = config.prefix.fleet_bucket();
        let store = nats
            .jetstream
            .get_key_value(&bucket)
            .await
            .map_err(|error| {
                Fatal::unfit(
                    format!("there is no bucket {bucket}: {error}"),
                    "start a proxy, or check --nats-url and --subject-prefix",
                )
            })?;
        let bucket = Bucket::new(
            nats.client.clone(),
            nats.jetstream.clone(),
            store,
            config.prefix.clone(),
        );
        Ok(Self {
            nats,
            prefix: config.prefix,
            states: States::new(bucket),
        })
    }

    async fn snapshot(&self) -> Result<Snapshot, Fatal> {
        let snapshot = self.states.snapshot().await;
        snapshot.map_err(|reason| {
            Fatal::unreachable(
                format!("the fleet's bucket cannot be read: {reason}"),
                "check the NATS server",
            )
        })
    }

    async fn status(&self, json: bool) -> Result<(), Fatal> {
        let snapshot = self.snapshot().await?;
        if json {
            let state = serde_json::to_string_pretty(&snapshot.cluster_state());
            let state = state.map_err(|error| Fatal::bug(error.to_string()))?;
            say(&state);
        } else {
            show(&table::render(&snapshot, unix_ms()));
        }
        Ok(())
    }

    async fn monitor(&self) -> Result<(), Fatal> {
        let terminal = std::io::stdout().is_terminal();
        let mut ticks = tokio::time::interval(DRAW_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // The way out.
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
            let picture = match self.states.snapshot().await {
                Ok(snapshot) => table::render(&snapshot, unix_ms()),
                Err(reason) => format!("the fleet's bucket cannot be read: {reason}\n"),
            };
            let begin = if terminal { HOME } else { "" };
            let end = if terminal {
                "\nCtrl-C ends this view\n"
            } else {
                "\n"
            };
            if !show(&format!("{begin}{picture}{end}")) {
                return Ok(());
            }
        }
    }

    async fn drain(&self, proxy: ProxyId) -> Result<(), Fatal> {
        let request = DrainRequest {
            proxy: proxy.clone(),
        };
        let before = self.snapshot().await?;
        let instance = before
            .members
            .get(&proxy)
            .and_then(|member| member.instance.clone());
        let began = Instant::now();
        let reply = self.ask(FleetVerb::Drain, &request).await?;
        say(&reply.detail.unwrap_or_default());
        let mut asked = Instant::now();
        loop {
            let snapshot = self.snapshot().await?;
            let member = snapshot.members.get(&proxy);
            let Some(member) = member.filter(|member| member.instance == instance) else {
                let seconds = began.elapsed().as_secs_f64();
                say(&format!("{proxy} has ended after {seconds:.1} s"));
                return Ok(());
            };
            if began.elapsed() > DRAIN_TIMEOUT {
                return Err(Fatal::unreachable(
                    format!("{proxy} still holds {} shards", member.shards.len()),
                    "see its log, and whether the others have room (`gateway-proxy status`)",
                ));
            }
            if !member.draining && asked.elapsed() > DRAIN_AGAIN {
                asked = Instant::now();
                // It may have missed the first word; the answer is the same.
                self.ask(FleetVerb::Drain, &request).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn migrate(&self, shard: u32, to: ProxyId) -> Result<(), Fatal> {
        let request = MigrateRequest {
            shard,
            to: to.clone(),
        };
        let reply = self.ask(FleetVerb::Migrate, &request).await?;
        say(&reply.detail.unwrap_or_default());
        if !reply.accepted {
            return Ok(());
        }
        let began = Instant::now();
        while began.elapsed() < MOVE_TIMEOUT {
            let snapshot = self.snapshot().await?;
            let count = snapshot.shard_count();
            let record = ShardId::new(shard, count)
                .ok()
                .and_then(|shard| snapshot.records.get(&shard));
            if record
                .is_some_and(|record| record.owner.as_ref() == Some(&to) && record.state.is_ready())
            {
                say(&format!("{to} delivers shard {shard}"));
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(Fatal::unreachable(
            format!("{to} does not deliver shard {shard} yet"),
            "see `gateway-proxy status` and its log",
        ))
    }

    async fn restart(&self, shard: u32, fresh: bool) -> Result<(), Fatal> {
        let reply = self
            .ask(FleetVerb::Restart, &RestartRequest { shard, fresh })
            .await?;
        say(&reply.detail.unwrap_or_default());
        Ok(())
    }

    /// Asks the coordinator, again while nobody coordinates.
    async fn ask(&self, verb: FleetVerb, request: &impl Serialize) -> Result<FleetReply, Fatal> {
        let payload = serde_json::to_vec(request).map_err(|error| Fatal::bug(error.to_string()))?;
        let mut problem = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            let subject = verb.subject(&self.prefix);
            let asked = self.nats.client.request(subject, payload.clone().into());
            let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    problem = error.to_string();
                    continue;
                }
                Err(_) => {
                    "no answer".clone_into(&mut problem);
                    continue;
                }
            };
            let headers = answer.headers.unwrap_or_default();
            if let Some(text) = headers.get(NATS_SERVICE_ERROR) {
                let code = headers.get(NATS_SERVICE_ERROR_CODE);
                let code = code.and_then(|code| code.as_str().parse().ok());
                return Err(refused(verb, text.as_str(), code.unwrap_or(500)));
            }
            return serde_json::from_slice(&answer.payload).map_err(|error| {
                Fatal::unfit(
                    format!("the coordinator's answer cannot be read: {error}"),
                    "use the version that the coordinator has",
                )
            });
        }
        Err(Fatal::unreachable(
            format!("no coordinator answers: {problem}"),
            "see `gateway-proxy status` for who lives",
        ))
    }
}

/// The codes follow HTTP's: 4xx is the asker's mistake.
fn refused(verb: FleetVerb, text: &str, code: u16) -> Fatal {
    let problem = format!("{verb} is refused: {text}");
    match code {
        400..=499 => Fatal::usage(problem, "see `gateway-proxy status`"),
        501 => Fatal::unfit(problem, "see --help of `run`"),
        _ => Fatal::unreachable(problem, "try again"),
    }
}

/// One line on standard output; a reader that went away is no reason to fail.
fn say(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// `false`: nobody reads any more.
fn show(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_ok()
}
