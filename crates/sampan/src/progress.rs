//! The display of a pull: one line a layer, drawn over itself on a terminal, plain lines elsewhere.
//!
//! The state ([`Layers`]) is pure and knows nothing of terminals; [`Display`] draws it. Invariants: a drawing never has
//! more lines than the terminal, so that the cursor finds back to its first; digests and states come from outside and
//! are made harmless; a line never wraps.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use serde_json::Value;

use crate::failure::one_line;
use crate::limits::{PROGRESS_LAYERS_MAX, REDRAW_INTERVAL};
use crate::output::bytes;
use crate::pods::text;
use crate::terminal;

/// Columns of a full bar.
const BAR_COLUMNS: u64 = 24;

/// How far a layer has come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    digest: String,
    state: String,
    bytes: u64,
    total: u64,
}

impl Layer {
    fn is_settled(&self) -> bool {
        matches!(self.state.as_str(), "done" | "cached")
    }

    fn line(&self) -> String {
        let digest = short(&self.digest);
        let amount = match self.total {
            0 => bytes(self.bytes),
            total => format!("{} / {}", bytes(self.bytes), bytes(total)),
        };
        match self.state.as_str() {
            "done" => format!("{digest}  done         {}", bytes(self.total.max(self.bytes))),
            "cached" => format!("{digest}  already here"),
            "waiting" => format!("{digest}  waiting"),
            state => {
                let filled =
                    self.bytes.saturating_mul(BAR_COLUMNS).checked_div(self.total).unwrap_or(0).min(BAR_COLUMNS);
                let (full, empty) = ("=".repeat(filled as usize), " ".repeat((BAR_COLUMNS - filled) as usize));
                format!("{digest}  {state:<11}  [{full}{empty}]  {amount}")
            }
        }
    }
}

/// Twelve digits of a digest, as everybody shows it.
pub(crate) fn short(digest: &str) -> String {
    one_line(digest.strip_prefix("sha256:").unwrap_or(digest)).chars().take(12).collect()
}

/// The layers of one pull, in the order they were first heard of.
#[derive(Debug, Default)]
struct Layers(Vec<Layer>);

impl Layers {
    /// Takes a piece of news; the layer it is about when its state changed.
    fn hear(&mut self, news: &Value) -> Option<&Layer> {
        let digest = text(news, "/layer");
        let number = |field: &str| news.get(field).and_then(Value::as_u64).unwrap_or(0);
        if digest.is_empty() {
            return None;
        }
        let index = match self.0.iter().position(|layer| layer.digest == digest) {
            Some(index) => index,
            None if self.0.len() < PROGRESS_LAYERS_MAX => {
                let fresh = Layer { digest: digest.to_owned(), state: String::new(), bytes: 0, total: 0 };
                self.0.push(fresh);
                self.0.len() - 1
            }
            None => return None,
        };
        let layer = self.0.get_mut(index)?;
        let state = one_line(text(news, "/state"));
        let changed = layer.state != state;
        *layer = Layer { digest: digest.to_owned(), state, bytes: number("bytes"), total: number("totalBytes") };
        changed.then_some(&*layer)
    }

    /// At most `rows` lines of at most `columns`: everything when it fits, otherwise what moves and a sum.
    fn draw(&self, rows: usize, columns: usize) -> Vec<String> {
        let fit = |line: String| line.chars().take(columns).collect::<String>();
        if self.0.len() <= rows {
            return self.0.iter().map(Layer::line).map(fit).collect();
        }
        let settled = self.0.iter().filter(|layer| layer.is_settled()).count();
        let moving = self.0.iter().filter(|layer| !layer.is_settled() && layer.state != "waiting");
        let mut lines: Vec<String> = moving.take(rows.saturating_sub(1)).map(Layer::line).map(fit).collect();
        lines.push(fit(format!("{settled} of {} layers are here", self.0.len())));
        lines
    }
}

/// A display on stderr.
#[derive(Debug)]
pub(crate) struct Display {
    layers: Layers,
    mode: Mode,
    drawn_lines: usize,
    drawn_at: Option<Instant>,
}

/// How a display shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Drawn over itself.
    InPlace,
    /// A line whenever a layer is settled.
    Lines,
    /// Not at all.
    Quiet,
}

impl Mode {
    /// What suits this process's stderr.
    pub(crate) fn for_stderr() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        if io::stderr().is_terminal() && !dumb { Self::InPlace } else { Self::Lines }
    }
}

