//! From a table of contents to an index, so that the layer is served like any other that is on its way.
//!
//! The index has the table's tree, a span for each member (or frame) that holds pieces, and records of its own kind: instead
//! of a window and digests of chunks, what each piece of the span is. Its stream is the table's, which has nothing but file
//! data: the places of headers are not known, and nobody needs them. Such an index never leaves the machine and ends with the
//! layer's arrival.

use super::{Toc, TocError};
use crate::index::{Compression, IndexError, LayerIndex, SpanEntry};
use crate::limits::{TOC_PIECE_BYTES_MAX, TOC_SKIPPED_BYTES_MAX};
use crate::tree::{BLOCK_BYTES, Child, Kind};
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Layer;
use sampan_oci::media_type;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A file of an eStargz layer that stands behind those which a start reads.
const LANDMARK: &[u8] = b".prefetch.landmark";

/// One piece of file data in a span; pieces follow one another in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpanPiece {
    /// Bytes that come before it when the span is unpacked.
    pub(crate) skipped_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
}

impl Toc {
    /// The index of a layer by its own table, and the file that holds it.
    pub fn into_index(self, layer: &Layer, diff_id: Digest) -> Result<(LayerIndex, Vec<u8>), TocError> {
        let (mut spans, mut records, mut stream_bytes) = (Vec::new(), Vec::new(), 0);
        for member in self.pieces.chunk_by(|one, two| one.compressed.start == two.compressed.start) {
            let Some(first) = member.first() else { continue };
            let mut unpacked = 0;
            for piece in member {
                if piece.bytes > TOC_PIECE_BYTES_MAX || piece.skipped_bytes > TOC_SKIPPED_BYTES_MAX {
                    return Err(TocError::Unsound("a piece is too long, or too far inside of what it is packed with"));
                }
                if piece.skipped_bytes < unpacked {
                    return Err(TocError::Unsound("pieces that are packed together overlap"));
                }
                unpacked = piece.skipped_bytes + piece.bytes;
                stream_bytes += piece.bytes;
            }
            let pieces = member.iter().map(|piece| SpanPiece {
                skipped_bytes: piece.skipped_bytes,
                bytes: piece.bytes,
                digest: piece.digest,
            });
            records.push(postcard::to_stdvec(&pieces.collect::<Vec<_>>()).map_err(IndexError::Decode)?);
            spans.push(SpanEntry {
                compressed_offset: first.compressed.start,
                bit: 0,
                stream_offset: first.stream_offset,
                record_bytes: 0,
                record_hash: [0; 32],
            });
        }
        let mut index = LayerIndex {
            layer_digest: layer.descriptor.digest,
            layer_bytes: layer.descriptor.size,
            compression: match layer.compression {
                media_type::Compression::None => Compression::None,
                media_type::Compression::Gzip => Compression::Gzip,
                media_type::Compression::Zstd => Compression::Zstd,
            },
            diff_id,
            stream_bytes,
            tree: self.tree,
            spans,
        };
        let file = index.encode(&records)?;
        index.check()?;
        Ok((index, file))
    }
}

impl LayerIndex {
    /// Reads the record of a span of an index that was made from a table of contents.
    pub(crate) fn decode_pieces(&self, span: usize, bytes: &[u8]) -> Result<Vec<SpanPiece>, IndexError> {
        let entry = self.spans.get(span).ok_or(IndexError::Invalid("there is no such span"))?;
        if blake3::hash(bytes).as_bytes() != &entry.record_hash {
            return Err(IndexError::Checksum);
        }
        let pieces: Vec<SpanPiece> = postcard::from_bytes(bytes).map_err(IndexError::Decode)?;
        let stream = self.span_stream(span).unwrap_or(0..0);
        let told = pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.bytes));
        if told != Some(stream.end - stream.start) {
            return Err(IndexError::Invalid("a span's record does not fit the span"));
        }
        Ok(pieces)
    }

    /// The pages before an eStargz layer's landmark: whoever made the layer has seen a start read them.
    pub(crate) fn pages_before_landmark(&self) -> Range<u64> {
        let Some(Kind::Directory(root)) = self.tree.inodes.first().map(|root| &root.kind) else { return 0..0 };
        let Some(Child::Inode(landmark)) = root.entries.get(LANDMARK) else { return 0..0 };
        let Some(Kind::File { content: Some(content), .. }) =
            self.tree.inodes.get(*landmark as usize).map(|inode| &inode.kind)
        else {
            return 0..0;
        };
        let before = self.tree.contents.iter().take(*content as usize);
        0..before.map(|content| content.blob_bytes() / BLOCK_BYTES).sum()
    }
}
