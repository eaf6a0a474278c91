//! What was measured: every run, medians per contender, a table for people and JSON for the rest.

use std::fmt::Write as _;
use std::process::Command;

use schemas::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{Args, Contender};
use super::contender::AckLatency;
use super::kernel::{self, Memory, Spent};
use super::latency::Latency;
use super::simulator::unix_us;

/// What one process spent on each event.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    cpu_us_per_event: f64,
    user_us_per_event: f64,
    system_us_per_event: f64,
    wakeups_per_event: f64,
    waited_us_per_event: f64,
    /// 1.0 is one core.
    cores: f64,
}

impl Cost {
    pub(crate) fn new(spent: Spent, events: f64) -> Self {
        Self {
            cpu_us_per_event: spent.cpu_us / events,
            user_us_per_event: spent.user_us / events,
            system_us_per_event: spent.system_us / events,
            wakeups_per_event: spent.wakeups / events,
            waited_us_per_event: spent.waited_us / events,
            cores: spent.cpu_us / 1e6 / spent.seconds.max(1e-9),
        }
    }
}

/// One run of one contender. Memory is read at its end.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Run {
    pub(crate) contender: &'static str,
    pub(crate) round: u32,
    pub(crate) events: f64,
    pub(crate) seconds: f64,
    pub(crate) events_per_second: f64,
    pub(crate) bytes_per_event: f64,
    pub(crate) client: Option<Cost>,
    pub(crate) nats: Option<Cost>,
    pub(crate) simulator: Option<Cost>,
    pub(crate) memory: Memory,
    pub(crate) nats_memory: Memory,
    pub(crate) rss_per_shard_kib: Option<f64>,
    pub(crate) latency: Option<Latency>,
    pub(crate) ack: Option<AckLatency>,
    /// RESUMEs and rules broken, as the simulated Discord counted them.
    pub(crate) trouble: Option<u64>,
    /// MB of JSON that came in per second of CPU, from the start of the process.
    pub(crate) json_mb_per_cpu_second: Option<f64>,
    /// Allocations since the start of the process, if it counts them.
    pub(crate) allocations: Option<u64>,
}

/// Everything, to be printed.
pub(crate) struct Report {
    about: Value,
    title: String,
    runs: Vec<Value>,
}

