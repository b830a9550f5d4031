//! The span part of an index: from a file of this node, or from where it was published.

use super::limits::{RECORDS_KEPT_BYTES_MAX, RECORDS_READ_BYTES};
use super::source::{IndexSource, RecordSource, SourceError, WantedImage};
use crate::store::registry::{Client, Origin};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OnceCell};

/// An index file that is here whole.
pub(crate) struct FileRecords(pub(crate) File);

#[async_trait]
impl RecordSource for FileRecords {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        // The file may be shorter than the front part says: never trust a length before it was read.
        let end = range.end.min(self.0.metadata().map_err(SourceError::Read)?.len());
        let mut bytes = vec![0; end.saturating_sub(range.start) as usize];
        self.0.read_exact_at(&mut bytes, range.start).map_err(SourceError::Read)?;
        Ok(bytes.into())
    }
}

/// Records of a published index that an earlier process began to use: they are looked for again when one is needed. The front
/// part, which is here, vouches for them.
pub(crate) struct RefoundRecords {
    pub(crate) client: Client,
    pub(crate) origin: Origin,
    pub(crate) platform: Platform,
    pub(crate) index_source: Arc<dyn IndexSource>,
    pub(crate) diff_id: Digest,
    pub(crate) found: OnceCell<Arc<dyn RecordSource>>,
}

impl RefoundRecords {
    async fn find(&self) -> Result<Arc<dyn RecordSource>, SourceError> {
        let resolved = self.client.resolve(&self.origin, &self.platform).await?;
        let wanted = WantedImage {
            source: self.origin.source.clone(),
            credentials: self.origin.credentials.clone(),
            manifest: resolved.manifest_digest,
            layers: resolved.manifest.layers,
            diff_ids: resolved.config.rootfs.diff_ids,
        };
        let number = wanted.diff_ids.iter().position(|diff_id| *diff_id == self.diff_id);
        let published = self.index_source.find(&wanted).await;
        let layer = published.zip(number).and_then(|(mut image, at)| image.layers.get_mut(at)?.take());
        let gone = || SourceError::Damaged("the index is no longer published".to_owned());
        Ok(layer.ok_or_else(gone)?.records)
    }
}

#[async_trait]
impl RecordSource for RefoundRecords {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        self.found.get_or_try_init(|| self.find()).await?.read(range).await
    }
}

/// Records, read more at a time than is asked for: those of the next spans are small, and asking for them costs a request. What
/// two readers want at the same time is read once.
pub(crate) struct RecordsAhead {
    source: Arc<dyn RecordSource>,
    /// Where the last record ends in the file.
    end: u64,
    state: Mutex<Ahead>,
    changed: Notify,
}

#[derive(Default)]
struct Ahead {
    /// Where each piece begins in the file; the one that came last, last.
    kept: VecDeque<(u64, Bytes)>,
    coming: Vec<Range<u64>>,
}

/// A piece that its holder reads. Dropped, others may read it.
struct Coming<'a> {
    records: &'a RecordsAhead,
    range: Range<u64>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.records.state().coming.retain(|coming| *coming != self.range);
        self.records.changed.notify_waiters();
    }
}

impl RecordsAhead {
    pub(crate) fn new(source: Arc<dyn RecordSource>, end: u64) -> Self {
        Self { source, end, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, Ahead> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`RecordSource::read`]; may give less where the file is shorter than it should be.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let mut bytes = BytesMut::new();
        let mut at = range.start;
        while at < range.end {
            let changed = self.changed.notified();
            let coming = {
                let mut state = self.state();
                if let Some(kept) = state.from(at) {
                    let kept = kept.slice(..kept.len().min((range.end - at) as usize));
                    bytes.extend_from_slice(&kept);
                    at += kept.len() as u64;
                    continue;
                }
                state.begin(at, range.end.max((at + RECORDS_READ_BYTES).min(self.end)))
            };
            let Some(range_read) = coming else {
                changed.await;
                continue;
            };
            let coming = Coming { records: self, range: range_read };
            let read = self.source.read(coming.range.clone()).await?;
            if read.is_empty() {
                break;
            }
            let wanted = read.len().min((range.end - at) as usize);
            bytes.extend_from_slice(&read.slice(..wanted));
            self.state().keep(at, read);
            at += wanted as u64;
        }
        Ok(bytes.freeze())
    }

    /// Reads a range anew the next time: what was given was wrong.
    pub(crate) fn forget(&self, range: &Range<u64>) {
        let overlaps = |start: u64, bytes: &Bytes| start < range.end && range.start < start + bytes.len() as u64;
        self.state().kept.retain(|(start, bytes)| !overlaps(*start, bytes));
    }
}

