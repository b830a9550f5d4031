//! Requests that are under way, and which of them a death of the daemon broke: that is what makes a kill count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests of all clients; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, &'static str>,
    broken: BTreeMap<u64, &'static str>,
}

/// A request that was sent and is not answered.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Flights,
    number: u64,
}

impl Flights {
    /// A request is about to be sent over a connection that stands.
    pub(super) fn begin(&self, what: &'static str) -> Flight {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.open.insert(number, what);
        Flight { flights: self.clone(), number }
    }

    /// What is under way, by number.
    pub(super) fn open(&self) -> BTreeMap<u64, &'static str> {
        self.state().open.clone()
    }

    /// Which of these were broken; `None` while one is still under way.
    pub(super) fn broken_of(&self, numbers: &BTreeMap<u64, &'static str>) -> Option<Vec<&'static str>> {
        let state = self.state();
        let pending = numbers.keys().any(|number| state.open.contains_key(number));
        (!pending).then(|| numbers.keys().filter_map(|number| state.broken.get(number).copied()).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Its connection ended before the whole answer was there.
    pub(super) fn broken(self) {
        let mut state = self.flights.state();
        if let Some(what) = state.open.remove(&self.number) {
            state.broken.insert(self.number, what);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.state().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_under_way_and_broke_counts() {
        let flights = Flights::default();
        let (broken, answered) = (flights.begin("broken"), flights.begin("answered"));
        let open = flights.open();
        assert_eq!(flights.broken_of(&open), None);
        drop(answered);
        broken.broken();
        assert_eq!(flights.broken_of(&open), Some(vec!["broken"]));
        let later = flights.begin("later");
        let open = flights.open();
        drop(later);
        assert_eq!(flights.broken_of(&open), Some(vec![]));
    }
}
