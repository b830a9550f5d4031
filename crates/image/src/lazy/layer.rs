//! One layer that is served while its bytes are still coming.
//!
//! ```text
//!  reader ─▶ here? ─yes─▶ bytes
//!              │no
//!              ▼
//!          waiter + wanted stretch ─▶ transfer: compressed bytes ∥ records ─▶ unpack ─▶ pages ─▶ waiters answered
//! ```
//!
//! **Concurrency.** One lock guards book and waiters; a waiter is entered under it after a last look at the pages, and pages are
//! marked before it is taken to answer, so that no reader is forgotten. Answers are called without it.
//! **Failure.** What fails is tried again for as long as a reader waits; after the deadline he gets EIO, and an event tells why.
//! **Cancellation.** [`LazyLayer::close`] ends all transfers; their claims are given back.

use super::blob_map::BlobMap;
use super::compressed::CompressedCache;
use super::decode::{Records, Stretch, compressed_range};
use super::demand::{Book, stretches, widened};
use super::error::LazyError;
use super::event::{LayerEvent, Report};
use super::limits::{CORRUPT_MAX, DEADLINE_TICK, LAYER_DEMAND_AT_ONCE, PACK_PATIENCE, START_MAX};
use super::pages::PageCache;
use super::partial_file::{Answer, PartialFile};
use super::records::RecordsAhead;
use super::remote::{Remote, retry_backoff};
use super::source::RecordSource;
use super::state::ReadBy;
use super::touches::{Clock, Touches};
use super::traffic::{Class, Traffic};
use crate::error::ImageError;
use crate::index::{IndexError, LayerIndex, SpanRecord, StreamLayout};
use crate::toc::SpanPiece;
use crate::tree::BLOCK_BYTES;
use rustix::io::Errno;
use sampan_kit::backoff::Backoff;
use sampan_kit::error_chain::ErrorChain;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

/// What all layers of a service share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) report: Report,
    pub(crate) read_deadline: Duration,
    pub(crate) runtime: Handle,
}

/// What one layer is made of.
pub(crate) struct LayerParts {
    /// Where its files are.
    pub(crate) directory: PathBuf,
    /// Its number among the files that are served.
    pub(crate) number: u64,
    pub(crate) index: LayerIndex,
    pub(crate) read_by: ReadBy,
    /// Where the front part of the index file ends.
    pub(crate) front_end: u64,
    pub(crate) records: Arc<dyn RecordSource>,
    pub(crate) remote: Remote,
    pub(crate) pages: PageCache,
    pub(crate) compressed: CompressedCache,
}

pub(crate) struct LazyLayer {
    me: Weak<Self>,
    around: Surroundings,
    pub(crate) directory: PathBuf,
    pub(crate) number: u64,
    /// Without its inodes, which nothing here needs.
    index: LayerIndex,
    /// What its records are.
    read_by: ReadBy,
    /// Where each record begins in the index file, and where the last one ends.
    record_starts: Vec<u64>,
    layout: StreamLayout,
    map: BlobMap,
    records: RecordsAhead,
    pub(crate) remote: Remote,
    pub(crate) pages: PageCache,
    pub(crate) compressed: CompressedCache,
    touches: Touches,
    /// When it began to arrive, unless an earlier process saw that.
    begun: OnceLock<Instant>,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    /// The whole blob, once it is complete and was compared.
    finished: OnceLock<File>,
    /// Set by whoever completes it, so that this is done once.
    pub(crate) completing: AtomicBool,
    /// How many transfers of this layer may be under way.
    permits: Semaphore,
    /// Whether pages out of a start pack are taken no longer; held while some are.
    packs_refused: Mutex<bool>,
}

#[derive(Default)]
struct State {
    book: Book,
    waiters: Vec<Waiter>,
    is_ticking: bool,
    trouble: Option<Trouble>,
    /// How often a stretch that begins with this span was not what it should be.
    corrupt: HashMap<usize, u32>,
    pack: Option<PackOnItsWay>,
}

struct Waiter {
    blob: Range<u64>,
    since: Instant,
    answer: Answer,
}

/// The last failure, until something succeeds.
struct Trouble {
    cause: String,
    backoff: Backoff,
    retry_at: Instant,
}

/// Pages that a start pack brings, so that nobody else fetches them.
struct PackOnItsWay {
    pages: HashSet<u32>,
    heard: Instant,
}

/// Tells the thread that unpacks a stretch that no more bytes come: when they cannot be brought, and when the transfer is dropped
/// with its runtime, which waits for that thread.
struct GivenUp {
    layer: Arc<LazyLayer>,
    now: Arc<AtomicBool>,
}

