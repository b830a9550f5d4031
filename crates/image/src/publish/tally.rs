//! How many bytes of published files have come, by what they were for.

use super::place::Place;
use crate::lazy::source::{RecordSource, SourceError};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Only grows.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Front parts of indexes, needed before an image can be mounted.
    pub(crate) fronts: AtomicU64,
    /// Records of spans.
    pub(crate) records: AtomicU64,
    pub(crate) packs: AtomicU64,
    pub(crate) traces: AtomicU64,
}

impl Tally {
    pub(super) fn add(counter: &AtomicU64, bytes: &Bytes) {
        counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// The records of a published index, counted.
pub(super) struct CountedRecords {
    pub(super) place: Place,
    pub(super) tally: Arc<Tally>,
}

#[async_trait]
impl RecordSource for CountedRecords {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let bytes = self.place.read_all(range).await?;
        Tally::add(&self.tally.records, &bytes);
        Ok(bytes)
    }
}
