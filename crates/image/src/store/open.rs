//! Opening the store: the lock, what a crash left behind, and which records can be believed.

use super::access::Accepted;
use super::catalog::Catalog;
use super::layers::Layers;
use super::lazy::{self, Lazy, Opening};
use super::paths::Paths;
use super::record::Record;
use super::registry::Client;
use super::seal::Sealing;
use super::{ImageStoreConfig, Inner};
use crate::error::ImageError;
use crate::lazy::connection::LazyFiles;
use crate::lazy::limits::FUSE_THREADS;
use crate::publish::Publications;
use rustix::fs::{FlockOperation, flock};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(super) fn open(mut config: ImageStoreConfig) -> Result<Inner, ImageError> {
    let paths = Paths::new(&config.data_dir);
    for directory in paths.directories() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(ImageError::file("create", directory))?;
    }
    let lock = lock(&paths.root)?;
    for path in files(&paths.incoming)? {
        paths.remove_all(&path)?;
    }
    let boot_id = boot_id()?;
    let client = Client::new(config.registry.clone());
    let publications = Publications::new(client.inner().clone(), &config.data_dir, config.index_cache.clone());
    config.index_source.get_or_insert_with(|| Arc::new(publications.clone()));
    let lazy = open_lazy(&config, &paths, &client, &boot_id)?;
    let mut catalog = Catalog::default();
    for path in files(&paths.records)? {
        match Record::read(&path).and_then(|record| believed(record, &paths, &lazy, &boot_id)) {
            Some((record, config)) => catalog.load(record, config, &paths),
            None => {
                tracing::warn!(record = %path.display(), "an image was not written to its end before the machine stopped; it is dropped");
                paths.remove(&path)?;
            }
        }
    }
    let layers = Layers::new(config.layers_at_once);
    sweep(&catalog, &paths)?;
    let inner = Inner {
        config,
        paths,
        client,
        catalog: Mutex::new(catalog),
        layers,
        lazy,
        publications,
        mounts: Mutex::default(),
        sealing: Sealing::default(),
        accepted: Accepted::default(),
        boot_id,
        next_name: 0.into(),
        _lock: lock,
    };
    if let Err(error) = inner.read_ahead_where_whole() {
        tracing::debug!(%error, "mounted images may read nothing ahead");
    }
    Ok(inner)
}

/// What serves layers that are still arriving, with those that an earlier process of this boot served. A machine or a service
/// that cannot do so pulls everything whole.
fn open_lazy(config: &ImageStoreConfig, paths: &Paths, client: &Client, boot_id: &str) -> Result<Lazy, ImageError> {
    let files = config.keeper.as_ref().and_then(|keeper| match LazyFiles::open(keeper, &paths.root, FUSE_THREADS) {
        Ok(files) => Some(files),
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(%error, "images are pulled whole: they cannot be served while they arrive");
            None
        }
    });
    let lazy = Lazy::new(files, config.background_bytes_per_second, config.read_deadline);
    lazy::adopt(&lazy, &Opening { config, paths, client, boot_id })?;
    Ok(lazy)
}

fn lock(root: &Path) -> Result<File, ImageError> {
    let path = root.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(ImageError::file("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ImageError::Locked { path: root.to_owned() }),
        Err(error) => Err(ImageError::file("lock", &path)(error.into())),
    }
}

/// A record whose files are there, have their sizes, and were synced or written since the machine started.
fn believed(record: Record, paths: &Paths, lazy: &Lazy, boot_id: &str) -> Option<(Record, ImageConfig)> {
    if record.unsealed_boot.as_ref().is_some_and(|boot| boot != boot_id) {
        return None;
    }
    let has = |path: PathBuf, bytes: u64| fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes);
    let whole = has(paths.metadata(&record.id), record.metadata_bytes)
        && record.layers.iter().all(|layer| {
            let is_here = has(paths.blob(&layer.diff_id), layer.blob_bytes) && paths.index(&layer.diff_id).is_file();
            is_here || lazy.get(&layer.diff_id).is_some()
        });
    let config = ImageConfig::parse(record.config.as_bytes()).ok()?;
    whole.then_some((record, config))
}

/// Removes layers and metadata that no record names. Names that this store does not write are not its own.
fn sweep(catalog: &Catalog, paths: &Paths) -> Result<(), ImageError> {
    let named = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let algorithm = if name.len() == 64 { "sha256" } else { "sha512" };
        format!("{algorithm}:{name}").parse::<Digest>().ok()
    };
    let mut checked: HashSet<PathBuf> = HashSet::new();
    for directory in [&paths.blobs, &paths.indexes] {
        checked.extend(files(directory)?);
    }
    for path in checked {
        if named(&path).is_some_and(|diff_id| !catalog.has_layer(&diff_id)) {
            paths.remove(&path)?;
        }
    }
    for path in files(&paths.metadata)? {
        if named(&path).is_some_and(|id| !catalog.has_image(&id)) {
            paths.remove(&path)?;
        }
    }
    Ok(())
}

pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = fs::read_dir(directory).map_err(ImageError::file("read", directory))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>();
    paths.map_err(ImageError::file("read", directory))
}

fn boot_id() -> Result<String, ImageError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).map_err(ImageError::file("read", path))?.trim().to_owned())
}
