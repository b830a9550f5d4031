//! What follows from a tree: where chunks and contents lie in stream and blob, and which of them a span covers.

use crate::tree::{CHUNK_BYTES, LayerTree};
use std::ops::Range;

/// Running sums over a tree's contents.
#[derive(Debug, Clone)]
pub struct StreamLayout {
    contents: Vec<ContentPlace>,
    chunks: u64,
    blob_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct ContentPlace {
    stream: u64,
    stream_bytes: u64,
    blob: u64,
    first_chunk: u64,
}

impl StreamLayout {
    pub fn new(tree: &LayerTree) -> Self {
        let (mut chunks, mut blob) = (0, 0);
        let mut contents = Vec::with_capacity(tree.contents.len());
        for content in &tree.contents {
            let stream_bytes = content.stream_bytes();
            contents.push(ContentPlace { stream: content.stream_offset, stream_bytes, blob, first_chunk: chunks });
            chunks += content.chunks();
            blob += content.blob_bytes();
        }
        Self { contents, chunks, blob_bytes: blob }
    }

    /// Chunks of the layer.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes of the layer's blob.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The chunks that begin in a range of the stream.
    pub fn chunks_in(&self, stream: Range<u64>) -> Range<u64> {
        self.chunk_at_or_after(stream.start)..self.chunk_at_or_after(stream.end)
    }

    /// The contents (numbers in the tree) of which a range of the stream holds bytes.
    pub fn contents_in(&self, stream: Range<u64>) -> Range<usize> {
        let first = self.contents.partition_point(|content| content.stream + content.stream_bytes <= stream.start);
        let end = self.contents.partition_point(|content| content.stream < stream.end);
        first..end.max(first)
    }

    /// Where the blocks of a content begin in the blob.
    pub fn blob_offset(&self, content: usize) -> Option<u64> {
        self.contents.get(content).map(|content| content.blob)
    }

    fn chunk_at_or_after(&self, offset: u64) -> u64 {
        let next = self.contents.partition_point(|content| content.stream < offset);
        let Some(content) = next.checked_sub(1).and_then(|last| self.contents.get(last)) else { return 0 };
        let within = (offset - content.stream).min(content.stream_bytes);
        content.first_chunk + within.div_ceil(CHUNK_BYTES)
    }
}