impl Ahead {
    /// What is kept from a position on.
    fn from(&self, at: u64) -> Option<Bytes> {
        let kept = self.kept.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at));
        kept.map(|(start, bytes)| bytes.slice((at - start) as usize..))
    }

    /// The piece to read from a position on, up to what is kept or coming; `None` if that position is coming.
    fn begin(&mut self, at: u64, end: u64) -> Option<Range<u64>> {
        if self.coming.iter().any(|coming| coming.contains(&at)) {
            return None;
        }
        let starts = self.kept.iter().map(|(start, _)| *start).chain(self.coming.iter().map(|coming| coming.start));
        let end = starts.filter(|start| *start > at).min().map_or(end, |next| next.min(end));
        self.coming.push(at..end);
        Some(at..end)
    }

    fn keep(&mut self, at: u64, bytes: Bytes) {
        self.kept.push_back((at, bytes));
        let mut total: u64 = self.kept.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        while total > RECORDS_KEPT_BYTES_MAX
            && let Some((_, oldest)) = self.kept.pop_front()
        {
            total -= oldest.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose bytes follow from their places, and what was read of it.
    struct Counted {
        bytes: u64,
        reads: Mutex<Vec<(u64, u64)>>,
    }

    fn truth(range: Range<u64>) -> Vec<u8> {
        range.map(|at| (at * 7 + at / 256) as u8).collect()
    }

    #[async_trait]
    impl RecordSource for Counted {
        async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
            self.reads.lock().unwrap().push((range.start, range.end));
            tokio::task::yield_now().await;
            Ok(truth(range.start..range.end.min(self.bytes)).into())
        }
    }

    fn ahead(bytes: u64, end: u64) -> (Arc<Counted>, RecordsAhead) {
        let source = Arc::new(Counted { bytes, reads: Mutex::default() });
        (source.clone(), RecordsAhead::new(source, end))
    }

    #[tokio::test]
    async fn neighbours_are_read_once_and_what_was_wrong_anew() {
        let (source, records) = ahead(100_000, 100_000);
        assert_eq!(records.read(1000..4000).await.unwrap(), truth(1000..4000));
        assert_eq!(records.read(4000..9000).await.unwrap(), truth(4000..9000));
        assert_eq!(*source.reads.lock().unwrap(), [(1000, 1000 + RECORDS_READ_BYTES)]);
        // Before it, over it, and past its end.
        assert_eq!(records.read(500..50_000).await.unwrap(), truth(500..50_000));
        assert_eq!(source.reads.lock().unwrap()[1..], [(500, 1000), (33_768, 66_536)]);
        assert_eq!(records.read(99_000..100_000).await.unwrap(), truth(99_000..100_000));
        assert_eq!(source.reads.lock().unwrap()[3..], [(99_000, 100_000)], "nothing is read past the last record");
        records.forget(&(2000..2001));
        assert_eq!(records.read(2000..2100).await.unwrap(), truth(2000..2100));
        assert_eq!(source.reads.lock().unwrap()[4..], [(2000, 33_768)], "up to what is still kept");
    }

    #[tokio::test]
    async fn two_readers_wait_for_one_reading() {
        let (source, records) = ahead(100_000, 100_000);
        let (one, two) = tokio::join!(records.read(0..3000), records.read(2000..6000));
        assert_eq!((one.unwrap(), two.unwrap()), (truth(0..3000).into(), truth(2000..6000).into()));
        assert_eq!(*source.reads.lock().unwrap(), [(0, RECORDS_READ_BYTES)]);
    }

    #[tokio::test]
    async fn a_short_file_gives_what_it_has_and_a_long_one_is_not_kept_whole() {
        let (_, records) = ahead(5000, 100_000);
        assert_eq!(records.read(4000..6000).await.unwrap(), truth(4000..5000));
        let (source, records) = ahead(1 << 22, 1 << 22);
        for start in (0..1 << 22).step_by(1 << 18) {
            assert_eq!(records.read(start..start + 10).await.unwrap(), truth(start..start + 10));
        }
        assert_eq!(source.reads.lock().unwrap().len(), 16);
        let large = 0..RECORDS_KEPT_BYTES_MAX + 100;
        assert_eq!(records.read(large.clone()).await.unwrap(), truth(large));
        assert!(
            records.state().kept.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() <= RECORDS_KEPT_BYTES_MAX
        );
    }
}
