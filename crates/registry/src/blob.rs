//! Reading a blob in order while its parts arrive in parallel.
//!
//! ```text
//!           part 0        part 1        part 2        part 3      (8 MiB each at most, one connection each)
//!  server ─────────────┬─────────────┬─────────────┬───────────
//!            task          task          task          task
//!             │ chunks      │             │             │           bounded channel per part
//!             ▼             ▼             ▼             ▼
//!  reader:  drained first, then this one, …; a part that was drained makes room for the next
//! ```
//!
//! A part begins only with memory for all of it, so that it always comes to its end; how large it is, and how many there are, follows
//! from what all readers share ([`sampan_kit::memory`]). One part is always to be had, and more are asked for whenever one was
//! drained: nobody waits for memory.
//!
//! Invariants: chunks come in the blob's order; what waits here is in the budget; the last chunk is handed over only after the digest
//! of all was found right. A server that ignores ranges gives one stream, read under back-pressure. Dropping the reader ends its
//! tasks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use sampan_kit::memory::{Held, Holder};
use sampan_oci::digest::{Digest, Hasher};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{FetchError, LayoutError, Mismatch, Site};
use crate::limits::{
    BLOCK_BYTES, CONNECTION_BYTES, FILE_CHUNK_BYTES, PART_BLOCKS_MAX, PART_BYTES_MIN, READER_BYTES_MIN,
    WHOLE_BLOCKS_QUEUED,
};
use crate::transfer::{Body, Passing, Transfer};

/// A blob, from its first byte to its last.
pub struct BlobReader {
    site: Arc<Site>,
    digest: Digest,
    size: u64,
    position: u64,
    hasher: Option<Hasher>,
    origin: Origin,
    runtime: Handle,
    cancel: CancellationToken,
    _ends_with_reader: DropGuard,
}

enum Origin {
    Parts(Parts),
    File(Arc<LayoutFile>),
}

/// Makes a reader fail with [`FetchError::Cancelled`], from any thread.
#[derive(Debug, Clone)]
pub struct Canceller(CancellationToken);

impl Canceller {
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

impl BlobReader {
    fn new(site: Arc<Site>, digest: Digest, size: u64, origin: Origin, cancel: CancellationToken) -> Self {
        let guard = cancel.clone().drop_guard();
        let hasher = Some(digest.hasher());
        let runtime = Handle::current();
        Self { site, digest, size, position: 0, hasher, origin, runtime, cancel, _ends_with_reader: guard }
    }

    /// Asks for the first part, so that what is permanently wrong is found here.
    pub(crate) async fn open(transfer: Transfer) -> Result<Self, FetchError> {
        let cancel = CancellationToken::new();
        let transfer = Arc::new(transfer);
        let (site, digest, size) = (Arc::clone(&transfer.repository.site), transfer.blob, transfer.size);
        let parts = Parts::open(transfer, cancel.clone()).await?;
        Ok(Self::new(site, digest, size, Origin::Parts(parts), cancel))
    }

    pub(crate) fn open_file(site: Arc<Site>, file: LayoutFile, digest: Digest, size: u64) -> Self {
        Self::new(site, digest, size, Origin::File(Arc::new(file)), CancellationToken::new())
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes handed over so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Leaves the digest to the caller, who may have an idle core for it.
    #[must_use]
    pub fn without_digest(self) -> Self {
        Self { hasher: None, ..self }
    }

    pub fn canceller(&self) -> Canceller {
        Canceller(self.cancel.clone())
    }

    /// For threads outside of the runtime, which must not be one of its workers.
    pub fn blocking(self) -> BlockingBlob {
        BlockingBlob { reader: self, chunk: Bytes::new() }
    }

    /// The next bytes, `None` after the last. Not to be called again after an error. Safe to drop half-way.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = match &mut self.origin {
            Origin::Parts(parts) => parts.next().await?,
            Origin::File(file) => {
                let (file, position) = (Arc::clone(file), self.position);
                let read = tokio::task::spawn_blocking(move || file.read(position)).await;
                self.file_chunk(read.unwrap_or_else(|error| Err(io::Error::other(error))))?
            }
        };
        self.account(chunk)
    }

    fn next_blocking(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = match &mut self.origin {
            Origin::Parts(parts) => match parts.ready() {
                Some(chunk) => Some(chunk?),
                None => self.runtime.block_on(parts.next())?,
            },
            Origin::File(file) => {
                let read = file.read(self.position);
                self.file_chunk(read)?
            }
        };
        self.account(chunk)
    }

