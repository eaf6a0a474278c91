//! What consuming costs with the library `consumers`: CPU per event beside a bare pull loop, events
//! per second by workers, a paced load with handlers that wait, and slash commands in front of a
//! backlog. A nats-server and every worker are processes of their own, as in [`crate::load`], whose
//! parts it shares.

mod args;
mod measure;
mod publish;
mod pull;
mod report;
mod rig;
mod worker;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::load;
use args::Args;

/// The first argument of a process that is a part of a run: what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Worker,
    Pull,
    Publish,
}

impl Part {
    const ALL: [Self; 3] = [Self::Worker, Self::Pull, Self::Publish];

    const fn name(self) -> &'static str {
        match self {
            Self::Worker => "part-worker",
            Self::Pull => "part-pull",
            Self::Publish => "part-publish",
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let mut args = args.peekable();
    let first = args.peek().cloned().unwrap_or_default();
    let ours = Part::ALL.into_iter().find(|part| first == part.name());
    let outcome = match (ours, load::Part::named(&first)) {
        (Some(part), _) => run_part(part, args.skip(1).collect()),
        (None, Some(part)) => load::run_part(part, args.skip(1).collect(), None),
        (None, None) => run(&Args::parse_from(std::iter::once(program).chain(args))),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do when even that cannot be printed.
            drop(writeln!(io::stderr(), "consume: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Only the kernel can be relied on to end this process when its parent is killed.
fn run_part(part: Part, args: Vec<OsString>) -> Result<ExitCode> {
    set_pdeathsig(Signal::SIGKILL).context("ask to be ended with the parent")?;
    match part {
        Part::Worker => return worker::part(&args),
        Part::Pull => pull::part(&load::child::setup(&args)?)?,
        Part::Publish => publish::part(&load::child::setup(&args)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(args: &Args) -> Result<ExitCode> {
    load::raise_file_limit().context("raise the limit of open files")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = measure::all(args) => report,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("listen for Ctrl-C")?;
                anyhow::bail!("interrupted")
            }
        }
    })?;
    io::stdout()
        .write_all(report.tables().as_bytes())
        .context("print the tables")?;
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
