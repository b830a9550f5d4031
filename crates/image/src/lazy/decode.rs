//! From compressed bytes to verified pages: one stretch of spans, on a thread that may block.
//!
//! The stretch is entered at its first span's checkpoint and unpacked to its end, however many spans it has. Bytes are taken as
//! they arrive, and every chunk that lies wholly in the stretch is checked, written and announced at once: its reader does not
//! wait for the rest. Chunks that reach over the stretch's edges cannot be checked and are left out.

use super::blob_map::{BlobMap, Piece};
use super::compressed::CompressedCache;
use super::error::LazyError;
use super::limits::DECODE_BYTES;
use super::pages::PageCache;
use crate::index::{Compression, Hash, LayerIndex, SpanRecord};
use crate::toc::SpanPiece;
use crate::tree::{BLOCK_BYTES, CHUNK_BYTES};
use sampan_oci::digest::Digest;
use sampan_oci::gzip::{DecoderState, GzipDecoder};
use sampan_oci::inflate::{OutputBuffer, StreamPosition};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// What a stretch is unpacked from and into.
pub(crate) struct Stretch<'a> {
    pub(crate) index: &'a LayerIndex,
    pub(crate) map: &'a BlobMap,
    pub(crate) pages: &'a PageCache,
    pub(crate) compressed: &'a CompressedCache,
    pub(crate) spans: Range<usize>,
    pub(crate) records: Records,
    /// Whether nobody will bring the bytes any more.
    pub(crate) given_up: &'a (dyn Fn() -> bool + Sync),
    /// Called whenever pages have been marked.
    pub(crate) arrived: &'a (dyn Fn() + Sync),
}

/// The records of a stretch's spans.
pub(crate) enum Records {
    /// Of an index that was made from the layer.
    Spans(Vec<SpanRecord>),
    /// Of one that was made from the layer's own table of contents.
    Pieces(Vec<Vec<SpanPiece>>),
}

/// What takes unpacked bytes.
pub(super) trait Sink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), LazyError>;

    /// Whether it needs no more of them.
    fn is_done(&self) -> bool;
}

/// The bytes of the compressed layer that spans take.
pub(crate) fn compressed_range(index: &LayerIndex, spans: &Range<usize>) -> Range<u64> {
    let start = index.spans.get(spans.start).map_or(index.layer_bytes, |span| span.compressed_offset);
    let end = match index.spans.get(spans.end) {
        Some(next) => next.compressed_offset + u64::from(next.bit != 0),
        None => index.layer_bytes,
    };
    start..end
}

