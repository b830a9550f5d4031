//! The index of a layer: everything that is known of it besides its bytes.
//!
//! An index is made while the layer is unpacked, and is enough to mount the layer and to read it at random from the
//! registry's compressed stream. It has a *front part*, always needed, and a *span part*, of which each record is fetched
//! together with the span that it describes. Both are laid out so that a range request finds them:
//!
//! ```text
//! byte 0    magic "SAMPANIX"
//!      8    version, u32: 1
//!     12    zero, u32
//!     16    bytes of the front part as stored, u64
//!     24    bytes of the front part unpacked, u64
//!     32    BLAKE3 of bytes 0..32 and the front part as stored
//!     64    front part: zstd of postcard of [`LayerIndex`]
//!      …    span part: one record after another, in the order of the span table
//!
//! record:   bytes of the window as stored, u32; bytes of the window, u32 (at most 32 KiB)
//!           the window, zstd: the bytes right before the span, with every byte that the span does not refer to zero
//!           BLAKE3 of every chunk that begins in the span, 32 bytes each
//! ```
//!
//! Numbers in header and records are little-endian. A record's length and BLAKE3 stand in the span table, so the front part's
//! checksum vouches for the whole file. *Chunks* are 64 KiB of a file's data as it stands in the stream (the last one shorter);
//! they are numbered through the layer in the order of the stream. Where a content's blocks lie in the blob, which chunks begin
//! in a span, and which bytes of the blob a span fills, follow from the tree alone and are therefore computed, not stored.
//!
//! Postcard has no field names: any change of a type in [`LayerIndex`] is a new version. An index of another version is not
//! read; it is made anew from the layer.
//!
//! An index that comes from elsewhere is hostile: [`LayerIndex::decode`] bounds what it unpacks and checks every number that
//! anything later relies on. It cannot check that the index tells the truth; that takes the layer's own digests.

mod codec;
mod layout;
#[cfg(test)]
mod tests;

pub use codec::{HEADER_BYTES, IndexError, front_range, front_unpacked_bytes};
pub(crate) use codec::{PackedWindow, WindowPacker, encode_record, front_checksum};
pub use layout::StreamLayout;

use crate::tree::LayerTree;
use sampan_oci::digest::Digest;
use serde::{Deserialize, Serialize};

/// The version that is written and read.
pub const VERSION: u32 = 1;

/// A BLAKE3 value.
pub type Hash = [u8; 32];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The front part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIndex {
    /// Digest and size of the layer as the registry has it.
    pub layer_digest: Digest,
    pub layer_bytes: u64,
    pub compression: Compression,
    /// Digest and size of the tar archive.
    pub diff_id: Digest,
    pub stream_bytes: u64,
    pub tree: LayerTree,
    pub spans: Vec<SpanEntry>,
}

/// A piece of the layer that can be unpacked by itself; it ends where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanEntry {
    /// The byte of the compressed stream in which it begins, and the bit of that byte.
    pub compressed_offset: u64,
    pub bit: u8,
    /// Where its first byte stands in the uncompressed stream.
    pub stream_offset: u64,
    /// Length and BLAKE3 of its record in the span part.
    pub record_bytes: u32,
    pub record_hash: Hash,
}

/// What is fetched together with a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanRecord {
    /// The bytes before the span, ending right before it; what it does not refer to is zero. At most 32 KiB.
    pub window: Vec<u8>,
    /// BLAKE3 of the chunks that begin in it.
    pub chunks: Vec<Hash>,
}
