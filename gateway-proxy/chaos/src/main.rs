//! The proof by force: runs a simulated Discord, a real nats-server and real proxies, lets a seeded
//! schedule kill, freeze and disturb them, and compares what Discord sent with what is stored.

mod broker;
mod cable;
mod owners;
mod run;
mod schedule;

use std::process::ExitCode;
use std::time::Duration;

use chaos::{duration, proxy_instead};
use clap::Parser;

/// Kills, freezes and disturbs the real processes by a seeded schedule, and compares what Discord
/// sent with what is stored, event by event.
#[derive(Clone, Debug, Parser)]
#[command(name = "chaos", version)]
struct Options {
    /// Which schedule; the same seed gives the same one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long load and troubles last
    #[arg(long = "for", default_value = "60s", value_parser = duration)]
    lasts: Duration,
    /// Events per second over all shards
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// Shards of the bot
    #[arg(long, default_value_t = 16)]
    shards: u32,
    /// Proxies that share them: by hand, or with --fleet by themselves
    #[arg(long, default_value_t = 2)]
    proxies: usize,
    /// The proxies are a fleet; the schedule cuts their lines to NATS as well
    #[arg(long)]
    fleet: bool,
    /// Guilds of the bot
    #[arg(long, default_value_t = 320)]
    guilds: usize,
    /// Mean time between two troubles
    #[arg(long, default_value = "3s", value_parser = duration)]
    every: Duration,
    /// zstd, zlib or none
    #[arg(long, default_value = "zstd")]
    compression: String,
    /// NATS servers: 1, or 3 that keep three copies
    #[arg(long, default_value_t = 1)]
    nats_servers: usize,
    /// Keep the proxies' logs in this directory
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    if let Some(code) = proxy_instead() {
        return code;
    }
    let options = Options::parse();
    chaos::main_with("chaos", async move { run::run(&options).await })
}
