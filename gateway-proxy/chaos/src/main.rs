//! The proof by force: runs a simulated Discord, a real nats-server and real proxies, lets a seeded
//! schedule kill, freeze and disturb them, and compares what Discord sent with what is stored.

mod proxies;
mod run;
mod schedule;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// The first argument of the processes this program starts of itself.
const CHILD: &str = "gateway-proxy";

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
    /// Proxies that share them
    #[arg(long, default_value_t = 2)]
    proxies: usize,
    /// Guilds of the bot
    #[arg(long, default_value_t = 320)]
    guilds: usize,
    /// Mean time between two troubles
    #[arg(long, default_value = "3s", value_parser = duration)]
    every: Duration,
    /// zstd, zlib or none
    #[arg(long, default_value = "zstd")]
    compression: String,
    /// Keep the proxies' logs in this directory
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 30s"))?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return Err(format!("{text:?} is no time such as 500ms, 30s or 10m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == CHILD) {
        args.remove(0);
        end_with_parent();
        return gateway_proxy::main_with(args);
    }
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run::run(&options)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "chaos: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// A process whose parent is gone must not stay: its standard input ends then.
fn end_with_parent() {
    drop(std::thread::spawn(|| {
        let mut nothing = std::io::sink();
        // Ends with the parent, whatever the copy says.
        drop(std::io::copy(&mut std::io::stdin(), &mut nothing));
        std::process::exit(70);
    }));
}
