//! `--goals`: everything that is promised, measured one after the other and put into one table, with
//! a plot for each goal.

mod promised;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use serde_json::{Value, json};

use self::promised::SECTIONS;
use super::args::Args;
use super::kernel;
use super::measure;
use super::plot::{self, Bar};
use super::report::{self, Report};
use super::say;

/// One load, and what is read from it.
struct Section {
    name: &'static str,
    /// As typed, without quotes.
    flags: &'static str,
    /// What makes it short.
    quick: &'static str,
    goals: &'static [Goal],
}

#[derive(Clone, Copy)]
struct Goal {
    what: &'static str,
    unit: &'static str,
    bound: Bound,
    digits: usize,
    take: Take,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Where in the medians of a section the figure stands.
#[derive(Clone, Copy)]
enum Take {
    /// The proxy's own, times a factor.
    Own(&'static str, f64),
    /// The peer's divided by the proxy's.
    PeerOverOwn(&'static str, &'static str),
    /// The proxy's divided by the peer's.
    OwnOverPeer(&'static str, &'static str),
    /// One figure of the proxy divided by another.
    Share(&'static str, &'static str),
    /// The proxy's divided by what it was in an earlier section.
    OverSection(&'static str, &'static str),
}

/// A goal and what became of it.
struct Outcome {
    section: &'static str,
    goal: &'static Goal,
    own: Option<f64>,
    // The same figure of the others, where it has a meaning of its own.
    others: Vec<(String, f64)>,
}

/// Measures all goals, or those whose section's name contains `args.goal`.
pub(crate) async fn all(args: &Args) -> Result<String> {
    let directory = &args.out;
    std::fs::create_dir_all(directory)
        .with_context(|| format!("create {}", directory.display()))?;
    let mut outcomes = Vec::new();
    let mut reports: Vec<(&str, Report)> = Vec::new();
    let wanted = |section: &&Section| {
        args.goal
            .as_ref()
            .is_none_or(|part| section.name.contains(part.as_str()))
    };
    for section in SECTIONS.iter().filter(wanted) {
        say(&format!("== {}", section.name));
        let report = match measure::all(&section_args(section, args)?).await {
            Ok(report) => report,
            Err(error) => {
                // The others can still be measured.
                say(&format!("{} was not measured: {error:#}", section.name));
                outcomes.extend(section.goals.iter().map(|goal| Outcome {
                    section: section.name,
                    goal,
                    own: None,
                    others: Vec::new(),
                }));
                continue;
            }
        };
        say(&report.table());
        let file = directory.join(format!("{}.json", file_name(section.name)));
        std::fs::write(&file, report.json())
            .with_context(|| format!("write {}", file.display()))?;
        for goal in section.goals {
            outcomes.push(outcome(section.name, goal, &report, &reports));
        }
        reports.push((section.name, report));
    }
    for (index, outcome) in outcomes.iter().enumerate() {
        write_plot(directory, index, outcome)?;
    }
    let file = directory.join("goals.json");
    std::fs::write(&file, as_json(&outcomes))
        .with_context(|| format!("write {}", file.display()))?;
    Ok(table(&outcomes))
}

fn section_args(section: &Section, args: &Args) -> Result<Args> {
    let mut flags: Vec<&str> = vec!["load"];
    flags.extend(section.flags.split_whitespace());
    let repeat = args.repeat.to_string();
    if !flags.contains(&"--repeat") {
        flags.extend(["--repeat", if args.quick { "1" } else { &repeat }]);
    }
    if args.quick {
        flags.extend(section.quick.split_whitespace());
    }
    let mut own = Args::try_parse_from(flags).context("the flags of a goal")?;
    own.proxy_flags.extend(args.proxy_flags.iter().cloned());
    Ok(own)
}

fn outcome(
    section: &'static str,
    goal: &'static Goal,
    report: &Report,
    earlier: &[(&str, Report)],
) -> Outcome {
    let own = |pointer| report.median("proxy", pointer);
    let peer = |name, pointer| report.median(name, pointer);
    let over = |a: Option<f64>, b: Option<f64>| Some(a? / b.filter(|b| *b > 0.0)?);
    let value = match goal.take {
        Take::Own(pointer, factor) => own(pointer).map(|value| value * factor),
        Take::PeerOverOwn(name, pointer) => over(peer(name, pointer), own(pointer)),
        Take::OwnOverPeer(name, pointer) => over(own(pointer), peer(name, pointer)),
        Take::Share(part, whole) => over(own(part), own(whole)),
        Take::OverSection(name, pointer) => {
            let before = earlier.iter().find(|(known, _)| *known == name);
            let before = before.and_then(|(_, report)| report.median("proxy", pointer));
            over(own(pointer), before)
        }
    };
    let others = match goal.take {
        Take::Own(pointer, factor) => report
            .contenders()
            .into_iter()
            .filter(|name| name != "proxy" && name != "publish" && name != "single")
            .filter_map(|name| {
                let value = report.median(&name, pointer)? * factor;
                Some((name, value))
            })
            .collect(),
        _ => Vec::new(),
    };
    Outcome {
        section,
        goal,
        own: value,
        others,
    }
}

impl Bound {
    const fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::AtMost(_) => "≤",
            Self::AtLeast(_) => "≥",
        }
    }

    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl Outcome {
    fn verdict(&self) -> &'static str {
        match self.own {
            None => "not measured",
            Some(value) if self.goal.bound.is_met(value) => "met",
            Some(_) => "missed",
        }
    }

