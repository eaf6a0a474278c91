//! The shards of one proxy as a table, as wide as there is room.

use schemas::ShardState;
use schemas::health::ShardHealth;

use super::line::{Line, Style};
use crate::text::{clock, count, figures, one_line};

/// A column: what it is called, its width, and the narrowest table that has it.
struct Column {
    title: &'static str,
    width: usize,
    from: usize,
    cell: fn(&ShardHealth) -> (Style, String),
}

const COLUMNS: [Column; 11] = [
    Column {
        title: "id",
        width: 3,
        from: 0,
        cell: |shard| (Style::Bold, shard.shard.id().to_string()),
    },
    Column {
        title: "state",
        width: 8,
        from: 12,
        cell: |shard| state(shard.status),
    },
    Column {
        title: "guilds",
        width: 6,
        from: 28,
        cell: |shard| optional(shard.guilds.map(|n| count(n.into()))),
    },
    Column {
        title: "ms",
        width: 5,
        from: 34,
        cell: |shard| optional(shard.latency_ms.map(figures)),
    },
    Column {
        title: "ev/s",
        width: 5,
        from: 18,
        cell: |shard| (Style::Plain, figures(shard.events_per_second)),
    },
    Column {
        title: "seq",
        width: 7,
        from: 39,
        cell: |shard| optional(shard.last_seq.map(|n| n.to_string())),
    },
    Column {
        title: "unacked",
        width: 7,
        from: 47,
        cell: unacknowledged,
    },
    Column {
        title: "session",
        width: 8,
        from: 56,
        cell: |shard| {
            optional(
                shard
                    .session_age_s
                    .map(|s| clock(std::time::Duration::from_secs(s))),
            )
        },
    },
    Column {
        title: "resumes",
        width: 7,
        from: 64,
        cell: |shard| number(shard.resumes),
    },
    Column {
        title: "identifies",
        width: 10,
        from: 75,
        cell: |shard| number(shard.identifies),
    },
    Column {
        title: "gaps",
        width: 4,
        from: 80,
        cell: |shard| number(shard.gaps),
    },
];

/// The titles of the columns.
pub(super) fn titles(width: usize) -> Line {
    let titles = columns(width).map(|column| (Style::Dim, column.title.to_owned(), column.width));
    row(titles)
}

/// One shard. Why it does not deliver stands in place of its figures, which are of earlier.
pub(super) fn shard(shard: &ShardHealth, width: usize) -> Line {
    let reason = shard.reason.as_deref().filter(|_| !shard.status.is_ready());
    let columns = columns(width).take(if reason.is_some() { 2 } else { COLUMNS.len() });
    let line = row(columns.map(|column| {
        let (style, text) = (column.cell)(shard);
        (style, text, column.width)
    }));
    match reason {
        Some(reason) => line.text(Style::Warn, format!(" {}", one_line(reason))),
        None => line,
    }
}

fn columns(width: usize) -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(move |column| column.from <= width)
}

fn row(cells: impl Iterator<Item = (Style, String, usize)>) -> Line {
    let mut line = Line::new();
    for (number, (style, text, width)) in cells.enumerate() {
        let gap = if number == 0 { "" } else { " " };
        // Words stand left, figures right.
        let cell = if number == 1 {
            format!("{gap}{text:<width$}")
        } else {
            format!("{gap}{text:>width$}")
        };
        line = line.text(style, cell);
    }
    line
}

fn state(state: ShardState) -> (Style, String) {
    let (style, word) = match state {
        ShardState::Ready => (Style::Good, "ready"),
        ShardState::Connecting => (Style::Warn, "connect"),
        ShardState::Queued => (Style::Warn, "queued"),
        ShardState::Identifying => (Style::Warn, "identify"),
        ShardState::Resuming => (Style::Warn, "resume"),
        ShardState::Disconnected => (Style::Bad, "down"),
        ShardState::Failed => (Style::Bad, "FAILED"),
        ShardState::Unknown => (Style::Bad, "?"),
    };
    (style, word.to_owned())
}

fn optional(text: Option<String>) -> (Style, String) {
    text.map_or((Style::Dim, "-".to_owned()), |text| (Style::Plain, text))
}

/// Zero is what one hopes for.
fn number(number: u64) -> (Style, String) {
    let style = if number == 0 {
        Style::Dim
    } else {
        Style::Plain
    };
    (style, count(number))
}

fn unacknowledged(shard: &ShardHealth) -> (Style, String) {
    let behind = shard.last_seq.zip(shard.acknowledged_seq);
    behind.map_or((Style::Dim, "-".to_owned()), |(last, acknowledged)| {
        number(last.saturating_sub(acknowledged))
    })
}
