//! What was measured: every run, medians per column, a table per scenario and JSON for the rest.

use std::fmt::Write as _;

use schemas::Timestamp;
use serde_json::{Value, json};

use crate::load::kernel;
use crate::load::report::{NOTHING, cell, commit, markdown, median};
use crate::load::simulator::unix_us;

/// Label, where it stands in a run, digits after the point.
pub(crate) type Row = (&'static str, &'static str, usize);

/// One scenario: runs by column.
pub(crate) struct Section {
    pub(crate) key: &'static str,
    pub(crate) title: String,
    pub(crate) rows: &'static [Row],
    /// The column that others are compared with, and by what.
    pub(crate) relative: Option<(&'static str, &'static str)>,
    columns: Vec<(String, Vec<Value>)>,
}

impl Section {
    pub(crate) fn new(
        key: &'static str,
        title: String,
        rows: &'static [Row],
        relative: Option<(&'static str, &'static str)>,
    ) -> Self {
        Self {
            key,
            title,
            rows,
            relative,
            columns: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, column: &str, run: Value) {
        match self.columns.iter_mut().find(|(name, _)| name == column) {
            Some((_, runs)) => runs.push(run),
            None => self.columns.push((column.to_owned(), vec![run])),
        }
    }

    fn medians(&self) -> Vec<(&str, Value)> {
        let columns = self.columns.iter();
        let of = |runs: &Vec<Value>| median(&runs.iter().collect::<Vec<_>>());
        columns
            .map(|(name, runs)| (name.as_str(), of(runs)))
            .collect()
    }

    fn table(&self) -> String {
        let medians = self.medians();
        let rounds = self.columns.first().map_or(0, |(_, runs)| runs.len());
        let mut heading = vec![format!("median of {rounds}")];
        heading.extend(medians.iter().map(|(name, _)| (*name).to_owned()));
        let mut rows = vec![heading];
        for (label, pointer, digits) in self.rows {
            let cells = medians.iter().map(|(_, run)| run.pointer(pointer));
            let cells: Vec<String> = cells.map(|value| cell(value, *digits)).collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                rows.push(std::iter::once((*label).to_owned()).chain(cells).collect());
            }
        }
        rows.extend(self.ratios(&medians));
        format!("\n{}\n\n{}", self.title, markdown(&rows))
    }

    fn ratios(&self, medians: &[(&str, Value)]) -> Option<Vec<String>> {
        let (base, pointer) = self.relative?;
        let value = |run: &Value| run.pointer(pointer).and_then(Value::as_f64);
        let (_, unit) = medians.iter().find(|(name, _)| *name == base)?;
        let unit = value(unit)?;
        let ratio = |(_, run): &(&str, Value)| match value(run) {
            Some(number) => format!("{:.2}×", number / unit),
            None => NOTHING.to_owned(),
        };
        let label = std::iter::once(format!("CPU relative to {base}"));
        Some(label.chain(medians.iter().map(ratio)).collect())
    }

    fn json(&self) -> Value {
        let columns = self.columns.iter().zip(self.medians());
        let columns = columns.map(|((name, runs), (_, median))| {
            let column = json!({"median": median, "runs": runs});
            (name.clone(), column)
        });
        json!({"title": self.title, "columns": columns.collect::<serde_json::Map<_, _>>()})
    }
}

/// Everything, to be printed.
pub(crate) struct Report {
    about: Value,
    sections: Vec<Section>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let about = json!({
            "machine": kernel::machine(),
            "load_average_before": kernel::load_average(),
            "at": Timestamp::from_unix_ms(unix_us() / 1000).to_string(),
            "commit": commit(),
            "debug_build": cfg!(debug_assertions),
        });
        Self {
            about,
            sections: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    pub(crate) fn json(&self) -> String {
        let sections = self.sections.iter();
        let sections = sections.map(|section| (section.key.to_owned(), section.json()));
        let sections: serde_json::Map<_, _> = sections.collect();
        let all = json!({"about": self.about, "scenarios": sections});
        format!("{all:#}\n")
    }

    pub(crate) fn tables(&self) -> String {
        let text = |key: &str| self.about[key].as_str().unwrap_or_default().to_owned();
        let mut all = format!(
            "\n{} · commit {} · {}{}\n",
            text("machine"),
            text("commit"),
            text("at"),
            if cfg!(debug_assertions) {
                " · DEBUG BUILD"
            } else {
                ""
            }
        );
        for section in &self.sections {
            write!(all, "{}", section.table()).expect("writing to a String does not fail");
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_has_medians_and_ratios() {
        let rows: &[Row] = &[("µs", "/cpu", 1), ("never", "/no", 0)];
        let relative = Some(("bare", "/cpu"));
        let mut section = Section::new("overhead", "Overhead".to_owned(), rows, relative);
        for cpu in [4.0, 2.0, 9.0] {
            section.add("bare", json!({"cpu": cpu}));
            section.add("shared", json!({"cpu": cpu * 1.25}));
        }
        let table = section.table();
        assert!(table.contains("| median of 3 | bare | shared |"), "{table}");
        assert!(table.contains("| µs | 4.0 | 5.0 |"), "{table}");
        assert!(
            table.contains("| CPU relative to bare | 1.00× | 1.25× |"),
            "{table}"
        );
        assert!(!table.contains("never"), "{table}");
        let json = section.json();
        assert_eq!(json["columns"]["shared"]["median"]["cpu"], 5.0);
        assert_eq!(
            json["columns"]["shared"]["runs"].as_array().unwrap().len(),
            3
        );
    }
}
