//! Styled text that is cut to a width. A character is a column: what is shown is made so before.

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

/// One row of the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line(Vec<(Style, String)>);

impl Line {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends text.
    #[must_use]
    pub(crate) fn text(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    /// Appends a name and a value: `events 12`.
    #[must_use]
    pub(crate) fn item(self, name: &str, style: Style, value: impl AsRef<str>) -> Self {
        self.text(Style::Dim, format!("{name} "))
            .text(style, format!("{}  ", value.as_ref()))
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = (Style, &str)> {
        self.0.iter().map(|(style, text)| (*style, text.as_str()))
    }

    pub(crate) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// At most `width` columns; where something is cut, an ellipsis says so.
    #[must_use]
    pub(crate) fn cut(self, width: usize) -> Self {
        // Blanks at the end are no loss.
        let ink: String = self.0.iter().map(|(_, text)| text.as_str()).collect();
        let cut = ink.trim_end().chars().count() > width;
        let mut room = if cut { width.saturating_sub(1) } else { width };
        let mut out = Self::new();
        for (style, text) in self.0 {
            let taken: String = text.chars().take(room).collect();
            room -= taken.chars().count();
            out.0.push((style, taken));
        }
        if cut && width > 0 {
            out.0.push((Style::Dim, "…".into()));
        }
        out
    }

    /// Exactly `width` columns.
    #[must_use]
    pub(crate) fn fill(self, width: usize) -> Self {
        let line = self.cut(width);
        let missing = width - line.width();
        line.text(Style::Plain, " ".repeat(missing))
    }

    /// This one, and another behind it.
    #[must_use]
    pub(crate) fn then(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    #[cfg(test)]
    pub(crate) fn plain(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_ends_with_an_ellipsis_and_a_fitting_one_does_not() {
        let line = || {
            Line::new()
                .text(Style::Bold, "abc")
                .text(Style::Dim, "def  ")
        };
        assert_eq!(line().cut(6).plain(), "abcdef");
        assert_eq!(line().cut(5).plain(), "abcd…");
        assert_eq!(line().cut(3).plain(), "ab…");
        assert_eq!(line().cut(1).plain(), "…");
        assert_eq!(line().cut(0).plain(), "");
        assert_eq!(line().fill(10).plain(), "abcdef    ");
        assert_eq!(line().fill(4).plain(), "abc…");
    }
}