impl Display {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { layers: Layers::default(), mode, drawn_lines: 0, drawn_at: None }
    }

    /// Shows a piece of news.
    pub(crate) fn hear(&mut self, news: &Value) {
        let changed = self.layers.hear(news);
        let line = changed.filter(|layer| layer.is_settled()).map(Layer::line);
        match self.mode {
            Mode::Quiet => {}
            Mode::Lines => {
                if let Some(line) = line {
                    write(&format!("{line}\n"));
                }
            }
            Mode::InPlace => {
                if self.drawn_at.is_none_or(|then| then.elapsed() >= REDRAW_INTERVAL) {
                    self.redraw();
                }
            }
        }
    }

    /// Shows the last state, which stays.
    pub(crate) fn finish(&mut self) {
        if self.mode == Mode::InPlace {
            self.redraw();
        }
    }

    fn redraw(&mut self) {
        let (rows, columns) = terminal::size().map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()));
        let lines = self.layers.draw(usize::saturating_sub(rows, 1).max(1), usize::saturating_sub(columns, 1).max(20));
        write(&over(self.drawn_lines, &lines));
        self.drawn_lines = lines.len();
        self.drawn_at = Some(Instant::now());
    }
}

/// The bytes that put `lines` in the place of as many as were drawn before.
fn over(drawn_lines: usize, lines: &[String]) -> String {
    let mut bytes = String::new();
    if drawn_lines > 0 {
        write!(bytes, "\u{1b}[{drawn_lines}A").ok();
    }
    for line in lines {
        write!(bytes, "\r{line}\u{1b}[K\n").ok();
    }
    // Fewer lines than before: what is below is old.
    bytes.push_str("\u{1b}[J");
    bytes
}

fn write(text: &str) {
    // A display that cannot be shown hinders nobody.
    let mut stderr = io::stderr().lock();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn layers(news: &[(&str, &str, u64, u64)]) -> Layers {
        let mut layers = Layers::default();
        for (layer, state, bytes, total) in news {
            layers.hear(&json!({"layer": layer, "state": state, "bytes": bytes, "totalBytes": total}));
        }
        layers
    }

    #[test]
    fn a_line_for_each_layer() {
        let layers = layers(&[
            ("sha256:0123456789abcdef", "downloading", 512, 2048),
            ("sha256:b", "cached", 0, 10),
            ("sha256:c\u{1b}[2J", "waiting", 0, 0),
            ("sha256:d", "unpacking", 99, 0),
            ("sha256:e", "downloading", 5, 4),
            ("sha256:0123456789abcdef", "downloading", 1024, 2048),
            ("sha256:b", "done", 3 << 20, 3 << 20),
        ]);
        expect![[r#"
            0123456789ab  downloading  [============            ]  1.0 KiB / 2.0 KiB
            b  done         3.0 MiB
            c?[2J  waiting
            d  unpacking    [                        ]  99 B
            e  downloading  [========================]  5 B / 4 B"#]]
        .assert_eq(&layers.draw(24, 79).join("\n"));
        expect![[r#"
            0123456789ab  downloading  [==
            d  unpacking    [             
            1 of 5 layers are here"#]]
        .assert_eq(&layers.draw(3, 30).join("\n"));
    }

    #[test]
    fn only_changes_of_state_are_lines_and_layers_are_bounded() {
        let mut layers = Layers::default();
        assert!(layers.hear(&json!({"layer": "a", "state": "downloading", "bytes": 1})).is_some());
        assert!(layers.hear(&json!({"layer": "a", "state": "downloading", "bytes": 2})).is_none());
        assert!(layers.hear(&json!({"layer": "a", "state": "done"})).is_some());
        assert!(layers.hear(&json!({"other": 1})).is_none() && layers.hear(&json!([])).is_none());
        for index in 0..2 * PROGRESS_LAYERS_MAX {
            layers.hear(&json!({"layer": index.to_string(), "state": "waiting"}));
        }
        assert_eq!(layers.0.len(), PROGRESS_LAYERS_MAX);
        assert_eq!(layers.draw(10, 80).len(), 1);
    }

    #[test]
    fn a_drawing_replaces_the_one_before() {
        assert_eq!(over(0, &["a".to_owned()]), "\ra\u{1b}[K\n\u{1b}[J");
        assert_eq!(over(2, &["b".to_owned()]), "\u{1b}[2A\rb\u{1b}[K\n\u{1b}[J");
    }
}
