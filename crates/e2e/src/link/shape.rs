//! How long and how wide a link is, and how one writes it: `none`, `20ms`, `5ms+200Mbit`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A piece is what the line carries in about this time, so that connections take turns often enough.
const PIECE_TIME: Duration = Duration::from_millis(1);
const PIECE_BYTES_MIN: usize = 4 << 10;
const PIECE_BYTES_MAX: usize = 64 << 10;
/// What one connection may have under way: what Linux' receive window grows to by itself (`tcp_rmem`), about.
const WINDOW_BYTES: usize = 4 << 20;

/// Round-trip time and bandwidth of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    pub round_trip: Duration,
    /// Of the way down, shared by all connections; nothing is no limit.
    pub bits_per_second: Option<u64>,
}

impl Shape {
    /// Whatever the machine itself can do.
    pub const NONE: Self = Self { round_trip: Duration::ZERO, bits_per_second: None };

    pub const fn new(milliseconds: u64, megabits: Option<u64>) -> Self {
        let bits_per_second = match megabits {
            Some(megabits) => Some(megabits * 1_000_000),
            None => None,
        };
        Self { round_trip: Duration::from_millis(milliseconds), bits_per_second }
    }

    /// What is read and passed on at once.
    pub(super) fn piece_bytes(self) -> usize {
        let bytes = self.bits_per_second.map_or(u64::MAX, |bits| bits / 8 * PIECE_TIME.as_millis() as u64 / 1000);
        usize::try_from(bytes).unwrap_or(usize::MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }

    /// Pieces of one connection that are under way at once.
    pub(super) fn pieces_max(self) -> usize {
        WINDOW_BYTES / self.piece_bytes()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabits = self.bits_per_second.map(|bits| format!("{}Mbit", bits / 1_000_000));
        let delay = (!self.round_trip.is_zero()).then(|| format!("{}ms", self.round_trip.as_millis()));
        match (delay, megabits) {
            (None, None) => write!(out, "none"),
            (Some(one), None) | (None, Some(one)) => write!(out, "{one}"),
            (Some(delay), Some(megabits)) => write!(out, "{delay}+{megabits}"),
        }
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut shape = Self::NONE;
        for part in text.split('+').filter(|part| *part != "none") {
            let number = |digits: &str| digits.parse::<u64>().with_context(|| format!("{part:?} has no number"));
            if let Some(digits) = part.strip_suffix("Mbit") {
                let bits = number(digits)?.checked_mul(1_000_000).filter(|bits| *bits > 0);
                shape.bits_per_second = Some(bits.with_context(|| format!("{part:?} is no bandwidth"))?);
            } else if let Some(digits) = part.strip_suffix("ms") {
                shape.round_trip = Duration::from_millis(number(digits)?);
            } else {
                bail!("{text:?} is no link; write none, 20ms or 5ms+200Mbit");
            }
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn links_are_written_as_they_are_read() {
        for text in ["none", "20ms", "24Mbit", "5ms+200Mbit", "20ms+24Mbit"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        assert_eq!("5ms+200Mbit".parse::<Shape>().unwrap(), Shape::new(5, Some(200)));
        for wrong in ["", "fast", "5", "ms", "0Mbit", "5ms,2Mbit"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pieces_are_small_on_narrow_links() {
        assert_eq!(Shape::new(20, Some(24)).piece_bytes(), 4 << 10);
        assert_eq!(Shape::new(5, Some(200)).piece_bytes(), 25_000);
        assert_eq!(Shape::NONE.piece_bytes(), 64 << 10);
    }
}
