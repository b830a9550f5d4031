//! Which layers of an image are mounted before they are here.

use super::super::{Inner, kept as kept_indexes};
use super::contents::{self, FromContents};
use super::{open_index, write_front};
use crate::error::ImageError;
use crate::index::LayerIndex;
use crate::lazy::limits::LAZY_LAYER_BYTES_MIN;
use crate::lazy::records::FileRecords;
use crate::lazy::source::{PublishedImage, PublishedLayer, RecordSource, WantedImage};
use crate::lazy::state::ReadBy;
use crate::toc::TocHint;
use bytes::Bytes;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Layer;
use sampan_oci::reference::ImageSource;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A layer that is not here, and an index by which it can be used all the same.
pub(crate) struct Plan {
    pub(super) layer: Layer,
    pub(super) diff_id: Digest,
    pub(super) known: Known,
}

/// Where the index comes from.
pub(super) enum Known {
    /// Made on this node.
    Own { path: PathBuf },
    /// Published by somebody whom this node trusts.
    Published(Box<PublishedLayer>),
    /// Made here from the layer's own table of contents.
    Contents(Box<FromContents>),
}

/// An index in the folder of its layer.
pub(super) struct Stored {
    pub(super) index: LayerIndex,
    pub(super) read_by: ReadBy,
    /// Where its front part ends in the file that it came from.
    pub(super) front_end: u64,
    pub(super) records: Arc<dyn RecordSource>,
    /// What is here of the layer, and where it stands.
    pub(super) fetched: Vec<(u64, Bytes)>,
}

/// What to do with an image that is not here.
pub(crate) struct Choice {
    /// One for each layer that is mounted before it is here; the others are pulled.
    pub(crate) plans: Vec<Plan>,
    pub(crate) published: Option<PublishedImage>,
}

/// Chooses. An image whose missing layers are small altogether is pulled: that takes no longer than its readers would wait.
pub(crate) async fn plan(inner: &Arc<Inner>, wanted: &WantedImage) -> Choice {
    let nothing = Choice { plans: Vec::new(), published: None };
    // A file is as near as the cache, and may be gone in a moment.
    let is_near = matches!(wanted.source, ImageSource::Layout { .. } | ImageSource::Archive { .. });
    if !inner.lazy.is_possible() || is_near {
        return nothing;
    }
    let layers = || wanted.layers.iter().zip(&wanted.diff_ids);
    let is_missing = |diff_id: &Digest| !inner.has_blob(diff_id) && inner.lazy.get(diff_id).is_none();
    let missing: u64 = layers().filter(|(_, id)| is_missing(id)).map(|(layer, _)| layer.descriptor.size).sum();
    if missing < inner.config.lazy_bytes_min {
        return nothing;
    }
    let candidates: Vec<(Layer, Digest)> = layers()
        .filter(|(layer, diff_id)| is_missing(diff_id) && layer.descriptor.size >= LAZY_LAYER_BYTES_MIN)
        .map(|(layer, diff_id)| (layer.clone(), *diff_id))
        .collect();
    let (me, asked) = (inner.clone(), candidates.clone());
    let own = tokio::task::spawn_blocking(move || asked.iter().map(|(layer, id)| me.own_index(layer, id)).collect());
    let own: Vec<Option<PathBuf>> = own.await.unwrap_or_default();
    let is_unknown = |at: usize| own.get(at).is_none_or(Option::is_none);
    let mut published = None;
    if let Some(source) = &inner.config.index_source
        && (0..candidates.len()).any(is_unknown)
    {
        published = source.find(wanted).await;
    }
    let (mut plans, mut unknown): (Vec<Plan>, Vec<(Layer, Digest)>) = (Vec::new(), Vec::new());
    for ((layer, diff_id), own) in candidates.into_iter().zip(own) {
        let known = match own {
            Some(path) => Some(Known::Own { path }),
            None => {
                let number = wanted.diff_ids.iter().position(|id| *id == diff_id);
                let theirs = published.as_mut().zip(number).and_then(|(image, at)| image.layers.get_mut(at)?.take());
                theirs
                    .filter(|theirs| inner.is_usable(&theirs.front, &layer, &diff_id))
                    .map(|theirs| Known::Published(Box::new(theirs)))
            }
        };
        let is_new = !plans.iter().any(|plan| plan.diff_id == diff_id) && !unknown.iter().any(|(_, id)| *id == diff_id);
        match known.filter(|_| is_new) {
            Some(known) => plans.push(Plan { layer, diff_id, known }),
            None if is_new && TocHint::of(&layer).is_some() => unknown.push((layer, diff_id)),
            None => {}
        }
    }
    let bytes = |layers: &mut dyn Iterator<Item = &Layer>| layers.map(|layer| layer.descriptor.size).sum::<u64>();
    let known_bytes = bytes(&mut plans.iter().map(|plan| &plan.layer));
    let enough = inner.config.lazy_bytes_min;
    if known_bytes + bytes(&mut unknown.iter().map(|(layer, _)| layer)) >= enough {
        plans.extend(by_contents(inner, wanted, unknown).await);
    }
    if bytes(&mut plans.iter().map(|plan| &plan.layer)) < enough {
        return nothing;
    }
    Choice { plans, published }
}

