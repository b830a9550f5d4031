//! Getting a new image onto the disk for good, behind the back of whoever pulled it.

use super::Inner;
use super::record::sync_directory;
use crate::error::ImageError;
use crate::limits::SEAL_DELAY;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Images that are not on the disk for good yet.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    threads: Mutex<Vec<JoinHandle<()>>>,
    hurry: Arc<Hurry>,
}

/// Ends the wait of all.
#[derive(Debug, Default)]
struct Hurry {
    now: Mutex<bool>,
    changed: Condvar,
}

impl Sealing {
    /// Waits until all is sealed, at once.
    pub(super) fn finish(&self) {
        *self.hurry.now.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.hurry.changed.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // A panic there has been reported; the image will be sealed at the next start.
            thread.join().ok();
        }
    }
}

impl Hurry {
    fn wait(&self, at_most: Duration) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether time or hurry ended the wait does not matter.
        drop(self.changed.wait_timeout_while(now, at_most, |now| !*now));
    }
}

/// Syncs the files of an image and seals its record, on a thread of its own and not at once: a pull is mostly followed by a
/// start, which should not compete for the disk. If it fails, the record stays as it is, and the next start of the service
/// tries again.
pub(super) fn start(inner: &Arc<Inner>, id: Digest) {
    let (weak, hurry) = (Arc::downgrade(inner), inner.sealing.hurry.clone());
    let thread = std::thread::Builder::new().name("image-seal".to_owned()).spawn(move || {
        hurry.wait(SEAL_DELAY);
        // A store that was dropped meanwhile finds the image when it is opened again.
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
            let mut threads = inner.sealing.threads.lock().unwrap_or_else(PoisonError::into_inner);
            threads.retain(|thread| !thread.is_finished());
            threads.push(thread);
        }
        Err(error) => tracing::warn!(image = %id, %error, "no thread to sync an image to the disk"),
    }
}

fn seal(inner: &Inner, id: &Digest) -> Result<(), ImageError> {
    let record = inner.catalog().record(id).cloned();
    let Some(record) = record.filter(|record| record.unsealed_boot.is_some()) else { return Ok(()) };
    if !record.layers.iter().all(|layer| inner.has_blob(&layer.diff_id)) {
        // It is sealed when its last layer is complete.
        return Ok(());
    }
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
