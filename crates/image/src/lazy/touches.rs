//! Which pages of a layer were read, each once, in the order of the first read.
//!
//! The order counts over all layers of the service: see [`Clock`].

use super::limits::TOUCHES_MAX;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Numbers that tell what came first.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Touches {
    seen: Box<[AtomicU64]>,
    order: Mutex<Vec<(u64, u32)>>,
}

impl Touches {
    pub(crate) fn new(pages: u64) -> Self {
        Self { seen: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), order: Mutex::default() }
    }

    pub(crate) fn note(&self, pages: Range<u64>, clock: &Clock) {
        for page in pages {
            let bit = 1 << (page % 64);
            let Some(word) = self.seen.get((page / 64) as usize) else { return };
            if word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
                continue;
            }
            let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            if order.len() < TOUCHES_MAX
                && let Ok(page) = u32::try_from(page)
            {
                order.push((clock.tick(), page));
            }
        }
    }

    /// When each page was first read, and its number.
    pub(crate) fn all(&self) -> Vec<(u64, u32)> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
