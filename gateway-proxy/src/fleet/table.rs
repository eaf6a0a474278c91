//! The fleet for people: two tables as text. Pure.

use schemas::health::{ClusterState, ClusterStatus, ProcessStatus};
use schemas::{ShardId, ShardState};

use super::states::Snapshot;

/// Shards listed one by one; of larger bots only those that are not ready.
const SHARDS_LISTED: usize = 64;

/// A table whose columns are as wide as their widest cell.
#[derive(Debug, Default)]
struct Table(Vec<Vec<String>>);

impl Table {
    fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    fn write(&self, out: &mut String) {
        let columns = self.0.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.0.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.0 {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// Everything an operator wants to see at one glance. `now_ms` is the Unix time.
pub(crate) fn render(snapshot: &Snapshot, now_ms: u64) -> String {
    let state = snapshot.cluster_state();
    let mut out = headline(snapshot, &state);
    out.push('\n');
    proxies(snapshot, &state, &mut out);
    out.push('\n');
    shards(snapshot, now_ms, &mut out);
    if !snapshot.unreadable.is_empty() {
        let keys = snapshot.unreadable.join(", ");
        out.push_str(&format!("\nunreadable values in the bucket: {keys}\n"));
    }
    out
}

fn headline(snapshot: &Snapshot, state: &ClusterState) -> String {
    let status = match state.status {
        ClusterStatus::Healthy => "healthy",
        ClusterStatus::Starting => "starting",
        ClusterStatus::Degraded => "degraded",
        ClusterStatus::Down => "down",
        ClusterStatus::Unknown => "unknown",
    };
    let coordinator = state
        .coordinator
        .as_ref()
        .map_or("nobody", |proxy| proxy.as_str());
    let mut line = format!(
        "{status}: {} of {} shards ready, {} {}, coordinated by {coordinator}",
        state.ready_shards,
        state.total_shards,
        state.workers.len(),
        if state.workers.len() == 1 {
            "proxy"
        } else {
            "proxies"
        },
    );
    if let Some(plan) = &snapshot.plan {
        line.push_str(&format!(", plan {}", plan.epoch));
    }
    line.push('\n');
    if !state.unplaced_shards.is_empty() {
        let ranges = ranges(&state.unplaced_shards);
        line.push_str(&format!("nobody holds: {ranges}\n"));
    }
    line
}

fn proxies(snapshot: &Snapshot, state: &ClusterState, out: &mut String) {
    let head = [
        "PROXY", "STATUS", "MODE", "SHARDS", "CPU %", "MEMORY", "LATENCY", "EVENTS/S", "ZONE",
        "VERSION", "HTTP",
    ];
    let mut table = Table::new(&head);
    for worker in &state.workers {
        let status = match worker.status {
            ProcessStatus::Starting => "starting",
            ProcessStatus::Ready => "ready",
            ProcessStatus::Degraded => "degraded",
            ProcessStatus::Draining => "draining",
            ProcessStatus::Unknown => "unknown",
        };
        let member = snapshot.members.get(&worker.proxy);
        let mode = match member {
            Some(member) if member.fleet && member.pinned.is_some() => "pinned",
            Some(member) if member.fleet => "fleet",
            Some(_) | None => "alone",
        };
        let most = member.and_then(|member| member.max_shards);
        let held = worker.shards.len();
        table.row(vec![
            worker.proxy.to_string(),
            status.to_owned(),
            mode.to_owned(),
            most.map_or_else(|| held.to_string(), |most| format!("{held}/{most}")),
            format!("{:.0}", worker.cpu_percent),
            format!("{} MB", worker.memory_bytes / 1_000_000),
            latency(worker.latency_ms),
            format!("{:.0}", worker.events_per_second),
            worker.zone.clone().unwrap_or_else(|| "-".to_owned()),
            worker.version.clone().unwrap_or_else(|| "-".to_owned()),
            worker.http.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.write(out);
}

fn shards(snapshot: &Snapshot, now_ms: u64, out: &mut String) {
    let all: Vec<ShardId> = snapshot.shards().collect();
    let few = all.len() <= SHARDS_LISTED;
    let listed = all
        .iter()
        .filter(|shard| few || !snapshot.is_ready(**shard));
    let head = [
        "SHARD", "STATUS", "PROXY", "PLANNED", "GUILDS", "LATENCY", "EVENTS/S", "SEQUENCE", "SINCE",
    ];
    let mut table = Table::new(&head);
    let mut left_out = 0_usize;
    for (number, shard) in listed.enumerate() {
        if number >= SHARDS_LISTED {
            left_out += 1;
            continue;
        }
        table.row(shard_row(snapshot, *shard, now_ms));
    }
    if few || table.0.len() > 1 {
        table.write(out);
    }
    if left_out > 0 {
        out.push_str(&format!("and {left_out} more that are not ready\n"));
    }
    if !few {
        out.push_str(&format!(
            "shards that are ready are not listed: there are {}\n",
            all.len()
        ));
    }
}

fn shard_row(snapshot: &Snapshot, shard: ShardId, now_ms: u64) -> Vec<String> {
    let dash = || "-".to_owned();
    let record = snapshot.records.get(&shard);
    let owner = record.and_then(|record| record.owner.as_ref());
    let gone = owner.is_some_and(|owner| !snapshot.members.contains_key(owner));
    let state = record.map_or(ShardState::Disconnected, |record| record.state);
    let planned = snapshot
        .plan
        .as_ref()
        .and_then(|plan| plan.shards.get(&shard.id()));
    let since = record.map(|record| now_ms.saturating_sub(record.changed_at_unix_ms) / 1_000);
    vec![
        shard.id().to_string(),
        if gone {
            "proxy is gone".to_owned()
        } else {
            state.to_string()
        },
        owner.map_or_else(dash, ToString::to_string),
        planned.map_or_else(dash, ToString::to_string),
        record
            .and_then(|record| record.guilds)
            .map_or_else(dash, |guilds| guilds.to_string()),
        latency(record.and_then(|record| record.latency_ms)),
        record.map_or_else(dash, |record| format!("{:.0}", record.events_per_second)),
        record
            .and_then(|record| record.sequence)
            .map_or_else(dash, |sequence| sequence.to_string()),
        since.map_or_else(dash, age),
    ]
}

fn latency(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"))
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `0-3, 7`, of ascending numbers.
fn ranges(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use schemas::{Leader, Member, Plan, ShardRecord};

    use super::*;

    fn snapshot() -> Snapshot {
        let shard = |id| ShardId::new(id, 3).unwrap();
        let member = Member {
            fleet: true,
            shards: vec![shard(0), shard(1)],
            max_shards: Some(2),
            ..serde_json::from_str::<Member>(r#"{"version":"1.0.0"}"#).unwrap()
        };
        let mut snapshot = Snapshot {
            leader: Some(Leader {
                proxy: "a".parse().unwrap(),
                epoch: 2,
                lease_ttl_ms: None,
                priority: 0,
                since_unix_ms: 0,
            }),
            plan: serde_json::from_str::<Plan>(
                r#"{"epoch":7,"shard_count":3,"shards":{"0":"a","1":"a"}}"#,
            )
            .ok(),
            ..Snapshot::default()
        };
        snapshot.members.insert("a".parse().unwrap(), member);
        for (id, owner) in [(0, "a"), (1, "gone")] {
            let record = ShardRecord {
                owner: Some(owner.parse().unwrap()),
                state: ShardState::Ready,
                guilds: Some(12),
                changed_at_unix_ms: 1_000,
                ..ShardRecord::new(shard(id))
            };
            snapshot.records.insert(shard(id), record);
        }
        snapshot
    }

    #[test]
    fn the_tables_name_every_proxy_and_shard_and_what_is_wrong() {
        let text = render(&snapshot(), 91_000);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(
            text.starts_with("degraded: 1 of 3 shards ready, 1 proxy, coordinated by a, plan 7"),
            "{text}"
        );
        assert!(text.contains("nobody holds: 1-2"), "{text}");
        assert!(line("a ").contains("1/2"), "{text}");
        assert!(
            line("0 ").contains("ready") && line("0 ").ends_with("1 min"),
            "{text}"
        );
        assert!(line("1 ").contains("proxy is gone"), "{text}");
        assert!(line("2 ").contains("disconnected"), "{text}");
    }

    #[test]
    fn a_proxy_without_the_shards_it_was_started_for_is_not_ready() {
        let mut snapshot = snapshot();
        let status = |snapshot: &Snapshot| {
            let text = render(snapshot, 0);
            let line = text.lines().find(|line| line.starts_with("a "));
            line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(status(&snapshot), "ready");
        let name = "a".parse().unwrap();
        let member = snapshot.members.get_mut(&name).unwrap();
        (member.fleet, member.pinned) = (false, Some(vec![0, 1]));
        assert_eq!(status(&snapshot), "starting", "never had a session");
        for record in snapshot.records.values_mut() {
            record.session_id = Some("s".to_owned());
        }
        assert_eq!(status(&snapshot), "degraded");
    }

    #[test]
    fn of_a_large_bot_only_what_is_not_ready_is_listed() {
        let mut snapshot = snapshot();
        snapshot.plan.as_mut().unwrap().shard_count = 500;
        snapshot.unreadable.push("member.x".to_owned());
        let text = render(&snapshot, 0);
        assert!(text.contains("and 436 more that are not ready"), "{text}");
        assert!(
            text.contains("unreadable values in the bucket: member.x"),
            "{text}"
        );
    }

    #[test]
    fn nobody_and_nothing_can_be_shown() {
        let text = render(&Snapshot::default(), 0);
        assert!(
            text.starts_with("down: 0 of 0 shards ready, 0 proxies, coordinated by nobody"),
            "{text}"
        );
    }

    #[test]
    fn numbers_in_a_row_are_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
