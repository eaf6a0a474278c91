//! What an operator types: the verbs, their flags, and how an error becomes an exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command};

use crate::config::{Config, with_settings};
use crate::exit::{self, Fatal};
use crate::rhythm;
use crate::shutdown::{Phase, Shutdown};
use crate::telemetry;

mod operate;
mod start;

pub use start::{Started, start};

/// The program's name in messages; also when another program embeds it.
const PROGRAM: &str = "gateway-proxy";

/// Runs the program with these arguments, the first being its name, and says how it ended.
///
/// Reads the environment, installs a panic hook and signal handlers, and logs to standard error: to
/// be called once, as all that a process does.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    // Whatever panics ends with 70 and one line, not with Rust's 101.
    let outcome = exit::contained(|| match matches.subcommand() {
        Some(("run", flags)) => load(flags).and_then(run),
        Some(("check-config", flags)) => load(flags).and_then(|config| check(&config)),
        Some((verb, flags)) => operate::run(verb, flags)
            .unwrap_or_else(|| Err(Fatal::bug("a verb without an implementation"))),
        // Clap requires a verb.
        None => Err(Fatal::bug("no verb")),
    });
    exit::finish(PROGRAM, outcome)
}

fn command() -> Command {
    let run = Command::new("run")
        .about("Hold shards and publish their events")
        .long_about(
            "Holds a bot's gateway shards and publishes every event to NATS JetStream.\n\n\
             A setting is taken from its flag, else from its environment variable, else from\n\
             the file of --config, else from its default. The token comes from --token-file,\n\
             DISCORD_TOKEN_FILE or DISCORD_TOKEN, never from a flag's value.",
        )
        .after_long_help(EXIT_CODES);
    let check = Command::new("check-config")
        .about("Print the configuration that `run` would use, secrets redacted")
        .long_about(
            "Reads flags, environment and file as `run` does and prints the result as TOML, each \
             key with where it came from. Connects to nothing.",
        );
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Holds a Discord bot's gateway shards and publishes every event to NATS JetStream")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(with_settings(run))
        .subcommand(with_settings(check))
        .subcommands(operate::commands())
}

const EXIT_CODES: &str = "\
Exit codes:
    0  stopped cleanly
   64  wrong flags, environment or file
   69  NATS or Discord did not answer within --startup-timeout
   70  a bug
   77  Discord refuses the token or the intents
   78  the surroundings do not fit: a stream with other settings, NATS too old or without JetStream,
       missing permission, shard or gateway version refused
  130, 143  a second SIGINT or SIGTERM stopped it without draining";

/// Help and version are answers, everything else is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away (`| head`) is no reason to fail.
            drop(error.print());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            drop(error.print());
            ExitCode::from(64)
        }
        _ => {
            let text = error.to_string();
            // The problem is the first paragraph: a list of what is missing has lines of its own.
            let first = text.lines().take_while(|line| !line.is_empty());
            let first: Vec<&str> = first.map(str::trim).collect();
            let first = first.join(" ");
            let problem = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
            let tip = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("tip: "));
            let advice = tip.unwrap_or("see --help").to_owned();
            exit::finish(PROGRAM, Err(Fatal::usage(problem, advice)))
        }
    }
}

fn load(flags: &ArgMatches) -> Result<Config, Fatal> {
    Ok(Config::load(flags, &|name| std::env::var_os(name))?)
}

/// Runs until the work ends or signals end it.
fn run(config: Config) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(rhythm::rest)
        .build()
        .map_err(|error| Fatal::bug(format!("cannot make a runtime: {error}")))?;
    let outcome = exit::contained(|| runtime.block_on(supervise(config)));
    // Blocking work (name look-ups, a server being fetched) must not keep a process that is done.
    runtime.shutdown_background();
    outcome
}

async fn supervise(config: Config) -> Result<(), Fatal> {
    let panics = exit::watch_panics();
    let telemetry = telemetry::init(&config)?;
    let config = Arc::new(config);
    let shutdown = Shutdown::new(config.grace_period());
    let work = async {
        // A signal during the start needs no drain: nothing is held yet.
        let started = tokio::select! {
            started = start(config, shutdown.clone()) => started?,
            () = shutdown.cancelled() => return Ok(()),
        };
        crate::app::run(started).await
    };
    let outcome = tokio::select! {
        outcome = shutdown.guard(work) => outcome,
        fatal = panics.first() => Err(fatal),
    };
    shutdown.advance(Phase::Stopped);
    telemetry.flush().await;
    outcome
}

fn check(config: &Config) -> Result<(), Fatal> {
    for warning in config.warnings() {
        exit::complain(&format!("{PROGRAM}: warning: {warning}"));
    }
    drop(write!(std::io::stdout().lock(), "{}", config.to_toml()));
    Ok(())
}
