//! A set of byte positions, kept as ranges that neither overlap nor touch.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((known, known_end)) = self.0.range(..=end).next_back().map(|(from, to)| (*from, *to)) {
            if known_end < start {
                break;
            }
            self.0.remove(&known);
            start = start.min(known);
            end = end.max(known_end);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((start, end)) = self.0.range(..range.end).next_back().map(|(from, to)| (*from, *to)) {
            if end <= range.start {
                break;
            }
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
                break;
            }
        }
    }

    /// Where the run ends that holds `at`; `at` itself if none does.
    pub(crate) fn end_from(&self, at: u64) -> u64 {
        self.0.range(..=at).next_back().map_or(at, |(_, end)| at.max(*end))
    }

    /// The parts of `range` that are not in the set, in order.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = self.end_from(range.start);
        for (start, end) in self.0.range(range.start..range.end) {
            if *start > at {
                missing.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// All of it, in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// How many positions it holds.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_are_what_a_set_of_numbers_is(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..30),
            (from, length) in (0u64..40, 0u64..20),
        ) {
            let (mut ranges, mut numbers) = (RangeSet::default(), BTreeSet::new());
            for (adds, start, length) in steps {
                for number in start..start + length {
                    if adds { numbers.insert(number); } else { numbers.remove(&number); }
                }
                let range = start..start + length;
                if adds { ranges.add(range); } else { ranges.remove(range); }
                let mut bounds = ranges.0.iter().collect::<Vec<_>>();
                bounds.dedup_by(|later, earlier| earlier.1 >= later.0);
                prop_assert_eq!(bounds.len(), ranges.0.len());
            }
            prop_assert_eq!(ranges.total(), numbers.len() as u64);
            let missing: Vec<u64> = ranges.missing(from..from + length).into_iter().flatten().collect();
            let expected: Vec<u64> = (from..from + length).filter(|number| !numbers.contains(number)).collect();
            prop_assert_eq!(missing, expected);
            let end = (from..).find(|number| !numbers.contains(number)).unwrap();
            prop_assert_eq!(ranges.end_from(from), end);
        }
    }
}
