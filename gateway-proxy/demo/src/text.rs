//! Numbers and times as people read them.

use std::time::Duration;

/// `12,345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `01:05`, from an hour on `1:01:05`.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// `0.4`, `12.3`, `123`: three figures, for columns.
pub(crate) fn figures(value: f64) -> String {
    if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// `4.2 ms`, of µs.
pub(crate) fn ms(us: u64) -> String {
    format!("{} ms", figures(us as f64 / 1000.0))
}

/// `27 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// One line without control characters, and without characters whose width terminals disagree on.
pub(crate) fn one_line(text: &str) -> String {
    let shown = text.chars().filter(|c| *c != '*').map(|c| match c {
        c if c.is_control() => ' ',
        // Up to Latin Extended-B everything is one column wide.
        c if c < '\u{250}' => c,
        _ => '·',
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn times_and_figures_stay_short() {
        assert_eq!(clock(Duration::from_secs(65)), "01:05");
        assert_eq!(clock(Duration::from_secs(3665)), "1:01:05");
        assert_eq!((ms(4200), ms(0)), ("4.2 ms".into(), "0.0 ms".into()));
        assert_eq!(
            (figures(99.96), figures(1234.5)),
            ("100".into(), "1234".into())
        );
        assert_eq!(megabytes(26_500_000), "27 MB");
    }

    #[test]
    fn foreign_text_becomes_one_harmless_line() {
        assert_eq!(
            one_line("**Shard:** 3\nname 漢 \u{1b}[2Jü"),
            "Shard: 3 name ·  [2Jü"
        );
    }
}
