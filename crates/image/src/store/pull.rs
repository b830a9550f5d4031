//! From a reference to an image in the catalog.

use super::catalog::Image;
use super::layers::{Layers, Status};
use super::paths::{rename, write_new};
use super::progress::{LayerProgress, LayerState, ProgressSender};
use super::record::{LayerRecord, Record, Tag};
use super::registry::Origin;
use super::{Inner, Wanted, blocking, lazy, seal};
use crate::error::ImageError;
use crate::index::{HEADER_BYTES, LayerIndex, front_range, front_unpacked_bytes};
use crate::lazy::source::WantedImage;
use crate::limits::IMAGE_FRONTS_BYTES_MAX;
use crate::merge::{Merged, merge};
use crate::tree::LayerTree;
use crate::unpack::UnpackError;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::{Layer, Manifest};
use sampan_registry::Resolved;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Asks the registry what the reference means now, and pulls only if that is not here.
pub(super) async fn pull_if_changed(
    inner: &Arc<Inner>,
    origin: Origin,
    name: String,
    wanted: Wanted,
    progress: ProgressSender,
) -> Result<Arc<Image>, ImageError> {
    let known = inner.catalog().source_digest(&name);
    if let Some(known) = known
        && inner.client.current_digest(&origin).await? == known
    {
        let mut catalog = inner.catalog();
        if let Some(image) = catalog.by_reference(&name) {
            catalog.cached(&image.id).into_iter().for_each(|layer| progress.send(layer));
            return Ok(image);
        }
    }
    pull(inner, origin, name, wanted, progress).await
}

pub(super) async fn pull(
    inner: &Arc<Inner>,
    origin: Origin,
    name: String,
    wanted: Wanted,
    progress: ProgressSender,
) -> Result<Arc<Image>, ImageError> {
    let resolved = inner.client.resolve(&origin, &inner.config.platform).await?;
    // Whoever pulls an archive gets its image by its own name; a pod that names the archive must not rename what others use.
    let own_name = resolved.name.as_ref().filter(|_| wanted == Wanted::Whole);
    let name = own_name.map_or(name, ToString::to_string);
    inner.note_access(&origin)?;
    let id = resolved.manifest.config.digest;
    let tag = Tag { reference: name.clone(), source_digest: resolved.digest, since: jiff::Timestamp::now() };
    if inner.catalog().has_image(&id) {
        for layer in inner.catalog().cached(&id) {
            progress.send(layer);
        }
        let (inner, tag) = (inner.clone(), tag.clone());
        return blocking("the reference", move || {
            let mut catalog = inner.catalog();
            catalog.tag(&id, tag, &inner.paths)?;
            catalog.image(&id, &name).ok_or(ImageError::Unknown { reference: name })
        })
        .await;
    }
    let diff_ids = resolved.config.rootfs.diff_ids.clone();
    let pins = Layers::pin(inner, diff_ids.clone());
    if wanted == Wanted::Startable {
        begin_lazily(inner, &origin, &resolved).await?;
    }
    fetch_layers(inner, &origin, &name, &resolved.manifest, &diff_ids, wanted, &progress).await?;
    let (inner, guarded) = (inner.clone(), !origin.credentials.brings_none());
    blocking("the image", move || {
        let image = assemble(&inner, &name, resolved, tag, guarded)?;
        drop(pins);
        // All of this also when whoever wanted the image has gone by now: it is there. And whoever began to serve a layer of it:
        // the pull that did so may have failed.
        for served in diff_ids.iter().filter_map(|diff_id| inner.lazy.get(diff_id)) {
            lazy::start_completion(&inner, &served);
        }
        inner.trim_later();
        seal::start(&inner, id);
        Ok(image)
    })
    .await
}

/// Serves the layers that need not be here before the image is mounted; all others are for the caller to fetch.
async fn begin_lazily(inner: &Arc<Inner>, origin: &Origin, resolved: &Resolved) -> Result<(), ImageError> {
    let wanted = WantedImage {
        source: origin.source.clone(),
        credentials: origin.credentials.clone(),
        manifest: resolved.manifest_digest,
        layers: resolved.manifest.layers.clone(),
        diff_ids: resolved.config.rootfs.diff_ids.clone(),
    };
    let choice = lazy::plan(inner, &wanted).await;
    let (inner, origin) = (inner.clone(), origin.clone());
    blocking("the image", move || {
        for plan in choice.plans {
            inner.begin(plan, origin.clone())?;
        }
        lazy::prefetch(&inner, &wanted.manifest, &wanted.diff_ids, choice.published);
        Ok(())
    })
    .await
}

