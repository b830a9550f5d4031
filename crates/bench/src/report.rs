//! What was measured: medians, ratios, whether a bound holds; as a table and as JSON.
//!
//! The JSON is an array with one object per figure. Every suite of benchmarks keeps this form.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// Our median, in `unit`.
    pub(crate) ours: f64,
    /// The peer's median; nothing when the peer is missing.
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: String,
    pub(crate) unit: &'static str,
    /// How many times each side was measured.
    pub(crate) runs: usize,
    /// Ours over the peer's.
    pub(crate) ratio: Option<f64>,
    /// What `ratio` may be at most; nothing where the figure is for orientation.
    pub(crate) bound: Option<f64>,
    /// Whether the bound holds. A promise against a missing peer does not.
    pub(crate) holds: Option<bool>,
    /// Why there is no verdict where there should be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

/// The unit that a figure's times are shown in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
        }
    }

    fn of(self, time: Duration) -> f64 {
        match self {
            Self::Seconds => time.as_secs_f64(),
            Self::Milliseconds => time.as_secs_f64() * 1e3,
        }
    }
}

impl Figure {
    /// Compares the medians of two series; an empty one is a missing peer's.
    pub(crate) fn compare(
        name: impl Into<String>,
        unit: Unit,
        ours: &[Duration],
        (peer_name, peer): (&str, &[Duration]),
        bound: Option<f64>,
    ) -> Self {
        let ours_median = median(ours).map_or(f64::NAN, |time| unit.of(time));
        let peer_median = median(peer).map(|time| unit.of(time));
        let ratio = peer_median.map(|peer| ours_median / peer);
        Self {
            name: name.into(),
            ours: ours_median,
            peer: peer_median,
            peer_name: peer_name.to_owned(),
            unit: unit.name(),
            runs: ours.len(),
            ratio,
            bound,
            holds: bound.map(|bound| ratio.is_some_and(|ratio| ratio <= bound)),
            note: None,
        }
    }

    /// Compares two quantities; nothing stands for a missing peer.
    pub(crate) fn quantities(
        name: impl Into<String>,
        unit: &'static str,
        (ours, runs): (f64, usize),
        (peer_name, peer): (&str, Option<f64>),
        bound: Option<f64>,
    ) -> Self {
        let ratio = peer.map(|peer| ours / peer);
        Self {
            name: name.into(),
            ours,
            peer,
            peer_name: peer_name.to_owned(),
            unit,
            runs,
            ratio,
            bound,
            holds: bound.map(|bound| ratio.is_some_and(|ratio| ratio <= bound)),
            note: None,
        }
    }

    /// A quantity of ours that may be so much at most; nothing where it is for orientation.
    pub(crate) fn at_most(
        name: impl Into<String>,
        unit: &'static str,
        (ours, runs): (f64, usize),
        bound: Option<f64>,
    ) -> Self {
        Self {
            ratio: bound.map(|_| ours),
            holds: bound.map(|bound| ours <= bound),
            ..Self::quantities(name, unit, (ours, runs), ("at most", None), bound)
        }
    }
}

/// So much of a series, from 0 to 1, is not larger.
pub(crate) fn quantile(times: &[Duration], part: f64) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The middle of a series, or the mean of its two middles.
pub(crate) fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some((*upper + *lower) / 2)
}

/// Writes the figures for people.
pub(crate) fn print_table(out: &mut impl Write, figures: &[Figure]) -> Result<()> {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0).max(34);
    writeln!(
        out,
        "\n{:<width$} {:>9} {:>9}    {:<26} {:>4} {:>6} {:>6}  holds",
        "figure", "ours", "peer", "peer's name", "runs", "ratio", "bound"
    )?;
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    for figure in figures {
        let digits = if figure.unit == "ms" { 1 } else { 2 };
        let holds = match figure.holds {
            Some(true) => "yes",
            Some(false) => "NO",
            None => figure.note.as_deref().unwrap_or("-"),
        };
        writeln!(
            out,
            "{:<width$} {:>9} {:>9} {:<2} {:<26} {:>4} {:>6} {:>6}  {holds}",
            figure.name,
            number(Some(figure.ours), digits),
            number(figure.peer, digits),
            figure.unit,
            figure.peer_name,
            figure.runs,
            number(figure.ratio, 3),
            number(figure.bound, 2),
        )?;
    }
    Ok(())
}

/// Writes the figures for programs.
pub(crate) fn write_json(path: &Path, figures: &[Figure]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(times: &[u64]) -> Vec<Duration> {
        times.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&milliseconds(&[9, 1, 5])), Some(Duration::from_millis(5)));
        assert_eq!(median(&milliseconds(&[4, 1, 9, 2])), Some(Duration::from_millis(3)));
    }

    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[], 0.99), None);
        let hundred = milliseconds(&(1..=100).collect::<Vec<_>>());
        assert_eq!(quantile(&hundred, 0.99), Some(Duration::from_millis(99)));
        assert_eq!(quantile(&hundred, 0.0), Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_quantity_of_ours_alone() {
        let figure = |ours| Figure::at_most("x", "MB", (ours, 1), Some(0.1));
        assert_eq!((figure(0.1).holds, figure(0.2).holds, figure(0.2).ratio), (Some(true), Some(false), Some(0.2)));
        assert_eq!(Figure::at_most("x", "MB", (1.0, 1), None).holds, None);
    }

    #[test]
    fn bounds() {
        let ours = milliseconds(&[400]);
        let compare = |peer: &[u64], bound| {
            let peer = milliseconds(peer);
            Figure::compare("x", Unit::Seconds, &ours, ("y", &peer), bound)
        };
        assert_eq!(compare(&[1000], Some(0.4)).holds, Some(true));
        assert_eq!(compare(&[900], Some(0.4)).holds, Some(false));
        assert_eq!(compare(&[900], None).holds, None);
        // A promise against somebody who is not there has not been shown.
        let missing = compare(&[], Some(0.4));
        assert_eq!((missing.holds, missing.ratio, missing.peer), (Some(false), None, None));
    }

    #[test]
    fn the_form_of_the_json() {
        let figure =
            Figure::compare("x", Unit::Milliseconds, &milliseconds(&[4]), ("y", &milliseconds(&[8])), Some(0.5));
        let expected = serde_json::json!({
            "name": "x", "ours": 4.0, "peer": 8.0, "peer_name": "y", "unit": "ms",
            "runs": 1, "ratio": 0.5, "bound": 0.5, "holds": true
        });
        assert_eq!(serde_json::to_value(figure).unwrap(), expected);
    }
}
