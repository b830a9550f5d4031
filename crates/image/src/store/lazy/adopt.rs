//! Taking up the layers that an earlier process of this boot was serving.

use super::super::Inner;
use super::{Lazy, Served, open_index, remote, remove_folder};
use crate::error::ImageError;
use crate::lazy::compressed::CompressedCache;
use crate::lazy::layer::{LayerParts, LazyLayer};
use crate::lazy::pages::PageCache;
use crate::lazy::records::FileRecords;
use crate::lazy::state::{INDEX, LayerState};
use crate::store::paths::Paths;
use crate::store::registry::Client;
use sampan_kit::error_chain::ErrorChain;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Serves again what is found below `lazy/`, then has the kernel ask again for what nobody answered. What cannot be served is
/// removed; images that need it are then not whole, and dropped.
pub(crate) fn adopt(lazy: &Lazy, paths: &Paths, client: &Client, boot_id: &str) -> Result<(), ImageError> {
    for directory in super::super::open::files(&paths.lazy)? {
        let adopted = adopt_one(lazy, paths, client, boot_id, &directory);
        match adopted {
            Ok(true) => {}
            Ok(false) => remove_folder(&directory),
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(path = %directory.display(), %error, "a layer on its way cannot be taken up again");
                remove_folder(&directory);
            }
        }
    }
    if let Some(files) = &lazy.files {
        files.resume().map_err(|source| ImageError::Lazy { source: source.into() })?;
    }
    Ok(())
}

/// Whether the folder stays.
fn adopt_one(lazy: &Lazy, paths: &Paths, client: &Client, boot_id: &str, directory: &Path) -> Result<bool, ImageError> {
    let state = LayerState::read(directory, boot_id);
    let (Some(state), true) = (state, lazy.is_possible()) else { return Ok(false) };
    let failed = ImageError::file;
    let (index, front_end, file) = open_index(&directory.join(INDEX))?;
    let blob_bytes = index.tree.blob_layout().1;
    let pages = PageCache::open(directory, blob_bytes).map_err(failed("open the cache in", directory))?;
    let compressed =
        CompressedCache::open(directory, index.layer_bytes).map_err(failed("open the cache in", directory))?;
    let Some(remote) = remote(client.clone(), &state, lazy.around.traffic.clone()) else { return Ok(false) };
    let parts = LayerParts {
        directory: directory.to_owned(),
        number: state.number,
        index,
        front_end,
        records: Arc::new(FileRecords(file)),
        remote,
        pages,
        compressed,
    };
    let served = lazy.serve(LazyLayer::new(parts, lazy.around.clone()))?;
    // Killed between the blob's rename and the end of its devices' move: the blob counts.
    if paths.blob(&state.diff_id).is_file() && paths.index(&state.diff_id).is_file() {
        finish_move(lazy, paths, &served)?;
    }
    Ok(true)
}

/// Moves what still reads a layer that is complete to its blob.
fn finish_move(lazy: &Lazy, paths: &Paths, served: &Served) -> Result<(), ImageError> {
    let path = paths.blob(&served.diff_id);
    let blob = File::open(&path).map_err(ImageError::file("open", &path))?;
    lazy.switch(served, blob)
}

impl Inner {
    /// Has every layer on its way completed in the background.
    pub(crate) fn complete_adopted(self: &Arc<Self>) {
        for served in self.lazy.all() {
            super::start_completion(self, &served);
        }
    }
}