/// Brings all layers of an image here that are not, in whole.
pub(super) async fn fetch_whole(
    inner: &Arc<Inner>,
    origin: &Origin,
    name: &str,
    manifest: &Manifest,
    diff_ids: &[Digest],
    progress: &ProgressSender,
) -> Result<(), ImageError> {
    fetch_layers(inner, origin, name, manifest, diff_ids, Wanted::Whole, progress).await
}

/// Brings all layers here, several at a time. The first failure ends the wait for all.
async fn fetch_layers(
    inner: &Arc<Inner>,
    origin: &Origin,
    name: &str,
    manifest: &Manifest,
    diff_ids: &[Digest],
    wanted: Wanted,
    progress: &ProgressSender,
) -> Result<(), ImageError> {
    let mut following = tokio::task::JoinSet::new();
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let (inner, origin, layer, diff_id) = (inner.clone(), origin.clone(), layer.clone(), *diff_id);
        let progress = progress.clone();
        following.spawn(async move { follow(&inner, &origin, &layer, diff_id, wanted, &progress).await });
    }
    let mut result = Ok(());
    while let Some(joined) = following.join_next().await {
        result = match joined {
            Ok(Ok(())) => continue,
            Ok(Err(source)) => Err(ImageError::Layer { reference: name.to_owned(), source }),
            Err(_panic_or_shutdown) => Err(ImageError::Stopped { reference: name.to_owned() }),
        };
        break;
    }
    if result.is_err() {
        // Without followers the other transfers end, unless another pull follows them. Nothing of them is left on return.
        following.shutdown().await;
        inner.layers.abandoned(diff_ids).await;
    }
    result
}

async fn follow(
    inner: &Arc<Inner>,
    origin: &Origin,
    layer: &Layer,
    diff_id: Digest,
    wanted: Wanted,
    progress: &ProgressSender,
) -> Result<(), Arc<UnpackError>> {
    let mut was_running = false;
    loop {
        if let Some(served) = inner.lazy.get(&diff_id) {
            let here = LayerProgress::cached(&layer.descriptor.digest, layer.descriptor.size);
            if wanted == Wanted::Startable || served.completed().await {
                progress.send(here);
                return Ok(());
            }
        }
        let Some(mut status) = Layers::join(inner, origin, layer, diff_id) else {
            if !was_running {
                progress.send(LayerProgress::cached(&layer.descriptor.digest, layer.descriptor.size));
            }
            return Ok(());
        };
        was_running = true;
        loop {
            let now = status.borrow_and_update().clone();
            match now {
                Status::Running(now) => progress.send(now),
                Status::Done => {
                    let here = LayerProgress::cached(&layer.descriptor.digest, layer.descriptor.size);
                    progress.send(LayerProgress { state: LayerState::Done, ..here });
                    return Ok(());
                }
                // It ended because all who followed it had gone before this one came.
                Status::Failed(error) if matches!(*error, UnpackError::Cancelled { .. }) => break,
                Status::Failed(error) => return Err(error),
            }
            if status.changed().await.is_err() {
                break;
            }
        }
    }
}

/// Merges the layers, writes the metadata and the record. What it wrote is gone again if it fails.
fn assemble(inner: &Inner, name: &str, resolved: Resolved, tag: Tag, guarded: bool) -> Result<Arc<Image>, ImageError> {
    let id = resolved.manifest.config.digest;
    let image = write_image(inner, name, resolved, tag, guarded);
    let catalog = inner.catalog();
    if image.is_err() && !catalog.has_image(&id) {
        inner.paths.remove(&inner.paths.metadata(&id))?;
    }
    image
}

