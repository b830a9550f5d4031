//! A budget of memory that many share, of which nobody ever waits for a part.
//!
//! Everyone begins with what he needs to get on, and asks for more as he goes:
//!
//! - What is *fixed* ([`MemoryBudget::fix`]) is had without asking. Whoever fixes something bounds the number of such things.
//! - A [`Holder`] always gets its *least*, and beyond it as much as its fair part of what is not fixed, if that is free. What it is
//!   refused now it may ask for again when something of its own has come to an end.
//!
//! So there is nothing that could lock up: no one who holds a part waits for another's. Nobody starves either: there is always the
//! least, and whoever comes late gets a fair part as those before him finish what they have begun. Dropping gives back.
//!
//! Invariant: when a holder is given more than its least, all that is held or promised then is within the limit. Later more may be
//! held only by what was fixed, and by the least of those who have come, since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that many share. Cheap to clone; clones are the same budget.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    book: Arc<Mutex<Book>>,
}

#[derive(Debug)]
struct Book {
    limit_bytes: u64,
    fixed_bytes: u64,
    holders: BTreeMap<u64, Entry>,
    next_number: u64,
    most_bytes: u64,
}

/// What a holder may always have, and what it has.
#[derive(Debug, Clone, Copy)]
struct Entry {
    least_bytes: u64,
    held_bytes: u64,
}

/// What is held of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    pub held_bytes: u64,
    /// The most that ever was.
    pub most_bytes: u64,
    pub limit_bytes: u64,
}

/// One who may hold more or less. Dropped, it shares no longer; what it still holds goes back as it is dropped.
#[derive(Debug)]
pub struct Holder {
    share: Arc<Share>,
}

/// A holder's place in the book, for as long as it or anything of it is there.
#[derive(Debug)]
struct Share {
    budget: MemoryBudget,
    number: u64,
}

/// A part of a holder's. Dropped, it is given back.
#[derive(Debug)]
pub struct Held {
    share: Arc<Share>,
    bytes: u64,
}

/// Something that is had without asking. Dropped, it is given back.
#[derive(Debug)]
pub struct Fixed {
    budget: MemoryBudget,
    bytes: u64,
}

impl MemoryBudget {
    pub fn new(limit_bytes: u64) -> Self {
        let (holders, next_number) = (BTreeMap::new(), 0);
        let book = Book { limit_bytes, fixed_bytes: 0, holders, next_number, most_bytes: 0 };
        Self { book: Arc::new(Mutex::new(book)) }
    }

    /// Takes what is needed in any case.
    #[must_use]
    pub fn fix(&self, bytes: u64) -> Fixed {
        let mut book = self.book();
        book.fixed_bytes = book.fixed_bytes.saturating_add(bytes);
        book.note_most();
        drop(book);
        Fixed { budget: self.clone(), bytes }
    }

    /// Begins to share with one more, who may always have `least_bytes`.
    #[must_use]
    pub fn enter(&self, least_bytes: u64) -> Holder {
        let mut book = self.book();
        let number = book.next_number;
        book.next_number = number.wrapping_add(1);
        book.holders.insert(number, Entry { least_bytes, held_bytes: 0 });
        drop(book);
        Holder { share: Arc::new(Share { budget: self.clone(), number }) }
    }

    pub fn in_use(&self) -> MemoryUse {
        let book = self.book();
        MemoryUse { held_bytes: book.held(), most_bytes: book.most_bytes, limit_bytes: book.limit_bytes }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change of the book is whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn held(&self) -> u64 {
        let held = self.holders.values().map(|entry| entry.held_bytes);
        held.fold(self.fixed_bytes, u64::saturating_add)
    }

    fn note_most(&mut self) {
        self.most_bytes = self.most_bytes.max(self.held());
    }

    /// An equal part for each holder of what is not fixed.
    fn fair(&self) -> u64 {
        let holders = (self.holders.len() as u64).max(1);
        self.limit_bytes.saturating_sub(self.fixed_bytes) / holders
    }

    fn may_take(&self, number: u64, entry: Entry, bytes: u64) -> bool {
        let after = entry.held_bytes.saturating_add(bytes);
        if after <= entry.least_bytes {
            return true;
        }
        let others = self.holders.iter().filter(|(other, _)| **other != number);
        let promised = others.map(|(_, other)| other.least_bytes.max(other.held_bytes));
        let all = promised.fold(self.fixed_bytes.saturating_add(after), u64::saturating_add);
        after <= self.fair() && all <= self.limit_bytes
    }

    fn take(&mut self, number: u64, bytes: u64) -> bool {
        let Some(entry) = self.holders.get(&number).copied().filter(|entry| self.may_take(number, *entry, bytes))
        else {
            return false;
        };
        let held_bytes = entry.held_bytes.saturating_add(bytes);
        self.holders.insert(number, Entry { held_bytes, ..entry });
        self.note_most();
        true
    }
}

impl Holder {
    /// What this holder's part is if all take theirs; at least its least.
    pub fn fair_bytes(&self) -> u64 {
        let book = self.share.budget.book();
        let least = book.holders.get(&self.share.number).map_or(0, |entry| entry.least_bytes);
        book.fair().max(least)
    }