impl GivenUp {
    fn tell(&self) {
        self.now.store(true, Ordering::Relaxed);
        self.layer.compressed.wake();
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.tell();
    }
}

impl LazyLayer {
    pub(crate) fn new(parts: LayerParts, around: Surroundings) -> Arc<Self> {
        let LayerParts { directory, number, mut index, read_by, front_end, records, remote, pages, compressed } = parts;
        let layout = StreamLayout::new(&index.tree);
        let map = match read_by {
            ReadBy::Index => BlobMap::new(&index.tree.contents),
            ReadBy::Contents => BlobMap::of_pieces(&index.tree.contents),
        };
        index.tree.inodes = Vec::new();
        let mut record_starts = Vec::with_capacity(index.spans.len() + 1);
        record_starts.push(front_end);
        for span in &index.spans {
            record_starts.push(record_starts.last().unwrap_or(&0) + u64::from(span.record_bytes));
        }
        let records_end = record_starts.last().copied().unwrap_or(front_end);
        let records = RecordsAhead::new(records, records_end);
        let touches = Touches::new(pages.bytes() / BLOCK_BYTES);
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            around,
            directory,
            number,
            index,
            read_by,
            record_starts,
            layout,
            map,
            records,
            remote,
            pages,
            compressed,
            touches,
            begun: OnceLock::new(),
            state: Mutex::default(),
            closed: watch::Sender::new(false),
            finished: OnceLock::new(),
            completing: AtomicBool::new(false),
            permits: Semaphore::new(LAYER_DEMAND_AT_ONCE),
            packs_refused: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, without inodes.
    pub(crate) fn index(&self) -> &LayerIndex {
        &self.index
    }

    pub(crate) fn read_by(&self) -> ReadBy {
        self.read_by
    }

    pub(crate) fn surroundings(&self) -> &Surroundings {
        &self.around
    }

    /// Says that whoever reads it from now on is starting.
    pub(crate) fn begins(&self) {
        // Those who began it before began the same start.
        self.begun.set(Instant::now()).ok();
    }

    pub(crate) fn touched(&self) -> Vec<(u64, u32)> {
        self.touches.all()
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Resolves when the layer is given up.
    pub(crate) async fn until_closed(&self) {
        // An error would mean that `self` is gone.
        self.closed.subscribe().wait_for(|closed| *closed).await.ok();
    }

    /// Whether no transfer is under way or wanted.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.state().book.is_idle()
    }

    /// Ends all transfers and fails all readers, for good.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        self.compressed.wake();
        let waiters = std::mem::take(&mut self.state().waiters);
        for waiter in waiters {
            (waiter.answer)(Err(Errno::IO));
        }
    }

    /// From now on all is read from the whole blob.
    pub(crate) fn finish(&self, blob: File) {
        if self.finished.set(blob).is_ok() {
            self.release();
        }
    }

    /// Fetches a part of the blob that will probably be read.
    pub(crate) fn prefetch(&self, pages: Range<u64>) {
        let mut seeds = Vec::new();
        let mut state = self.state();
        for missing in self.pages.missing(pages) {
            self.enter(&mut state, missing, Class::Prefetch, &mut seeds);
        }
        drop(state);
        self.start(seeds, Class::Prefetch);
    }

    /// Says that a start pack will bring these pages.
    pub(crate) fn expect_pack(&self, pages: HashSet<u32>) {
        self.state().pack = Some(PackOnItsWay { pages, heard: Instant::now() });
    }

