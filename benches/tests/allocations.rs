//! How often the proxy allocates per event, end to end: against sockets, a nats-server and all it does
//! beside. Counts do not depend on how fast or busy the machine is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// An allocation holds dozens of events until they are stored; the rest are answers, and what happens
/// a few times a second.
const PER_EVENT_MAX: f64 = 0.25;
const SHARDS: u64 = 4;

/// Allocations of a proxy that takes a flood of so many events on each shard, from start to end.
fn allocations(events_per_shard: u64, directory: &Path) -> Result<f64> {
    let file = directory.join(format!("{events_per_shard}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_allocations"))
        .args(["--only", "proxy", "--repeat", "1", "--json"])
        .arg(&file)
        .arg(format!("--shards={SHARDS}"))
        .arg(format!("--events-per-shard={events_per_shard}"))
        .output()
        .context("start it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(&file).context("read its report")?;
    let report: Value = serde_json::from_slice(&report).context("read its report")?;
    let allocations = report.pointer("/medians/proxy/allocations");
    allocations.and_then(Value::as_f64).context("no count")
}

#[test]
fn dozens_of_events_share_an_allocation() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("allocations-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    // What starting and ending costs is in both.
    let (few, many) = (2_000, 12_000);
    let counts = [
        allocations(few, &directory)?,
        allocations(many, &directory)?,
    ];
    std::fs::remove_dir_all(&directory)?;
    let per_event = (counts[1] - counts[0]) / (SHARDS * (many - few)) as f64;
    assert!(counts[0] > 1_000.0, "{counts:?}: not counted");
    assert!(
        per_event <= PER_EVENT_MAX,
        "{per_event} allocations per event"
    );
    Ok(())
}
