//! The end of a run: what was compared, and the verdict.

use std::fmt;
use std::time::Duration;

use testkit::audit::AuditReport;
use testkit::simulator::InteractionStats;

use crate::text::{clock, count, ms};

/// Examples of a finding that are shown; the count says how many there are.
const EXAMPLES: usize = 3;

/// Everything the verdict rests on.
#[derive(Debug)]
pub(crate) struct Summary {
    /// How long the load ran.
    pub(crate) ran: Duration,
    /// Ledger against stream; the reason when it could not be compared.
    pub(crate) audit: Result<AuditReport, String>,
    pub(crate) commands: InteractionStats,
    /// What is left of the day's session starts.
    pub(crate) starts_left: u32,
    /// What went wrong besides: parts that did not end well, a stream that did not catch up.
    pub(crate) troubles: Vec<String>,
}

impl Summary {
    /// Why this was no good run; empty for a good one.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons = self.troubles.clone();
        match &self.audit {
            Ok(report) if report.events == 0 => reasons.push("no event was sent".into()),
            Ok(report) => {
                if !report.is_clean() {
                    reasons.push("ledger and stream differ".into());
                }
                let broken: usize = report.violations.values().sum();
                if broken > 0 {
                    reasons.push(format!("Discord's rules were broken {broken} times"));
                }
            }
            Err(error) => reasons.push(format!("the stream could not be compared: {error}")),
        }
        let commands = &self.commands;
        let open = commands.typed.saturating_sub(commands.answered);
        if open > 0 {
            reasons.push(format!(
                "{open} of {} commands were not answered within 3 s",
                commands.typed
            ));
        }
        reasons
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "summary of {} under load", clock(self.ran))?;
        match &self.audit {
            Ok(report) => self.events(f, report)?,
            Err(error) => writeln!(f, "  events: not compared: {error}")?,
        }
        let commands = &self.commands;
        let never = commands.unanswered.saturating_sub(commands.late);
        let latency = format!("{} / {}", ms(commands.p50_us), ms(commands.p99_us));
        row(f, "commands typed", count(commands.typed), "")?;
        row(f, "answered", count(commands.answered), "within 3 s")?;
        row(f, "late", count(commands.late), "")?;
        row(f, "never answered", count(never), "")?;
        row(f, "p50 / p99", latency, "from typed to answered")?;
        self.verdict(f)
    }
}

impl Summary {
    fn events(&self, f: &mut fmt::Formatter<'_>, report: &AuditReport) -> fmt::Result {
        row(
            f,
            "events sent",
            count(report.events),
            "by the simulated Discord",
        )?;
        row(f, "stored as sent", count(report.stored), "in JetStream")?;
        for (name, tally) in [
            ("lost", &report.missing),
            ("duplicated", &report.duplicated),
            ("out of order", &report.out_of_order),
            ("altered", &report.altered),
            ("wrong subject", &report.wrong_subject),
            ("of unknown origin", &report.unexpected),
            ("gaps not announced", &report.gaps_owed),
        ] {
            row(f, name, count(tally.count), "")?;
            for example in tally.examples.iter().take(EXAMPLES) {
                writeln!(f, "      {example}")?;
            }
        }
        let lost = match report.declared_lost {
            0 => String::new(),
            lost => format!("for {} events", count(lost)),
        };
        row(f, "gaps announced", count(report.gaps.len() as u64), &lost)?;
        let left = format!("{} left today", count(self.starts_left.into()));
        row(
            f,
            "identifies spent",
            count(report.identifies as u64),
            &left,
        )?;
        let broken: usize = report.violations.values().sum();
        row(f, "Discord's rules broken", count(broken as u64), "")?;
        for (rule, times) in &report.violations {
            writeln!(f, "      {rule:?}: {times}")?;
        }
        Ok(())
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = self.reasons();
        if !reasons.is_empty() {
            writeln!(f, "NOT CLEAN")?;
            return reasons
                .iter()
                .try_for_each(|reason| writeln!(f, "  - {reason}"));
        }
        let lost = self.audit.as_ref().map_or(0, |report| report.declared_lost);
        let lost = match lost {
            0 => "nothing lost".to_owned(),
            lost => format!("{} events lost as announced, nothing", count(lost)),
        };
        writeln!(
            f,
            "clean: {lost}, doubled, reordered or altered; every command answered"
        )
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: String, note: &str) -> fmt::Result {
    let line = format!("  {name:<22}{value:>18}  {note}");
    writeln!(f, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::simulator::Rule;

    fn good() -> Summary {
        let commands = InteractionStats {
            typed: 10,
            answered: 10,
            p50_us: 4200,
            ..InteractionStats::default()
        };
        let report = AuditReport {
            events: 12_345,
            stored: 12_345,
            identifies: 16,
            ..AuditReport::default()
        };
        Summary {
            ran: Duration::from_secs(30),
            audit: Ok(report),
            commands,
            starts_left: 984,
            troubles: Vec::new(),
        }
    }

    fn spoilt(spoil: impl FnOnce(&mut Summary, &mut AuditReport)) -> String {
        let mut summary = good();
        let mut report = summary.audit.clone().unwrap();
        spoil(&mut summary, &mut report);
        summary.audit = summary.audit.and(Ok(report));
        assert!(summary.to_string().contains("NOT CLEAN"), "{summary}");
        summary.reasons().join("; ")
    }

    #[test]
    fn a_good_run_is_clean() {
        let text = good().to_string();
        assert_eq!(good().reasons(), Vec::<String>::new());
        for part in ["12,345", "16", "984", "4.2 ms", "clean:"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn every_flaw_is_a_reason() {
        let reason = spoilt(|_, report| report.missing.count = 1);
        assert_eq!(reason, "ledger and stream differ");
        let reason = spoilt(|summary, _| summary.commands.answered = 8);
        assert_eq!(reason, "2 of 10 commands were not answered within 3 s");
        let reason = spoilt(|_, report| {
            report.violations.insert(Rule::SendRate, 3);
        });
        assert_eq!(reason, "Discord's rules were broken 3 times");
        let reason = spoilt(|_, report| report.events = 0);
        assert_eq!(reason, "no event was sent");
        let reason = spoilt(|summary, _| summary.audit = Err("NATS is away".into()));
        assert_eq!(reason, "the stream could not be compared: NATS is away");
        let reason = spoilt(|summary, _| summary.troubles.push("proxy-1 ended with 70".into()));
        assert_eq!(reason, "proxy-1 ended with 70");
    }

    #[test]
    fn an_announced_loss_is_no_flaw_and_no_secret() {
        let mut summary = good();
        let report = summary.audit.as_mut().unwrap();
        report.declared_lost = 7;
        assert!(summary.reasons().is_empty());
        let text = summary.to_string();
        assert!(text.contains("7 events lost as announced"), "{text}");
    }

    #[test]
    fn a_finding_is_shown_with_examples() {
        let mut summary = good();
        let report = summary.audit.as_mut().unwrap();
        report.missing.count = 9;
        report.missing.examples = (0..9).map(|n| format!("event {n}")).collect();
        let text = summary.to_string();
        assert!(
            text.contains("event 2") && !text.contains("event 3"),
            "{text}"
        );
    }
}
