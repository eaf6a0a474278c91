//! What can be chosen.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures workers of the library `consumers`: CPU per event beside a bare pull loop, events per
/// second, a paced load, and slash commands in front of a backlog.
#[derive(Clone, Debug, Parser)]
#[command(name = "consume", version)]
pub(crate) struct Args {
    /// What to measure; everything by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Scenario>,
    /// Events of each run of `overhead` and `throughput`.
    #[arg(long, default_value_t = 200_000)]
    pub(crate) events: u64,
    /// Gateway shards the events come from.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) shards: u32,
    /// How long the handler waits, in ms, where it does.
    #[arg(long, default_value_t = 5)]
    pub(crate) handler_ms: u64,
    /// Events that a worker handles at once; the library's own number by default.
    #[arg(long)]
    pub(crate) concurrency: Option<usize>,
    /// Events per second of `held`.
    #[arg(long, default_value_t = 10_000.0)]
    pub(crate) rate: f64,
    /// How long `held` and `interactions` are measured, in seconds.
    #[arg(long = "for", default_value_t = 20)]
    pub(crate) seconds: u64,
    /// Events that wait in `interactions`.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) backlog: u64,
    /// Slash commands per second of `interactions`.
    #[arg(long, default_value_t = 50.0)]
    pub(crate) commands: f64,
    /// How often; the tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// Write every run and the medians here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Record a profile of each contender of `overhead`: `DIR/<contender>-<n>.perf`.
    #[arg(long, value_name = "DIR")]
    pub(crate) perf: Option<PathBuf>,
}

/// `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// CPU per event of shared and ordered mode and of a bare pull loop.
    Overhead,
    /// Events per second of 1, 2 and 4 workers.
    Throughput,
    /// A paced load on two workers whose handlers wait.
    Held,
    /// Slash commands while a backlog waits.
    Interactions,
}

impl Args {
    /// What is measured.
    pub(crate) fn scenarios(&self) -> &[Scenario] {
        if self.only.is_empty() {
            Scenario::value_variants()
        } else {
            &self.only
        }
    }
}
