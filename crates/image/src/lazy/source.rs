//! Where an index that this node did not make may come from, and what it brings along.
//!
//! Whoever implements these traits vouches for what they give: an index is handed out only if somebody whom this node trusts
//! has signed it, together with the digest of the layer that it describes (DESIGN.md, "Whom to trust"). The engine calls
//! [`IndexSource::find`] once for each image that it is about to fetch and has no indexes of its own for; everything else is
//! asked for while the image is already in use.

use crate::index::LayerIndex;
use async_trait::async_trait;
use bytes::Bytes;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Layer;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, FetchError};
use std::ops::Range;
use std::sync::Arc;

/// Looks for published indexes.
#[async_trait]
pub trait IndexSource: std::fmt::Debug + Send + Sync {
    /// The published and *trusted* indexes of an image's layers, or `None`. Costs an image that has none a request or two, and
    /// never fails a pull: what goes wrong is logged here. May be dropped half-way.
    async fn find(&self, wanted: &WantedImage) -> Option<PublishedImage>;
}

/// The image whose indexes are looked for.
#[derive(Debug, Clone)]
pub struct WantedImage {
    /// As the user named it.
    pub source: ImageSource,
    pub credentials: Credentials,
    /// Digest of the manifest of this machine's platform.
    pub manifest: Digest,
    /// Lowest first, as the manifest has them.
    pub layers: Vec<Layer>,
    /// As the configuration has them.
    pub diff_ids: Vec<Digest>,
}

/// What was published for an image.
pub struct PublishedImage {
    /// One for each layer, lowest first; `None` where there is none to be had.
    pub layers: Vec<Option<PublishedLayer>>,
    /// The pages that a start touches, in the order of first touch.
    pub pack: Option<Box<dyn PackReader>>,
    /// The same without the bytes; worth having where there is no pack.
    pub trace: Vec<Touch>,
}

/// The index of one layer. Its layer's digest, size and diffID are those of the image.
pub struct PublishedLayer {
    /// Decoded and checked.
    pub front: LayerIndex,
    /// Where the front part ends in the file that it came from ([`crate::index::front_range`]).
    pub front_end: u64,
    /// The rest of that file.
    pub records: Arc<dyn RecordSource>,
}

/// The span part of an index, which is read piece by piece. What it gives is checked against the front part.
#[async_trait]
pub trait RecordSource: Send + Sync {
    /// Bytes of the index *file*. `range` is one that [`LayerIndex::record_range`] gave, or several that follow one another.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError>;
}

/// A start pack, read from its beginning to its end while the image is already in use.
#[async_trait]
pub trait PackReader: Send {
    /// All the pages that it brings, in that order. A reader of one of them waits for the pack instead of asking the registry.
    fn pages(&self) -> &[PageNumber];

    /// The next pages, checked against the digest that the signature covers; `None` after the last.
    async fn next(&mut self) -> Result<Option<PackedPages>, SourceError>;
}

/// Some pages of some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPages {
    pub pages: Vec<PageNumber>,
    /// 4 KiB for each of them.
    pub bytes: Bytes,
}

/// One page (4 KiB) of an image's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber {
    /// Counted from the lowest layer.
    pub layer: u32,
    /// Counted from the beginning of the layer's blob.
    pub page: u32,
}

/// Pages that follow one another in a blob and were touched one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Touch {
    pub first: PageNumber,
    pub pages: u32,
}

/// Why something published cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("what was published with the image cannot be read")]
    Read(#[source] std::io::Error),
    #[error("what was published with the image is damaged: {0}")]
    Damaged(String),
}