/// The layers of which nothing is known but where their own tables of contents are.
async fn by_contents(inner: &Arc<Inner>, wanted: &WantedImage, unknown: Vec<(Layer, Digest)>) -> Vec<Plan> {
    let mut found = contents::find(inner, wanted, unknown.clone()).await;
    let plans = unknown.into_iter().filter_map(|(layer, diff_id)| {
        let at = found.iter().position(|(id, _)| *id == diff_id)?;
        let contents = found.swap_remove(at).1;
        let is_usable = inner.is_usable(&contents.index, &layer, &diff_id);
        if !is_usable {
            let digest = layer.descriptor.digest;
            tracing::warn!(image = %wanted.source, layer = %digest, "a layer's own table of contents is too large, or was found to be untrue before; the layer is pulled");
        }
        is_usable.then(|| Plan { layer, diff_id, known: Known::Contents(Box::new(contents)) })
    });
    plans.collect()
}

impl Inner {
    /// The index of a layer that this node had before, if it is kept.
    fn own_index(&self, layer: &Layer, diff_id: &Digest) -> Option<PathBuf> {
        let path = self.paths.kept(diff_id);
        let (index, ..) = match open_index(&path) {
            Ok(opened) => opened,
            Err(ImageError::File { .. }) => return None,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "a kept index is dropped");
                self.paths.remove(&path).ok();
                return None;
            }
        };
        self.is_usable(&index, layer, diff_id).then_some(path)
    }

    fn is_usable(&self, index: &LayerIndex, layer: &Layer, diff_id: &Digest) -> bool {
        let is_meant = index.layer_digest == layer.descriptor.digest
            && index.layer_bytes == layer.descriptor.size
            && index.diff_id == *diff_id;
        let blob_bytes = index.tree.blob_layout().1;
        is_meant
            && index.stream_bytes <= self.config.layer_bytes_max
            && blob_bytes <= self.config.layer_bytes_max
            && !self.is_quarantined(index)
    }
}

impl Known {
    pub(super) fn is_published(&self) -> bool {
        matches!(self, Self::Published(_))
    }

    /// Puts the index into a layer's folder, and opens it there.
    pub(super) fn store(self, path: &Path) -> Result<Stored, ImageError> {
        match self {
            Self::Own { path: kept } => {
                std::fs::hard_link(&kept, path).map_err(ImageError::file("link", path))?;
                kept_indexes::touch(&kept);
                let (index, front_end, file) = open_index(path)?;
                let records = Arc::new(FileRecords(file));
                Ok(Stored { index, read_by: ReadBy::Index, front_end, records, fetched: Vec::new() })
            }
            Self::Published(published) => {
                let PublishedLayer { front: index, front_end, records } = *published;
                write_front(path, &index)?;
                Ok(Stored { index, read_by: ReadBy::Index, front_end, records, fetched: Vec::new() })
            }
            Self::Contents(contents) => contents.store(path),
        }
    }
}
