//! Where the time of a start went: one entry per phase, in the order in which the phases ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One phase of a start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What was done: `image`, `sandbox`, `network`, `rootfs`, `start`, …
    pub phase: String,
    /// When it began.
    pub start: Timestamp,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// The phases of one pod's start, shared by everybody who works on it.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    phases: Arc<Mutex<Vec<Phase>>>,
}

impl Timeline {
    /// Runs `work` and keeps how long it took, whatever its outcome.
    pub async fn measure<T>(&self, phase: &str, work: impl Future<Output = T>) -> T {
        let (start, clock) = (Timestamp::now(), Instant::now());
        let result = work.await;
        self.push(phase, start, clock.elapsed().as_secs_f64() * 1000.0);
        result
    }

    /// Adds a phase measured elsewhere.
    pub fn push(&self, phase: &str, start: Timestamp, ms: f64) {
        let rounded = (ms * 1000.0).round() / 1000.0;
        self.lock().push(Phase { phase: phase.to_owned(), start, ms: rounded });
    }

    /// All phases so far, by their beginning.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases = self.lock().clone();
        phases.sort_by_key(|phase| phase.start);
        phases
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
