//! Tables of contents that layers carry themselves: eStargz and zstd:chunked.
//!
//! Such a layer is a concatenation of gzip members or zstd frames, most of which begin where a file's data begin, with a list of all
//! entries at its end. The list's digest stands in the image's manifest, and the list has a digest of each piece of data: what
//! is read by it is verified without any index of ours.
//!
//! ```text
//! eStargz       gzip members …, [TOC: tar of stargz.index.json], footer of 51 bytes that says where the TOC is
//!               manifest: containerd.io/snapshot/stargz/toc.digest = digest of the JSON
//! zstd:chunked  zstd frames …, skippable frames: [TOC: zstd of JSON], tar-split, footer
//!               manifest: io.github.containers.zstd-chunked.manifest-checksum = digest of the zstd frame
//!                         io.github.containers.zstd-chunked.manifest-position = offset:stored:unpacked:1
//! ```
//!
//! Sources: containerd/stargz-snapshotter, docs/estargz.md; containers/storage, pkg/chunked; the zstd-chunked crate's format.md. Of a
//! tar archive the list keeps everything but the places of headers, so a [`Toc`]'s contents follow one another in a stream of
//! their own, which has nothing but file data. Where they lie in the *blob* follows from their sizes and order alone, and is
//! the same as in the blob that unpacking the layer gives.
//!
//! Invariants: any bytes are safe to pass; nothing is allocated by a number that they name; a table is used only behind the
//! digest that the manifest gives.

mod entries;
mod footer;
mod spans;
#[cfg(test)]
mod tests;

pub(crate) use spans::SpanPiece;

use crate::index::IndexError;
use crate::limits::{TOC_BYTES_MAX, TOC_STORED_BYTES_MAX};
use crate::tree::{LayerTree, TreeError, TreeFault};
use sampan_oci::digest::Digest;
use sampan_oci::layer::LayerError;
use sampan_oci::manifest::Layer;
use sampan_oci::media_type::Compression;
use std::ops::Range;

/// Bytes at the end of an eStargz layer that are fetched first: the footer, and of most layers the whole table. Not more, for a
/// start waits for them, of every layer.
const TAIL_BYTES: u64 = 128 << 10;

const ESTARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The name since 2021, and the one before that.
const CHUNKED_DIGEST: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"];
const CHUNKED_POSITION: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-position"];

/// Why a table of contents is not used.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    #[error("the table of contents is cut short")]
    Truncated,
    #[error("the layer's footer is not one of eStargz")]
    Footer,
    #[error("the table of contents is larger than the limit")]
    TooLarge,
    #[error("the table of contents has digest {actual}, not {expected}")]
    Digest { expected: Box<Digest>, actual: Box<Digest> },
    #[error("the table of contents cannot be unpacked: {0}")]
    Unpack(&'static str),
    #[error("the table of contents is no valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("entry {entry} of the table of contents is not valid: {reason}")]
    Entry { entry: String, reason: &'static str },
    #[error(transparent)]
    Name(#[from] LayerError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("the table of contents is not sound: {0}")]
    Unsound(&'static str),
    #[error("the table of contents makes no index")]
    Index(#[from] IndexError),
}

impl From<TreeFault> for TocError {
    fn from(fault: TreeFault) -> Self {
        Self::Unsound(fault.0)
    }
}

/// What a layer's manifest entry says about its table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TocHint {
    /// Digest of the unpacked JSON.
    Estargz { digest: Digest },
    /// Digest of the stored frame, where it stands, and what it unpacks to.
    ZstdChunked { digest: Digest, offset: u64, stored_bytes: u64, bytes: u64 },
}

/// A layer as its own table of contents tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    /// Its contents' offsets count in the stream of file data alone, without headers and padding.
    pub tree: LayerTree,
    /// In the order of that stream, which they cover without gaps.
    pub pieces: Vec<TocPiece>,
}

/// File data that can be unpacked and verified by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocPiece {
    /// The gzip member, or the zstd frames, that hold it.
    pub compressed: Range<u64>,
    /// Bytes that come before it when that is unpacked. Other things may follow it.
    pub skipped_bytes: u64,
    /// Where it stands in the stream of file data.
    pub stream_offset: u64,
    pub bytes: u64,
    pub digest: Digest,
}

impl TocHint {
    /// What the manifest says, if it says anything usable.
    pub fn of(layer: &Layer) -> Option<Self> {
        let annotations = &layer.descriptor.annotations;
        let any = |names: &[&str; 2]| names.iter().find_map(|name| annotations.get(*name));
        match layer.compression {
            Compression::Gzip => Some(Self::Estargz { digest: annotations.get(ESTARGZ_DIGEST)?.parse().ok()? }),
            Compression::Zstd => {
                let digest = any(&CHUNKED_DIGEST)?.parse().ok()?;
                let numbers: Option<Vec<u64>> =
                    any(&CHUNKED_POSITION)?.split(':').take(5).map(|number| number.parse().ok()).collect();
                let [offset, stored_bytes, bytes, 1] = numbers?[..] else { return None };
                let end = offset.checked_add(stored_bytes)?;
                let fits =
                    end <= layer.descriptor.size && stored_bytes <= TOC_STORED_BYTES_MAX && bytes <= TOC_BYTES_MAX;
                fits.then_some(Self::ZstdChunked { digest, offset, stored_bytes, bytes })
            }
            Compression::None => None,
        }
    }

    /// The part of the layer to fetch first.
    pub fn first_range(&self, layer_bytes: u64) -> Range<u64> {
        match self {
            Self::Estargz { .. } => layer_bytes.saturating_sub(TAIL_BYTES)..layer_bytes,
            Self::ZstdChunked { offset, stored_bytes, .. } => *offset..offset.saturating_add(*stored_bytes),
        }
    }

    /// Where the table stands, given the bytes of [`first_range`](Self::first_range).
    pub fn locate(&self, first: &[u8], layer_bytes: u64) -> Result<Range<u64>, TocError> {
        let range = match self {
            Self::Estargz { .. } => footer::estargz_toc(first, layer_bytes)?,
            Self::ZstdChunked { .. } => self.first_range(layer_bytes),
        };
        if range.end - range.start > TOC_STORED_BYTES_MAX { Err(TocError::TooLarge) } else { Ok(range) }
    }

    /// Reads the table: `stored` are the bytes of the range that [`locate`](Self::locate) gave, which is `place`.
    pub fn read(&self, stored: &[u8], place: &Range<u64>) -> Result<Toc, TocError> {
        match self {
            Self::Estargz { digest } => {
                let packed = footer::unpack_estargz(stored)?;
                check(digest, &packed.json)?;
                entries::read(&packed.json, place.start, Some((packed.entry, packed.skipped_bytes, place.clone())))
            }
            Self::ZstdChunked { digest, bytes, .. } => {
                check(digest, stored)?;
                entries::read(&footer::unzstd(stored, *bytes)?, place.start, None)
            }
        }
    }
}

fn check(expected: &Digest, bytes: &[u8]) -> Result<(), TocError> {
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    match actual == *expected {
        true => Ok(()),
        false => Err(TocError::Digest { expected: Box::new(*expected), actual: Box::new(actual) }),
    }
}