impl Stretch<'_> {
    /// Unpacks it whole. Pages that could be verified before a failure stay.
    pub(crate) fn unpack(mut self) -> Result<(), LazyError> {
        let Some(first) = self.index.spans.get(self.spans.start).copied() else { return Ok(()) };
        let end = self.index.spans.get(self.spans.end).map_or(self.index.stream_bytes, |next| next.stream_offset);
        let records = match std::mem::replace(&mut self.records, Records::Spans(Vec::new())) {
            Records::Spans(records) => records,
            Records::Pieces(records) => return self.unpack_pieces(&records),
        };
        let window = records.first().map(|record| record.window.clone()).unwrap_or_default();
        let digests = records.into_iter().flat_map(|record| record.chunks).collect();
        let mut placer = Placer::new(&self, first.stream_offset..end, digests);
        let input = compressed_range(self.index, &self.spans);
        match self.index.compression {
            Compression::Gzip => {
                let bit = first.bit;
                let start = StreamPosition { compressed: input.start, bit, uncompressed: first.stream_offset };
                let decoder = GzipDecoder::resume(start, &window, OutputBuffer::with_capacity(DECODE_BYTES));
                self.gzip(decoder, input, &mut placer)
            }
            Compression::Zstd => self.zstd(input, &mut placer),
            Compression::None => self.plain(input, &mut placer),
        }
    }

    pub(super) fn layer(&self) -> Digest {
        self.index.layer_digest
    }

    /// Reads on from `at`, as far as the bytes are here; at least one byte, or the bytes never come.
    fn read(&self, at: u64, end: u64, buffer: &mut Vec<u8>) -> Result<(), LazyError> {
        let stopped = LazyError::Stopped { layer: self.layer() };
        let here = self.compressed.wait(at, self.given_up).ok_or(stopped)?.min(end);
        buffer.resize((here.saturating_sub(at)).min(DECODE_BYTES as u64) as usize, 0);
        self.compressed.file().read_exact_at(buffer, at).map_err(LazyError::cache(self.layer()))
    }

    pub(super) fn gzip(
        &self,
        mut decoder: GzipDecoder,
        input: Range<u64>,
        sink: &mut impl Sink,
    ) -> Result<(), LazyError> {
        let inflate = |source| LazyError::Inflate { layer: self.layer(), source };
        let mut buffer = Vec::new();
        let mut at = input.start;
        while !sink.is_done() && at < input.end {
            self.read(at, input.end, &mut buffer)?;
            at += buffer.len() as u64;
            let mut rest = &buffer[..];
            loop {
                let progress = decoder.feed(rest).map_err(inflate)?;
                rest = rest.get(progress.consumed..).unwrap_or_default();
                sink.take(decoder.output())?;
                decoder.clear_output();
                if progress.state == DecoderState::NeedsInput || sink.is_done() {
                    break;
                }
            }
        }
        self.ended(sink)
    }

    pub(super) fn zstd(&self, input: Range<u64>, sink: &mut impl Sink) -> Result<(), LazyError> {
        let failed = |source| LazyError::Zstd { layer: self.layer(), source };
        let mut decoder = ZstdDecoder::new().map_err(failed)?;
        let mut output = vec![0; DECODE_BYTES];
        let mut buffer = Vec::new();
        let mut at = input.start;
        while !sink.is_done() && at < input.end {
            self.read(at, input.end, &mut buffer)?;
            at += buffer.len() as u64;
            let mut source = InBuffer::around(&buffer);
            loop {
                let mut space = OutBuffer::around(&mut output[..]);
                let hint = decoder.run(&mut source, &mut space).map_err(failed)?;
                let filled = space.pos();
                sink.take(output.get(..filled).unwrap_or_default())?;
                if hint == 0 {
                    decoder.reinit().map_err(failed)?;
                }
                // A full buffer may mean that the decoder holds more back.
                let holds_back = filled == DECODE_BYTES && hint != 0;
                if sink.is_done() || (source.pos() == buffer.len() && !holds_back) {
                    break;
                }
            }
        }
        self.ended(sink)
    }

    pub(super) fn plain(&self, input: Range<u64>, sink: &mut impl Sink) -> Result<(), LazyError> {
        let mut buffer = Vec::new();
        let mut at = input.start;
        while !sink.is_done() && at < input.end {
            self.read(at, input.end, &mut buffer)?;
            at += buffer.len() as u64;
            sink.take(&buffer)?;
        }
        self.ended(sink)
    }

    fn ended(&self, sink: &impl Sink) -> Result<(), LazyError> {
        if sink.is_done() { Ok(()) } else { Err(LazyError::Corrupt { layer: self.layer() }) }
    }
}

/// Puts the uncompressed stream where it belongs, chunk by chunk.
struct Placer<'a> {
    layer: Digest,
    map: &'a BlobMap,
    pages: &'a PageCache,
    arrived: &'a (dyn Fn() + Sync),
    /// What the stretch holds of the stream; `at` is the next byte.
    stream: Range<u64>,
    at: u64,
    /// Digests of the chunks that begin in the stretch, and the number of the first.
    digests: Vec<Hash>,
    first_chunk: u64,
    /// The content that `at` is in or before.
    content: usize,
    /// Where in it the chunks begin that have been verified without a gap.
    verified_from: Option<u64>,
    /// The chunk that is being gathered.
    gathered: Vec<u8>,
}

