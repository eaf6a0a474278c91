//! The program `discord-simulator`, as a function that other programs can embed.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _, Parser, ValueEnum};
use tokio::signal;
use tokio::time::sleep;

use crate::simulator::{
    Compression, Config, GuildBytes, Load, Mix, Pace, PlaybackError, ScriptStep, SessionStarts,
    Simulator, StartError,
};

/// Flags, files or their contents are wrong (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// A port cannot be had (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;
/// The ledger cannot be written (`EX_IOERR`).
const EXIT_IO: u8 = 74;

/// A simulated Discord on this machine: gateway v10 and the REST endpoints a bot uses.
#[derive(Clone, Debug, Parser)]
#[command(name = "discord-simulator", version)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Host name in the URLs handed out, where it differs from the address.
    #[arg(long)]
    pub public_host: Option<String>,
    /// Gateway port; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    pub gateway_port: u16,
    /// Port of `resume_gateway_url`; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    pub resume_port: u16,
    /// Port of REST and of the control endpoints under /_sim; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    pub rest_port: u16,
    /// Accepted bot tokens; any text does, it is no secret here.
    #[arg(long = "token", default_value = "simulated.bot.token")]
    pub tokens: Vec<String>,
    /// Guilds of the bot.
    #[arg(long, default_value_t = 200)]
    pub guilds: usize,
    /// Median size of a GUILD_CREATE in bytes.
    #[arg(long, default_value_t = 20_000)]
    pub guild_bytes: usize,
    /// Largest GUILD_CREATE in bytes.
    #[arg(long, default_value_t = 2_000_000)]
    pub guild_bytes_max: usize,
    /// Shards that /gateway/bot recommends.
    #[arg(long, default_value_t = 1)]
    pub shards: u32,
    /// IDENTIFYs at once.
    #[arg(long, default_value_t = 1)]
    pub max_concurrency: u32,
    /// Window of max_concurrency in ms.
    #[arg(long, default_value_t = 5000)]
    pub identify_window_ms: u64,
    /// Session starts per day.
    #[arg(long, default_value_t = 1000)]
    pub session_starts: u32,
    /// Heartbeat interval in ms.
    #[arg(long, default_value_t = 41_250)]
    pub heartbeat_interval_ms: u64,
    /// Events a session's replay buffer holds.
    #[arg(long, default_value_t = 3500)]
    pub replay_events: usize,
    /// Seconds a disconnected session stays.
    #[arg(long, default_value_t = 180)]
    pub replay_ttl: u64,
    /// Seed of guilds and events.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Events per second over all guilds.
    #[arg(long, group = "pace")]
    pub rate: Option<f64>,
    /// Events per second and recommended shard.
    #[arg(long, group = "pace")]
    pub rate_per_shard: Option<f64>,
    /// Paced events come one by one instead of in batches of a millisecond.
    #[arg(long)]
    pub one_by_one: bool,
    /// As fast as the sockets take it; with a number, so many events per shard.
    #[arg(long, group = "pace", num_args = 0..=1, default_missing_value = "0")]
    pub flood: Option<u64>,
    /// Which events.
    #[arg(long, value_enum, default_value_t = MixArg::PresencesOff)]
    pub mix: MixArg,
    /// zlib level, 0 to 9.
    #[arg(long, default_value_t = 1)]
    pub zlib_level: u32,
    /// zstd level; negative ones are faster.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    pub zstd_level: i32,
    /// Split zlib messages into WebSocket messages of so many bytes.
    #[arg(long)]
    pub zlib_split: Option<usize>,
    /// Put so many zlib messages into one WebSocket message.
    #[arg(long, default_value_t = 1)]
    pub zlib_coalesce: usize,
    /// Let the zlib suffix also stand inside messages.
    #[arg(long)]
    pub zlib_inner_suffix: bool,
    /// Slash commands typed per second.
    #[arg(long, default_value_t = 0.0)]
    pub commands: f64,
    /// Recorded gateway frames (NDJSON) to play back in place of generated events.
    #[arg(long)]
    pub replay: Option<PathBuf>,
    /// A JSON list of actions and when they happen.
    #[arg(long)]
    pub script: Option<PathBuf>,
    /// Stop after so many seconds.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Write the ledger (NDJSON) here at the end.
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Print the URLs as one line of JSON.
    #[arg(long)]
    pub print_urls: bool,
}

/// `--mix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MixArg {
    /// Without GUILD_PRESENCES.
    PresencesOff,
    /// With GUILD_PRESENCES.
    PresencesOn,
}

/// A simulator that cannot be run as asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no JSON list of steps")]
    Script {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("write the ledger to {path}")]
    Ledger { path: PathBuf, source: io::Error },
    #[error("write to standard output")]
    Print(#[source] io::Error),
}

impl CliError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Read { .. }
            | Self::Script { .. }
            | Self::Start(StartError::Playback(PlaybackError::Read { .. }))
            | Self::Start(StartError::Playback(PlaybackError::Line { .. })) => EXIT_USAGE,
            Self::Start(StartError::Listen { .. }) => EXIT_UNAVAILABLE,
            Self::Ledger { .. } | Self::Print(_) => EXIT_IO,
        }
    }
}

/// Parses the process's arguments and runs until Ctrl-C: the whole program.
pub async fn main() -> ExitCode {
    let command = Args::augment_args(clap::Command::new("discord-simulator"));
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Args::from_arg_matches(&matches));
    match parsed {
        Ok(args) => run(args).await,
        Err(e) => {
            let code = if e.use_stderr() { EXIT_USAGE } else { 0 };
            // Nothing is left to do when even that cannot be printed.
            drop(e.print());
            ExitCode::from(code)
        }
    }
}