    fn file_chunk(&self, read: io::Result<Vec<u8>>) -> Result<Option<Bytes>, FetchError> {
        let Origin::File(file) = &self.origin else { return Ok(None) };
        let chunk = read.map_err(|source| {
            let source = Box::new(LayoutError::Read { path: file.path.clone(), source });
            FetchError::Layout { image: self.site.image.clone(), source }
        })?;
        Ok((!chunk.is_empty()).then(|| Bytes::from(chunk)))
    }

    /// Counts and hashes `chunk`, and holds the last one back unless everything is right.
    fn account(&mut self, chunk: Option<Bytes>) -> Result<Option<Bytes>, FetchError> {
        if self.cancel.is_cancelled() {
            return Err(FetchError::Cancelled { image: self.site.image.clone() });
        }
        let length = chunk.as_ref().map_or(0, Bytes::len) as u64;
        let position = self.position.saturating_add(length);
        if position > self.size || (chunk.is_none() && position < self.size) {
            return Err(self.wrong_size(position));
        }
        self.position = position;
        if let (Some(hasher), Some(chunk)) = (&mut self.hasher, &chunk) {
            hasher.update(chunk);
        }
        if position == self.size
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != self.digest {
                return Err(self.wrong_digest(actual));
            }
        }
        Ok(chunk)
    }

    fn wrong_size(&self, actual: u64) -> FetchError {
        let expected = self.size;
        match &self.origin {
            Origin::File(file) => FetchError::Layout {
                image: self.site.image.clone(),
                source: Box::new(LayoutError::Size { path: file.path.clone(), expected, actual }),
            },
            Origin::Parts(_) => {
                let (site, blob) = (Arc::clone(&self.site), Box::new(self.digest));
                FetchError::SizeMismatch { site, blob, expected, actual }
            }
        }
    }

    fn wrong_digest(&self, actual: Digest) -> FetchError {
        let digests = Box::new(Mismatch { expected: self.digest, actual });
        match &self.origin {
            Origin::File(file) => FetchError::Layout {
                image: self.site.image.clone(),
                source: Box::new(LayoutError::Digest { path: file.path.clone(), digests }),
            },
            Origin::Parts(_) => FetchError::DigestMismatch { site: Arc::clone(&self.site), what: "a blob", digests },
        }
    }
}

/// A blob in a file: of an image layout, or of an archive.
pub(crate) struct LayoutFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Where in the file it begins.
    pub(crate) start: u64,
    pub(crate) size: u64,
}

impl LayoutFile {
    /// Up to one chunk from `position` on, never past the size that the manifest says.
    fn read(&self, position: u64) -> io::Result<Vec<u8>> {
        let length = self.size.saturating_sub(position).min(FILE_CHUNK_BYTES as u64);
        self.read_range(position..position.saturating_add(length))
    }

