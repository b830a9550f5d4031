//! The images of this machine: references, layers, and what the kernel mounts.
//!
//! ```text
//! DATA_DIR/images/
//!   lock                 held by the one service that may write here
//!   incoming/            what is being made; emptied when the store is opened
//!   blobs/<diffID>       file contents of a layer
//!   indexes/<diffID>     the layer's index (see `crate::index`)
//!   metadata/<image id>  the image's EROFS metadata
//!   records/<image id>   JSON: references, configuration, layers, whether all this is known to be on the disk
//!   lazy/<diffID>/       a layer that is mounted and still arriving (see `crate::lazy`); of this boot only
//!   kept/<diffID>        the index of a layer that was here; bounded
//!   quarantine/          checksums of indexes that were not the truth
//! ```
//!
//! - **Consistency.** Everything is written under `incoming/` and renamed; a record is renamed last. What no record names is
//!   removed when the store is opened, and when the last pull that needed it ends. Files that this store never writes are left
//!   alone. Layers are shared between images by diffID, and pulls that need the same layer wait for one transfer.
//! - **Durability.** A pull does not wait for the disk. Its record carries the boot's id; a thread then syncs the files and
//!   directories and writes the record again, *sealed*. After a power cut, records that are not sealed and carry another
//!   boot's id are dropped with their files: a blob that may have holes is never mounted. After a mere kill nothing is lost.
//! - **In use.** An image is in use while anyone holds an [`Image`] of it. Whoever mounts one must hold it as long as the
//!   mount, and must [`ensure`](ImageStore::ensure) it again after a restart of the service.
//! - **Cancellation.** Dropping the future of `ensure` ends its transfers unless another pull waits for the same layers.

mod access;
mod catalog;
mod counters;
mod kept;
mod layers;
mod lazy;
mod mount;
mod open;
mod paths;
mod progress;
mod published;
mod pull;
mod record;
pub(crate) mod registry;
mod seal;
#[cfg(test)]
mod tests;
mod trim;
mod verify;

pub use catalog::Image;
pub use counters::ImageCounters;
pub(crate) use mount::Reading;
#[cfg(test)]
pub(crate) use mount::{mount_files, mount_image, mount_loops};
pub(crate) use paths::write_new;
pub use progress::{LayerProgress, LayerState, ProgressSender};
pub use published::{ImageDetails, LayerDetails, TraceDetails};
pub(crate) use pull::read_front;
pub use verify::{Verdict, VerifiedLayer};

use self::lazy::{Lazy, Outcome};
use crate::error::ImageError;
use crate::lazy::event::ImageEvent;
use crate::lazy::limits::{LAZY_BYTES_MIN, READ_DEADLINE};
use crate::lazy::source::IndexSource;
use crate::limits::{LAYER_BYTES_MAX, LAYERS_AT_ONCE};
use crate::publish::{CacheLocation, Publications};
use catalog::Catalog;
use layers::Layers;
use paths::Paths;
use registry::Client;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, RegistryConfig};
use sampan_sys::keeper::DescriptorKeeper;
use sampan_sys::mount::{KeptMount, MountRoom};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Every time; nothing is transferred if the tag still means the same.
    Always,
    IfNotPresent,
    Never,
}

/// How much of an image must be here before it is given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Enough to mount it; the rest arrives while it is used.
    Startable,
    Whole,
}

