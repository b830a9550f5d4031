//! What becomes of an event beside those before it. Pure: the clock is the caller's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use super::{Event, Kind};
use crate::limits::{EVENTS_AT_ONCE, EVENTS_FOLDED_MAX, EVENTS_REFILL, EVENTS_SIMILAR_MAX, EVENTS_SIMILAR_WITHIN};

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// A new event under this suffix, with this message.
    New(String, String),
    /// One more of that event.
    Again(String, String),
    /// Nothing: there have been too many.
    Dropped,
}

/// The same event: reason, message, container.
type Same = (&'static str, String, Option<String>);
/// Events of a kind, whatever they say.
type Similar = (&'static str, Kind, Option<String>);

/// What has been told of one pod.
#[derive(Debug)]
pub(super) struct Correlator {
    known: HashMap<Same, String>,
    similar: HashMap<Similar, (Timestamp, HashSet<String>)>,
    /// How many may come at once now, and when that was.
    tokens: f64,
    counted: Timestamp,
    next: u64,
}

impl Correlator {
    pub(super) fn new(now: Timestamp) -> Self {
        let first = sampan_kit::id::short().ok().and_then(|id| u64::from_str_radix(&id, 16).ok()).unwrap_or_default();
        Self { known: HashMap::new(), similar: HashMap::new(), tokens: EVENTS_AT_ONCE, counted: now, next: first }
    }

    pub(super) fn judge(&mut self, event: &Event, now: Timestamp) -> Judged {
        let waited = now.duration_since(self.counted).as_secs_f64().max(0.0);
        self.counted = now;
        self.tokens = (self.tokens + waited / EVENTS_REFILL.as_secs_f64()).min(EVENTS_AT_ONCE);
        if self.tokens < 1.0 {
            return Judged::Dropped;
        }
        self.tokens -= 1.0;
        let (same, message) = self.fold(event, now);
        if let Some(key) = self.known.get(&same) {
            return Judged::Again(key.clone(), message);
        }
        if self.known.len() >= EVENTS_FOLDED_MAX {
            self.known.clear();
        }
        self.next = self.next.wrapping_add(1);
        let key = format!("{:016x}", self.next);
        self.known.insert(same, key.clone());
        Judged::New(key, message)
    }

    /// Who the event is the same as, and what it says: of many that differ only in their words one is made.
    fn fold(&mut self, event: &Event, now: Timestamp) -> (Same, String) {
        let similar = (event.reason, event.kind, event.field.clone());
        let (last, messages) = self.similar.entry(similar).or_insert_with(|| (now, HashSet::new()));
        if now.duration_since(*last) > signed(EVENTS_SIMILAR_WITHIN) {
            messages.clear();
        }
        *last = now;
        if messages.len() < EVENTS_SIMILAR_MAX {
            messages.insert(event.message.clone());
        }
        if messages.contains(&event.message) {
            return ((event.reason, event.message.clone(), event.field.clone()), event.message.clone());
        }
        let combined = (event.reason, String::new(), event.field.clone());
        (combined, format!("(combined from similar events): {}", event.message))
    }
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Correlator, Judged};
    use crate::events::{Event, Kind};
    use jiff::Timestamp;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn event(reason: &'static str, message: &str) -> Event {
        Event { kind: Kind::Warning, reason, message: message.to_owned(), field: None }
    }

    #[test]
    fn the_same_again_is_counted() {
        let mut correlator = Correlator::new(at(0));
        let Judged::New(key, _) = correlator.judge(&event("Unhealthy", "no"), at(0)) else { panic!("not new") };
        assert_eq!(correlator.judge(&event("Unhealthy", "no"), at(1)), Judged::Again(key, "no".to_owned()));
        assert!(matches!(correlator.judge(&event("Unhealthy", "yes"), at(1)), Judged::New(..)));
        assert!(matches!(correlator.judge(&event("Killing", "no"), at(1)), Judged::New(..)));
    }

    #[test]
    fn many_of_a_kind_become_one() {
        let mut correlator = Correlator::new(at(0));
        for number in 0..10 {
            assert!(matches!(correlator.judge(&event("Failed", &format!("no {number}")), at(0)), Judged::New(..)));
        }
        let combined = "(combined from similar events): no 10";
        let Judged::New(key, message) = correlator.judge(&event("Failed", "no 10"), at(0)) else { panic!("not new") };
        assert_eq!(message, combined);
        let Judged::Again(again, message) = correlator.judge(&event("Failed", "no 11"), at(1)) else { panic!("new") };
        assert_eq!((again, message.as_str()), (key, "(combined from similar events): no 11"));
        assert!(matches!(correlator.judge(&event("Failed", "no 0"), at(1)), Judged::Again(..)));
        // After ten silent minutes it is a new story.
        let Judged::New(_, message) = correlator.judge(&event("Failed", "no 12"), at(1000)) else { panic!("not new") };
        assert_eq!(message, "no 12");
    }

    #[test]
    fn who_never_stops_talking_is_heard_now_and_then() {
        let mut correlator = Correlator::new(at(0));
        let told = (0..1000).filter(|_| correlator.judge(&event("BackOff", "x"), at(0)) != Judged::Dropped).count();
        assert_eq!(told, 25);
        assert_eq!(correlator.judge(&event("BackOff", "x"), at(299)), Judged::Dropped);
        assert_ne!(correlator.judge(&event("BackOff", "x"), at(301)), Judged::Dropped);
    }
}
