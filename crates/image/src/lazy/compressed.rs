//! The compressed bytes of a layer that are here, so that none is ever downloaded twice.
//!
//! Whoever needs a range *claims* the parts of it that are neither here nor claimed, brings them, and waits for those that
//! others are bringing. Readers follow behind and take what has come.
//!
//! ```text
//! fetch  ──claim──▶ write at its offset ──▶ present ──▶ readers woken
//! decode ──wait for the byte it needs──▶ read as far as present
//! ```
//!
//! The extents that are here stand in a file of their own, one entry after the other, so that they are found after a kill;
//! bytes are written before their entry. Nothing is known of the bytes themselves until their chunks, or the whole layer, were
//! checked: what turns out wrong is forgotten.

use super::range_set::RangeSet;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Set in the end of an entry that takes a range away.
const FORGOTTEN: u64 = 1 << 63;
const ENTRY_BYTES: usize = 16;

#[derive(Debug)]
pub(crate) struct CompressedCache {
    file: File,
    bytes: u64,
    state: Mutex<State>,
    arrived: Condvar,
    /// The same for those who wait asynchronously.
    changed: Notify,
    /// How many wait for what others are bringing.
    waiting: AtomicUsize,
}

/// One who waits for what another is bringing.
pub(crate) struct Waiting<'a>(&'a CompressedCache);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    present: RangeSet,
    claimed: RangeSet,
    extents: File,
}

/// A range that its holder brings. What it has not brought when this is dropped is free again.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    cache: &'a CompressedCache,
    rest: Range<u64>,
}

/// What there is to do for a range.
#[derive(Debug)]
pub(crate) enum Need<'a> {
    Nothing,
    Bring(Claim<'a>),
    /// Others bring all that is missing.
    Wait,
}

impl CompressedCache {
    pub(crate) fn create(directory: &Path, bytes: u64) -> io::Result<Self> {
        let open =
            |name| File::options().read(true).write(true).create_new(true).mode(0o600).open(directory.join(name));
        Ok(Self::new(open("compressed")?, open("extents")?, RangeSet::default(), bytes))
    }

    /// Takes up what an earlier process of the same boot has left. An entry that was cut short is dropped.
    pub(crate) fn open(directory: &Path, bytes: u64) -> io::Result<Self> {
        let open = |name| File::options().read(true).write(true).open(directory.join(name));
        let (file, mut extents) = (open("compressed")?, open("extents")?);
        let mut entries = Vec::new();
        extents.read_to_end(&mut entries)?;
        let whole = entries.len() / ENTRY_BYTES * ENTRY_BYTES;
        extents.set_len(whole as u64)?;
        io::Seek::seek(&mut extents, io::SeekFrom::Start(whole as u64))?;
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        let mut present = RangeSet::default();
        for entry in entries {
            let (start, end) = entry.split_at(8);
            let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let (start, end) = (number(start), number(end));
            match end & FORGOTTEN {
                0 => present.add(start..end.min(bytes)),
                _ => present.remove(start..end & !FORGOTTEN),
            }
        }
        Ok(Self::new(file, extents, present, bytes))
    }

