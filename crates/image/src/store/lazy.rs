//! Layers of this store that are mounted before they are here: made, found again, completed, given up.
//!
//! ```text
//!  begin ─▶ served (FUSE, background completion) ─▶ complete: blob renamed, devices switched ─▶ an ordinary layer
//!                │                                └▶ untrue: quarantined, images dropped, event
//!                └─ killed ─▶ adopt, in the next process of the same boot
//! ```
//!
//! - A layer is either served from its folder below `lazy/`, or an ordinary blob; the blob's rename decides. Both may be there
//!   after a kill in between: then the blob counts, and what is left to do is done when the store is opened.
//! - Mounting and switching exclude each other: no mount gets a device whose file is about to go.
//! - Locks, outermost first: `beginning`, catalog, `switching`, `layers`, then a layer's own.

mod adopt;
mod choose;
mod contents;
mod finish;
mod mount;
mod prefetch;

pub(super) use adopt::{Opening, adopt};
pub(super) use choose::{Plan, plan};
pub(super) use finish::start_completion;
pub(super) use prefetch::prefetch;

use choose::{Known, Stored};

use super::Inner;
use super::paths::{rename, write_new};
use super::registry::Origin;
use crate::error::ImageError;
use crate::index::LayerIndex;
use crate::lazy::compressed::CompressedCache;
use crate::lazy::connection::LazyFiles;
use crate::lazy::event::{ImageEvent, LayerEvent};
use crate::lazy::layer::{LayerParts, LazyLayer, Surroundings};
use crate::lazy::pages::PageCache;
use crate::lazy::partial_file::PartialFile;
use crate::lazy::remote::Remote;
use crate::lazy::state::{INDEX, LayerState, ReadBy};
use crate::lazy::traffic::Traffic;
use sampan_oci::digest::Digest;
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, watch};

/// Events that a slow listener may fall behind.
const EVENTS_QUEUED: usize = 256;

/// All layers that are on their way.
pub(crate) struct Lazy {
    /// `None` where this machine or this service cannot serve incomplete blobs.
    files: Option<LazyFiles>,
    around: Surroundings,
    layers: Mutex<HashMap<Digest, Arc<Served>>>,
    /// Held while a layer's folder is made: two pulls may begin the same layer.
    beginning: Mutex<()>,
    /// Held shared while a mount is made, and alone while the devices of a layer are switched.
    switching: RwLock<()>,
    /// Held while it is decided how far an image reads ahead.
    read_ahead: Mutex<()>,
    events: broadcast::Sender<ImageEvent>,
    begun: Begun,
    /// Taken when the store has been opened.
    reports: Mutex<Option<mpsc::UnboundedReceiver<LayerEvent>>>,
}

/// Layers that were used before they were here, by what was known of them.
#[derive(Debug, Default)]
pub(super) struct Begun {
    pub(super) own: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) contents: AtomicU64,
}

impl Begun {
    fn of(&self, known: &Known) -> (&'static str, &AtomicU64) {
        match known {
            Known::Own { .. } => ("an index of this machine", &self.own),
            Known::Published(_) => ("a published index", &self.published),
            Known::Contents(_) => ("its own table of contents", &self.contents),
        }
    }
}

/// One layer on its way.
pub(super) struct Served {
    pub(super) layer: Arc<LazyLayer>,
    pub(super) diff_id: Digest,
    /// Open through FUSE; `None` for a layer without data.
    file: Option<File>,
    pub(super) outcome: watch::Sender<Outcome>,
    /// Whether a start is being traced, or was.
    traced: AtomicBool,
}

/// How completion stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Running,
    /// The last attempt failed for this reason; another one follows.
    Failed(String),
    /// It is an ordinary layer now, or it is given up.
    Ended {
        is_complete: bool,
    },
}

