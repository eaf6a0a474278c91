//! What the screen shows, as lines for a given size. Knows no terminal.

mod line;
mod table;

use std::time::Duration;

use schemas::health::ShardHealth;
use testkit::simulator::CommandRecord;

pub(crate) use self::line::{Line, Style};
use crate::args::Settings;
use crate::member::Role;
use crate::places::Places;
use crate::sample::{MemberSample, Sample};
use crate::text::{clock, count, figures, megabytes, ms, one_line};

/// Between two columns.
const GAP: usize = 2;
/// Below this the proxies stand below each other.
const TWO_COLUMNS_FROM: usize = 72;
/// Below this a worker is its name, address and process id.
const URL_FROM: usize = 60;
/// More events than this on their way is worth a colour.
const LAG_NOTABLE: u64 = 1000;

/// How far the demo is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Not everything is up.
    Starting,
    /// Under load for so long.
    Running(Duration),
}

/// Everything that is shown.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) places: &'a Places,
    pub(crate) sample: &'a Sample,
    pub(crate) phase: Phase,
}

/// A part of the screen.
struct Section {
    /// Fewer lines than this are of no use.
    least: usize,
    /// More than this it cannot fill.
    most: usize,
    lines: Box<dyn Fn(usize) -> Vec<Line>>,
}

/// The screen: at most `height` lines of at most `width` columns.
pub(crate) fn render(model: Model<'_>, width: usize, height: usize) -> Vec<Line> {
    let sections = [
        section(1, header(model)),
        shards(model.sample, width),
        commands(&model.sample.commands.last),
        section(1, places(model, width)),
        section(2, subscribe(model.places, width)),
    ];
    // What is given room first when there is little: the header, how to subscribe, the shards.
    let room = divide(&sections, [0, 4, 1, 3, 2], height);
    let used: usize = room.iter().sum();
    let mut blanks = height.saturating_sub(used);
    let mut screen = Vec::with_capacity(height);
    for (section, room) in sections.iter().zip(room) {
        if room == 0 {
            continue;
        }
        if !screen.is_empty() && blanks > 0 {
            screen.push(Line::new());
            blanks -= 1;
        }
        screen.extend((section.lines)(room));
    }
    screen.truncate(height);
    screen.into_iter().map(|line| line.cut(width)).collect()
}

fn section(least: usize, lines: Vec<Line>) -> Section {
    Section {
        least: least.min(lines.len()),
        most: lines.len(),
        lines: Box::new(move |room| lines.iter().take(room).cloned().collect()),
    }
}

/// Each section its least, then its most, in order of importance, as far as the height goes.
fn divide<const N: usize>(sections: &[Section; N], order: [usize; N], height: usize) -> [usize; N] {
    let mut room = [0; N];
    let mut left = height;
    for index in order {
        let least = sections[index].least;
        if least <= left {
            room[index] = least;
            left -= least;
        }
    }
    for index in order {
        // One that did not get its least gets nothing.
        if room[index] > 0 || sections[index].least == 0 {
            let more = (sections[index].most - room[index]).min(left);
            room[index] += more;
            left -= more;
        }
    }
    room
}

fn header(model: Model<'_>) -> Vec<Line> {
    let (sample, settings) = (model.sample, model.settings);
    let (style, state) = match model.phase {
        Phase::Starting => (Style::Warn, "starting".to_owned()),
        Phase::Running(time) if sample.all_ready() => {
            (Style::Good, format!("running {}", clock(time)))
        }
        Phase::Running(time) => (Style::Bad, format!("degraded {}", clock(time))),
    };
    let mut title = Line::new()
        .text(Style::Bold, "gateway-proxy demo  ")
        .text(style, format!("● {state}"));
    if let Some(time) = settings.run_for {
        title = title.text(Style::Dim, format!(" of {}", clock(time)));
    }
    let title = title
        .text(
            Style::Plain,
            format!("  {}/{} shards", sample.shards_ready(), settings.shards),
        )
        .text(
            Style::Dim,
            format!("  {}  q or Ctrl-C ends", settings.compression),
        );
    let lag = sample.lag();
    let lag_style = if lag > LAG_NOTABLE {
        Style::Warn
    } else {
        Style::Plain
    };
    let events = Line::new()
        .text(Style::Bold, "events    ")
        .item("sent", Style::Plain, count(sample.sent))
        .item("stored", Style::Plain, count(sample.stored))
        .item("lag", lag_style, count(lag))
        .text(Style::Good, format!("{:.0}/s", sample.rate));
    vec![title, events, commands_line(sample), discord_line(sample)]
}

