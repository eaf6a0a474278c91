//! Bars as SVG text: one picture per goal, without a library.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 56.0;
const ROW: f64 = 30.0;
const BAR: f64 = 20.0;
const BOTTOM: f64 = 34.0;

/// One bar.
pub(crate) struct Bar {
    pub(crate) label: String,
    /// What stands beside it.
    pub(crate) text: String,
    pub(crate) value: f64,
}

/// Bars from zero, the first one highlighted, with a line at the limit.
pub(crate) fn bars(title: &str, note: &str, bars: &[Bar], limit: f64) -> String {
    let most = bars.iter().map(|bar| bar.value).fold(limit, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / most.max(f64::MIN_POSITIVE);
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#555\">{}</text>\n",
        escaped(title),
        escaped(note)
    );
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let length = (bar.value * scale).max(1.0);
        let colour = if index == 0 { "#2563eb" } else { "#9ca3af" };
        let middle = y + BAR * 0.75;
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            LEFT - 8.0,
            escaped(&bar.label),
            LEFT + length + 6.0,
            escaped(&bar.text)
        )
        .expect("writing to a String does not fail");
    }
    let x = LEFT + limit * scale;
    let end = TOP + ROW * bars.len() as f64;
    writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\" stroke=\"#dc2626\" \
         stroke-width=\"2\" stroke-dasharray=\"4 3\"/>\
         <text x=\"{x:.1}\" y=\"{:.1}\" fill=\"#dc2626\" text-anchor=\"middle\">goal</text>\n</svg>",
        TOP - 6.0,
        end + 16.0
    )
    .expect("writing to a String does not fail");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fits_and_markup_is_escaped() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            text: format!("{value}"),
            value,
        };
        let svg = bars(
            "a < b",
            "goal",
            &[bar("us", 2.0), bar("them & co", 8.0)],
            4.0,
        );
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a &lt; b") && svg.contains("them &amp; co"));
        assert!(svg.contains("width=\"420.0\""), "the longest: {svg}");
        assert!(
            svg.contains("x1=\"340.0\""),
            "the limit in the middle: {svg}"
        );
    }
}
