//! What a user meets when a command cannot do its work: one line on stderr and an exit code.
//!
//! Invariants: a failure prints at most one line, `sampan: <thing>: <reason>; <way out>`; nothing that came from
//! outside (a registry's answer, a guest's file name) reaches the terminal with control characters in it; a reader of
//! stdout that went away is no error worth a word.

use std::fmt::Display;
use std::io;

use crate::limits::MESSAGE_CHARS_MAX;

/// docker's and podman's code for "the tool itself failed, not what it ran".
pub(crate) const EXIT_TOOL: i32 = 125;
/// What a shell shows of a process that died of SIGPIPE.
const EXIT_BROKEN_PIPE: i32 = 128 + 13;

/// The end of a command that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The line without its `sampan: `; `None` is silent.
    pub(crate) line: Option<String>,
    /// The exit code.
    pub(crate) code: i32,
}

impl Failure {
    /// `<line>` with exit code 1.
    pub(crate) fn new(line: impl Display) -> Self {
        Self { line: Some(one_line(&line.to_string())), code: 1 }
    }

    /// `<thing>: <reason>; <way out>` with exit code 1.
    pub(crate) fn explain(thing: impl Display, reason: impl Display, way_out: impl Display) -> Self {
        Self::new(format_args!("{thing}: {reason}; {way_out}"))
    }

    /// A write to stdout that failed: silent when its reader is gone.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { line: None, code: EXIT_BROKEN_PIPE };
        }
        Self::explain("stdout", error, "check where the output goes")
    }

    /// The same failure with another exit code; a silent one keeps its own.
    pub(crate) fn with_code(mut self, code: i32) -> Self {
        if self.line.is_some() {
            self.code = code;
        }
        self
    }

    /// Whether the reader of stdout went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.line.is_none()
    }
}

/// A text as one harmless line: line breaks and the blanks after them become one blank, other control characters `?`.
/// The number that Rust puts behind the system's own words, ` (os error 2)`, goes.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MESSAGE_CHARS_MAX));
    let mut broken = false;
    for (count, character) in text.trim().chars().enumerate() {
        if count >= MESSAGE_CHARS_MAX {
            line.push('…');
            break;
        }
        match character {
            '\n' | '\r' | '\t' => broken = true,
            ' ' if broken => {}
            character => {
                if std::mem::take(&mut broken) {
                    line.push(' ');
                }
                line.push(if character.is_control() || is_direction(character) { '?' } else { character });
            }
        }
    }
    without_error_number(line)
}

fn without_error_number(mut line: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = line.find(MARK) {
        let after = line.get(start + MARK.len()..).unwrap_or_default();
        let digits = after.len() - after.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        if digits == 0 || !after.get(digits..).unwrap_or_default().starts_with(')') {
            break;
        }
        line.replace_range(start..start + MARK.len() + digits + 1, "");
    }
    line
}

/// Characters that make a terminal show text in another order than it stands.
fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_message_stays_one_harmless_line() {
        assert_eq!(one_line("a\r\n  b\u{1b}[2Jc\u{202e}d\n"), "a b?[2Jc?d");
        assert_eq!(one_line("x: gone (os error 2); mend (os error 2x)"), "x: gone; mend (os error 2x)");
        assert_eq!(one_line(&"x".repeat(5000)).chars().count(), MESSAGE_CHARS_MAX + 1);
    }

    #[test]
    fn a_gone_reader_is_silent() {
        let failure = Failure::stdout(&io::Error::from(io::ErrorKind::BrokenPipe)).with_code(125);
        assert_eq!(failure, Failure { line: None, code: 141 });
    }
}