#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// The service's data directory; images live in `images` below it.
    pub data_dir: PathBuf,
    pub registry: RegistryConfig,
    /// Which image of an index is taken.
    pub platform: Platform,
    /// Most bytes that one layer may unpack to.
    pub layer_bytes_max: u64,
    /// Layers that are downloaded and unpacked at one time.
    pub layers_at_once: usize,
    /// Where mounts are attached, on kernels that clone only attached ones.
    pub mount_room: Option<Arc<MountRoom>>,
    /// Who holds descriptors beyond the end of this process. Without one nothing is mounted before it is complete.
    pub keeper: Option<DescriptorKeeper>,
    /// Where indexes come from that this node did not make; what [`crate::publish`] finds if `None`.
    pub index_source: Option<Arc<dyn IndexSource>>,
    /// Where published indexes are looked for, and written to, besides the image's own registry.
    pub index_cache: Option<CacheLocation>,
    /// Compressed bytes that must be missing of an image for it to be mounted before it is here.
    pub lazy_bytes_min: u64,
    /// How long a reader waits for bytes that do not come.
    pub read_deadline: Duration,
    /// What all images may take of the disk; those that nobody uses go when it is more. No limit if `None`.
    pub cache_bytes_max: Option<u64>,
    /// What completing images may take of the network while nobody waits for it; no limit if `None`.
    pub background_bytes_per_second: Option<u64>,
}

impl ImageStoreConfig {
    pub fn new(data_dir: impl Into<PathBuf>, registry: RegistryConfig) -> Self {
        Self {
            data_dir: data_dir.into(),
            registry,
            platform: Platform::host(),
            layer_bytes_max: LAYER_BYTES_MAX,
            layers_at_once: LAYERS_AT_ONCE,
            mount_room: None,
            keeper: None,
            index_source: None,
            index_cache: None,
            lazy_bytes_min: LAZY_BYTES_MIN,
            read_deadline: READ_DEADLINE,
            background_bytes_per_second: None,
            cache_bytes_max: None,
        }
    }
}

/// One line of a list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    pub id: Digest,
    pub references: Vec<String>,
    pub manifest_digest: Digest,
    /// Names with the digests that their registries gave: what may be asked for and never changes.
    pub repo_digests: Vec<String>,
    /// Who runs it, as the image says: `USER[:GROUP]`, names or numbers; may be empty.
    pub user: String,
    /// As the image says; may be empty.
    pub created: String,
    pub pulled_at: jiff::Timestamp,
    /// Allocated bytes, layers shared with other images included.
    pub size_bytes: u64,
    pub architecture: String,
    pub in_use: bool,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// References first, then ids of images and diffIDs of layers that are gone.
    pub removed: Vec<String>,
    /// Allocated bytes given back.
    pub freed_bytes: u64,
}

/// The images of this machine. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: ImageStoreConfig,
    paths: Paths,
    client: Client,
    catalog: Mutex<Catalog>,
    layers: Layers,
    lazy: Lazy,
    publications: Publications,
    mounts: Mutex<HashMap<Digest, KeptMount>>,
    sealing: seal::Sealing,
    accepted: access::Accepted,
    boot_id: String,
    /// Numbers for names in `incoming`.
    next_name: std::sync::atomic::AtomicU64,
    /// Holds the lock of the directory.
    _lock: File,
}

impl ImageStore {
    /// Opens the images below a data directory, made where there is none, and cleans up what a crash left.
    pub async fn open(config: ImageStoreConfig) -> Result<Self, ImageError> {
        let inner = blocking("the store", move || open::open(config)).await?;
        let store = Self { inner: Arc::new(inner) };
        store.inner.forward_reports();
        store.inner.complete_adopted();
        for id in store.inner.catalog().unsealed() {
            seal::start(&store.inner, id);
        }
        Ok(store)
    }

