//! Layers on their way in: one transfer for all pulls that need the same one, and none kept that no image needs.

use super::catalog::Catalog;
use super::kept;
use super::paths::{Paths, rename, write_new};
use super::progress::{LayerProgress, LayerState};
use super::registry::Origin;
use super::{Inner, Removed};
use crate::disk::free_bytes;
use crate::error::ImageError;
use crate::lazy::limits::KEPT_INDEX_BLOB_BYTES_MIN;
use crate::limits::CHUNKS_QUEUED;
use crate::unpack::{self, Input, UnpackError, UnpackJob};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Layer;
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, watch};

/// Progress is told when this fraction of a layer has come.
const PROGRESS_STEPS: u64 = 50;

/// How a transfer stands.
#[derive(Debug, Clone)]
pub(super) enum Status {
    Running(LayerProgress),
    Done,
    Failed(Arc<UnpackError>),
}

#[derive(Debug)]
pub(super) struct Layers {
    state: Mutex<State>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// Transfers under way, by diffID and digest: an image may claim another's diffID for bytes of its own, whose failure
    /// must not be the other's.
    running: HashMap<(Digest, Digest), Running>,
    /// How many pulls count on a layer that no record may name yet.
    pins: HashMap<Digest, usize>,
}

impl State {
    /// Whether a transfer is to bring the layer.
    fn brings(&self, diff_id: &Digest) -> bool {
        self.running.keys().any(|(claimed, _)| claimed == diff_id)
    }
}

#[derive(Debug)]
struct Running {
    status: watch::Sender<Status>,
    /// Closed when nothing of the transfer is left, neither threads nor unfinished files.
    ended: watch::Receiver<()>,
}

/// Keeps layers from being swept while a pull counts on them.
#[derive(Debug)]
pub(super) struct Pins {
    inner: Arc<Inner>,
    diff_ids: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let catalog = self.inner.catalog();
        let mut state = self.inner.layers.state();
        for diff_id in &self.diff_ids {
            if let Some(count) = state.pins.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(diff_id);
                }
            }
        }
        drop(state);
        for diff_id in &self.diff_ids {
            if let Err(error) = self.inner.layers.drop_unneeded(&catalog, &self.inner.paths, diff_id) {
                tracing::warn!(error = %ErrorChain(&error), "a layer of a failed pull stays");
            }
        }
        self.inner.sweep_lazy(&catalog);
    }
}

