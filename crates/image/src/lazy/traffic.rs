//! Who may use the network: a reader who waits goes before what will probably be read, and that before all the rest.
//!
//! Demand never waits for the others here, only for its own number; prefetch pauses between two pieces while a reader waits, and
//! the background until readers have been quiet for a while. Nobody is starved: a pause has an end. Pauses stand between the
//! chunks of a transfer, so that one that has begun is held back by TCP and not thrown away.

use super::limits::{
    BACKGROUND_AT_ONCE, BACKGROUND_CAREFUL, BACKGROUND_CAREFUL_PART_BYTES, BACKGROUND_PART_BYTES,
    BACKGROUND_PARTS_AHEAD, BACKGROUND_PAUSE_MAX, BACKGROUND_QUIET, DEMAND_AT_ONCE, HURRY_TICK, PREFETCH_AT_ONCE,
    PREFETCH_PAUSE_MAX, SILENCE,
};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

/// Why bytes are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Background,
    Prefetch,
    Demand,
}

#[derive(Debug)]
pub(crate) struct Traffic {
    demand: Semaphore,
    prefetch: Semaphore,
    /// Layers that are being completed.
    pub(crate) background: Semaphore,
    /// Transfers under way that a reader waits for.
    urgent: AtomicUsize,
    last_urgent: Mutex<Option<Instant>>,
    calm: Notify,
    budget: Option<Mutex<Budget>>,
    pub(crate) counters: Counters,
}

/// What has happened since the service started. All of it only grows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) failed_reads: AtomicU64,
    pub(crate) stall_micros: AtomicU64,
    pub(crate) demand_bytes: AtomicU64,
    pub(crate) prefetch_bytes: AtomicU64,
    pub(crate) background_bytes: AtomicU64,
    /// Of layers that were pulled whole before they were used.
    pub(crate) whole_bytes: AtomicU64,
    pub(crate) layers_completed: AtomicU64,
    pub(crate) layers_refused: AtomicU64,
}

/// Bytes a second, spent ahead and waited for afterwards.
#[derive(Debug)]
struct Budget {
    bytes_per_second: u64,
    spent_until: Instant,
}

/// A transfer that a reader waits for, as long as it is held.
#[derive(Debug)]
pub(crate) struct Urgent<'a>(&'a Traffic);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.expect_readers();
        if self.0.urgent.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.calm.notify_waiters();
        }
    }
}

impl Traffic {
    /// `background_bytes_per_second` bounds what nobody waits for.
    pub(crate) fn new(background_bytes_per_second: Option<u64>) -> Self {
        let budget = background_bytes_per_second
            .map(|rate| Mutex::new(Budget { bytes_per_second: rate.max(1), spent_until: Instant::now() }));
        Self {
            demand: Semaphore::new(DEMAND_AT_ONCE),
            prefetch: Semaphore::new(PREFETCH_AT_ONCE),
            background: Semaphore::new(BACKGROUND_AT_ONCE),
            urgent: AtomicUsize::new(0),
            last_urgent: Mutex::new(None),
            calm: Notify::new(),
            budget,
            counters: Counters::default(),
        }
    }

    pub(crate) fn permits(&self, class: Class) -> &Semaphore {
        match class {
            Class::Demand => &self.demand,
            Class::Prefetch => &self.prefetch,
            Class::Background => &self.background,
        }
    }

