//! The demand cache of a layer: a sparse file with the pages that are here, and a map that says which those are.
//!
//! **Crash consistency.** A page is written before its bit is, in memory and in the map's file. Nothing is ever synced: after a
//! kill both files are as they were left, and after another boot neither is looked at (see `state`). A bit in the file that was
//! lost costs a page to be unpacked again, nothing else.

use super::range_set::RangeSet;
use crate::tree::BLOCK_BYTES;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const WORD_PAGES: u64 = 64;

#[derive(Debug)]
pub(crate) struct PageCache {
    data: File,
    map: Box<[AtomicU64]>,
    pages: u64,
    present: AtomicU64,
    /// Written under its lock, so that no word of the file is older than one written before.
    map_file: Mutex<File>,
}

impl PageCache {
    /// Makes an empty cache for a blob of so many bytes.
    pub(crate) fn create(directory: &Path, blob_bytes: u64) -> io::Result<Self> {
        let open =
            |name| File::options().read(true).write(true).create_new(true).mode(0o600).open(directory.join(name));
        let (data, map_file) = (open("pages")?, open("map")?);
        data.set_len(blob_bytes)?;
        let pages = blob_bytes.div_ceil(BLOCK_BYTES);
        map_file.set_len(pages.div_ceil(WORD_PAGES) * 8)?;
        let map = (0..pages.div_ceil(WORD_PAGES)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { data, map, pages, present: AtomicU64::new(0), map_file: Mutex::new(map_file) })
    }

    /// Takes up what an earlier process of the same boot has left.
    pub(crate) fn open(directory: &Path, blob_bytes: u64) -> io::Result<Self> {
        let open = |name| File::options().read(true).write(true).open(directory.join(name));
        let (data, map_file) = (open("pages")?, open("map")?);
        let pages = blob_bytes.div_ceil(BLOCK_BYTES);
        let words = pages.div_ceil(WORD_PAGES);
        if data.metadata()?.len() != blob_bytes || map_file.metadata()?.len() != words * 8 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; (words * 8) as usize];
        map_file.read_exact_at(&mut bytes, 0)?;
        let (stored, _) = bytes.as_chunks::<8>();
        let map: Box<[AtomicU64]> = stored.iter().map(|word| AtomicU64::new(u64::from_le_bytes(*word))).collect();
        let present = map.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum();
        Ok(Self { data, map, pages, present: AtomicU64::new(present), map_file: Mutex::new(map_file) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pages * BLOCK_BYTES
    }

    /// Bytes of the pages that are here.
    pub(crate) fn present_bytes(&self) -> u64 {
        self.present.load(Ordering::Relaxed) * BLOCK_BYTES
    }

    pub(crate) fn file(&self) -> &File {
        &self.data
    }

    /// Whether all these pages are here; those past the end are.
    pub(crate) fn has(&self, pages: Range<u64>) -> bool {
        words(pages.start..pages.end.min(self.pages)).all(|(word, bits)| self.word(word) & bits == bits)
    }

    /// The pages among these that are not here.
    pub(crate) fn missing(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for page in pages.start..pages.end.min(self.pages) {
            if self.has(page..page + 1) {
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.end == page => last.end = page + 1,
                _ => missing.push(page..page + 1),
            }
        }
        missing
    }

    /// All pages that are here.
    pub(crate) fn all_present(&self) -> RangeSet {
        let mut present = RangeSet::default();
        for page in (0..self.pages).filter(|page| self.has(*page..page + 1)) {
            present.add(page..page + 1);
        }
        present
    }

    /// Writes bytes whose pages are not marked yet.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, offset)
    }

    /// Says that pages are here: they were written before.
    pub(crate) fn mark(&self, pages: Range<u64>) -> io::Result<()> {
        let mut changed = Vec::new();
        for (word, bits) in words(pages.start..pages.end.min(self.pages)) {
            let Some(here) = self.map.get(word) else { break };
            let before = here.fetch_or(bits, Ordering::Release);
            if before & bits != bits {
                self.present.fetch_add(u64::from((bits & !before).count_ones()), Ordering::Relaxed);
                changed.push(word);
            }
        }
        let (Some(first), Some(last)) = (changed.first(), changed.last()) else { return Ok(()) };
        let map_file = self.map_file.lock().unwrap_or_else(PoisonError::into_inner);
        let now: Vec<u8> = (*first..=*last).flat_map(|word| self.word(word).to_le_bytes()).collect();
        map_file.write_all_at(&now, *first as u64 * 8)
    }

    fn word(&self, word: usize) -> u64 {
        self.map.get(word).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// The words of the map in which pages stand, and their bits there.
fn words(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let first = pages.start / WORD_PAGES;
    let end = if pages.is_empty() { first } else { pages.end.div_ceil(WORD_PAGES) };
    (first..end).map(move |word| {
        let begin = word * WORD_PAGES;
        let from = pages.start.max(begin) - begin;
        let to = pages.end.min(begin + WORD_PAGES) - begin;
        let up_to = if to == WORD_PAGES { u64::MAX } else { (1 << to) - 1 };
        (word as usize, up_to & (u64::MAX << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn marks_are_found_again(marks in prop::collection::vec((0u64..300, 0u64..140), 0..12), look in (0u64..300, 0u64..200)) {
            let directory = tempfile::tempdir().unwrap();
            let cache = PageCache::create(directory.path(), 300 * BLOCK_BYTES).unwrap();
            let mut model = BTreeSet::new();
            for (start, length) in marks {
                cache.mark(start..start + length).unwrap();
                model.extend(start..(start + length).min(300));
            }
            let again = PageCache::open(directory.path(), 300 * BLOCK_BYTES).unwrap();
            for cache in [&cache, &again] {
                prop_assert_eq!(cache.present_bytes(), model.len() as u64 * BLOCK_BYTES);
                let look = look.0..look.0 + look.1;
                let missing: Vec<u64> = cache.missing(look.clone()).into_iter().flatten().collect();
                let expected: Vec<u64> = look.clone().filter(|page| *page < 300 && !model.contains(page)).collect();
                prop_assert_eq!(cache.has(look), expected.is_empty());
                prop_assert_eq!(missing, expected);
                prop_assert_eq!(cache.all_present().total(), model.len() as u64);
            }
            prop_assert!(PageCache::open(directory.path(), 301 * BLOCK_BYTES).is_err());
        }
    }
}
