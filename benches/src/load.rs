//! What an event and a shard cost, end to end: a simulated Discord, a contender and a nats-server,
//! each a process of its own, and the kernel's account of each.
//!
//! The program starts itself again for each of the parts but the nats-server, so that one binary is
//! all there is to build.

pub(crate) mod args;
pub(crate) mod bare;
pub(crate) mod child;
pub(crate) mod contender;
pub(crate) mod corpus;
pub(crate) mod events;
mod goals;
pub(crate) mod http;
pub(crate) mod kernel;
mod latency;
pub(crate) mod measure;
mod peers;
mod plot;
pub(crate) mod report;
pub(crate) mod simulator;
mod twilight;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use args::Args;

/// The first argument of a process that is a part of a run: what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Simulator,
    Proxy,
    Twilight,
    Bare,
}

impl Part {
    const ALL: [Self; 4] = [Self::Simulator, Self::Proxy, Self::Twilight, Self::Bare];

    /// The part that a first argument names.
    pub(crate) fn named(argument: &OsString) -> Option<Self> {
        Self::ALL.into_iter().find(|part| argument == part.name())
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Simulator => "part-simulator",
            Self::Proxy => "part-proxy",
            Self::Twilight => "part-twilight",
            Self::Bare => "part-bare",
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    start(None)
}

/// The same with a proxy that says at its end how often it allocated.
pub fn main_counting(allocations: fn() -> u64) -> ExitCode {
    start(Some(allocations))
}

fn start(allocations: Option<fn() -> u64>) -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let mut args = args.peekable();
    let part = args.peek().and_then(Part::named);
    let outcome = match part {
        Some(part) => {
            args.next();
            run_part(part, args.collect(), allocations)
        }
        None => run(Args::parse_from(std::iter::once(program).chain(args))),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do when even that cannot be printed.
            drop(writeln!(io::stderr(), "load: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Only the kernel can be relied on to end this process when its parent is killed.
pub(crate) fn run_part(
    part: Part,
    args: Vec<OsString>,
    allocations: Option<fn() -> u64>,
) -> Result<ExitCode> {
    set_pdeathsig(Signal::SIGKILL).context("ask to be ended with the parent")?;
    match part {
        Part::Proxy => {
            let name = OsString::from("gateway-proxy");
            let code = gateway_proxy::main_with(std::iter::once(name).chain(args));
            if let Some(allocations) = allocations {
                let line = child::allocations_line(allocations());
                writeln!(io::stderr(), "{line}").context("say how often it allocated")?;
            }
            return Ok(code);
        }
        Part::Simulator => simulator::part(&child::setup(&args)?)?,
        Part::Twilight => twilight::part(&child::setup(&args)?)?,
        Part::Bare => bare::part(&child::setup(&args)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: Args) -> Result<ExitCode> {
    raise_file_limit().context("raise the limit of open files")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    let table = runtime.block_on(async {
        tokio::select! {
            table = measured(&args) => table,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("listen for Ctrl-C")?;
                anyhow::bail!("interrupted")
            }
        }
    })?;
    io::stdout()
        .write_all(table.as_bytes())
        .context("print the table")?;
    Ok(ExitCode::SUCCESS)
}

async fn measured(args: &Args) -> Result<String> {
    if args.goals {
        return goals::all(args).await;
    }
    let report = measure::all(args).await?;
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(report.table())
}

/// A thousand shards are a thousand sockets, in the simulator and in the contender, which inherit
/// the limit.
pub(crate) fn raise_file_limit() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Says on standard error what is going on; standard output is the table's.
pub(crate) fn say(text: &str) {
    // A reader that went away is no reason to stop measuring.
    drop(writeln!(io::stderr(), "bench: {text}"));
}