    /// The image that `reference` names, pulled if the policy says so. `reference` may also be an image's id.
    pub async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        progress: ProgressSender,
    ) -> Result<Arc<Image>, ImageError> {
        let image = self.find_or_fetch(reference, policy, Wanted::Startable, Credentials::host(), progress).await?;
        self.inner.note_use(&image);
        Ok(image)
    }

    /// The same, and waits until all of it is here. An image that is mounted already is hurried.
    pub async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        progress: ProgressSender,
    ) -> Result<Arc<Image>, ImageError> {
        self.pull_as(reference, policy, Credentials::host(), progress).await
    }

    /// The same, with these logins instead of the machine's own.
    pub async fn pull_as(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Credentials,
        progress: ProgressSender,
    ) -> Result<Arc<Image>, ImageError> {
        let image = self.find_or_fetch(reference, policy, Wanted::Whole, credentials, progress).await?;
        self.complete(&image).await?;
        Ok(image)
    }

    /// Waits until all of an image is here, and has that hurried.
    pub async fn complete(&self, image: &Image) -> Result<(), ImageError> {
        for diff_id in &image.config.rootfs.diff_ids {
            let Some(served) = self.inner.lazy.get(diff_id) else { continue };
            served.layer.remote.hurry.store(true, Ordering::Relaxed);
            let mut outcome = served.outcome.subscribe();
            let incomplete =
                |cause: &str| ImageError::Incomplete { reference: image.reference.clone(), cause: cause.to_owned() };
            // What failed before this was asked for counts no more.
            outcome.mark_unchanged();
            loop {
                if let Outcome::Ended { is_complete } = *outcome.borrow_and_update() {
                    if is_complete {
                        break;
                    }
                    return Err(incomplete("a layer was given up"));
                }
                if outcome.changed().await.is_err() {
                    return Err(ImageError::Stopped { reference: image.reference.clone() });
                }
                if let Outcome::Failed(cause) = &*outcome.borrow() {
                    return Err(incomplete(cause));
                }
            }
        }
        Ok(())
    }

    /// Whether all of an image is here.
    pub fn is_complete(&self, image: &Image) -> bool {
        self.inner.is_whole(&image.id)
    }

    /// What happens to images from now on.
    pub fn events(&self) -> broadcast::Receiver<ImageEvent> {
        self.inner.lazy.events().subscribe()
    }

    /// The same for a tenant, with these logins instead of the machine's own. An image that was pulled with somebody's login is
    /// given only to those whose logins its registry accepts.
    pub async fn ensure_as(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Credentials,
        progress: ProgressSender,
    ) -> Result<Arc<Image>, ImageError> {
        let fetched = self.find_or_fetch(reference, policy, Wanted::Startable, credentials.clone(), progress);
        let image = fetched.await?;
        self.inner.check_access(&image, reference, &credentials).await?;
        self.inner.note_use(&image);
        Ok(image)
    }

    async fn find_or_fetch(
        &self,
        reference: &str,
        policy: PullPolicy,
        wanted: Wanted,
        credentials: Credentials,
        progress: ProgressSender,
    ) -> Result<Arc<Image>, ImageError> {
        if let Some(image) = self.inner.catalog().by_id(reference) {
            return Ok(image);
        }
        let source: ImageSource =
            reference.parse().map_err(|source| ImageError::Reference { reference: reference.to_owned(), source })?;
        let name = source.to_string();
        let present = self.inner.catalog().by_reference(&name);
        match (policy, present, &source) {
            (PullPolicy::Never, present, _) => {
                present.ok_or(ImageError::NotPresent { reference: reference.to_owned() })
            }
            (PullPolicy::IfNotPresent, Some(image), ImageSource::Registry(_)) => {
                self.inner.catalog().cached(&image.id).into_iter().for_each(|layer| progress.send(layer));
                Ok(image)
            }
            // What is on this machine may change at any time, and looking costs little; but it may also be gone.
            (
                PullPolicy::IfNotPresent,
                Some(image),
                ImageSource::Layout { directory: path, .. } | ImageSource::Archive { file: path, .. },
            ) if !path.exists() => Ok(image),
            _ => {
                let origin = registry::Origin { source, credentials };
                pull::pull_if_changed(&self.inner, origin, name, wanted, progress).await
            }
        }
    }

    /// Waits until all that was pulled is on the disk, for an orderly end. Not needed for correctness.
    pub async fn close(self) {
        self.inner.lazy.leave();
        let inner = self.inner.clone();
        let sealed = blocking("the end", move || {
            inner.sealing.finish();
            Ok(())
        });
        // Only the end of the runtime cuts this short.
        sealed.await.ok();
    }

    /// All images, by reference.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let inner = self.inner.clone();
        blocking("the list", move || inner.catalog().list(&inner.paths)).await
    }

    /// The image that a name means, of those that are here: a reference, a name with the digest of what was pulled, an id, or
    /// the beginning of one. In use as long as it is held.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.catalog().find(name)
    }

    /// The same image's id. Who only looks does not use it: a removal at the same moment is not refused for that.
    pub fn find_id(&self, name: &str) -> Option<Digest> {
        self.inner.catalog().find_id(name)
    }

    /// One line of [`list`](Self::list).
    pub async fn describe(&self, id: Digest) -> Result<Option<ImageSummary>, ImageError> {
        let inner = self.inner.clone();
        blocking("the image", move || Ok(inner.catalog().summary(&id, &inner.paths))).await
    }

    /// What the images of an archive of `docker save` are called.
    pub async fn archive_names(&self, file: &Path) -> Result<Vec<String>, ImageError> {
        let names = self.inner.client.inner().archive_names(file).await?;
        Ok(names.iter().map(ToString::to_string).collect())
    }

    /// Removes a reference, and the image with its layers when nothing else needs them. An id removes all its references.
    pub async fn remove(&self, reference: &str) -> Result<Removed, ImageError> {
        let inner = self.inner.clone();
        let reference = reference.to_owned();
        blocking("the removal", move || inner.remove(&reference)).await
    }

    /// A detached, read-only mount of the image's files. One superblock an image: every call gives another descriptor of the
    /// same mount; clone it (`open_tree`) before changing anything about it. Device nodes appear as empty files. Blocks
    /// shortly.
    pub fn mount(&self, image: &Image) -> Result<OwnedFd, ImageError> {
        self.inner.mount(image)
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ImageStore").field("root", &self.paths.root).finish_non_exhaustive()
    }
}