    /// So much more, or nothing.
    pub fn take(&self, bytes: u64) -> Option<Held> {
        let is_taken = self.share.budget.book().take(self.share.number, bytes);
        is_taken.then(|| Held { share: Arc::clone(&self.share), bytes })
    }
}

impl Held {
    /// Gives back what is needed no longer.
    pub fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(entry) = self.share.budget.book().holders.get_mut(&self.share.number) {
            entry.held_bytes = entry.held_bytes.saturating_sub(bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.book().holders.remove(&self.number);
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        let mut book = self.budget.book();
        book.fixed_bytes = book.fixed_bytes.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_alone_has_all_and_shares_when_others_come() {
        let budget = MemoryBudget::new(100);
        let first = budget.enter(10);
        let mut all = first.take(100).unwrap();
        assert!(first.take(1).is_none());

        let second = budget.enter(10);
        let least = second.take(10).unwrap();
        assert!(second.take(1).is_none(), "the first has not given anything back");
        assert_eq!(budget.in_use(), MemoryUse { held_bytes: 110, most_bytes: 110, limit_bytes: 100 });
        all.give_back(80);
        assert!(first.take(31).is_none(), "more than half");
        let more = second.take(40).unwrap();
        assert!(second.take(1).is_none());
        let half = first.take(30).unwrap();
        assert_eq!(budget.in_use().held_bytes, 100);

        drop((second, least, more));
        assert_eq!(first.fair_bytes(), 100);
        drop((half, all));
        assert!(first.take(100).is_some());
        assert_eq!(budget.in_use().held_bytes, 0);
    }

    #[test]
    fn what_is_fixed_is_had_in_any_case_and_others_grow_less() {
        let budget = MemoryBudget::new(100);
        let holder = budget.enter(10);
        let _ahead = holder.take(60).unwrap();
        let fixed = budget.fix(70);
        assert_eq!(holder.fair_bytes(), 30);
        assert!(holder.take(1).is_none());
        drop(fixed);
        assert!(holder.take(40).is_some());
        let _all = budget.fix(1000);
        let late = budget.enter(5);
        assert_eq!(late.fair_bytes(), 5);
        assert!(late.take(5).is_some() && late.take(6).is_none());
    }

    #[test]
    fn a_holder_that_has_gone_shares_until_its_last_part_is_given_back() {
        let budget = MemoryBudget::new(100);
        let (gone, stays) = (budget.enter(0), budget.enter(0));
        let part = gone.take(50).unwrap();
        drop(gone);
        assert!(stays.take(60).is_none());
        drop(part);
        assert!(stays.take(100).is_some());
    }

    const LIMIT: u64 = 1000;
    const LEAST: u64 = 30;

    #[derive(Debug, Clone)]
    enum Step {
        Enter,
        Leave(usize),
        Take(usize, u64),
        GiveBack(usize, u64),
        Drop(usize),
        Fix(u64),
        Unfix(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = 0..64_usize;
        prop_oneof![
            Just(Step::Enter),
            which.clone().prop_map(Step::Leave),
            (which.clone(), 0..400_u64).prop_map(|(which, bytes)| Step::Take(which, bytes)),
            (which.clone(), 0..400_u64).prop_map(|(which, bytes)| Step::GiveBack(which, bytes)),
            which.clone().prop_map(Step::Drop),
            (0..200_u64).prop_map(Step::Fix),
            which.prop_map(Step::Unfix),
        ]
    }

    /// An index into a list that may be empty.
    fn at(which: usize, length: usize) -> Option<usize> {
        which.checked_rem(length)
    }

    proptest! {
        #[test]
        fn the_least_is_always_had_and_nobody_grows_beyond_the_limit(steps in prop::collection::vec(step(), 1..200)) {
            let budget = MemoryBudget::new(LIMIT);
            let (mut holders, mut parts, mut fixed) = (Vec::<Holder>::new(), Vec::<Held>::new(), Vec::<Fixed>::new());
            // What has come unasked since somebody was last given more than his least.
            let (mut unasked, mut within) = (0_u64, 0_u64);
            for step in steps {
                match step {
                    Step::Enter => {
                        let holder = budget.enter(LEAST);
                        parts.push(holder.take(LEAST).expect("the least is always had"));
                        prop_assert!(holder.fair_bytes() >= LEAST);
                        holders.push(holder);
                        unasked += LEAST;
                    }
                    Step::Take(which, bytes) => {
                        let Some(holder) = at(which, holders.len()).and_then(|at| holders.get(at)) else { continue };
                        let held = |parts: &[Held]| {
                            let own = parts.iter().filter(|part| part.share.number == holder.share.number);
                            own.map(|part| part.bytes).sum::<u64>()
                        };
                        let before = held(&parts);
                        match holder.take(bytes) {
                            Some(part) => {
                                if before + bytes > LEAST {
                                    prop_assert!(before + bytes <= holder.fair_bytes());
                                    prop_assert!(budget.in_use().held_bytes <= LIMIT);
                                    (unasked, within) = (0, LIMIT);
                                } else {
                                    unasked += bytes;
                                }
                                parts.push(part);
                            }
                            None => prop_assert!(before + bytes > LEAST),
                        }
                    }
                    Step::GiveBack(which, bytes) => {
                        if let Some(part) = at(which, parts.len()).and_then(|at| parts.get_mut(at)) {
                            part.give_back(bytes);
                        }
                    }
                    Step::Drop(which) => drop(at(which, parts.len()).map(|at| parts.swap_remove(at))),
                    Step::Leave(which) => drop(at(which, holders.len()).map(|at| holders.swap_remove(at))),
                    Step::Fix(bytes) => {
                        fixed.push(budget.fix(bytes));
                        unasked += bytes;
                    }
                    Step::Unfix(which) => drop(at(which, fixed.len()).map(|at| fixed.swap_remove(at))),
                }
                let sum = parts.iter().map(|part| part.bytes).chain(fixed.iter().map(|fixed| fixed.bytes)).sum::<u64>();
                prop_assert_eq!(budget.in_use().held_bytes, sum);
                prop_assert!(sum <= within + unasked);
            }
            drop((holders, parts, fixed));
            prop_assert_eq!(budget.in_use().held_bytes, 0);
            prop_assert!(budget.book().holders.is_empty());
        }
    }
}
