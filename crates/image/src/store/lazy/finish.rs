//! The end of a layer's way: it becomes an ordinary one, or it is found to be untrue.

use super::super::mount::tune_complete_loop;
use super::super::{Inner, blocking, seal};
use super::{Lazy, Outcome, Served, remove_folder};
use crate::disk::free_bytes;
use crate::error::ImageError;
use crate::index::{LayerIndex, front_checksum};
use crate::lazy::complete::{CompletionError, Target, complete};
use crate::lazy::connection::LazyFiles;
use crate::lazy::device::switch_devices;
use crate::lazy::event::{ImageEvent, LayerEvent};
use crate::lazy::limits::{COMPLETION_RETRY_FIRST, COMPLETION_RETRY_LONGEST};
use crate::store::paths::{rename, write_new};
use crate::unpack::stream_bytes_max;
use sampan_kit::backoff::Backoff;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

/// Completes a layer in the background, for as long as store and layer live.
pub(crate) fn start_completion(inner: &Arc<Inner>, served: &Arc<Served>) {
    if served.layer.completing.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::spawn(run(Arc::downgrade(inner), served.clone()));
}

async fn run(store: Weak<Inner>, served: Arc<Served>) {
    let mut backoff = Backoff::new(COMPLETION_RETRY_FIRST, COMPLETION_RETRY_LONGEST);
    loop {
        let Some(inner) = store.upgrade() else { return };
        if served.layer.is_closed() {
            return;
        }
        let free = File::open(&inner.paths.incoming).and_then(free_bytes).unwrap_or(0);
        let target =
            Target { blob: inner.incoming(), stream_bytes_max: stream_bytes_max(inner.config.layer_bytes_max, free) };
        drop(inner);
        let blob = target.blob.clone();
        let result = complete(&served.layer, target).await;
        let Some(inner) = store.upgrade() else { return };
        let (me, of) = (inner.clone(), served.clone());
        let cause = match result {
            Ok(index) => match blocking("a layer", move || me.keep_complete(&of, &blob, &index)).await {
                Ok(()) => return,
                Err(error) => ErrorChain(&error).to_string(),
            },
            Err(CompletionError::Untrue(cause)) => {
                let told = cause.clone();
                let quarantined = blocking("a layer", move || me.quarantine(&of, told)).await;
                if let Err(error) = quarantined {
                    tracing::error!(error = %ErrorChain(&error), "an untrue index could not be put aside");
                }
                tracing::error!(layer = %served.diff_id, cause, "a layer's index was not the truth");
                return;
            }
            Err(error) => ErrorChain(&error).to_string(),
        };
        drop(inner);
        if served.layer.is_closed() {
            return;
        }
        tracing::warn!(layer = %served.diff_id, cause, "a layer could not be completed; this is tried again");
        served.outcome.send_replace(Outcome::Failed(cause));
        tokio::select! {
            () = tokio::time::sleep(backoff.fail()) => {}
            () = served.layer.until_closed() => return,
        }
    }
}

impl Lazy {
    /// Puts the whole blob behind every device of a layer. From then on the layer is an ordinary one.
    pub(super) fn switch(&self, served: &Served, blob: File) -> Result<(), ImageError> {
        let _alone = self.switching.write().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| ImageError::Lazy { source };
        // First of all: reads that are under way must end before a device can be moved.
        served.layer.finish(blob.try_clone().map_err(|error| failed(error.into()))?);
        if let Some(files) = self.files.as_ref().filter(|_| served.file.is_some()) {
            move_devices(files, served.layer.number, &blob)?;
            files.remove(served.layer.number);
        }
        self.layers().remove(&served.diff_id);
        remove_folder(&served.layer.directory);
        served.layer.close();
        served.outcome.send_replace(Outcome::Ended { is_complete: true });
        Ok(())
    }
}

fn move_devices(files: &LazyFiles, number: u64, blob: &File) -> Result<(), ImageError> {
    let devices = switch_devices(files, number, blob).map_err(|source| ImageError::Lazy { source: source.into() })?;
    for (device, reading) in devices {
        // A device that stays as it was is slower, and nothing else.
        if let Err(error) = tune_complete_loop(&device, blob, reading) {
            tracing::debug!(device = %device.path().display(), %error, "a loop device keeps its settings");
        }
    }
    Ok(())
}

impl Inner {
    /// Makes a layer an ordinary one.
    fn keep_complete(self: &Arc<Self>, served: &Arc<Served>, blob: &Path, index: &[u8]) -> Result<(), ImageError> {
        let kept = self.keep_files(served, blob, index);
        if kept.is_err() {
            // The next attempt makes it anew.
            self.paths.remove(blob).ok();
        }
        if !kept? {
            return Ok(());
        }
        self.lazy.traffic().counters.layers_completed.fetch_add(1, Ordering::Relaxed);
        self.trim_later();
        (self.lazy.around.report)(LayerEvent::Complete { diff_id: served.diff_id });
        Ok(())
    }

