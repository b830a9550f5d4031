//! Spans on their way from the decoder to the index.

use super::UnpackError;
use super::piece::Piece;
use crate::index::{Hash, LayerIndex, PackedWindow, SpanEntry, StreamLayout, WindowPacker, encode_record};
use sampan_oci::inflate::Span;
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

/// The same with a small window.
pub(super) struct WindowAt {
    compressed_offset: u64,
    bit: u8,
    stream_offset: u64,
    window: PackedWindow,
}

impl SpanStart {
    pub(super) fn pack(self, packer: &mut WindowPacker) -> Result<WindowAt, UnpackError> {
        Ok(WindowAt {
            compressed_offset: self.compressed_offset,
            bit: self.bit,
            stream_offset: self.stream_offset,
            window: packer.pack(&self.window)?,
        })
    }
}

/// Fills the span table of `index` and gives the records.
pub(super) fn records(
    index: &mut LayerIndex,
    windows: &[WindowAt],
    chunks: &[Hash],
) -> Result<Vec<Vec<u8>>, UnpackError> {
    let layout = StreamLayout::new(&index.tree);
    let mut records = Vec::with_capacity(windows.len());
    for (number, window) in windows.iter().enumerate() {
        let end = windows.get(number + 1).map_or(index.stream_bytes, |next| next.stream_offset);
        let range = layout.chunks_in(window.stream_offset..end);
        let begins = chunks.get(range.start as usize..range.end as usize).unwrap_or_default();
        records.push(encode_record(&window.window, begins)?);
        index.spans.push(SpanEntry {
            compressed_offset: window.compressed_offset,
            bit: window.bit,
            stream_offset: window.stream_offset,
            record_bytes: 0,
            record_hash: [0; 32],
        });
    }
    Ok(records)
}