    fn new(file: File, extents: File, present: RangeSet, bytes: u64) -> Self {
        let state = Mutex::new(State { present, claimed: RangeSet::default(), extents });
        Self { file, bytes, state, arrived: Condvar::new(), changed: Notify::new(), waiting: AtomicUsize::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the whole layer.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn present_bytes(&self) -> u64 {
        self.state().present.total()
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Claims the first part of `range` that nobody has or brings.
    pub(crate) fn need(&self, range: &Range<u64>) -> Need<'_> {
        let mut state = self.state();
        let mut is_here = true;
        for missing in state.present.missing(range.clone()) {
            is_here = false;
            if let Some(free) = state.claimed.missing(missing).into_iter().next() {
                state.claimed.add(free.clone());
                return Need::Bring(Claim { cache: self, rest: free });
            }
        }
        if is_here { Need::Nothing } else { Need::Wait }
    }

    /// Waits until something has arrived or a claim has ended since `need` was asked: make the future before asking.
    pub(crate) fn change(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Says that a reader waits for what another transfer is bringing, as long as the answer is held.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Wakes everyone who waits, to look again.
    pub(crate) fn wake(&self) {
        drop(self.state());
        self.arrived.notify_all();
        self.changed.notify_waiters();
    }

    /// Blocks until the byte at `at` is here, and says up to where there is more; `None` as soon as `given_up` says so.
    pub(crate) fn wait(&self, at: u64, given_up: impl Fn() -> bool) -> Option<u64> {
        let mut state = self.state();
        loop {
            let end = state.present.end_from(at);
            if end > at {
                return Some(end);
            }
            if given_up() {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether all of a range is here.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.state().present.end_from(range.start) >= range.end
    }

    /// Writes bytes that nobody has claimed; past the end they are ignored.
    pub(crate) fn put(&self, at: u64, chunk: &Bytes) -> io::Result<()> {
        let room = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let chunk = chunk.get(..room).unwrap_or(chunk);
        self.file.write_all_at(chunk, at)?;
        let range = at..at + chunk.len() as u64;
        let mut state = self.state();
        state.note(range.start, range.end)?;
        state.present.add(range);
        drop(state);
        self.wake();
        Ok(())
    }

    /// Takes bytes away that were not what they should be.
    pub(crate) fn forget(&self, range: Range<u64>) -> io::Result<()> {
        let mut state = self.state();
        state.present.remove(range.clone());
        let end = range.end | FORGOTTEN;
        state.note(range.start, end)
    }
}

impl State {
    fn note(&mut self, start: u64, end: u64) -> io::Result<()> {
        let mut entry = [0; ENTRY_BYTES];
        let (first, last) = entry.split_at_mut(8);
        first.copy_from_slice(&start.to_le_bytes());
        last.copy_from_slice(&end.to_le_bytes());
        self.extents.write_all(&entry)
    }
}

impl Claim<'_> {
    /// What is still to be brought.
    pub(crate) fn rest(&self) -> Range<u64> {
        self.rest.clone()
    }

    pub(crate) fn cache(&self) -> &CompressedCache {
        self.cache
    }

    /// Room on the disk that the bytes go to.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        crate::disk::free_bytes(&self.cache.file)
    }

    /// Writes the next bytes; more than were claimed are ignored.
    pub(crate) fn bring(&mut self, chunk: &Bytes) -> io::Result<()> {
        let missing = usize::try_from(self.rest.end - self.rest.start).unwrap_or(usize::MAX);
        let chunk = chunk.get(..missing).unwrap_or(chunk);
        self.cache.file.write_all_at(chunk, self.rest.start)?;
        let range = self.rest.start..self.rest.start + chunk.len() as u64;
        let mut state = self.cache.state();
        state.note(range.start, range.end)?;
        state.present.add(range.clone());
        state.claimed.remove(range.clone());
        drop(state);
        self.rest.start = range.end;
        self.cache.wake();
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            self.cache.state().claimed.remove(self.rest.clone());
            self.cache.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_is_found_after_a_kill_and_claims_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let cache = CompressedCache::create(directory.path(), 1000).unwrap();
        let Need::Bring(mut first) = cache.need(&(100..300)) else { panic!("nobody has it") };
        assert_eq!(first.rest(), 100..300);
        let Need::Bring(second) = cache.need(&(50..350)) else { panic!("the edges are free") };
        assert_eq!(second.rest(), 50..100);
        assert!(matches!(cache.need(&(150..200)), Need::Wait));
        first.bring(&Bytes::from(vec![7; 60])).unwrap();
        assert!(matches!(cache.need(&(100..160)), Need::Nothing));
        assert_eq!(cache.wait(120, || true), Some(160));
        assert_eq!(cache.wait(160, || true), None);
        drop((first, second));
        let Need::Bring(rest) = cache.need(&(100..300)) else { panic!("it was given up") };
        assert_eq!(rest.rest(), 160..300);
        drop(rest);
        cache.forget(110..120).unwrap();

        let mut extents = File::options().append(true).open(directory.path().join("extents")).unwrap();
        extents.write_all(&[1; 9]).unwrap();
        let again = CompressedCache::open(directory.path(), 1000).unwrap();
        assert_eq!(again.present_bytes(), 50);
        assert_eq!(again.wait(100, || true), Some(110));
        let Need::Bring(mut torn) = again.need(&(110..120)) else { panic!("it was forgotten") };
        torn.bring(&Bytes::from(vec![8; 20])).unwrap();
        assert!(torn.rest().is_empty());
        let third = CompressedCache::open(directory.path(), 1000).unwrap();
        assert_eq!(third.present_bytes(), 60);
    }
}