impl Inner {
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken after the catalog's lock where both are.
    fn mounts(&self) -> MutexGuard<'_, HashMap<Digest, KeptMount>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh path below `incoming`.
    fn incoming(&self) -> PathBuf {
        let number = self.next_name.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.paths.incoming.join(number.to_string())
    }

    fn remove(&self, reference: &str) -> Result<Removed, ImageError> {
        let mut removed = Removed::default();
        let mut catalog = self.catalog();
        let Some((id, references)) = catalog.find_for_removal(reference) else {
            return Err(ImageError::Unknown { reference: reference.to_owned() });
        };
        let is_last = catalog.references(&id).iter().all(|known| references.contains(known));
        if is_last && catalog.is_in_use(&id) {
            return Err(ImageError::InUse { reference: reference.to_owned() });
        }
        if is_last {
            let manifest = catalog.record(&id).map(|record| record.manifest_digest);
            catalog.remove(&self.paths, &id)?;
            manifest.iter().for_each(|manifest| self.publications.forget(manifest));
            removed.removed.extend(references);
            removed.removed.push(id.to_string());
            removed.freed_bytes += self.paths.remove(&self.paths.metadata(&id))?;
            self.mounts().remove(&id);
        } else {
            catalog.untag(&self.paths, &id, &references)?;
            removed.removed.extend(references);
        }
        self.sweep_lazy(&catalog);
        let freed = self.layers.sweep(&catalog, &self.paths)?;
        removed.freed_bytes += freed.freed_bytes;
        removed.removed.extend(freed.removed);
        drop(catalog);
        self.hold_mounts();
        Ok(removed)
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_panic_or_shutdown) => Err(ImageError::Stopped { reference: what.to_owned() }),
    }
}

/// What an image's configuration says; a convenience for those who hold an [`Image`].
impl Image {
    pub fn run_config(&self) -> &ImageConfig {
        &self.config
    }
}
