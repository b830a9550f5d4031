//! Reading a blob in order while its parts arrive in parallel.
//!
//! ```text
//!           part 0        part 1        part 2        part 3      (8 MiB each, one connection each)
//!  server ─────────────┬─────────────┬─────────────┬───────────
//!            task          task          task          task
//!             │ chunks      │             │             │           bounded channel per part
//!             ▼             ▼             ▼             ▼
//!  reader:  drained first, then this one, …; a part that was drained makes room for the next
//! ```
//!
//! Invariants: chunks come in the blob's order and are hyper's own buffers; at most `parts_in_flight * part_bytes` wait here; the
//! last chunk is handed over only after the digest of all was found right. A server that ignores ranges gives one stream, read
//! under back-pressure. Dropping the reader ends its tasks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use sampan_oci::digest::{Digest, Hasher};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{FetchError, LayoutError, Mismatch, Site};
use crate::limits::{CHUNK_BYTES_MIN, FILE_CHUNK_BYTES, PART_CHUNKS_MAX, WHOLE_CHUNKS_QUEUED};
use crate::transfer::{Body, Transfer};

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
}

struct Part {
    chunks: Receiver<Result<Bytes, FetchError>>,
    missing: u64,
}

impl Parts {
    async fn open(transfer: Arc<Transfer>, cancel: CancellationToken) -> Result<Self, FetchError> {
        let mut parts = Self { transfer, queue: VecDeque::new(), unasked: 0, cancel };
        let first = parts.next_range();
        if first.is_empty() {
            return Ok(parts);
        }
        let (transfer, asked) = (Arc::clone(&parts.transfer), first.clone());
        let body = transfer.repository.patiently(|| transfer.open(&asked)).await?;
        if body.is_whole {
            parts.start(0..transfer.size, Some(body), WHOLE_CHUNKS_QUEUED);
        } else {
            parts.start_part(first, Some(body));
            parts.start_more();
        }
        Ok(parts)
    }

    fn next_range(&self) -> Range<u64> {
        let end = self.unasked.saturating_add(self.transfer.repository.shared.config.transfer.part_bytes.max(1));
        self.unasked..end.min(self.transfer.size)
    }

    fn start_more(&mut self) {
        while self.queue.len() < self.transfer.repository.shared.config.transfer.parts_in_flight.max(1) {
            let range = self.next_range();
            if range.is_empty() {
                return;
            }
            self.start_part(range, None);
        }
    }

    fn start_part(&mut self, range: Range<u64>, body: Option<Body>) {
        // Room for a whole part, so that it arrives whether or not its turn has come.
        let chunks = range.end.saturating_sub(range.start) / CHUNK_BYTES_MIN as u64;
        let capacity = usize::try_from(chunks).unwrap_or(usize::MAX).min(PART_CHUNKS_MAX);
        self.start(range, body, capacity.saturating_add(2));
    }

    fn start(&mut self, range: Range<u64>, body: Option<Body>, capacity: usize) {
        let (out, chunks) = mpsc::channel(capacity);
        let missing = range.end.saturating_sub(range.start);
        self.unasked = range.end;
        let (transfer, cancel) = (Arc::clone(&self.transfer), self.cancel.clone());
        tokio::spawn(async move {
            // Cut short, it closes its channel early, which the reader sees.
            cancel.run_until_cancelled(transfer.deliver(range, body, out)).await;
        });
        self.queue.push_back(Part { chunks, missing });
    }

    /// What can be had without waiting.
    fn ready(&mut self) -> Option<Result<Bytes, FetchError>> {
        let part = self.queue.front_mut()?;
        let chunk = part.chunks.try_recv().ok()?;
        part.missing = part.missing.saturating_sub(chunk.as_ref().map_or(0, Bytes::len) as u64);
        Some(chunk)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while let Some(part) = self.queue.front_mut() {
            match part.chunks.recv().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    part.missing = part.missing.saturating_sub(chunk.len() as u64);
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
