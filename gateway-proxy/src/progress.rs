//! Tells how far a start is, while it takes long enough to be wondered about: a bar for people at a
//! terminal, log lines for everybody else. The numbers are those of `/health`.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use schemas::health::StartupProgress;
use tracing::info;

use crate::config::LogFormat;
use crate::status::ProcessStatus;

/// How often a terminal is told.
const BAR_EVERY: Duration = Duration::from_secs(1);
/// How often a log is told.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Characters between the brackets.
const BAR_WIDTH: usize = 30;

/// Tells until everything was up once.
pub(crate) async fn run(process: Arc<ProcessStatus>, format: LogFormat) {
    let terminal = format == LogFormat::Text && std::io::stderr().is_terminal();
    let every = if terminal { BAR_EVERY } else { LINE_EVERY };
    let mut told = None;
    loop {
        tokio::time::sleep(every).await;
        let Some(progress) = process.health().startup else {
            return;
        };
        if progress.total == 0 || told == Some(progress) {
            continue;
        }
        told = Some(progress);
        if terminal {
            // A reader that went away is no reason to fail.
            drop(writeln!(std::io::stderr().lock(), "{}", bar(&progress)));
        } else {
            info!(
                ready = progress.ready,
                total = progress.total,
                remaining_s = progress.remaining_s,
                "shards start"
            );
        }
    }
}

/// `[##########--------------------] 12 of 36 shards ready, about 40 s left`
fn bar(progress: &StartupProgress) -> String {
    let (ready, total) = (progress.ready as usize, progress.total.max(1) as usize);
    let full = (ready * BAR_WIDTH / total).min(BAR_WIDTH);
    let rest = BAR_WIDTH - full;
    let left = match (progress.budget_reset_at, progress.remaining_s) {
        (Some(until), _) => format!(", the rest waits for Discord's daily budget until {until}"),
        (None, Some(left)) => format!(", about {left} s left"),
        (None, None) => String::new(),
    };
    format!(
        "[{:#<full$}{:-<rest$}] {ready} of {total} shards ready{left}",
        "", ""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ready: u32, total: u32, remaining_s: Option<u64>, expect: &str) {
        let progress = StartupProgress {
            ready,
            total,
            remaining_s,
            budget_reset_at: None,
        };
        assert_eq!(bar(&progress), expect);
    }

    #[test]
    fn the_bar_is_as_full_as_shards_are_ready() {
        let empty = "-".repeat(30);
        check(0, 0, None, &format!("[{empty}] 0 of 1 shards ready"));
        check(
            12,
            36,
            Some(40),
            "[##########--------------------] 12 of 36 shards ready, about 40 s left",
        );
        let full = "#".repeat(30);
        check(7, 7, None, &format!("[{full}] 7 of 7 shards ready"));
    }
}