fn commands_line(sample: &Sample) -> Line {
    let commands = &sample.commands;
    Line::new()
        .text(Style::Bold, "commands  ")
        .item("typed", Style::Plain, count(commands.typed))
        .item("answered", Style::Plain, count(commands.answered))
        .item(
            "late",
            flaw(commands.unanswered),
            count(commands.unanswered),
        )
        .item("p50", Style::Good, ms(commands.p50_us))
        .item("p99", Style::Good, ms(commands.p99_us))
}

fn discord_line(sample: &Sample) -> Line {
    Line::new()
        .text(Style::Bold, "Discord   ")
        .item("identifies", Style::Plain, count(sample.identifies))
        .text(
            Style::Dim,
            format!("({} left today)  ", count(sample.starts_left.into())),
        )
        .item("resumes", Style::Plain, count(sample.resumes))
        .item(
            "rules broken",
            flaw(sample.violations),
            count(sample.violations),
        )
}

/// The style of a number that should be 0.
const fn flaw(number: u64) -> Style {
    if number == 0 {
        Style::Plain
    } else {
        Style::Bad
    }
}

/// One block per proxy, side by side where there is room.
fn shards(sample: &Sample, width: usize) -> Section {
    let proxies = sample
        .members
        .iter()
        .filter(|member| member.card.role != Role::Worker);
    let proxies: Vec<MemberSample> = proxies.cloned().collect();
    let tallest = proxies.iter().map(block_height).max().unwrap_or(0);
    let total: usize = proxies.iter().map(block_height).sum();
    if width >= TWO_COLUMNS_FROM {
        Section {
            least: BLOCK_LEAST.min(tallest),
            most: tallest,
            lines: Box::new(move |room| {
                let column = half(width);
                let blocks = proxies.iter().map(|proxy| block(proxy, column, room));
                side_by_side(blocks.collect(), column)
            }),
        }
    } else {
        Section {
            least: (BLOCK_LEAST * proxies.len()).min(total),
            most: total,
            lines: Box::new(move |room| {
                let each = room / proxies.len().max(1);
                proxies
                    .iter()
                    .flat_map(|proxy| block(proxy, width, each))
                    .collect()
            }),
        }
    }
}

/// The width of one of two columns.
const fn half(width: usize) -> usize {
    width.saturating_sub(GAP) / 2
}

/// Title, addresses, column titles and a shard.
const BLOCK_LEAST: usize = 4;

fn shards_of(proxy: &MemberSample) -> &[ShardHealth] {
    proxy.health.as_ref().map_or(&[], |health| &health.shards)
}

fn block_height(proxy: &MemberSample) -> usize {
    // Before it answers, as many as it will have: the screen does not jump.
    let shards = match proxy.card.role {
        Role::Proxy { first, last } => (last - first + 1) as usize,
        Role::Worker => 0,
    };
    BLOCK_LEAST - 1 + shards.max(shards_of(proxy).len())
}

fn block(proxy: &MemberSample, width: usize, room: usize) -> Vec<Line> {
    let mut title = pid(name(proxy), proxy);
    if let Some(health) = &proxy.health {
        title = title
            .text(Style::Dim, format!(" {}%", figures(health.cpu_percent)))
            .text(Style::Plain, format!(" {:.0}/s", health.events_per_second));
    }
    let mut lines = vec![
        title,
        endpoints(proxy, "/health /metrics"),
        table::titles(width),
    ];
    let shards = shards_of(proxy);
    let rows = room.saturating_sub(lines.len());
    let shown = if shards.len() > rows {
        rows.saturating_sub(1)
    } else {
        shards.len()
    };
    lines.extend(
        shards[..shown]
            .iter()
            .map(|shard| table::shard(shard, width)),
    );
    if shown < shards.len() {
        lines.push(hidden(&shards[shown..]));
    }
    lines.resize_with(room.min(block_height(proxy)), Line::new);
    lines
}

/// What does not fit, as one line.
fn hidden(shards: &[ShardHealth]) -> Line {
    let ready = shards
        .iter()
        .filter(|shard| shard.status.is_ready())
        .count();
    let style = if ready == shards.len() {
        Style::Dim
    } else {
        Style::Warn
    };
    let rate: f64 = shards.iter().map(|shard| shard.events_per_second).sum();
    let text = format!("… {} more, {ready} ready, {rate:.0} ev/s", shards.len());
    Line::new().text(style, text)
}