impl Layers {
    pub(super) fn new(at_once: usize) -> Self {
        Self { state: Mutex::default(), permits: Arc::new(Semaphore::new(at_once.max(1))) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pin(inner: &Arc<Inner>, diff_ids: Vec<Digest>) -> Pins {
        // The catalog's lock keeps a removal from sweeping between its look and this.
        let _catalog = inner.catalog();
        let mut state = inner.layers.state();
        for diff_id in &diff_ids {
            *state.pins.entry(*diff_id).or_default() += 1;
        }
        drop(state);
        Pins { inner: inner.clone(), diff_ids }
    }

    /// Whether a pull counts on a layer.
    pub(super) fn is_pinned(&self, diff_id: &Digest) -> bool {
        self.state().pins.contains_key(diff_id)
    }

    /// Removes the layers that nobody needs any more, after their image has gone.
    pub(super) fn sweep(&self, catalog: &Catalog, paths: &Paths) -> Result<Removed, ImageError> {
        let mut removed = Removed::default();
        let entries = std::fs::read_dir(&paths.blobs).map_err(ImageError::file("read", &paths.blobs))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let algorithm = if name.len() == 64 { "sha256" } else { "sha512" };
            let Ok(diff_id) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
            if let Some(bytes) = self.drop_unneeded(catalog, paths, &diff_id)? {
                removed.freed_bytes += bytes;
                removed.removed.push(diff_id.to_string());
            }
        }
        Ok(removed)
    }

    fn drop_unneeded(&self, catalog: &Catalog, paths: &Paths, diff_id: &Digest) -> Result<Option<u64>, ImageError> {
        let state = self.state();
        if catalog.has_layer(diff_id) || state.pins.contains_key(diff_id) || state.brings(diff_id) {
            return Ok(None);
        }
        let blob = paths.blob(diff_id);
        let is_large = std::fs::metadata(&blob).is_ok_and(|blob| blob.len() >= KEPT_INDEX_BLOB_BYTES_MIN);
        let bytes = paths.remove(&blob)?;
        if is_large {
            kept::keep(paths, diff_id)?;
            return Ok(Some(bytes));
        }
        Ok(Some(bytes + paths.remove(&paths.index(diff_id))?))
    }

    /// Follows the transfer of a layer, which begins here if none is under way; `None` if the layer is here. The layer must
    /// be pinned.
    pub(super) fn join(
        inner: &Arc<Inner>,
        origin: &Origin,
        layer: &Layer,
        diff_id: Digest,
    ) -> Option<watch::Receiver<Status>> {
        let mut state = inner.layers.state();
        if let Some(running) = state.running.get(&(diff_id, layer.descriptor.digest)) {
            return Some(running.status.subscribe());
        }
        if inner.paths.index(&diff_id).is_file() && inner.paths.blob(&diff_id).is_file() {
            return None;
        }
        let progress = LayerProgress {
            layer: layer.descriptor.digest.to_string(),
            state: LayerState::Waiting,
            bytes: 0,
            total_bytes: layer.descriptor.size,
        };
        let (sender, receiver) = watch::channel(Status::Running(progress));
        let (end, ended) = watch::channel(());
        state.running.insert((diff_id, layer.descriptor.digest), Running { status: sender.clone(), ended });
        let (inner, origin, layer, digest) = (inner.clone(), origin.clone(), layer.clone(), layer.descriptor.digest);
        tokio::spawn(async move {
            let result = transfer(inner.clone(), origin, layer, diff_id, sender.clone()).await;
            inner.layers.end(&inner, &diff_id, digest);
            sender.send_replace(match result {
                Ok(()) => Status::Done,
                Err(error) => Status::Failed(Arc::new(error)),
            });
            drop(end);
        });
        Some(receiver)
    }

    /// Forgets a transfer, and what it brought if nobody waits for that any more.
    fn end(&self, inner: &Inner, diff_id: &Digest, digest: Digest) {
        let catalog = inner.catalog();
        self.state().running.remove(&(*diff_id, digest));
        if let Err(error) = self.drop_unneeded(&catalog, &inner.paths, diff_id) {
            tracing::warn!(error = %ErrorChain(&error), "a layer that nobody needs stays");
        }
    }

    /// Waits until transfers that nobody follows any more have come to their end.
    pub(super) async fn abandoned(&self, diff_ids: &[Digest]) {
        let endings: Vec<watch::Receiver<()>> = {
            let state = self.state();
            let running = state.running.iter().filter(|((diff_id, _), _)| diff_ids.contains(diff_id));
            running
                .filter(|(_, running)| running.status.receiver_count() == 0)
                .map(|(_, running)| running.ended.clone())
                .collect()
        };
        for mut ended in endings {
            // Nothing is ever sent: the error is the end.
            while ended.changed().await.is_ok() {}
        }
    }
}

/// Downloads and unpacks one layer. Ends early when nobody follows it any more.
async fn transfer(
    inner: Arc<Inner>,
    origin: Origin,
    layer: Layer,
    diff_id: Digest,
    status: watch::Sender<Status>,
) -> Result<(), UnpackError> {
    let digest = layer.descriptor.digest;
    let cancelled = || UnpackError::Cancelled { layer: digest };
    let permit = tokio::select! {
        permit = inner.layers.permits.clone().acquire_owned() => permit.map_err(|_closed| cancelled())?,
        () = status.closed() => return Err(cancelled()),
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED);
    let unpacking = {
        let (inner, layer, status) = (inner.clone(), layer.clone(), status.clone());
        let (done, result) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("layer-inflate".to_owned());
        let thread = thread.spawn(move || {
            let result = unpack_and_keep(&inner, &layer, diff_id, receiver, status);
            // Whoever waited has gone with the runtime.
            done.send(result).ok();
            drop(permit);
        });
        thread.map_err(UnpackError::Thread)?;
        result
    };
    let feeding = feed(inner, origin, layer, sender);
    // Dropped half-way, the feed closes the channel without the mark of a good end, and the threads stop.
    tokio::select! {
        () = feeding => {}
        () = status.closed() => {}
    }
    unpacking.await.map_err(|_gone| UnpackError::Panic)?
}

/// Passes the layer on as it arrives; the empty chunk at its end says that size and digest were right.
async fn feed(
    inner: Arc<Inner>,
    origin: Origin,
    layer: Layer,
    sender: mpsc::Sender<Result<bytes::Bytes, sampan_registry::FetchError>>,
) {
    let mut reader = match inner.client.open_blob(&origin, &layer.descriptor).await {
        Ok(reader) => reader,
        Err(error) => {
            sender.send(Err(error)).await.ok();
            return;
        }
    };
    let whole_bytes = &inner.lazy.traffic().counters.whole_bytes;
    loop {
        let chunk = reader.next().await.transpose();
        let is_last = !matches!(chunk, Some(Ok(_)));
        let chunk = chunk.unwrap_or_else(|| Ok(bytes::Bytes::new()));
        if let Ok(bytes) = &chunk {
            whole_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        // A receiver that has gone tells why itself.
        if sender.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

fn unpack_and_keep(
    inner: &Inner,
    layer: &Layer,
    diff_id: Digest,
    chunks: mpsc::Receiver<Result<bytes::Bytes, sampan_registry::FetchError>>,
    status: watch::Sender<Status>,
) -> Result<(), UnpackError> {
    let digest = layer.descriptor.digest;
    let blob = inner.incoming();
    let failed = |error: ImageError| match error {
        ImageError::DiskFull { path } => UnpackError::DiskFull { layer: digest, path },
        ImageError::File { path, source, .. } => UnpackError::Write { path, source },
        _ => UnpackError::Stopped,
    };
    let free = File::open(&inner.paths.incoming).and_then(free_bytes);
    let free = free.map_err(|source| UnpackError::Write { path: inner.paths.incoming.clone(), source })?;
    let job = UnpackJob {
        digest,
        diff_id,
        compression: layer.compression,
        stream_bytes_max: unpack::stream_bytes_max(inner.config.layer_bytes_max, free),
        blob: blob.clone(),
    };
    let mut input = Input::new(chunks, progress_of(layer, status));
    let kept = unpack::unpack(&job, &mut input).and_then(|unpacked| {
        let index = inner.incoming();
        let kept = write_new(&index, &unpacked.index_bytes)
            .and_then(|_file| rename(&index, &inner.paths.index(&diff_id)))
            .and_then(|()| rename(&blob, &inner.paths.blob(&diff_id)));
        kept.map_err(|error| {
            inner.paths.remove(&index).ok();
            failed(error)
        })
    });
    if kept.is_err() {
        inner.paths.remove(&blob).ok();
    }
    kept
}

fn progress_of(layer: &Layer, status: watch::Sender<Status>) -> Box<dyn FnMut(u64) + Send> {
    let (name, total_bytes) = (layer.descriptor.digest.to_string(), layer.descriptor.size);
    let step = (total_bytes / PROGRESS_STEPS).max(1);
    let mut next = 0;
    Box::new(move |bytes| {
        if bytes >= next || bytes >= total_bytes {
            next = bytes + step;
            let state = if bytes >= total_bytes { LayerState::Unpacking } else { LayerState::Downloading };
            let progress = LayerProgress { layer: name.clone(), state, bytes, total_bytes };
            status.send_replace(Status::Running(progress));
        }
    })
}
