//! Foreign text made fit for one line of an error: printable, on one line, bounded.

use std::fmt;

use crate::limits::QUOTE_CHARS_MAX;

/// Shows `self.0` with control characters replaced and at most [`QUOTE_CHARS_MAX`] characters.
#[derive(Debug, Clone, Copy)]
pub struct Quote<'a>(pub &'a str);

impl fmt::Display for Quote<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for (count, character) in self.0.chars().enumerate() {
            if count == QUOTE_CHARS_MAX {
                return out.write_char('…');
            }
            out.write_char(if character.is_control() { ' ' } else { character })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_one_bounded_line() {
        assert_eq!(Quote("a\nb\u{1b}[31m").to_string(), "a b [31m");
        assert_eq!(Quote(&"x".repeat(500)).to_string().chars().count(), QUOTE_CHARS_MAX + 1);
    }
}