/// `● proxy-1`, and why it is not ready.
fn name(member: &MemberSample) -> Line {
    let style = if member.is_ready() {
        Style::Good
    } else {
        Style::Warn
    };
    let line = Line::new()
        .text(style, "● ")
        .text(Style::Bold, member.card.name.clone());
    match member.missing.first() {
        Some(reason) => line.text(Style::Warn, format!(" {}", one_line(reason))),
        None => line,
    }
}

/// ` pid 123 27 MB`.
fn pid(line: Line, member: &MemberSample) -> Line {
    let memory = member.memory_bytes.map(megabytes).unwrap_or_default();
    line.text(Style::Dim, format!(" pid {} {memory}", member.card.pid))
}

fn endpoints(member: &MemberSample, paths: &str) -> Line {
    match member.http {
        Some(address) => Line::new().text(Style::Plain, format!("http://{address}{paths}")),
        None => Line::new().text(Style::Dim, "no address yet"),
    }
}

fn side_by_side(blocks: Vec<Vec<Line>>, column: usize) -> Vec<Line> {
    let rows = blocks.iter().map(Vec::len).max().unwrap_or(0);
    let row = |row: usize| {
        let cells = blocks
            .iter()
            .map(|block| block.get(row).cloned().unwrap_or_default());
        let mut line = Line::new();
        for (number, cell) in cells.enumerate() {
            if number > 0 {
                line = line.text(Style::Plain, " ".repeat(GAP));
            }
            line = line.then(cell.fill(column));
        }
        line
    };
    (0..rows).map(row).collect()
}

/// The last commands, the newest on top.
fn commands(last: &[CommandRecord]) -> Section {
    let rows: Vec<Line> = last.iter().rev().map(command).collect();
    Section {
        least: 2,
        most: rows.len().max(3) + 1,
        lines: Box::new(move |room| {
            let title = Line::new().text(Style::Bold, "last commands, from typed to answered");
            let rows = rows
                .iter()
                .cloned()
                .chain(std::iter::repeat_with(Line::new));
            std::iter::once(title).chain(rows).take(room).collect()
        }),
    }
}

fn command(command: &CommandRecord) -> Line {
    let (style, latency) = match command.latency_us {
        Some(us) => (Style::Good, ms(us)),
        None => (Style::Bad, "no answer".to_owned()),
    };
    Line::new()
        .text(Style::Plain, format!("  /{:<5}", one_line(&command.name)))
        .text(Style::Dim, format!("shard {:<3} ", command.shard.id()))
        .text(style, format!("{latency:>9}  "))
        .text(
            Style::Plain,
            command.content.as_deref().map(one_line).unwrap_or_default(),
        )
}

fn places(model: Model<'_>, width: usize) -> Vec<Line> {
    let (places, members) = (model.places, &model.sample.members);
    let workers = members
        .iter()
        .filter(|member| member.card.role == Role::Worker);
    let two = width >= TWO_COLUMNS_FROM;
    let column = if two { half(width) } else { width };
    let workers: Vec<Vec<Line>> = workers.map(|member| vec![worker(member, column)]).collect();
    let mut lines = if two {
        side_by_side(workers, column)
    } else {
        workers.concat()
    };
    let pid = places
        .nats_pid
        .map_or(String::new(), |pid| format!("  pid {pid}"));
    lines.push(
        Line::new()
            .text(Style::Bold, "NATS    ")
            .text(Style::Plain, places.nats_url.clone())
            .text(Style::Dim, pid),
    );
    lines.push(
        Line::new()
            .text(Style::Bold, "Discord ")
            .text(Style::Plain, places.api_url.clone())
            .text(Style::Dim, "  simulated, its control: ")
            .text(Style::Plain, "/_sim/stats"),
    );
    lines
}

fn worker(member: &MemberSample, width: usize) -> Line {
    let narrow = width < URL_FROM;
    let mut line = name(member);
    if let Some(address) = member.http {
        let scheme = if narrow { "" } else { "http://" };
        line = line.text(Style::Plain, format!(" {scheme}{address}"));
    }
    if narrow {
        return line.text(Style::Dim, format!(" pid {}", member.card.pid));
    }
    line = pid(line, member);
    if let Some(answered) = member.answered {
        line = line.text(Style::Dim, format!("  answered {}", count(answered)));
    }
    line
}

fn subscribe(places: &Places, width: usize) -> Vec<Line> {
    // At the beginning of rows and uncut, to be copied as they are.
    let mut rows = Vec::new();
    for text in [places.nats_line(), places.python_line()] {
        let text: Vec<char> = text.chars().collect();
        let parts = text.chunks(width.max(1)).map(String::from_iter);
        rows.extend(parts.map(|part| Line::new().text(Style::Bold, part)));
    }
    rows
}

#[cfg(test)]
mod tests;
