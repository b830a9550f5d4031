//! What goes to stdout: whole texts, JSON, YAML and tables.
//!
//! Invariants: nothing is printed by macro, so that a reader that went away ends the command silently; there is no
//! colour at all, so a pipe and a terminal get the same bytes.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::Value;

use crate::failure::{Failure, one_line};

/// How a list or an object is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The object or list as JSON.
    Json,
    /// The object or list as YAML.
    Yaml,
    /// The table with more columns.
    Wide,
    /// `kind/name`, one a line.
    Name,
}

/// Writes a whole text to stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::stdout(&error))
}

/// Writes one line to stdout, made harmless.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{}\n", one_line(line)))
}

/// Writes one line to stderr; a stderr that cannot be written has nobody who could be told.
pub(crate) fn note(line: &str) {
    io::stderr().lock().write_all(format!("sampan: {}\n", one_line(line)).as_bytes()).ok();
}

/// An object as JSON for people: two blanks of indent and a final newline.
pub(crate) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// An object as YAML.
pub(crate) fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map_err(|error| Failure::explain("-o yaml", error.to_string(), "use -o json instead"))
}

/// Rows under a header, columns two blanks apart, the last one ragged.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right_aligned: Vec<usize>,
}

impl Table {
    /// An empty table with this header.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(ToString::to_string).collect()], right_aligned: Vec::new() }
    }

    /// Numbers of the column at `index` end under each other.
    pub(crate) fn right_align(mut self, index: usize) -> Self {
        self.right_aligned.push(index);
        self
    }

    /// Adds a row; its cells are made harmless.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { one_line(cell) }).collect());
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = widths.get(column).copied().unwrap_or(0).saturating_sub(width(cell));
                let (left, right) = if self.right_aligned.contains(&column) { (padding, 0) } else { (0, padding) };
                write!(line, "{:left$}{cell}{:right$}  ", "", "").ok();
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Columns a text takes: good enough for what names and numbers are made of.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// A number of bytes for people: `12.3 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// A span of time for people, in its two largest useful units: `45s`, `3m`, `5h12m`, `12d`.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{minutes}m"),
        7200..=35_999 if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        7200..=172_799 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Time since an RFC 3339 text, `""` when it is none.
pub(crate) fn age(timestamp: &str, now: jiff::Timestamp) -> String {
    timestamp.parse::<jiff::Timestamp>().map_or_else(|_| String::new(), |then| span(now.as_second() - then.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "SIZE", "STATUS"]).right_align(1);
        table.row(vec!["a".into(), "1".into(), "up".into()]);
        table.row(vec!["long-name".into(), "12345".into(), String::new()]);
        expect![[r#"
            NAME        SIZE  STATUS
            a              1  up
            long-name  12345  -
        "#]]
        .assert_eq(&table.render());
    }

    #[test]
    fn amounts_for_people() {
        let sizes: Vec<String> = [0, 1023, 1024, 1_048_575, 1_048_576, u64::MAX].into_iter().map(bytes).collect();
        expect![[r#"["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "16384.0 PiB"]"#]]
            .assert_eq(&format!("{sizes:?}"));
        let spans: Vec<String> = [-5, 119, 120, 7200, 7260, 86400, 172_800].into_iter().map(span).collect();
        expect![[r#"["0s", "119s", "2m", "2h", "2h1m", "24h", "2d"]"#]].assert_eq(&format!("{spans:?}"));
    }

    #[test]
    fn yaml_keeps_strings_strings() {
        let value = serde_json::json!({"a": "true", "b": "1", "c": ["x: y", "- z", "", "null", "0x10", "1e3"], "d": {}, "e": "two\nlines"});
        let text = yaml(&value).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }
}
