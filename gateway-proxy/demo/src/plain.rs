//! Lines for logs and pipes: no escape codes.

use std::io::{self, Write as _};
use std::time::Duration;

use crate::sample::Sample;
use crate::text::{clock, count, ms};

/// Prints a line about what happens. A reader that went away is noticed elsewhere.
pub(crate) fn say(line: &str) {
    drop(print(line));
}

/// Prints a line.
pub(crate) fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// One picture as one line.
pub(crate) fn line(sample: &Sample, shards: u32, running: Option<Duration>) -> String {
    let Some(running) = running else {
        return format!(
            "starting: {}/{shards} shards, waiting for {}",
            sample.shards_ready(),
            sample.missing()
        );
    };
    let commands = &sample.commands;
    let mut line = format!(
        "{}  sent {} ({:.0}/s)  stored {}  lag {}  shards {}/{shards}  identifies {}  \
         commands {}/{}  p50 {}  p99 {}",
        clock(running),
        count(sample.sent),
        sample.rate,
        count(sample.stored),
        sample.lag(),
        sample.shards_ready(),
        sample.identifies,
        commands.answered,
        commands.typed,
        ms(commands.p50_us),
        ms(commands.p99_us),
    );
    for (what, number) in [
        ("late", commands.late),
        ("unanswered", commands.unanswered),
        ("RULES BROKEN", sample.violations),
    ] {
        if number > 0 {
            line.push_str(&format!("  {what} {number}"));
        }
    }
    if !sample.all_ready() {
        line.push_str(&format!("  not ready: {}", sample.missing()));
    }
    line
}
