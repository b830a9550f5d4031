//! Keeping the images within their share of the disk: the one that nobody uses and that was used longest ago goes first.
//!
//! What is in use, or on its way for a pull that is going on, is never touched; nor is any file that no record names. The bound
//! is therefore one that the store tends to, not one that a pull fails at.

use super::{ImageStore, Inner, Removed, blocking, kept};
use crate::disk::allocated_bytes;
use crate::error::ImageError;
use sampan_kit::error_chain::ErrorChain;
use std::path::Path;
use std::sync::Arc;

impl ImageStore {
    /// Removes images that nobody uses until all together take no more than `bytes_max`; 0 removes all of them.
    pub async fn gc(&self, bytes_max: u64) -> Result<Removed, ImageError> {
        let inner = self.inner.clone();
        blocking("the images", move || inner.trim(bytes_max)).await
    }

    /// Allocated bytes of everything below the images' directory.
    pub async fn disk_bytes(&self) -> Result<u64, ImageError> {
        let inner = self.inner.clone();
        blocking("the images", move || Ok(tree_bytes(&inner.paths.root))).await
    }
}

impl Inner {
    fn trim(&self, bytes_max: u64) -> Result<Removed, ImageError> {
        let mut all = Removed::default();
        while tree_bytes(&self.paths.root) > bytes_max {
            // Between this look and the removal somebody may have begun to use it: then the removal refuses.
            let Some(image) = self.catalog().least_used() else { break };
            let removed = match self.remove(&image.to_string()) {
                Ok(removed) => removed,
                Err(ImageError::InUse { .. } | ImageError::Unknown { .. }) => continue,
                Err(error) => return Err(error),
            };
            tracing::info!(%image, freed_bytes = removed.freed_bytes, "an image that nobody uses makes room");
            all.removed.extend(removed.removed);
            all.freed_bytes += removed.freed_bytes;
        }
        Ok(all)
    }

    /// Holds the images to their configured share of the disk, behind the caller's back.
    pub(super) fn trim_later(self: &Arc<Self>) {
        let Some(bytes_max) = self.config.cache_bytes_max else { return };
        let inner = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = inner.trim(bytes_max) {
                tracing::warn!(error = %ErrorChain(&error), "images could not be removed to make room");
            }
        });
    }

    /// Remembers that an image was given to somebody, for the next process.
    pub(super) fn note_use(&self, image: &super::Image) {
        kept::touch(&self.paths.record(&image.id));
    }
}

/// What cannot be looked at counts as nothing; it is not ours to remove.
fn tree_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
        Ok(metadata) => allocated_bytes(&metadata),
        Err(_) => 0,
    });
    sizes.sum()
}
