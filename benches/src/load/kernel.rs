//! The kernel's own account of a process: CPU time, wake-ups, memory. No process measures itself.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// `USER_HZ`: the unit of `/proc/<pid>/stat`, the same on every Linux whatever its timer.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time and wake-ups of a process up to a moment.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    at: Instant,
    // Nanoseconds each living thread has run, and has waited for a processor.
    threads: BTreeMap<u32, (u64, u64)>,
    // The whole process, ended threads included, in clock ticks.
    user_ticks: u64,
    system_ticks: u64,
    // Times a thread went to sleep by itself: as often it was woken up.
    sleeps: u64,
}

/// What a process used between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    pub(crate) cpu_us: f64,
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
    pub(crate) wakeups: f64,
    /// Time its threads were able to run and something else did.
    pub(crate) waited_us: f64,
    pub(crate) seconds: f64,
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) rss_kib: u64,
    /// Of it what no file backs: heap and stacks.
    pub(crate) anonymous_kib: u64,
    pub(crate) peak_rss_kib: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let stat = read(&format!("/proc/{pid}/stat"))?;
        let (user_ticks, system_ticks) = ticks(&stat).context("read a process's times")?;
        let mut threads = BTreeMap::new();
        let mut sleeps = 0;
        let entries = fs::read_dir(format!("/proc/{pid}/task")).context("list threads")?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may end between listing and reading.
            let path = format!("/proc/{pid}/task/{thread}");
            let Ok(schedstat) = fs::read_to_string(format!("{path}/schedstat")) else {
                continue;
            };
            let status = fs::read_to_string(format!("{path}/status")).unwrap_or_default();
            threads.insert(thread, run_and_wait(&schedstat));
            sleeps += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(Self {
            at: Instant::now(),
            threads,
            user_ticks,
            system_ticks,
            sleeps,
        })
    }

    /// Before a process that was started then did anything.
    pub(crate) const fn none(at: Instant) -> Self {
        Self {
            at,
            threads: BTreeMap::new(),
            user_ticks: 0,
            system_ticks: 0,
            sleeps: 0,
        }
    }

    fn sum(&self, part: impl Fn((u64, u64)) -> u64) -> u64 {
        self.threads.values().map(|thread| part(*thread)).sum()
    }

    pub(crate) fn since(&self, before: &Self) -> Spent {
        let tick_us = 1e6 / TICKS_PER_SECOND;
        let user_us = self.user_ticks.saturating_sub(before.user_ticks) as f64 * tick_us;
        let system_us = self.system_ticks.saturating_sub(before.system_ticks) as f64 * tick_us;
        // Threads are accounted in nanoseconds, but those that ended are missing.
        let complete = before
            .threads
            .keys()
            .all(|thread| self.threads.contains_key(thread));
        let cpu_us = if complete {
            self.sum(|(run, _)| run)
                .saturating_sub(before.sum(|(run, _)| run)) as f64
                / 1e3
        } else {
            user_us + system_us
        };
        let ticks_us = (user_us + system_us).max(f64::MIN_POSITIVE);
        Spent {
            cpu_us,
            // The split is sampled at ticks; the total is exact.
            user_us: cpu_us * user_us / ticks_us,
            system_us: cpu_us * system_us / ticks_us,
            waited_us: self
                .sum(|(_, waited)| waited)
                .saturating_sub(before.sum(|(_, waited)| waited)) as f64
                / 1e3,
            wakeups: self.sleeps.saturating_sub(before.sleeps) as f64,
            seconds: (self.at - before.at).as_secs_f64(),
        }
    }
}

impl Memory {
    /// `VmHWM` and not `ru_maxrss`, which a process inherits from its parent.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = read(&format!("/proc/{pid}/status"))?;
        let kib = |name| field(&status, name).with_context(|| format!("no {name} of {pid}"));
        Ok(Self {
            rss_kib: kib("VmRSS:")?,
            anonymous_kib: kib("RssAnon:")?,
            peak_rss_kib: kib("VmHWM:")?,
        })
    }
}

/// One-minute load average: how quiet the machine was.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(f64::NAN)
}

/// Model and number of the processors.
pub(crate) fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let model = models
        .clone()
        .next()
        .unwrap_or("unknown")
        .trim_start_matches(['\t', ' ', ':']);
    format!("{} × {model}", models.count())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// Fields 14 and 15 of `stat`; the second, the name in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The first two numbers of `schedstat`.
fn run_and_wait(schedstat: &str) -> (u64, u64) {
    let mut numbers = schedstat
        .split_ascii_whitespace()
        .map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 114 0 0 0 31 12 0 0 20 0 1 0 339965";
        assert_eq!(ticks(stat), Some((31, 12)));
    }

    #[test]
    fn work_shows_in_the_account() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let begun = Instant::now();
        let mut sum = 0_u64;
        while begun.elapsed().as_millis() < 50 {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        std::hint::black_box(sum);
        let spent = Usage::of(pid).unwrap().since(&before);
        assert!(spent.cpu_us > 1000.0, "{spent:?}");
        assert!(spent.seconds >= 0.05, "{spent:?}");
    }

    #[test]
    fn memory_is_read_from_the_kernel() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(
            memory.rss_kib > 100 && memory.peak_rss_kib >= memory.rss_kib,
            "{memory:?}"
        );
    }
}