impl Report {
    pub(crate) fn new(args: &Args) -> Self {
        let load = match (args.idle, args.rate) {
            (true, _) => "idle, no guilds".to_owned(),
            _ if args.storm => format!("cold start of {} guilds per shard", args.guilds_per_shard),
            (_, Some(rate)) => {
                let seconds = args.duration.as_secs_f64();
                format!("{rate} events/s for {seconds} s, {}", args.mix.name())
            }
            _ => format!(
                "flood of {} events per shard, {}",
                args.events_per_shard,
                args.mix.name()
            ),
        };
        let about = json!({
            "load": load,
            "shards": args.shards,
            "compression": args.compression.name(),
            "guilds_per_shard": args.guilds_per_shard,
            "proxy_flags": args.proxy_flags,
            "machine": kernel::machine(),
            "load_average_before": kernel::load_average(),
            "at": Timestamp::from_unix_ms(unix_us() / 1000).to_string(),
            "commit": commit(),
            "debug_build": cfg!(debug_assertions),
        });
        let title = format!(
            "{load} · {} shards · {}",
            args.shards,
            args.compression.name()
        );
        Self {
            about,
            title,
            runs: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(json!(run));
    }

    /// Medians of each contender, in the order they were first measured.
    fn medians(&self) -> Vec<(&str, Value)> {
        let mut names: Vec<&str> = Vec::new();
        for run in &self.runs {
            let name = run["contender"].as_str().unwrap_or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let of = |name| {
            let runs = self.runs.iter().filter(|run| run["contender"] == name);
            median(&runs.collect::<Vec<_>>())
        };
        names.into_iter().map(|name| (name, of(name))).collect()
    }

    /// Who was measured.
    pub(crate) fn contenders(&self) -> Vec<String> {
        let medians = self.medians().into_iter();
        medians.map(|(name, _)| name.to_owned()).collect()
    }

    /// One median of one contender.
    pub(crate) fn median(&self, contender: &str, pointer: &str) -> Option<f64> {
        let medians = self.medians();
        let (_, run) = medians.iter().find(|(name, _)| *name == contender)?;
        run.pointer(pointer)?.as_f64()
    }

    pub(crate) fn json(&self) -> String {
        let medians: Map<String, Value> = self
            .medians()
            .into_iter()
            .map(|(name, median)| (name.to_owned(), median))
            .collect();
        let all = json!({"about": self.about, "medians": medians, "runs": self.runs});
        format!("{all:#}\n")
    }

    pub(crate) fn table(&self) -> String {
        let medians = self.medians();
        let mut rows = vec![vec![format!(
            "median of {}",
            self.runs.len() / medians.len().max(1)
        )]];
        rows[0].extend(medians.iter().map(|(name, _)| (*name).to_owned()));
        for (label, pointer, digits) in ROWS {
            let cells: Vec<String> = medians
                .iter()
                .map(|(_, run)| cell(run.pointer(pointer), *digits))
                .collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                rows.push(std::iter::once((*label).to_owned()).chain(cells).collect());
            }
        }
        if let Some(ratios) = ratios(&medians) {
            rows.push(ratios);
        }
        let about = &self.about;
        let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
        let mut table = format!(
            "\n{}\n{} · commit {} · {}{}\n\n",
            self.title,
            text("machine"),
            text("commit"),
            text("at"),
            if cfg!(debug_assertions) {
                " · DEBUG BUILD"
            } else {
                ""
            }
        );
        table.push_str(&markdown(&rows));
        table
    }
}

/// A table of Markdown, its first row the heading.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let mut table = String::new();
    for (index, row) in rows.iter().enumerate() {
        let line = row
            .iter()
            .fold(String::from("|"), |line, cell| format!("{line} {cell} |"));
        writeln!(table, "{line}").expect("writing to a String does not fail");
        if index == 0 {
            let rule = "|---|".to_owned() + &"--:|".repeat(row.len() - 1);
            writeln!(table, "{rule}").expect("writing to a String does not fail");
        }
    }
    table
}

pub(crate) const NOTHING: &str = "–";

/// Label, where it stands in a run, digits after the point.
const ROWS: &[(&str, &str, usize)] = &[
    ("events/s", "/events_per_second", 0),
    ("bytes per event", "/bytes_per_event", 0),
    ("**CPU µs per event**", "/client/cpu_us_per_event", 2),
    ("of it user", "/client/user_us_per_event", 2),
    ("of it system", "/client/system_us_per_event", 2),
    ("wake-ups per event", "/client/wakeups_per_event", 3),
    (
        "waited for a CPU, µs per event",
        "/client/waited_us_per_event",
        2,
    ),
    ("cores used", "/client/cores", 2),
    ("nats-server CPU µs per event", "/nats/cpu_us_per_event", 2),
    (
        "simulator CPU µs per event",
        "/simulator/cpu_us_per_event",
        2,
    ),
    ("RSS KiB", "/memory/rss_kib", 0),
    ("of it anonymous KiB", "/memory/anonymous_kib", 0),
    ("peak RSS KiB", "/memory/peak_rss_kib", 0),
    ("RSS per shard KiB", "/rss_per_shard_kib", 1),
    ("nats-server RSS KiB", "/nats_memory/rss_kib", 0),
    ("socket → consumer p50 µs", "/latency/consumer/p50_us", 0),
    ("socket → consumer p99 µs", "/latency/consumer/p99_us", 0),
    ("socket → consumer p99.9 µs", "/latency/consumer/p999_us", 0),
    ("socket → stored p50 µs", "/latency/stored/p50_us", 0),
    ("socket → stored p99 µs", "/latency/stored/p99_us", 0),
    ("JSON MB per second of CPU", "/json_mb_per_cpu_second", 0),
    ("resumes, rules broken", "/trouble", 0),
    ("allocations", "/allocations", 0),
    ("ack mean µs", "/ack/mean_us", 0),
    ("ack p50 µs ≤", "/ack/p50_at_most_us", 0),
    ("ack p99 µs ≤", "/ack/p99_at_most_us", 0),
];