fn write_image(
    inner: &Inner,
    name: &str,
    resolved: Resolved,
    tag: Tag,
    guarded: bool,
) -> Result<Arc<Image>, ImageError> {
    let diff_ids = &resolved.config.rootfs.diff_ids;
    let trees = read_trees(inner, name, diff_ids)?;
    let layers: Vec<&LayerTree> = diff_ids.iter().filter_map(|diff_id| trees.get(diff_id)).collect();
    let tags: Vec<String> = diff_ids.iter().map(Digest::hex).collect();
    let merged = merge(&layers, &tags).map_err(|source| ImageError::Merge { reference: name.to_owned(), source })?;
    let Merged { tree, devices, device_layers } = merged;
    let metadata = sampan_erofs::write(&tree, &devices)
        .map_err(|source| ImageError::Erofs { reference: name.to_owned(), source })?;
    let id = resolved.manifest.config.digest;
    let temporary = inner.incoming();
    write_new(&temporary, &metadata)?;
    rename(&temporary, &inner.paths.metadata(&id))?;
    let layer_records = resolved.manifest.layers.iter().zip(diff_ids).zip(&layers);
    let record = Record {
        version: Record::new_version(),
        id,
        manifest_digest: resolved.manifest_digest,
        references: vec![tag],
        config: String::from_utf8_lossy(&resolved.config_bytes).into_owned(),
        layers: layer_records
            .map(|((layer, diff_id), tree)| LayerRecord {
                digest: layer.descriptor.digest,
                bytes: layer.descriptor.size,
                diff_id: *diff_id,
                blob_bytes: tree.blob_layout().1,
            })
            .collect(),
        devices: device_layers.iter().filter_map(|layer| diff_ids.get(*layer).copied()).collect(),
        metadata_bytes: metadata.len() as u64,
        acls: has_acls(&tree),
        guarded,
        pulled_at: jiff::Timestamp::now(),
        unsealed_boot: Some(inner.boot_id.clone()),
    };
    keep(inner, name, record, resolved.config)
}

fn has_acls(tree: &sampan_erofs::Tree) -> bool {
    let mut xattrs = tree.inodes.iter().flat_map(|inode| &inode.xattrs);
    xattrs.any(|xattr| xattr.name.starts_with(b"system.posix_acl_"))
}

fn keep(inner: &Inner, name: &str, record: Record, config: ImageConfig) -> Result<Arc<Image>, ImageError> {
    let (id, tag) = (record.id, record.references.first().cloned());
    let mut catalog = inner.catalog();
    // Another pull of the same image may have come first.
    if !catalog.has_image(&id) {
        catalog.add(Record { references: Vec::new(), ..record }, config, &inner.paths)?;
    }
    if let Some(tag) = tag {
        catalog.tag(&id, tag, &inner.paths)?;
    }
    catalog.image(&id, name).ok_or_else(|| ImageError::Unknown { reference: name.to_owned() })
}

/// The trees of all layers, each layer once; refused where they would take too much memory.
fn read_trees(inner: &Inner, name: &str, diff_ids: &[Digest]) -> Result<HashMap<Digest, LayerTree>, ImageError> {
    let mut trees: HashMap<Digest, LayerTree> = HashMap::new();
    let mut bytes = 0;
    for diff_id in diff_ids {
        if trees.contains_key(diff_id) {
            continue;
        }
        let path = inner.index_path(diff_id);
        let front = read_front(&path)?;
        let index = |source| ImageError::Index { path: path.clone(), source };
        bytes += front_unpacked_bytes(&front).map_err(index)?;
        if bytes > IMAGE_FRONTS_BYTES_MAX {
            return Err(ImageError::TooLarge { reference: name.to_owned(), limit: IMAGE_FRONTS_BYTES_MAX });
        }
        trees.insert(*diff_id, LayerIndex::decode(&front).map_err(index)?.tree);
    }
    Ok(trees)
}

/// Header and front part of an index.
pub(crate) fn read_front(path: &Path) -> Result<Vec<u8>, ImageError> {
    let file = File::open(path).map_err(ImageError::file("open", path))?;
    let mut front = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut front, 0).map_err(ImageError::file("read", path))?;
    let range = front_range(&front).map_err(|source| ImageError::Index { path: path.to_owned(), source })?;
    // The range is bounded by a limit that fits every machine's memory.
    front.resize(range.end as usize, 0);
    file.read_exact_at(&mut front, 0).map_err(ImageError::file("read", path))?;
    Ok(front)
}