    /// Takes pages out of a start pack.
    pub(crate) fn accept<'a>(&self, pages: impl Iterator<Item = (u32, &'a [u8])>) -> io::Result<()> {
        let refused = self.packs_refused.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, bytes) in pages.filter(|_| !*refused) {
            let page = u64::from(page);
            if page >= self.pages.bytes() / BLOCK_BYTES || self.pages.has(page..page + 1) {
                continue;
            }
            self.pages.write(page * BLOCK_BYTES, bytes)?;
            self.pages.mark(page..page + 1)?;
        }
        drop(refused);
        if let Some(pack) = &mut self.state().pack {
            pack.heard = Instant::now();
        }
        self.release();
        Ok(())
    }

    /// The pack has ended, or is not to be waited for any more.
    pub(crate) fn pack_ended(&self) {
        let mut state = self.state();
        state.pack = None;
        let seeds = self.look_again(&mut state);
        drop(state);
        self.start(seeds, Class::Demand);
    }

    /// Takes nothing out of start packs any more.
    pub(crate) fn refuse_packs(&self) {
        *self.packs_refused.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Enters what is needed for `pages`; new transfers go into `seeds`.
    fn enter(&self, state: &mut State, pages: Range<u64>, class: Class, seeds: &mut Vec<usize>) {
        let blob = pages.start * BLOCK_BYTES..pages.end * BLOCK_BYTES;
        for mut stretch in stretches(&self.index, &self.map, blob.clone()) {
            if class == Class::Demand && !state.book.foresees(&stretch) {
                let is_here = |span: usize| self.compressed.has(&compressed_range(&self.index, &(span..span + 1)));
                stretch = widened(&self.index, &self.map, stretch, blob.end - 1, is_here);
            }
            let seed = stretch.start;
            if state.book.want(stretch, class) {
                seeds.push(seed);
            }
        }
    }

    /// Enters what a reader waits for, but for what a pack will bring.
    fn enter_wish(&self, state: &mut State, blob: &Range<u64>, seeds: &mut Vec<usize>) {
        for missing in self.pages.missing(blob.start / BLOCK_BYTES..blob.end.div_ceil(BLOCK_BYTES)) {
            let comes = |page: &u64| {
                let pack = state.pack.as_ref();
                pack.is_some_and(|pack| u32::try_from(*page).is_ok_and(|page| pack.pages.contains(&page)))
            };
            let alone: Vec<u64> = missing.filter(|page| !comes(page)).collect();
            for run in alone.chunk_by(|one, two| one + 1 == *two) {
                let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
                self.enter(state, *first..last + 1, Class::Demand, seeds);
            }
        }
    }

    /// Enters again what readers still wait for.
    fn look_again(&self, state: &mut State) -> Vec<usize> {
        let wishes: Vec<Range<u64>> = state.waiters.iter().map(|waiter| waiter.blob.clone()).collect();
        let mut seeds = Vec::new();
        for blob in wishes {
            self.enter_wish(state, &blob, &mut seeds);
        }
        seeds
    }

    fn start(&self, seeds: Vec<usize>, class: Class) {
        for span in seeds {
            if let Some(me) = self.me.upgrade() {
                self.around.runtime.spawn(async move { me.transfer(span, class).await });
            }
        }
    }

    async fn transfer(self: Arc<Self>, span: usize, class: Class) {
        let traffic = self.around.traffic.clone();
        let retry_at = self.state().trouble.as_ref().map(|trouble| trouble.retry_at);
        if let Some(retry_at) = retry_at {
            tokio::time::sleep_until(retry_at.into()).await;
        }
        // The permits are never closed.
        let Ok(_own) = self.permits.acquire().await else { return };
        let Ok(_permit) = traffic.permits(class).acquire().await else { return };
        traffic.give_way(class, || self.remote.hurries(&self.compressed)).await;
        let taken = self.state().book.take(&self.index, span, class);
        let Some(stretch) = taken else { return };
        let result = self.clone().run(stretch.clone(), class).await;
        self.ended(&stretch, result);
    }

    /// Brings and unpacks one stretch.
    async fn run(self: Arc<Self>, stretch: Range<usize>, class: Class) -> Result<(), LazyError> {
        let stopped = LazyError::Stopped { layer: self.index.layer_digest };
        let given_up = GivenUp { layer: self.clone(), now: Arc::default() };
        let bring = async {
            let range = compressed_range(&self.index, &stretch);
            let brought = tokio::select! {
                brought = self.remote.bring(&self.compressed, range, class) => brought,
                () = self.until_closed() => Err(LazyError::Stopped { layer: self.index.layer_digest }),
            };
            if brought.is_err() {
                given_up.tell();
            }
            brought
        };
        let unpack = async {
            let records = match self.read_by {
                ReadBy::Index => Records::Spans(self.records_of(&stretch, Self::decode_record).await?),
                ReadBy::Contents => Records::Pieces(self.records_of(&stretch, Self::decode_pieces).await?),
            };
            let (me, given_up, spans) = (self.clone(), given_up.now.clone(), stretch.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                let work = Stretch {
                    index: &me.index,
                    map: &me.map,
                    pages: &me.pages,
                    compressed: &me.compressed,
                    spans,
                    records,
                    given_up: &|| given_up.load(Ordering::Relaxed),
                    arrived: &|| me.release(),
                };
                work.unpack()
            });
            unpacked.await.unwrap_or(Err(stopped))
        };
        let (brought, unpacked) = tokio::join!(bring, unpack);
        brought.and(unpacked)
    }

    /// The record of one span.
    pub(crate) async fn record(&self, span: usize) -> Result<SpanRecord, LazyError> {
        let record = self.records_of(&(span..span + 1), Self::decode_record).await?.pop();
        record.ok_or(LazyError::Stopped { layer: self.index.layer_digest })
    }

    fn decode_record(&self, span: usize, bytes: &[u8]) -> Result<SpanRecord, IndexError> {
        self.index.decode_record(&self.layout, span, bytes)
    }

    /// The pieces of some spans of a layer that is read by its own table of contents.
    pub(crate) async fn pieces(&self, spans: &Range<usize>) -> Result<Vec<SpanPiece>, LazyError> {
        Ok(self.records_of(spans, Self::decode_pieces).await?.into_iter().flatten().collect())
    }

    fn decode_pieces(&self, span: usize, bytes: &[u8]) -> Result<Vec<SpanPiece>, IndexError> {
        self.index.decode_pieces(span, bytes)
    }

    /// The front part of the index, inodes and all, as it was when the layer began to be used.
    pub(crate) fn read_whole_index(&self) -> Result<LayerIndex, ImageError> {
        let path = self.directory.join(super::state::INDEX);
        let front = crate::store::read_front(&path)?;
        LayerIndex::decode(&front).map_err(|source| ImageError::Index { path, source })
    }

    pub(crate) fn layout(&self) -> &StreamLayout {
        &self.layout
    }

    async fn records_of<R>(
        &self,
        stretch: &Range<usize>,
        decode: impl Fn(&Self, usize, &[u8]) -> Result<R, IndexError>,
    ) -> Result<Vec<R>, LazyError> {
        let layer = self.index.layer_digest;
        let start = |span: usize| self.record_starts.get(span).copied().unwrap_or_default();
        let range = start(stretch.start)..start(stretch.end);
        let read = self.records.read(range.clone());
        let bytes = read.await.map_err(|source| LazyError::Records { layer, source })?;
        let records = stretch.clone().map(|span| {
            let (from, to) = (start(span) - range.start, start(span + 1) - range.start);
            let record = bytes.get(from as usize..to as usize).unwrap_or_default();
            decode(self, span, record).map_err(|source| LazyError::Index { layer, source })
        });
        let records: Result<Vec<R>, LazyError> = records.collect();
        if records.is_err() {
            self.records.forget(&range);
        }
        records
    }

    /// Enters how a stretch ended, and what is to be done for those who still wait.
    fn ended(&self, stretch: &Range<usize>, result: Result<(), LazyError>) {
        let mut failed = Vec::new();
        let mut state = self.state();
        state.book.done(stretch);
        match result {
            Ok(()) => state.trouble = None,
            Err(_) if self.is_closed() => {}
            Err(error) => {
                let cause = ErrorChain(&error).to_string();
                if error.is_corruption() {
                    failed = self.distrust(&mut state, stretch, &cause);
                }
                let mut backoff = state.trouble.as_ref().map_or_else(retry_backoff, |trouble| trouble.backoff);
                let asked = error.retry_after().unwrap_or_default().min(self.around.read_deadline);
                let pause = backoff.fail().max(asked);
                let is_new = state.trouble.is_none();
                let retry_at = Instant::now() + pause;
                state.trouble = Some(Trouble { cause: cause.clone(), backoff, retry_at });
                if is_new && !state.waiters.is_empty() {
                    (self.around.report)(self.event_of(cause, 0));
                }
            }
        }
        let seeds = self.look_again(&mut state);
        drop(state);
        for waiter in failed {
            (waiter.answer)(Err(Errno::IO));
        }
        self.release();
        self.start(seeds, Class::Demand);
    }

    /// Forgets bytes that did not unpack to what they should, and gives up those who wait for them when that was no accident.
    fn distrust(&self, state: &mut State, stretch: &Range<usize>, cause: &str) -> Vec<Waiter> {
        if let Err(error) = self.compressed.forget(compressed_range(&self.index, stretch)) {
            tracing::warn!(layer = %self.index.layer_digest, %error, "bytes that are wrong could not be forgotten");
        }
        let times = state.corrupt.entry(stretch.start).or_default();
        *times += 1;
        if *times < CORRUPT_MAX {
            return Vec::new();
        }
        let needs = |waiter: &mut Waiter| {
            let needed = stretches(&self.index, &self.map, waiter.blob.clone());
            needed.iter().any(|needed| needed.start < stretch.end && stretch.start < needed.end)
        };
        let failed: Vec<Waiter> = state.waiters.extract_if(.., needs).collect();
        self.around.traffic.counters.failed_reads.fetch_add(failed.len() as u64, Ordering::Relaxed);
        (self.around.report)(self.event_of(cause.to_owned(), failed.len()));
        failed
    }

    fn event_of(&self, cause: String, readers_failed: usize) -> LayerEvent {
        LayerEvent::Trouble { diff_id: self.index.diff_id, cause, readers_failed }
    }

    /// Answers those whose bytes are all here.
    fn release(&self) {
        let is_here = |waiter: &mut Waiter| {
            let pages = waiter.blob.start / BLOCK_BYTES..waiter.blob.end.div_ceil(BLOCK_BYTES);
            self.finished.get().is_some() || self.pages.has(pages)
        };
        let answered: Vec<Waiter> = {
            let mut state = self.state();
            if state.waiters.is_empty() {
                return;
            }
            state.waiters.extract_if(.., is_here).collect()
        };
        for waiter in answered {
            let stalled = waiter.since.elapsed().as_micros() as u64;
            self.around.traffic.counters.stall_micros.fetch_add(stalled, Ordering::Relaxed);
            (waiter.answer)(Ok(()));
        }
    }

    /// Looks at deadlines for as long as anyone waits.
    async fn tick(self: Arc<Self>) {
        loop {
            tokio::time::sleep(DEADLINE_TICK).await;
            let (failed, seeds) = {
                let mut state = self.state();
                if state.waiters.is_empty() {
                    state.is_ticking = false;
                    return;
                }
                if state.pack.as_ref().is_some_and(|pack| pack.heard.elapsed() > PACK_PATIENCE) {
                    state.pack = None;
                }
                let deadline = self.around.read_deadline;
                let failed: Vec<Waiter> =
                    state.waiters.extract_if(.., |waiter| waiter.since.elapsed() >= deadline).collect();
                if !failed.is_empty() {
                    let cause = state.trouble.as_ref().map(|trouble| trouble.cause.clone());
                    let cause = cause.unwrap_or_else(|| "the registry is too slow".to_owned());
                    self.around.traffic.counters.failed_reads.fetch_add(failed.len() as u64, Ordering::Relaxed);
                    (self.around.report)(self.event_of(cause, failed.len()));
                }
                (failed, self.look_again(&mut state))
            };
            for waiter in failed {
                (waiter.answer)(Err(Errno::IO));
            }
            self.start(seeds, Class::Demand);
        }
    }
}