pub(crate) fn cell(value: Option<&Value>, digits: usize) -> String {
    match value.and_then(Value::as_f64) {
        // Nothing is measured of an idle run but memory.
        Some(number) if number != 0.0 => format!("{number:.digits$}"),
        _ => NOTHING.to_owned(),
    }
}

/// Each contender's CPU per event in units of the proxy's: what carries over to other machines.
fn ratios(medians: &[(&str, Value)]) -> Option<Vec<String>> {
    let cpu = |run: &Value| {
        run.pointer("/client/cpu_us_per_event")
            .and_then(Value::as_f64)
    };
    let proxy = Contender::Proxy.name();
    let (_, proxy) = medians.iter().find(|(name, _)| *name == proxy)?;
    let proxy = cpu(proxy)?;
    let ratio = |(_, run): &(&str, Value)| match cpu(run) {
        Some(cpu) => format!("{:.2}×", cpu / proxy),
        None => NOTHING.to_owned(),
    };
    let label = std::iter::once("CPU relative to the proxy".to_owned());
    Some(label.chain(medians.iter().map(ratio)).collect())
}

/// The median of every number, wherever it stands; of anything else the first.
pub(crate) fn median(values: &[&Value]) -> Value {
    let numbers: Option<Vec<f64>> = values.iter().map(|value| value.as_f64()).collect();
    if let Some(mut numbers) = numbers
        && !numbers.is_empty()
    {
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            f64::midpoint(numbers[middle - 1], numbers[middle])
        };
        return json!(median);
    }
    match values.first() {
        Some(Value::Object(first)) => {
            let of =
                |key: &str| median(&values.iter().map(|value| &value[key]).collect::<Vec<_>>());
            first.keys().map(|key| (key.clone(), of(key))).collect()
        }
        Some(first) => (*first).clone(),
        None => Value::Null,
    }
}

/// The commit this is built from, as far as git knows.
pub(crate) fn commit() -> String {
    let directory = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("git")
        .args([
            "-C",
            directory,
            "describe",
            "--always",
            "--dirty",
            "--abbrev=10",
        ])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn run(contender: &'static str, cpu_us: f64) -> Run {
        let spent = Spent {
            cpu_us,
            seconds: 1.0,
            ..Spent::default()
        };
        Run {
            contender,
            events: 100.0,
            client: Some(Cost::new(spent, 100.0)),
            ..Run::default()
        }
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let mut report = Report::new(&Args::parse_from(["load"]));
        for cpu in [300.0, 900.0, 400.0] {
            report.add(run("proxy", cpu));
            report.add(run("twilight", 2.0 * cpu));
        }
        let table = report.table();
        assert!(
            table.contains("| median of 3 | proxy | twilight |"),
            "{table}"
        );
        assert!(
            table.contains("| **CPU µs per event** | 4.00 | 8.00 |"),
            "{table}"
        );
        assert!(table.contains("| 1.00× | 2.00× |"), "{table}");
        assert!(!table.contains("socket"), "{table}");
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["runs"].as_array().unwrap().len(), 6);
        assert_eq!(
            json["medians"]["twilight"]["client"]["cpu_us_per_event"],
            8.0
        );
    }

    #[test]
    fn a_median_of_an_even_number_lies_between() {
        let values = [json!({"a": 1, "b": "x"}), json!({"a": 4, "b": "x"})];
        let median = median(&values.iter().collect::<Vec<_>>());
        assert_eq!(median, json!({"a": 2.5, "b": "x"}));
    }
}
