//! The third thread: takes the archive apart into tree, chunk digests and blob.

use super::blob::BlobWriter;
use super::{UnpackError, UnpackJob, Work};
use crate::index::Hash;
use crate::tree::{CHUNK_BYTES, Content, LayerTree, LayerTreeBuilder, Run};
use sampan_oci::layer::{Entry, LayerReader, LayerSink, ReadError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

/// What stands when the archive has ended well.
pub(super) struct Written {
    pub(super) tree: LayerTree,
    /// BLAKE3 of every chunk, in the order of the stream.
    pub(super) chunks: Vec<Hash>,
}

/// Takes pieces until there are no more. Sets `stop` when the disk, not the layer, is what fails.
pub(super) fn write(job: &UnpackJob, work: Receiver<Work>, stop: &AtomicBool) -> Result<Written, UnpackError> {
    let result = Writer::new(job).and_then(|writer| writer.run(&work));
    if let Err(UnpackError::DiskFull { .. } | UnpackError::Write { .. }) = &result {
        stop.store(true, Ordering::Relaxed);
    }
    result
}

struct Writer<'a> {
    job: &'a UnpackJob,
    tree: LayerTreeBuilder,
    blob: BlobWriter<'a>,
    chunks: Chunks,
    /// The file being read, while it is.
    file: Option<Placing>,
}

/// Where the next bytes of a file go.
struct Placing {
    runs: Vec<Run>,
    segments: Vec<(u64, u64)>,
    /// The segment being filled, and how far it is.
    segment: usize,
    filled: u64,
}

impl<'a> Writer<'a> {
    fn new(job: &'a UnpackJob) -> Result<Self, UnpackError> {
        let blob = BlobWriter::create(job)?;
        Ok(Self { job, tree: LayerTreeBuilder::new(), blob, chunks: Chunks::default(), file: None })
    }

    fn run(mut self, work: &Receiver<Work>) -> Result<Written, UnpackError> {
        let mut reader = LayerReader::new();
        let tar = |source| UnpackError::Tar { layer: self.job.digest, source };
        for Work { piece } in work {
            reader.feed(piece.bytes(), &mut self).map_err(|error| match error {
                ReadError::Layer(error) => tar(error),
                ReadError::Sink(error) => error,
            })?;
        }
        reader.finish().map_err(tar)?;
        self.blob.finish()?;
        Ok(Written { tree: self.tree.finish(), chunks: self.chunks.done })
    }
}

impl LayerSink for Writer<'_> {
    type Error = UnpackError;

    fn entry(&mut self, entry: Entry) -> Result<(), UnpackError> {
        let contents = self.tree.contents();
        self.tree.add(entry).map_err(|source| UnpackError::Tree { layer: self.job.digest, source })?;
        self.file = None;
        if self.tree.contents() > contents
            && let Some(content) = self.tree.last_content()
        {
            self.file = Some(Placing::new(content, self.blob.position()));
        }
        Ok(())
    }

    fn data(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        self.chunks.update(bytes);
        let Some(placing) = &mut self.file else { return Ok(()) };
        while let Some((position, length)) = placing.next(bytes.len() as u64) {
            self.blob.pad_to(position)?;
            let (now, later) = bytes.split_at(length as usize);
            self.blob.append(now)?;
            bytes = later;
        }
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), UnpackError> {
        self.chunks.end();
        if let Some(last) = self.file.take().and_then(|placing| placing.runs.last().copied()) {
            self.blob.pad_to(last.blob_offset + last.length)?;
        }
        Ok(())
    }
}

impl Placing {
    fn new(content: &Content, blob_offset: u64) -> Self {
        let segments = content.segments.clone().unwrap_or_else(|| vec![(0, content.size)]);
        Self { runs: content.runs(blob_offset), segments, segment: 0, filled: 0 }
    }

    /// Where in the blob the next bytes go and how many of `available` fit there; `None` when there are none to place.
    fn next(&mut self, available: u64) -> Option<(u64, u64)> {
        if available == 0 {
            return None;
        }
        let (offset, length) = *self.segments.get(self.segment)?;
        let at = offset + self.filled;
        let run = self.runs.partition_point(|run| run.file_offset <= at).checked_sub(1)?;
        let run = self.runs.get(run)?;
        let taken = available.min(length - self.filled);
        self.filled += taken;
        if self.filled == length {
            self.segment += 1;
            self.filled = 0;
        }
        Some((run.blob_offset + (at - run.file_offset), taken))
    }
}

/// Digests of 64 KiB pieces of one file after another.
#[derive(Default)]
struct Chunks {
    done: Vec<Hash>,
    hasher: blake3::Hasher,
    filled: usize,
}

impl Chunks {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES as usize - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            bytes = later;
            if now.len() == CHUNK_BYTES as usize {
                self.done.push(*blake3::hash(now).as_bytes());
                continue;
            }
            self.hasher.update(now);
            self.filled += now.len();
            if self.filled == CHUNK_BYTES as usize {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if self.filled > 0 {
            self.done.push(*self.hasher.finalize().as_bytes());
            self.hasher.reset();
            self.filled = 0;
        }
    }
}
