//! Spans on their way from the decoder to the index.
//!
//! The windows of a layer may be a tenth of it: too much for memory. They wait in a file without a name until the digests of the
//! chunks that go with them are known, and then become records one by one.

use super::UnpackError;
use super::blob::failed;
use super::piece::Piece;
use crate::index::{Hash, LayerIndex, PackedWindow, SpanEntry, StreamLayout, WindowPacker, encode_record};
use crate::limits::GATHER_BYTES;
use sampan_oci::digest::Digest;
use sampan_oci::inflate::Span;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// What the digest thread receives, in the order of the stream.
pub(super) enum DigestWork {
    Bytes(Arc<Piece>),
    Span(SpanStart),
}

/// Where a span begins, and the window as the decoder gives it.
pub(super) struct SpanStart {
    pub(super) compressed_offset: u64,
    pub(super) bit: u8,
    pub(super) stream_offset: u64,
    pub(super) window: Vec<u8>,
}

impl From<Span> for SpanStart {
    fn from(span: Span) -> Self {
        Self {
            compressed_offset: span.start.compressed,
            bit: span.start.bit,
            stream_offset: span.start.uncompressed,
            window: span.window,
        }
    }
}

/// The same without the window, but for its length when it is packed and when it is not.
struct WindowAt {
    compressed_offset: u64,
    bit: u8,
    stream_offset: u64,
    stored_bytes: usize,
    window_bytes: u32,
}

/// The spans of a layer, and their windows in a file.
pub(super) struct Spans<'a> {
    layer: Digest,
    /// The index that is going to be made. The windows stand beside it, for a moment under a name of their own.
    index: &'a Path,
    packer: WindowPacker,
    spans: Vec<WindowAt>,
    /// Made with the first window that is not empty.
    windows: Option<BufWriter<File>>,
}

impl<'a> Spans<'a> {
    pub(super) fn new(layer: Digest, index: &'a Path) -> Result<Self, UnpackError> {
        Ok(Self { layer, index, packer: WindowPacker::new()?, spans: Vec::new(), windows: None })
    }

    pub(super) fn add(&mut self, span: SpanStart) -> Result<(), UnpackError> {
        let packed = self.packer.pack(&span.window)?;
        if !packed.stored.is_empty() {
            let failed = |error| failed(self.layer, self.index, error);
            if self.windows.is_none() {
                self.windows = Some(BufWriter::new(nameless(self.index).map_err(failed)?));
            }
            if let Some(windows) = &mut self.windows {
                windows.write_all(&packed.stored).map_err(failed)?;
            }
        }
        self.spans.push(WindowAt {
            compressed_offset: span.compressed_offset,
            bit: span.bit,
            stream_offset: span.stream_offset,
            stored_bytes: packed.stored.len(),
            window_bytes: packed.unpacked,
        });
        Ok(())
    }

    /// Fills the span table of `index` and writes the index file. Nothing is left of it if that fails.
    pub(super) fn finish(mut self, index: &mut LayerIndex, chunks: &[Hash]) -> Result<(), UnpackError> {
        let (layer, path) = (self.layer, self.index);
        let flushed = self.windows.take().map(BufWriter::into_inner).transpose();
        let mut windows = flushed.map_err(|error| failed(layer, path, error.into_error()))?;
        let layout = StreamLayout::new(&index.tree);
        // The table in the front part needs every record's length and checksum: records are made twice rather than kept.
        self.each_record(&mut windows, &layout, index.stream_bytes, chunks, |span, record| {
            index.spans.push(SpanEntry {
                compressed_offset: span.compressed_offset,
                bit: span.bit,
                stream_offset: span.stream_offset,
                record_bytes: record.len() as u32,
                record_hash: *blake3::hash(record).as_bytes(),
            });
            Ok(())
        })?;
        let front = index.encode_front()?;
        let written = self.write(&front, &mut windows, &layout, index.stream_bytes, chunks);
        if written.is_err() {
            // It may not have been made; the first error is the one to tell.
            fs::remove_file(path).ok();
        }
        written
    }

    fn write(
        &self,
        front: &[u8],
        windows: &mut Option<File>,
        layout: &StreamLayout,
        stream_bytes: u64,
        chunks: &[Hash],
    ) -> Result<(), UnpackError> {
        let failed = |error| failed(self.layer, self.index, error);
        let file = File::options().write(true).create_new(true).mode(0o400).open(self.index).map_err(failed)?;
        let mut file = BufWriter::with_capacity(GATHER_BYTES, file);
        file.write_all(front).map_err(failed)?;
        let append = |_span: &WindowAt, record: &[u8]| file.write_all(record).map_err(failed);
        self.each_record(windows, layout, stream_bytes, chunks, append)?;
        file.flush().map_err(failed)
    }

    fn each_record(
        &self,
        windows: &mut Option<File>,
        layout: &StreamLayout,
        stream_bytes: u64,
        chunks: &[Hash],
        mut each: impl FnMut(&WindowAt, &[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let failed = |error| failed(self.layer, self.index, error);
        let mut windows = match windows {
            Some(file) => {
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
                Some(io::BufReader::with_capacity(GATHER_BYTES, file))
            }
            None => None,
        };
        for (number, span) in self.spans.iter().enumerate() {
            let end = self.spans.get(number + 1).map_or(stream_bytes, |next| next.stream_offset);
            let range = layout.chunks_in(span.stream_offset..end);
            let begins = chunks.get(range.start as usize..range.end as usize).unwrap_or_default();
            let mut stored = vec![0; span.stored_bytes];
            if let Some(windows) = &mut windows {
                windows.read_exact(&mut stored).map_err(failed)?;
            }
            each(span, &encode_record(&PackedWindow { stored, unpacked: span.window_bytes }, begins)?)?;
        }
        Ok(())
    }
}

/// A file beside `path` that has a name only while it is made.
fn nameless(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".windows");
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    fs::remove_file(&name)?;
    Ok(file)
}
