//! What the programs here share: proxies as processes of their own that end with ours.

pub mod fleet;
mod proxies;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

pub use self::proxies::Proxy;

/// The first argument of the processes these programs start of themselves.
const CHILD: &str = "gateway-proxy";

/// Runs as a proxy when this program was started by [`Proxy::start`], and says how that ended.
#[must_use]
pub fn proxy_instead() -> Option<ExitCode> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_none_or(|arg| arg != CHILD) {
        return None;
    }
    args.remove(0);
    end_with_parent();
    Some(gateway_proxy::main_with(args))
}

/// Runs a program to its end: 0 when it passed, 1 when not, 2 when it could not be run.
#[must_use]
pub fn main_with(name: &str, work: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(work));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{name}: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// A directory of this process's own for logs, below the system's for temporary files.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(name: &str) -> anyhow::Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// Prints a line; a terminal that is gone is no reason to stop.
pub fn say(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
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

/// Reads a time as operators write it: `500ms`, `30s`, `10m`, `1h`; without a unit, seconds.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
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