impl<'a> Placer<'a> {
    fn new(stretch: &Stretch<'a>, stream: Range<u64>, digests: Vec<Hash>) -> Self {
        Self {
            layer: stretch.layer(),
            map: stretch.map,
            pages: stretch.pages,
            arrived: stretch.arrived,
            at: stream.start,
            first_chunk: stretch.map.chunk_after(stream.start),
            content: stretch.map.content_after(stream.start),
            stream,
            digests,
            verified_from: None,
            gathered: Vec::new(),
        }
    }

    /// Takes bytes up to the end of a chunk, or of what lies between two contents.
    fn take_some(&mut self, bytes: &[u8]) -> Result<usize, LazyError> {
        let map = self.map;
        let Some(place) = map.place(self.content) else { return Ok(bytes.len()) };
        let bounded = |length: u64| bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        if self.at < place.stream {
            return Ok(bounded(place.stream - self.at));
        }
        let within = self.at - place.stream;
        let start = within / CHUNK_BYTES * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(place.stream_bytes);
        let taken = bounded(end - within);
        let now = bytes.get(..taken).unwrap_or(bytes);
        let ends = within + taken as u64 == end;
        // A chunk that began before the stretch, or ends after it, cannot be verified.
        if place.stream + start >= self.stream.start && place.stream + end <= self.stream.end {
            if ends && self.gathered.is_empty() {
                self.chunk(start..end, now)?;
            } else {
                self.gathered.extend_from_slice(now);
                if ends {
                    let chunk = std::mem::take(&mut self.gathered);
                    self.chunk(start..end, &chunk)?;
                    self.gathered = chunk;
                    self.gathered.clear();
                }
            }
        }
        if ends && end == place.stream_bytes {
            self.content += 1;
            self.verified_from = None;
        }
        Ok(taken)
    }

    /// Verifies a chunk and puts it into the blob.
    fn chunk(&mut self, within: Range<u64>, bytes: &[u8]) -> Result<(), LazyError> {
        let from = *self.verified_from.get_or_insert(within.start);
        let place = self.map.place(self.content);
        let number = place.map_or(0, |place| place.first_chunk + within.start / CHUNK_BYTES);
        let digest = usize::try_from(number.wrapping_sub(self.first_chunk)).ok().and_then(|at| self.digests.get(at));
        if digest != Some(blake3::hash(bytes).as_bytes()) {
            return Err(LazyError::Corrupt { layer: self.layer });
        }
        let marked = place_verified(self.map, self.pages, self.content, from, within, bytes);
        if marked.map_err(LazyError::cache(self.layer))? {
            (self.arrived)();
        }
        Ok(())
    }
}

impl Sink for Placer<'_> {
    fn is_done(&self) -> bool {
        self.at >= self.stream.end
    }

    /// Takes the next bytes of the stream; what lies past the stretch is ignored.
    fn take(&mut self, bytes: &[u8]) -> Result<(), LazyError> {
        let room = usize::try_from(self.stream.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let mut bytes = bytes.get(..room).unwrap_or(bytes);
        while !bytes.is_empty() {
            let taken = self.take_some(bytes)?;
            self.at += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Puts a verified part of a content into the blob, and marks the pages that are whole with it; whether any was not marked
/// before. The content has been verified without a gap since `from`: a page may hold the end of the part before.
pub(super) fn place_verified(
    map: &BlobMap,
    pages: &PageCache,
    content: usize,
    from: u64,
    within: Range<u64>,
    bytes: &[u8],
) -> io::Result<bool> {
    let pieces = map.pieces(content, within.clone());
    let touched = |piece: &Piece| piece.blob / BLOCK_BYTES..(piece.blob + piece.bytes).div_ceil(BLOCK_BYTES);
    if pieces.iter().all(|piece| pages.has(touched(piece))) {
        return Ok(false);
    }
    for piece in pieces {
        let begin = (piece.within - within.start) as usize;
        pages.write(piece.blob, bytes.get(begin..begin + piece.bytes as usize).unwrap_or_default())?;
    }
    let marked = within.start.saturating_sub(BLOCK_BYTES).max(from)..within.end;
    for marked in map.pages_within(content, marked) {
        pages.mark(marked)?;
    }
    Ok(true)
}