    /// `false` for one that is not to be.
    fn keep_files(&self, served: &Served, blob: &Path, index: &[u8]) -> Result<bool, ImageError> {
        let diff_id = &served.diff_id;
        let temporary = self.incoming();
        write_new(&temporary, index)?;
        let path = self.paths.blob(diff_id);
        {
            // A layer that nobody needs any more has just been given up; what is there by now is another's, who fetched it anew.
            let catalog = self.catalog();
            if served.layer.is_closed() || !(catalog.has_layer(diff_id) || self.layers.is_pinned(diff_id)) {
                self.paths.remove(&temporary)?;
                self.paths.remove(blob)?;
                return Ok(false);
            }
            rename(&temporary, &self.paths.index(diff_id))?;
            rename(blob, &path)?;
        }
        self.paths.remove(&self.paths.kept(diff_id))?;
        let whole = File::open(&path).map_err(ImageError::file("open", &path))?;
        if let Err(error) = self.lazy.switch(served, whole) {
            // It is served from the whole blob; the next start of the service tries to move the devices again.
            tracing::error!(layer = %diff_id, error = %ErrorChain(&error), "a mounted layer cannot be moved to its local file");
            served.outcome.send_replace(Outcome::Ended { is_complete: true });
        }
        Ok(true)
    }

    /// Never believes an index again, and takes the layer away from those who use it.
    fn quarantine(&self, served: &Served, cause: String) -> Result<(), ImageError> {
        let checksum = served.layer.read_whole_index().ok().and_then(|index| checksum_of(&index));
        let diff_id = &served.diff_id;
        if let Some(checksum) = checksum {
            let path = self.paths.quarantine.join(checksum);
            if !path.exists() {
                write_new(&path, cause.as_bytes())?;
            }
        }
        self.paths.remove(&self.paths.kept(diff_id))?;
        let mut catalog = self.catalog();
        let images = catalog.images_with(diff_id);
        for image in &images {
            catalog.remove(&self.paths, image)?;
            self.paths.remove(&self.paths.metadata(image))?;
            self.mounts().remove(image);
        }
        self.lazy.give_up(served);
        self.sweep_lazy(&catalog);
        self.layers.sweep(&catalog, &self.paths)?;
        drop(catalog);
        self.hold_mounts();
        self.lazy.traffic().counters.layers_refused.fetch_add(1, Ordering::Relaxed);
        // Nobody may listen.
        self.lazy.events.send(ImageEvent::Untrue { images, layer: *diff_id, cause }).ok();
        Ok(())
    }

    pub(super) fn is_quarantined(&self, index: &LayerIndex) -> bool {
        checksum_of(index).is_none_or(|checksum| self.paths.quarantine.join(checksum).exists())
    }

    /// Turns what layers report into what happened to images.
    pub(crate) fn forward_reports(self: &Arc<Self>) {
        let reports = self.lazy.reports.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut reports), store) = (reports, Arc::downgrade(self)) else { return };
        tokio::spawn(async move {
            while let Some(report) = reports.recv().await {
                let Some(inner) = store.upgrade() else { return };
                for event in inner.told(report) {
                    // Nobody may listen.
                    inner.lazy.events.send(event).ok();
                }
            }
        });
    }

    fn told(self: &Arc<Self>, report: LayerEvent) -> Vec<ImageEvent> {
        match report {
            LayerEvent::Trouble { diff_id, cause, readers_failed } => {
                tracing::warn!(layer = %diff_id, cause, readers_failed, "readers wait for a layer");
                let images = self.catalog().images_with(&diff_id);
                vec![ImageEvent::Trouble { images, layer: diff_id, cause, readers_failed }]
            }
            LayerEvent::Complete { diff_id } => {
                let images = self.catalog().images_with(&diff_id);
                let whole: Vec<Digest> = images.into_iter().filter(|image| self.is_whole(image)).collect();
                for image in &whole {
                    if let Err(error) = self.read_ahead_again(image) {
                        tracing::debug!(%image, %error, "a mounted image reads nothing ahead");
                    }
                    // Instances that begin later get a mount on the files themselves.
                    self.mounts().remove(image);
                    seal::start(self, *image);
                }
                self.hold_mounts();
                whole.into_iter().map(|image| ImageEvent::Complete { image }).collect()
            }
        }
    }

    /// Whether all layers of an image are here.
    pub(crate) fn is_whole(&self, image: &Digest) -> bool {
        let record = self.catalog().record(image).cloned();
        record.is_some_and(|record| record.layers.iter().all(|layer| self.has_blob(&layer.diff_id)))
    }
}

fn checksum_of(index: &LayerIndex) -> Option<String> {
    let front = index.encode_front().ok()?;
    Some(front_checksum(&front)?.iter().map(|byte| format!("{byte:02x}")).collect())
}
