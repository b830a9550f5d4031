//! What is promised, as data; and the verdict over what was measured.
//!
//! Every bound names the cells it compares, and what is measured is what the chosen bounds name. A bound one of whose cells is
//! missing has not been measured, which is said with the reason; of several opponents the best counts, and all must be there.

use std::collections::BTreeMap;

use sampan_e2e::link::Shape;

use super::cells::{Cell, LINKS, Who};
use super::measure::Median;
use super::subjects::{SUBJECTS, Subject};
use crate::report::Figure;

/// Compressed images from here on count as large.
const LARGE_BYTES: u64 = 150_000_000;
/// A program that touches less of its image than that touches little.
const TOUCHED_LITTLE: f64 = 0.08;

const NONE: Shape = LINKS[0];
const FAST: Shape = LINKS[2];
const SLOW: Shape = LINKS[3];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    Seconds,
    Megabytes,
}

/// What it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Against {
    /// The best of these, times so much.
    Best(Vec<Cell>, f64),
    /// A number.
    AtMost(f64),
}

/// One promise.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bound {
    /// What `--only` names.
    pub(crate) group: &'static str,
    pub(crate) ours: Cell,
    pub(crate) quantity: Quantity,
    pub(crate) against: Against,
}

/// The groups, in the order of the issue.
pub(crate) const GROUPS: [&str; 5] = ["indexed", "python", "other-program", "plain", "size"];

/// What was measured of one cell, or why it was not.
pub(crate) type Outcome = Result<Median, String>;

impl Bound {
    fn time(group: &'static str, ours: Cell, peers: &[Who], at_most: f64) -> Self {
        let peers = peers.iter().map(|who| ours.by(*who)).collect();
        Self { group, ours, quantity: Quantity::Seconds, against: Against::Best(peers, at_most) }
    }

    fn megabytes(ours: Cell, at_most: f64) -> Self {
        Self { group: "python", ours, quantity: Quantity::Megabytes, against: Against::AtMost(at_most) }
    }

    /// Everything that it needs to be judged.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![self.ours];
        if let Against::Best(peers, _) = &self.against {
            cells.extend(peers);
        }
        cells
    }

    /// The verdict, given what was measured of each cell by its name.
    pub(crate) fn judge(&self, measured: &BTreeMap<String, Outcome>) -> Figure {
        let value = |cell: &Cell| match measured.get(&cell.name()) {
            Some(Ok(median)) => Ok(median.value(self.quantity)),
            Some(Err(reason)) => Err(format!("{}: {reason}", cell.who.name())),
            None => Err(format!("{} was not chosen", cell.who.name())),
        };
        let runs = |cell: &Cell| measured.get(&cell.name()).and_then(|found| found.as_ref().ok()).map_or(0, |m| m.runs);
        let ours = value(&self.ours);
        let mut notes: Vec<String> = ours.as_ref().err().cloned().into_iter().collect();
        let (peer, peer_name, at_most) = match &self.against {
            Against::AtMost(number) => (None, "at most".to_owned(), *number),
            Against::Best(cells, at_most) => {
                let values: Vec<_> = cells.iter().map(|cell| (value(cell), cell.who.name())).collect();
                notes.extend(values.iter().filter_map(|(value, _)| value.as_ref().err().cloned()));
                let present = values.iter().filter_map(|(value, name)| Some((*value.as_ref().ok()?, *name)));
                let best = present.min_by(|a, b| a.0.total_cmp(&b.0));
                let all = || cells.iter().map(|cell| cell.who.name()).collect::<Vec<_>>().join("|");
                (best.map(|best| best.0), best.map_or_else(all, |best| best.1.to_owned()), *at_most)
            }
        };
        let ratio = match &self.against {
            Against::AtMost(_) => ours.as_ref().ok().copied(),
            Against::Best(..) => ours.as_ref().ok().zip(peer).map(|(ours, peer)| ours / peer),
        };
        let (unit, what) = match self.quantity {
            Quantity::Seconds => ("s", ""),
            Quantity::Megabytes => ("MB", "/bytes"),
        };
        Figure {
            name: format!("{}: {}{what}", self.group, self.ours.name()),
            ours: ours.unwrap_or(f64::NAN),
            peer,
            peer_name,
            unit,
            runs: runs(&self.ours),
            ratio,
            bound: Some(at_most),
            holds: ratio.filter(|_| notes.is_empty()).map(|ratio| ratio <= at_most),
            note: (!notes.is_empty()).then(|| format!("not measured: {}", notes.join("; "))),
        }
    }
}