impl Served {
    /// Hurries, and waits until the layer is an ordinary one; `false` if it cannot be had this way at present.
    pub(super) async fn completed(&self) -> bool {
        self.layer.remote.hurry.store(true, Ordering::Relaxed);
        let mut outcome = self.outcome.subscribe();
        // What failed before counts no more.
        outcome.mark_unchanged();
        let mut first = true;
        let ended = outcome.wait_for(|outcome| {
            let is_new = !std::mem::replace(&mut first, false);
            matches!(outcome, Outcome::Ended { .. }) || (is_new && matches!(outcome, Outcome::Failed(_)))
        });
        let ended = ended.await;
        // An error would mean that `self` is gone.
        ended.is_ok_and(|ended| *ended == Outcome::Ended { is_complete: true })
    }
}

impl Lazy {
    pub(super) fn new(
        files: Option<LazyFiles>,
        background_bytes_per_second: Option<u64>,
        read_deadline: std::time::Duration,
    ) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        let around = Surroundings {
            traffic: Arc::new(Traffic::new(background_bytes_per_second)),
            clock: Arc::default(),
            // A store that is closed listens no more.
            report: Arc::new(move |event| drop(reporter.send(event))),
            read_deadline,
            runtime: Handle::current(),
        };
        Self {
            files,
            around,
            layers: Mutex::default(),
            beginning: Mutex::default(),
            switching: RwLock::new(()),
            read_ahead: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_QUEUED),
            begun: Begun::default(),
            reports: Mutex::new(Some(reports)),
        }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.files.is_some()
    }

    /// Leaves readers who wait to the next service.
    pub(super) fn leave(&self) {
        if let Some(files) = &self.files {
            files.close();
        }
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Served>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, diff_id: &Digest) -> Option<Arc<Served>> {
        self.layers().get(diff_id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        self.layers().values().cloned().collect()
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.around.traffic
    }

    pub(super) fn begun(&self) -> &Begun {
        &self.begun
    }

    pub(super) fn events(&self) -> &broadcast::Sender<ImageEvent> {
        &self.events
    }

    /// Serves a layer from now on.
    fn serve(&self, layer: Arc<LazyLayer>) -> Result<Arc<Served>, ImageError> {
        let diff_id = layer.index().diff_id;
        let file = match &self.files {
            Some(files) if layer.bytes() > 0 => {
                let served: Arc<dyn PartialFile> = layer.clone();
                Some(files.add(layer.number, &served).map_err(|source| ImageError::Lazy { source: source.into() })?)
            }
            _ => None,
        };
        let outcome = watch::Sender::new(Outcome::Running);
        let served = Arc::new(Served { layer, diff_id, file, outcome, traced: AtomicBool::new(false) });
        self.layers().insert(diff_id, served.clone());
        Ok(served)
    }

    /// Ends everything of a layer, and removes its files.
    fn give_up(&self, served: &Served) {
        served.layer.close();
        self.layers().remove(&served.diff_id);
        if let Some(files) = self.files.as_ref().filter(|_| served.file.is_some()) {
            files.remove(served.layer.number);
        }
        remove_folder(&served.layer.directory);
        served.outcome.send_replace(Outcome::Ended { is_complete: false });
    }
}

