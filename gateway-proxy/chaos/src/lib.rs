//! What the programs here share: proxies as processes of their own that end with ours.

mod proxies;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

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