/// Everything that is promised. `compressed` gives the compressed size of an image.
pub(crate) fn all(compressed: impl Fn(&Subject) -> u64) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for subject in SUBJECTS.iter().filter(|subject| subject.name != "science-padded") {
        let little = compressed(subject) > LARGE_BYTES && subject.touched < TOUCHED_LITTLE;
        for link in LINKS {
            let cell = |who| Cell { image: subject.name, link, other: false, who };
            if little {
                bounds.push(Bound::time("indexed", cell(Who::Index), &[Who::Containerd], 0.15));
            }
            for who in Who::INDEXED {
                bounds.push(Bound::time("indexed", cell(who), &[Who::Containerd, Who::ContainerdErofs], 1.0));
                bounds.push(Bound::time("indexed", cell(who), &[Who::Plain], 1.0));
            }
        }
        let cell = |link| Cell { image: subject.name, link, other: false, who: Who::Plain };
        bounds.push(Bound::time("plain", cell(NONE), &[Who::Containerd], 0.35));
        for link in [FAST, SLOW] {
            bounds.push(Bound::time("plain", cell(link), &[Who::Download], 1.15));
        }
    }
    bounds.extend(python());
    bounds.extend(size());
    bounds
}

/// The bounds of the image that the loaders of others were measured with.
fn python() -> Vec<Bound> {
    let mut bounds = Vec::new();
    let cell = |link, who| Cell { image: "python", link, other: false, who };
    for link in [NONE, FAST, SLOW] {
        let with_pack = if link == NONE { 0.7 } else { 0.5 };
        for (who, megabytes, peers, at_most) in [
            (Who::Pack, 12.0, &Who::LOADERS[..], with_pack),
            (Who::Trace, 25.0, &Who::LOADERS[..], 0.9),
            (Who::Index, 30.0, &Who::UNMODIFIED[..], 0.8),
        ] {
            bounds.push(Bound::megabytes(cell(link, who), megabytes));
            bounds.push(Bound::time("python", cell(link, who), peers, at_most));
        }
    }
    for link in LINKS {
        let other = Cell { other: true, ..cell(link, Who::Pack) };
        bounds.push(Bound::time("other-program", other, &[Who::Index], 1.05));
    }
    bounds
}

/// The padded image starts as fast as the one without padding.
fn size() -> Vec<Bound> {
    let cell = |image, link, who| Cell { image, link, other: false, who };
    let bound = |(link, who)| Bound {
        group: "size",
        ours: cell("science-padded", link, who),
        quantity: Quantity::Seconds,
        against: Against::Best(vec![cell("science", link, who)], 1.2),
    };
    LINKS.into_iter().flat_map(|link| [Who::Index, Who::Pack].map(|who| (link, who))).map(bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(seconds: f64, megabytes: f64) -> Outcome {
        Ok(Median { total: seconds, megabytes, runs: 3, ..Median::default() })
    }

    fn cell(who: Who) -> Cell {
        Cell { image: "python", link: NONE, other: false, who }
    }

    fn judge(bound: &Bound, measured: &[(Who, Outcome)]) -> Figure {
        bound.judge(&measured.iter().map(|(who, outcome)| (cell(*who).name(), outcome.clone())).collect())
    }

    #[test]
    fn the_best_opponent_counts() {
        let bound = Bound::time("python", cell(Who::Pack), &[Who::Soci, Who::Nydus], 0.5);
        let figure = judge(
            &bound,
            &[(Who::Pack, median(1.0, 1.0)), (Who::Soci, median(3.0, 1.0)), (Who::Nydus, median(1.9, 1.0))],
        );
        assert_eq!((figure.peer_name.as_str(), figure.holds, figure.note), ("nydus", Some(false), None));
    }

    #[test]
    fn who_is_missing_is_named() {
        let bound = Bound::time("python", cell(Who::Pack), &[Who::Soci, Who::Nydus], 0.5);
        let measured = [(Who::Pack, median(1.0, 1.0)), (Who::Soci, Err("there is no soci".to_owned()))];
        let figure = judge(&bound, &measured);
        assert_eq!(figure.holds, None);
        assert_eq!(figure.note.as_deref(), Some("not measured: soci: there is no soci; nydus was not chosen"));
    }

    #[test]
    fn megabytes_are_compared_with_a_number() {
        let bound = Bound::megabytes(cell(Who::Index), 30.0);
        assert_eq!(judge(&bound, &[(Who::Index, median(9.0, 29.0))]).holds, Some(true));
        assert_eq!(judge(&bound, &[(Who::Index, median(9.0, 31.0))]).holds, Some(false));
    }

    #[test]
    fn every_group_has_bounds_and_every_bound_a_group() {
        let bounds = all(|_| LARGE_BYTES + 1);
        for group in GROUPS {
            assert!(bounds.iter().any(|bound| bound.group == group), "{group}");
        }
        assert!(bounds.iter().all(|bound| GROUPS.contains(&bound.group)));
        let strict = |bounds: &[Bound]| bounds.iter().filter(|b| b.against == b.with(0.15)).count();
        assert!(strict(&bounds) > strict(&all(|_| 1)));
    }

    impl Bound {
        fn with(&self, at_most: f64) -> Against {
            match &self.against {
                Against::Best(peers, _) => Against::Best(peers.clone(), at_most),
                Against::AtMost(_) => Against::AtMost(at_most),
            }
        }
    }
}
