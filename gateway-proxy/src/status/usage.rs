//! Memory and CPU of this process, from the kernel's own accounting.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub memory_bytes: u64,
    /// User and system time since the start.
    pub cpu: Duration,
}

impl Usage {
    /// Asks the kernel; what it does not say is 0.
    #[must_use]
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = getrusage(UsageWho::RUSAGE_SELF)
            .map(|usage| duration(usage.user_time()) + duration(usage.system_time()))
            .unwrap_or_default();
        Self {
            memory_bytes: resident(&status),
            cpu,
        }
    }
}

/// `VmRSS:      1234 kB`: unlike `statm` it needs no page size.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(
            resident("Name:\tx\nVmRSS:\t    1234 kB\nVmData: 1 kB\n"),
            1234 * 1024
        );
        assert_eq!(resident(""), 0);
        assert_eq!(resident("VmRSS: many kB"), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_and_time() {
        let spin = std::time::Instant::now();
        while spin.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let usage = Usage::read();
        assert!(
            usage.memory_bytes > 100_000 && usage.cpu > Duration::ZERO,
            "{usage:?}"
        );
    }
}