impl PartialFile for LazyLayer {
    fn bytes(&self) -> u64 {
        self.pages.bytes()
    }

    fn read_present(&self, offset: u64, into: &mut [u8]) -> io::Result<Option<usize>> {
        let bytes = usize::try_from(self.bytes().saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..bytes).unwrap_or_default();
        if let Some(blob) = self.finished.get() {
            return blob.read_exact_at(into, offset).map(|()| Some(bytes));
        }
        let pages = offset / BLOCK_BYTES..(offset + bytes as u64).div_ceil(BLOCK_BYTES);
        self.touches.note(pages.clone(), &self.around.clock);
        if !self.pages.has(pages) {
            return Ok(None);
        }
        self.pages.file().read_exact_at(into, offset)?;
        self.around.traffic.counters.hits.fetch_add(1, Ordering::Relaxed);
        if self.begun.get().is_some_and(|begun| begun.elapsed() < START_MAX) {
            self.around.traffic.expect_readers();
        }
        Ok(Some(bytes))
    }

    fn want(&self, offset: u64, bytes: u32, answer: Answer) {
        let blob = offset..offset.saturating_add(u64::from(bytes)).min(self.bytes());
        self.around.traffic.counters.misses.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let pages = blob.start / BLOCK_BYTES..blob.end.div_ceil(BLOCK_BYTES);
        if self.finished.get().is_some() || self.pages.has(pages) {
            drop(state);
            return answer(Ok(()));
        }
        if self.is_closed() {
            drop(state);
            return answer(Err(Errno::IO));
        }
        let mut seeds = Vec::new();
        self.enter_wish(&mut state, &blob, &mut seeds);
        state.waiters.push(Waiter { blob, since: Instant::now(), answer });
        let starts_ticking = !std::mem::replace(&mut state.is_ticking, true);
        drop(state);
        if starts_ticking && let Some(me) = self.me.upgrade() {
            self.around.runtime.spawn(me.tick());
        }
        self.start(seeds, Class::Demand);
    }
}