    pub(crate) fn urgent(&self) -> Urgent<'_> {
        self.expect_readers();
        self.urgent.fetch_add(1, Ordering::AcqRel);
        Urgent(self)
    }

    /// Lets those go first who matter more, unless `hurry` says that someone waits for just this.
    pub(crate) async fn give_way(&self, class: Class, hurry: impl Fn() -> bool) {
        let (quiet, longest) = match class {
            Class::Demand => return,
            Class::Prefetch => (Duration::ZERO, PREFETCH_PAUSE_MAX),
            Class::Background => (BACKGROUND_QUIET, BACKGROUND_PAUSE_MAX),
        };
        let end = Instant::now() + longest;
        loop {
            let calm = self.calm.notified();
            let now = Instant::now();
            if now >= end || hurry() {
                return;
            }
            let slice = (end - now).min(HURRY_TICK);
            let quiet_for = self.quiet_for(now);
            // Readers whose registry is silent hold nobody up.
            if self.urgent.load(Ordering::Acquire) > 0 && quiet_for.is_none_or(|quiet| quiet < SILENCE) {
                // Whichever comes first.
                tokio::time::timeout(slice, calm).await.ok();
                continue;
            }
            match quiet.checked_sub(quiet_for.unwrap_or(quiet)).filter(|rest| !rest.is_zero()) {
                Some(rest) => tokio::time::sleep(rest.min(slice)).await,
                None => return,
            }
        }
    }

    /// Readers are about, or are going to be: an image has just been made ready.
    pub(crate) fn expect_readers(&self) {
        *self.last_urgent.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// For how long no reader has waited; `None` if none ever has.
    fn quiet_for(&self, now: Instant) -> Option<Duration> {
        let last = *self.last_urgent.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| now.saturating_duration_since(last))
    }

    /// How much the background asks for at a time: little while readers are about, who may want just what it is bringing.
    /// And how many of those ahead of what is being unpacked.
    pub(crate) fn background_parts(&self) -> (u64, usize) {
        let is_busy = self.urgent.load(Ordering::Acquire) > 0
            || self.quiet_for(Instant::now()).is_some_and(|quiet| quiet < BACKGROUND_CAREFUL);
        if is_busy || self.budget.is_some() {
            (BACKGROUND_CAREFUL_PART_BYTES, 0)
        } else {
            (BACKGROUND_PART_BYTES, BACKGROUND_PARTS_AHEAD)
        }
    }

    /// Counts bytes that came, and makes the background wait for its budget.
    pub(crate) async fn account(&self, class: Class, bytes: u64, hurry: impl Fn() -> bool) {
        let counter = match class {
            Class::Demand => &self.counters.demand_bytes,
            Class::Prefetch => &self.counters.prefetch_bytes,
            Class::Background => &self.counters.background_bytes,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        if class != Class::Background {
            self.expect_readers();
        }
        if class == Class::Background
            && let Some(budget) = &self.budget
        {
            let until = budget.lock().unwrap_or_else(PoisonError::into_inner).spend(Instant::now(), bytes);
            while !hurry() && Instant::now() < until {
                tokio::time::sleep(until.saturating_duration_since(Instant::now()).min(HURRY_TICK)).await;
            }
        }
    }
}

impl Budget {
    fn spend(&mut self, now: Instant, bytes: u64) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.spent_until = self.spent_until.max(now) + cost;
        self.spent_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_background_waits_until_its_bytes_are_paid() {
        let now = Instant::now();
        let mut budget = Budget { bytes_per_second: 1000, spent_until: now };
        let later = |millis| now + Duration::from_millis(millis);
        assert_eq!(budget.spend(now, 1500), later(1500));
        assert_eq!(budget.spend(now, 500), later(2000));
        assert_eq!(budget.spend(later(9000), 1000), later(10_000), "what was not spent is not saved up");
    }

    #[tokio::test]
    async fn prefetch_goes_on_when_the_last_reader_has_his_bytes() {
        let traffic = Arc::new(Traffic::new(None));
        let (one, two) = (traffic.urgent(), traffic.urgent());
        let mut way = Box::pin(traffic.give_way(Class::Prefetch, || false));
        drop(one);
        assert!(futures_poll(&mut way).await.is_none(), "a reader still waits");
        drop(two);
        way.await;
        traffic.give_way(Class::Demand, || false).await;
        let _three = traffic.urgent();
        traffic.give_way(Class::Background, || true).await;
    }

    /// One look at a future.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut future = std::pin::Pin::new(future);
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
