//! Getting a new image onto the disk for good, behind the back of whoever pulled it.

use super::Inner;
use super::record::sync_directory;
use crate::error::ImageError;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError};

/// Syncs the files of an image and seals its record, on a thread of its own. If that fails, the record stays as it is, and the
/// next start of the service tries again.
pub(super) fn start(inner: &Arc<Inner>, id: Digest) {
    let weak = Arc::downgrade(inner);
    let thread = std::thread::Builder::new().name("image-seal".to_owned()).spawn(move || {
        let Some(inner) = weak.upgrade() else { return };
        match seal(&inner, &id) {
            Ok(()) => {}
            // It was removed meanwhile.
            Err(_) if !inner.catalog().has_image(&id) => {}
            Err(error) => {
                tracing::warn!(image = %id, error = %ErrorChain(&error), "an image could not be synced to the disk");
            }
        }
    });
    match thread {
        Ok(thread) => {
            let mut sealing = inner.sealing.lock().unwrap_or_else(PoisonError::into_inner);
            sealing.retain(|thread| !thread.is_finished());
            sealing.push(thread);
        }
        Err(error) => tracing::warn!(image = %id, %error, "no thread to sync an image to the disk"),
    }
}

fn seal(inner: &Inner, id: &Digest) -> Result<(), ImageError> {
    let record = inner.catalog().record(id).cloned();
    let Some(record) = record.filter(|record| record.unsealed_boot.is_some()) else { return Ok(()) };
    for layer in &record.layers {
        sync(&inner.paths.blob(&layer.diff_id))?;
        sync(&inner.paths.index(&layer.diff_id))?;
    }
    sync(&inner.paths.metadata(id))?;
    for directory in [&inner.paths.blobs, &inner.paths.indexes, &inner.paths.metadata] {
        sync_directory(directory)?;
    }
    inner.catalog().seal(id, &inner.paths)
}

fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::file("sync", path))
}