/// Runs a simulator until Ctrl-C, SIGTERM, `--seconds` or `POST /_sim/shutdown`.
pub async fn run(args: Args) -> ExitCode {
    match try_run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("discord-simulator: {e}");
            let mut source = std::error::Error::source(&e);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            // Nothing is left to do when even that cannot be printed.
            drop(writeln!(io::stderr(), "{text}"));
            ExitCode::from(e.exit_code())
        }
    }
}

async fn try_run(args: &Args) -> Result<(), CliError> {
    let simulator = Simulator::start(config(args)?).await?;
    announce(args, &simulator).map_err(CliError::Print)?;
    tokio::select! {
        () = interrupted() => {}
        () = simulator.stopped() => {}
        () = sleep(Duration::from_secs(args.seconds.unwrap_or(u64::MAX >> 32))) => {}
    }
    let ledger = args.ledger.as_ref().map(|path| (path, simulator.ledger()));
    simulator.shutdown().await;
    if let Some((path, ledger)) = ledger {
        std::fs::write(path, ledger.to_ndjson()).map_err(|source| CliError::Ledger {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Ctrl-C or SIGTERM. Where signals cannot be listened to, only the other ways to stop remain.
async fn interrupted() {
    let Ok(mut term) = signal::unix::signal(signal::unix::SignalKind::terminate()) else {
        std::future::pending::<()>().await;
        return;
    };
    tokio::select! {
        _ = signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}

fn announce(args: &Args, simulator: &Simulator) -> io::Result<()> {
    let (api, gateway, resume) = (
        simulator.api_url(),
        simulator.gateway_url(),
        simulator.resume_url(),
    );
    let control = api.replace("/api/v10", "/_sim");
    let mut out = io::stdout();
    if args.print_urls {
        let line = serde_json::json!({
            "api": api, "gateway": gateway, "resume": resume, "control": control,
            "token": simulator.token(),
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(
            out,
            "REST     {api}\ngateway  {gateway}\nresume   {resume}\ncontrol  {control}"
        )?;
        writeln!(out, "token    {}", simulator.token())?;
    }
    out.flush()
}

fn config(args: &Args) -> Result<Config, CliError> {
    let pace = match (args.rate, args.rate_per_shard, args.flood) {
        (Some(events_per_second), ..) => Pace::Rate { events_per_second },
        (_, Some(events_per_second), _) => Pace::RatePerShard { events_per_second },
        (.., Some(0)) => Pace::Flood {
            events_per_shard: None,
        },
        (.., Some(events)) => Pace::Flood {
            events_per_shard: Some(events),
        },
        (None, None, None) => Pace::Quiet,
    };
    let mix = match args.mix {
        MixArg::PresencesOff => Mix::PresencesOff,
        MixArg::PresencesOn => Mix::PresencesOn,
    };
    let defaults = Config::default();
    Ok(Config {
        listen: args.listen,
        public_host: args.public_host.clone(),
        gateway_port: args.gateway_port,
        resume_port: args.resume_port,
        rest_port: args.rest_port,
        tokens: args.tokens.clone(),
        guilds: args.guilds,
        guild_bytes: GuildBytes {
            median: args.guild_bytes,
            max: args.guild_bytes_max,
            ..defaults.guild_bytes
        },
        shards: args.shards.max(1),
        max_concurrency: args.max_concurrency.max(1),
        identify_window: Duration::from_millis(args.identify_window_ms),
        session_starts: SessionStarts {
            total: args.session_starts,
            remaining: args.session_starts,
            ..defaults.session_starts
        },
        heartbeat_interval: Duration::from_millis(args.heartbeat_interval_ms.max(1)),
        replay_events: args.replay_events,
        replay_ttl: Duration::from_secs(args.replay_ttl),
        seed: args.seed,
        one_by_one: args.one_by_one,
        load: Load {
            pace,
            mix,
            commands_per_second: args.commands,
        },
        compression: Compression {
            zlib_level: args.zlib_level.min(9),
            zstd_level: args.zstd_level,
            zlib_split: args.zlib_split,
            zlib_coalesce: args.zlib_coalesce,
            zlib_inner_suffix: args.zlib_inner_suffix,
            ..defaults.compression
        },
        playback: args.replay.clone(),
        script: match &args.script {
            Some(path) => read_script(path)?,
            None => Vec::new(),
        },
        ..defaults
    })
}

fn read_script(path: &Path) -> Result<Vec<ScriptStep>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|source| CliError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|source| CliError::Script {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[&str]) -> Load {
        let args = Args::try_parse_from(std::iter::once("x").chain(flags.iter().copied())).unwrap();
        config(&args).unwrap().load
    }

    #[test]
    fn flags_say_the_pace() {
        assert_eq!(load(&[]), Load::quiet());
        assert_eq!(load(&["--rate", "12.5"]), Load::rate(12.5));
        assert_eq!(load(&["--flood"]), Load::flood(None));
        assert_eq!(load(&["--flood", "500"]), Load::flood(Some(500)));
        let on = Load::quiet().mix(Mix::PresencesOn).commands(3.0);
        assert_eq!(load(&["--mix", "presences-on", "--commands", "3"]), on);
        assert!(Args::try_parse_from(["x", "--rate", "1", "--flood"]).is_err());
    }

    #[test]
    fn a_missing_script_is_a_wrong_flag() {
        let args = Args::try_parse_from(["x", "--script", "/nowhere/at/all"]).unwrap();
        assert_eq!(config(&args).err().unwrap().exit_code(), EXIT_USAGE);
    }
}