    pub(crate) fn read_range(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = self.start.saturating_add(range.start).saturating_add(bytes.len() as u64);
            let spare = rustix::buffer::spare_capacity(&mut bytes);
            match rustix::io::pread(&self.file, spare, at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The parts of a blob that are under way, first one first.
struct Parts {
    transfer: Arc<Transfer>,
    queue: VecDeque<Part>,
    /// Where the next part begins.
    unasked: u64,
    cancel: CancellationToken,
    memory: Holder,
}

struct Part {
    chunks: Receiver<Result<Bytes, FetchError>>,
    missing: u64,
    /// Room for what has not been handed over yet, and for the connection.
    held: Held,
    /// Whether all of it was given room: what is handed over takes none any more.
    is_held_whole: bool,
}

impl Part {
    fn hand_over(&mut self, chunk: &Bytes) {
        let bytes = chunk.len() as u64;
        self.missing = self.missing.saturating_sub(bytes);
        if self.is_held_whole {
            self.held.give_back(bytes);
        }
    }
}

impl Parts {
    async fn open(transfer: Arc<Transfer>, cancel: CancellationToken) -> Result<Self, FetchError> {
        let memory = transfer.repository.shared.memory.enter(READER_BYTES_MIN);
        let mut parts = Self { transfer, queue: VecDeque::new(), unasked: 0, cancel, memory };
        let Some((first, mut held)) = parts.next_part() else { return Ok(parts) };
        let (transfer, asked) = (Arc::clone(&parts.transfer), first.clone());
        let body = transfer.repository.patiently(|| transfer.open(&asked)).await?;
        if body.is_whole {
            held.give_back((first.end.saturating_sub(first.start)).saturating_sub(PART_BYTES_MIN));
            parts.start(0..transfer.size, Some(body), held, WHOLE_BLOCKS_QUEUED);
        } else {
            parts.start_part(first, Some(body), held);
            parts.start_more();
        }
        Ok(parts)
    }

    /// The next part, as large as the reader's share of memory lets several be at once, else a small one. `None` after the last,
    /// and where there is no memory for more than is under way; there always is for one.
    fn next_part(&self) -> Option<(Range<u64>, Held)> {
        let config = &self.transfer.repository.shared.config.transfer;
        let rest = self.transfer.size.saturating_sub(self.unasked);
        let at_once = config.parts_in_flight.max(1) as u64;
        let share = (self.memory.fair_bytes() / at_once).saturating_sub(CONNECTION_BYTES);
        let most = config.part_bytes.max(1);
        let sizes = [share.max(PART_BYTES_MIN), PART_BYTES_MIN].map(|bytes| bytes.min(most).min(rest));
        sizes.into_iter().filter(|bytes| *bytes > 0).find_map(|bytes| {
            let held = self.memory.take(bytes.saturating_add(CONNECTION_BYTES))?;
            Some((self.unasked..self.unasked.saturating_add(bytes), held))
        })
    }

    fn start_more(&mut self) {
        while self.queue.len() < self.transfer.repository.shared.config.transfer.parts_in_flight.max(1) {
            let Some((range, held)) = self.next_part() else { return };
            self.start_part(range, None, held);
        }
    }

    fn start_part(&mut self, range: Range<u64>, body: Option<Body>, held: Held) {
        // Room for a whole part, so that it arrives whether or not its turn has come.
        let blocks = range.end.saturating_sub(range.start).div_ceil(BLOCK_BYTES as u64);
        let capacity = usize::try_from(blocks).unwrap_or(usize::MAX).min(PART_BLOCKS_MAX);
        self.start(range, body, held, capacity.saturating_add(1));
    }

    fn start(&mut self, range: Range<u64>, body: Option<Body>, held: Held, capacity: usize) {
        let (out, chunks) = mpsc::channel(capacity);
        let missing = range.end.saturating_sub(range.start);
        let is_held_whole = !body.as_ref().is_some_and(|body| body.is_whole);
        self.unasked = range.end;
        let (transfer, cancel) = (Arc::clone(&self.transfer), self.cancel.clone());
        tokio::spawn(async move {
            // Cut short, it closes its channel early, which the reader sees.
            cancel.run_until_cancelled(transfer.deliver(range, body, Passing::InBlocks, out)).await;
        });
        self.queue.push_back(Part { chunks, missing, held, is_held_whole });
    }

    /// What can be had without waiting.
    fn ready(&mut self) -> Option<Result<Bytes, FetchError>> {
        let part = self.queue.front_mut()?;
        let chunk = part.chunks.try_recv().ok()?;
        if let Ok(bytes) = &chunk {
            part.hand_over(bytes);
        }
        Some(chunk)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while let Some(part) = self.queue.front_mut() {
            match part.chunks.recv().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    part.hand_over(&chunk);
                    return Ok(Some(chunk));
                }
                None if part.missing > 0 => {
                    return Err(FetchError::Cancelled { image: self.transfer.repository.site.image.clone() });
                }
                None => {
                    self.queue.pop_front();
                    self.start_more();
                }
            }
        }
        Ok(None)
    }
}

/// A [`BlobReader`] for a thread of its own. `BufRead` hands out the chunks without copying. Errors are [`FetchError`]s inside of
/// [`io::Error`]s.
pub struct BlockingBlob {
    reader: BlobReader,
    chunk: Bytes,
}

impl BlockingBlob {
    /// The next bytes, `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        if !self.chunk.is_empty() {
            return Ok(Some(std::mem::take(&mut self.chunk)));
        }
        self.reader.next_blocking()
    }

    /// Bytes taken from the blob so far, the chunk at hand included.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    pub fn size(&self) -> u64 {
        self.reader.size()
    }
}

impl BufRead for BlockingBlob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = self.reader.next_blocking().map_err(io::Error::other)?.unwrap_or_default();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

impl Read for BlockingBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