    fn number(&self, value: f64) -> String {
        format!("{value:.*} {}", self.goal.digits, self.goal.unit)
            .trim_end()
            .to_owned()
    }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{} · commit {}\n\n| goal | peers | ours | limit | |\n|---|---|--:|--:|---|\n",
        kernel::machine(),
        report::commit()
    );
    let mut section = "";
    for outcome in outcomes {
        if outcome.section != section {
            section = outcome.section;
            writeln!(table, "| **{section}** | | | | |")
                .expect("writing to a String does not fail");
        }
        let others: Vec<_> = outcome
            .others
            .iter()
            .map(|(name, value)| format!("{name} {}", outcome.number(*value)))
            .collect();
        let own = outcome
            .own
            .map_or_else(|| "–".to_owned(), |value| outcome.number(value));
        let goal = outcome.goal;
        writeln!(
            table,
            "| {} | {} | {own} | {} {} | {} |",
            goal.what,
            others.join(", "),
            goal.bound.sign(),
            outcome.number(goal.bound.limit()),
            outcome.verdict()
        )
        .expect("writing to a String does not fail");
    }
    table
}

fn as_json(outcomes: &[Outcome]) -> String {
    let goals: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "section": outcome.section,
                "goal": outcome.goal.what,
                "unit": outcome.goal.unit,
                "limit": outcome.goal.bound.limit(),
                "bound": outcome.goal.bound.sign(),
                "ours": outcome.own,
                "peers": outcome.others.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "verdict": outcome.verdict(),
            })
        })
        .collect();
    format!(
        "{:#}\n",
        json!({"machine": kernel::machine(), "commit": report::commit(), "goals": goals})
    )
}

fn write_plot(directory: &Path, index: usize, outcome: &Outcome) -> Result<()> {
    let Some(own) = outcome.own else {
        return Ok(());
    };
    let mut bars = vec![Bar {
        label: "gateway-proxy".to_owned(),
        text: outcome.number(own),
        value: own,
    }];
    bars.extend(outcome.others.iter().map(|(name, value)| Bar {
        label: name.clone(),
        text: outcome.number(*value),
        value: *value,
    }));
    let goal = outcome.goal;
    let limit = goal.bound.limit();
    let title = format!("{}: {}", outcome.section, goal.what);
    let note = format!(
        "goal {} {}: {}",
        goal.bound.sign(),
        outcome.number(limit),
        outcome.verdict()
    );
    let file = directory.join(format!("{:02}-{}.svg", index + 1, file_name(&title)));
    std::fs::write(&file, plot::bars(&title, &note, &bars, limit))
        .with_context(|| format!("write {}", file.display()))
}

/// Letters, digits and single dashes.
fn file_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_every_goal_can_be_parsed() {
        for quick in [false, true] {
            let mut args = Args::parse_from(["load", "--goals"]);
            args.quick = quick;
            for section in SECTIONS {
                section_args(section, &args).unwrap();
            }
        }
    }

    #[test]
    fn a_goal_is_met_or_missed_and_the_table_says_so() {
        let outcome = |own| Outcome {
            section: "flood",
            goal: &SECTIONS[0].goals[0],
            own,
            others: vec![("twilight".to_owned(), 7.4)],
        };
        let table = table(&[outcome(Some(3.5)), outcome(Some(3.7)), outcome(None)]);
        assert!(table.contains("| **flood** |"), "{table}");
        let row = "| CPU per event | twilight 7.40 µs | 3.50 µs | ≤ 3.60 µs | met |";
        assert!(table.contains(row), "{table}");
        assert!(
            table.contains("| 3.70 µs | ≤ 3.60 µs | missed |"),
            "{table}"
        );
        assert!(
            table.contains("| – | ≤ 3.60 µs | not measured |"),
            "{table}"
        );
    }

    #[test]
    fn file_names_are_plain() {
        assert_eq!(file_name("5,000 events/s: CPU µs "), "5-000-events-s-cpu-s");
    }
}
