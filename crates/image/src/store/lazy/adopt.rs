//! Taking up the layers that an earlier process of this boot was serving.

use super::super::Inner;
use super::{Lazy, Served, open_index, remove_folder};
use crate::error::ImageError;
use crate::lazy::compressed::CompressedCache;
use crate::lazy::connection::LazyFiles;
use crate::lazy::device::mend_devices;
use crate::lazy::layer::{LayerParts, LazyLayer};
use crate::lazy::pages::PageCache;
use crate::lazy::records::{FileRecords, RefoundRecords};
use crate::lazy::remote::Remote;
use crate::lazy::source::RecordSource;
use crate::lazy::state::{INDEX, LayerState};
use crate::store::ImageStoreConfig;
use crate::store::paths::Paths;
use crate::store::registry::{Client, Origin};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_registry::Credentials;
use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// A store that is being opened.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a ImageStoreConfig,
    pub(crate) paths: &'a Paths,
    pub(crate) client: &'a Client,
    pub(crate) boot_id: &'a str,
}

/// Serves again what is found below `lazy/`, then has the kernel ask again for what nobody answered. What cannot be served is
/// removed; images that need it are then not whole, and dropped.
pub(crate) fn adopt(lazy: &Lazy, store: &Opening<'_>) -> Result<(), ImageError> {
    let mut all = Vec::new();
    for directory in super::super::open::files(&store.paths.lazy)? {
        let adopted = adopt_one(lazy, store, &directory);
        match adopted {
            Ok(Some(served)) => all.push(served),
            Ok(None) => remove_folder(&directory),
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(path = %directory.display(), %error, "a layer on its way cannot be taken up again");
                remove_folder(&directory);
            }
        }
    }
    let Some(files) = &lazy.files else { return Ok(()) };
    files.resume().map_err(|source| ImageError::Lazy { source: source.into() })?;
    // Only now may devices be touched: one may be locked until its readers have their answers.
    for served in all {
        if let Err(error) = settle(lazy, files, store.paths, &served) {
            let error = ErrorChain(&error);
            tracing::error!(layer = %served.diff_id, %error, "the devices of a layer on its way cannot be taken up again");
        }
    }
    Ok(())
}

/// Moves what still reads a layer that is complete to its blob, and what is left from a connection that is no more to this one.
fn settle(lazy: &Lazy, files: &LazyFiles, paths: &Paths, served: &Served) -> Result<(), ImageError> {
    if let Some(blob) = whole(paths, &served.diff_id)? {
        return lazy.switch(served, blob);
    }
    let Some(file) = &served.file else { return Ok(()) };
    mend_devices(files, served.layer.number, file).map_err(|source| ImageError::Lazy { source: source.into() })
}

/// The blob of a layer whose service was killed between the blob's rename and the end of its devices' move: the blob counts.
fn whole(paths: &Paths, diff_id: &Digest) -> Result<Option<File>, ImageError> {
    let path = paths.blob(diff_id);
    if !path.is_file() || !paths.index(diff_id).is_file() {
        return Ok(None);
    }
    File::open(&path).map(Some).map_err(ImageError::file("open", &path))
}

/// `None` for a folder that is not to stay.
fn adopt_one(lazy: &Lazy, store: &Opening<'_>, directory: &Path) -> Result<Option<Arc<Served>>, ImageError> {
    let paths = store.paths;
    let state = LayerState::read(directory, store.boot_id);
    let (Some(state), true) = (state, lazy.is_possible()) else { return Ok(None) };
    // Known by the image's name, fetched with this machine's logins until somebody comes with others.
    let Ok(source) = state.source.parse() else { return Ok(None) };
    let origin = Origin { source, credentials: Credentials::host() };
    let failed = ImageError::file;
    let (index, front_end, file) = open_index(&directory.join(INDEX))?;
    let blob_bytes = index.tree.blob_layout().1;
    let pages = PageCache::open(directory, blob_bytes).map_err(failed("open the cache in", directory))?;
    let compressed =
        CompressedCache::open(directory, index.layer_bytes).map_err(failed("open the cache in", directory))?;
    let records: Arc<dyn RecordSource> = match (state.published_front_end, &store.config.index_source) {
        (None, _) => Arc::new(FileRecords(file)),
        (Some(_), None) => return Ok(None),
        (Some(_), Some(index_source)) => Arc::new(RefoundRecords {
            client: store.client.clone(),
            origin: origin.clone(),
            platform: store.config.platform.clone(),
            index_source: index_source.clone(),
            diff_id: state.diff_id,
            found: OnceCell::new(),
        }),
    };
    let front_end = state.published_front_end.unwrap_or(front_end);
    let remote = Remote::new(store.client.clone(), origin, state.layer.clone(), lazy.around.traffic.clone());
    let parts = LayerParts {
        directory: directory.to_owned(),
        number: state.number,
        index,
        read_by: state.read_by,
        front_end,
        records,
        remote,
        pages,
        compressed,
    };
    let served = lazy.serve(LazyLayer::new(parts, lazy.around.clone()))?;
    if let Some(blob) = whole(paths, &state.diff_id)? {
        served.layer.finish(blob);
    }
    Ok(Some(served))
}

impl Inner {
    /// Has every layer on its way completed in the background.
    pub(crate) fn complete_adopted(self: &Arc<Self>) {
        self.sweep_lazy(&self.catalog());
        let mut images = HashSet::new();
        for served in self.lazy.all() {
            super::start_completion(self, &served);
            images.extend(self.catalog().images_with(&served.diff_id));
        }
        for image in images {
            // The one before may have been killed while they started.
            self.read_ahead_after_start(image);
        }
    }
}