impl Inner {
    /// Makes the folder of a layer that is not here, and serves it. If it is being served already, the new way to it is noted.
    pub(super) fn begin(&self, plan: Plan, origin: Origin) -> Result<(), ImageError> {
        let _one = self.lazy.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = self.lazy.get(&plan.diff_id) {
            served.layer.remote.replace_origin(origin);
            return Ok(());
        }
        self.lazy.traffic().expect_readers();
        let making = self.incoming();
        let (by, begun) = self.lazy.begun.of(&plan.known);
        let made = self.make_folder(&making, plan, origin).and_then(|(layer, early)| {
            let served = self.lazy.serve(layer)?;
            served.layer.prefetch(early);
            Ok(served)
        });
        let served = made.inspect_err(|_| remove_folder(&making))?;
        let layer = served.layer.index();
        tracing::info!(layer = %layer.layer_digest, bytes = layer.layer_bytes, by, "a layer is used before it is here");
        begun.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Also gives the pages that are worth having early.
    fn make_folder(
        &self,
        making: &Path,
        plan: Plan,
        origin: Origin,
    ) -> Result<(Arc<LazyLayer>, Range<u64>), ImageError> {
        let failed = ImageError::file;
        DirBuilder::new().mode(0o700).create(making).map_err(failed("create", making))?;
        let index_path = making.join(INDEX);
        let layer = plan.layer.descriptor;
        let is_published = plan.known.is_published();
        let Stored { index, read_by, front_end, records, fetched } = plan.known.store(&index_path)?;
        let early = match read_by {
            ReadBy::Index => 0..0,
            ReadBy::Contents => index.pages_before_landmark(),
        };
        let blob_bytes = index.tree.blob_layout().1;
        let pages = PageCache::create(making, blob_bytes).map_err(failed("create a cache in", making))?;
        let compressed =
            CompressedCache::create(making, index.layer_bytes).map_err(failed("create a cache in", making))?;
        for (at, bytes) in &fetched {
            compressed.put(*at, bytes).map_err(failed("write a cache in", making))?;
        }
        let number = new_number();
        let source = origin.source.to_string();
        let state = LayerState::new(number, plan.diff_id, layer.clone(), source, self.boot_id.clone());
        state.published(is_published.then_some(front_end)).read_by(read_by).write(making)?;
        let directory = self.paths.lazy(&plan.diff_id);
        // Another index of the same layer may have been given up just now.
        remove_folder(&directory);
        rename(making, &directory)?;
        let remote = Remote::new(self.client.clone(), origin, layer, self.lazy.around.traffic.clone());
        let parts = LayerParts { directory, number, index, read_by, front_end, records, remote, pages, compressed };
        let layer = LazyLayer::new(parts, self.lazy.around.clone());
        layer.begins();
        Ok((layer, early))
    }

    /// Gives up the layers on their way that no image and no pull needs any more.
    pub(super) fn sweep_lazy(&self, catalog: &super::catalog::Catalog) {
        for served in self.lazy.all() {
            if !catalog.has_layer(&served.diff_id) && !self.layers.is_pinned(&served.diff_id) {
                self.lazy.give_up(&served);
            }
        }
    }

    /// Bytes that are here of a layer on its way: of the compressed layer, and of its blob.
    pub(super) fn arrived(&self, diff_id: &Digest) -> Option<(u64, u64)> {
        let served = self.lazy.get(diff_id)?;
        Some((served.layer.compressed.present_bytes(), served.layer.pages.present_bytes()))
    }

    /// What a layer on its way is read by, in a word.
    pub(super) fn read_by(&self, diff_id: &Digest) -> Option<&'static str> {
        Some(match self.lazy.get(diff_id)?.layer.read_by() {
            ReadBy::Index => "index",
            ReadBy::Contents => "tableOfContents",
        })
    }

    /// Whether the layer is here in whole.
    pub(super) fn has_blob(&self, diff_id: &Digest) -> bool {
        self.paths.blob(diff_id).is_file() && self.paths.index(diff_id).is_file()
    }

    /// The file with the front part of the index of a layer that is here, or on its way.
    pub(super) fn index_path(&self, diff_id: &Digest) -> std::path::PathBuf {
        match self.lazy.get(diff_id) {
            Some(served) if !self.has_blob(diff_id) => served.layer.directory.join(INDEX),
            _ => self.paths.index(diff_id),
        }
    }
}

/// A number for a file, never given before in the life of this connection, by all likelihood.
fn new_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hasher keys are the process's nearest source of chance.
    RandomState::new().hash_one(std::time::Instant::now()) | 1 << 32
}

fn remove_folder(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "a layer that is given up cannot be removed"),
    }
}

/// The index file of a layer, read for use.
pub(super) fn open_index(path: &Path) -> Result<(LayerIndex, u64, File), ImageError> {
    let front = super::read_front(path)?;
    let decoded = LayerIndex::decode(&front);
    let index = decoded.map_err(|source| ImageError::Index { path: path.to_owned(), source })?;
    let file = File::open(path).map_err(ImageError::file("open", path))?;
    Ok((index, front.len() as u64, file))
}

/// Writes the front part of an index that came from elsewhere.
fn write_front(path: &Path, front: &LayerIndex) -> Result<u64, ImageError> {
    let bytes = front.encode_front().map_err(|source| ImageError::Index { path: path.to_owned(), source })?;
    write_new(path, &bytes)?;
    Ok(bytes.len() as u64)
}
