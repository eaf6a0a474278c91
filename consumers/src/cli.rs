//! From a command line to an exit code: what `main` is made of.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args as _, Command, FromArgMatches as _, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Options};
use crate::directory::{DirectoryConfig, DirectoryOptions, DirectoryService, RunningDirectory};
use crate::exit::{Fatal, Signal, finish};
use crate::router::Router;
use crate::worker::{Running, Worker};
use crate::{commands, telemetry};

/// Threads of the runtime: handlers wait for Discord, they do not compute; a second thread keeps
/// the worker alive beside one that does.
const THREADS: usize = 2;

/// Workers that consume the events of the gateway proxy.
#[derive(Debug, Parser)]
#[command(name = "consumers", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Answers the slash commands /ping, /info, /stats, /find and /shards
    Commands(Box<Options>),
    /// Keeps what is known of guilds over all shards, and answers discord.query.* over NATS
    Directory(Box<DirectoryOptions>),
}

/// The `consumers` program: `args` begins with the program's name, as in [`std::env::args_os`].
///
/// Installs the log of the process and listens for SIGTERM and Ctrl-C, so it belongs into `main`.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(Cli {
            verb: Verb::Commands(options),
        }) => finish("consumers", run(commands::router(), *options)),
        Ok(Cli {
            verb: Verb::Directory(options),
        }) => finish("consumers", run_directory(*options)),
        Err(error) => refuse(&error),
    }
}

/// A whole worker program with the flags, environment variables and exit codes of `consumers
/// commands`, but your commands.
///
/// Installs the log of the process and listens for SIGTERM and Ctrl-C, so it belongs into `main`.
pub fn run_worker(
    program: &'static str,
    router: Router,
    args: impl IntoIterator<Item = OsString>,
) -> ExitCode {
    // Set here, since flattened flags bring the documentation of their struct along.
    let command = Options::augment_args(Command::new(program))
        .about("Answers slash commands from the events of the gateway proxy")
        .long_about(None);
    let parsed = command.try_get_matches_from(args);
    match parsed.and_then(|matches| Options::from_arg_matches(&matches)) {
        Ok(options) => finish(program, run(router, options)),
        Err(error) => refuse(&error),
    }
}

/// Prints help, version or what is wrong with the flags; the latter is 64 by contract.
fn refuse(error: &clap::Error) -> ExitCode {
    // A reader that went away is no reason to fail.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(64)
    } else {
        ExitCode::SUCCESS
    }
}

fn run(router: Router, options: Options) -> Result<(), Fatal> {
    let config = Config::from_options(options)?;
    telemetry::init(&config);
    let worker = Worker::new(config, router);
    in_runtime(supervise(worker.start(), Running::stop))
}

fn run_directory(options: DirectoryOptions) -> Result<(), Fatal> {
    let config = DirectoryConfig::from_options(options)?;
    telemetry::init(&config.worker);
    let directory = DirectoryService::new(config);
    in_runtime(supervise(directory.start(), RunningDirectory::stop))
}

fn in_runtime(work: impl Future<Output = Result<(), Fatal>>) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("worker")
        .enable_all()
        .build()
        .map_err(|error| Fatal::unfit(format!("no runtime: {error}"), "check process limits"))?;
    let outcome = runtime.block_on(work);
    // A handler that blocks its thread must not keep the process from ending.
    runtime.shutdown_background();
    outcome
}

/// Runs a worker until the first signal, then lets it finish; the second one ends it at once.
async fn supervise<Running, Stop: Future<Output = ()>>(
    start: impl Future<Output = Result<Running, Fatal>>,
    stop: impl FnOnce(Running) -> Stop,
) -> Result<(), Fatal> {
    let mut signals = Signals::listen()?;
    let running = tokio::select! {
        started = start => started?,
        signal = signals.next() => {
            tracing::info!(%signal, "stopped before the start was complete");
            return Ok(());
        }
    };
    let signal = signals.next().await;
    tracing::info!(%signal, "stopping; a second signal stops at once");
    tokio::select! {
        () = stop(running) => Ok(()),
        signal = signals.next() => Err(Fatal::Interrupted(signal)),
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Fatal> {
        let failed = |error| Fatal::bug(format!("cannot listen for signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}
