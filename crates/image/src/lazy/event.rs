//! What lazy loading tells the rest of the service.

use sampan_oci::digest::Digest;
use std::sync::Arc;

/// Where a layer's events go. Called with no lock held that the receiver could need; must not block.
pub(crate) type Report = Arc<dyn Fn(LayerEvent) + Send + Sync>;

/// What happened to one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerEvent {
    /// Bytes cannot be had at present; so many readers got an error for it.
    Trouble { diff_id: Digest, cause: String, readers_failed: usize },
    /// It is whole, and was what its index said.
    Complete { diff_id: Digest },
}

/// What happened to images; see [`crate::ImageStore::events`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEvent {
    /// Readers wait for bytes that cannot be had at present; some of them may have got an error (EIO).
    Trouble { images: Vec<Digest>, layer: Digest, cause: String, readers_failed: usize },
    /// All of the image is here.
    Complete { image: Digest },
    /// Bytes were served that are not the image's. Instances that use it must be stopped.
    Untrue { images: Vec<Digest>, layer: Digest, cause: String },
}
