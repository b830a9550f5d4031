//! What this store can say, and publish, about images that are here.

use super::{ImageStore, Inner, ProgressSender, PullPolicy, blocking};
use crate::disk::allocated_bytes;
use crate::error::ImageError;
use crate::publish::{PackReport, Publications, PublishError, PublishReport, Publishable, PublishableLayer};
use crate::trace::TraceName;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Descriptor;
use sampan_oci::media_type::OCI_MANIFEST;
use sampan_oci::reference::ImageSource;
use sampan_registry::Credentials;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;

/// An image and all that is known of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetails {
    pub id: Digest,
    pub references: Vec<String>,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Lowest first.
    pub layers: Vec<LayerDetails>,
    /// Bytes of the EROFS metadata.
    pub metadata_bytes: u64,
    /// The start pack that was made here.
    pub pack: Option<PackReport>,
    /// What starts were traced, by command.
    pub traces: Vec<TraceDetails>,
}

/// One layer of an image that is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerDetails {
    /// As the registry has it.
    pub digest: Digest,
    pub bytes: u64,
    pub diff_id: Digest,
    /// Bytes of its files' contents.
    pub blob_bytes: u64,
    /// How much of that is on this disk.
    pub allocated_bytes: u64,
    /// How much of the layer as the registry has it has come, while it is still arriving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived_bytes: Option<u64>,
    /// What it is read by meanwhile: `index`, or `tableOfContents` of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_by: Option<&'static str>,
    /// Bytes of its index; 0 where there is none.
    pub index_bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
}

/// The trace of one command's starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceDetails {
    pub command: String,
    pub starts: u32,
    pub pages: u64,
    /// Runs of pages in the order of first touch: layer (from the lowest, 0), first page of its blob, pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub touches: Vec<(u32, u32, u32)>,
}

impl ImageStore {
    /// What is published about images, both ways.
    pub fn publications(&self) -> &Publications {
        &self.inner.publications
    }

    /// Everything about one image. `with_touches` lists traces page by page.
    pub async fn details(&self, reference: &str, with_touches: bool) -> Result<ImageDetails, ImageError> {
        let (inner, reference) = (self.inner.clone(), reference.to_owned());
        blocking("the image", move || inner.details(&reference, with_touches)).await
    }

    /// Makes sure that an image is here whole, with an index of each layer, and tells what there is then.
    pub async fn index(&self, reference: &str, progress: ProgressSender) -> Result<ImageDetails, ImageError> {
        let image = self.pull(reference, PullPolicy::IfNotPresent, progress).await?;
        self.details(&image.id.to_string(), false).await
    }

    /// Signs what this node knows of an image, and writes it beside the image, with this machine's own logins, and into the
    /// index cache.
    pub async fn push_index(&self, reference: &str) -> Result<PublishReport, PublishError> {
        let credentials = Credentials::host();
        let (details, source) = self.published_source(reference).await?;
        if let Some(layer) = details.layers.iter().find(|layer| !layer.complete) {
            return Err(PublishError::Incomplete { reference: reference.to_owned(), layer: layer.digest });
        }
        let manifest = self.manifest_descriptor(&source, details.digest, &credentials).await?;
        let layers = details.layers.iter().map(|layer| PublishableLayer {
            digest: layer.digest,
            bytes: layer.bytes,
            diff_id: layer.diff_id,
            index: self.inner.paths.index(&layer.diff_id),
        });
        let image =
            Publishable { source, reference: reference.to_owned(), manifest, layers: layers.collect(), credentials };
        self.inner.publications.publish(image).await
    }

    /// Makes a start pack of an image out of the traces of a command's starts, or of those that were traced last.
    pub async fn make_pack(&self, reference: &str, shape: Option<String>) -> Result<PackReport, PublishError> {
        let details = self.details(reference, false).await?;
        if let Some(layer) = details.layers.iter().find(|layer| !layer.complete) {
            return Err(PublishError::Incomplete { reference: reference.to_owned(), layer: layer.digest });
        }
        let blob = |layer: &LayerDetails| (layer.diff_id, self.inner.paths.blob(&layer.diff_id));
        let blobs: Vec<(Digest, PathBuf)> = details.layers.iter().map(blob).collect();
        let (inner, reference) = (self.inner.clone(), reference.to_owned());
        let stopped = PublishError::Stopped { reference: reference.clone() };
        let made = tokio::task::spawn_blocking(move || {
            inner.publications.make_pack(&reference, details.digest, &blobs, shape.as_deref())
        });
        made.await.unwrap_or(Err(stopped))
    }

    /// The image and where it came from: as it was asked for if that names a source, else by its first reference.
    async fn published_source(&self, reference: &str) -> Result<(ImageDetails, ImageSource), PublishError> {
        let details = self.details(reference, false).await?;
        let named = [reference].into_iter().chain(details.references.iter().map(String::as_str));
        let known = |name: &&str| details.references.iter().any(|known| known == name);
        let normal = named.filter_map(|name| name.parse::<ImageSource>().ok());
        let source = normal.map(|source| (source.to_string(), source)).find(|(name, _)| known(&name.as_str()));
        let none = || PublishError::NoRegistry { reference: reference.to_owned() };
        let (_, source) = source.ok_or_else(none)?;
        Ok((details, source))
    }

    async fn manifest_descriptor(
        &self,
        source: &ImageSource,
        digest: Digest,
        credentials: &Credentials,
    ) -> Result<Descriptor, PublishError> {
        let (mut media_type, mut size) = (OCI_MANIFEST.to_owned(), 0);
        if let ImageSource::Registry(reference) = source {
            let (client, reference, credentials) =
                (self.inner.client.inner().clone(), reference.clone(), credentials.clone());
            let stopped = PublishError::Stopped { reference: source.to_string() };
            let runtime = Handle::current();
            // The client's futures cannot move between threads.
            let fetch = move || runtime.block_on(client.artifact(&reference, &digest, &credentials));
            let bytes = tokio::task::spawn_blocking(fetch).await.map_err(|_stopped| stopped)??;
            let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if let Some(said) = document.get("mediaType").and_then(serde_json::Value::as_str) {
                media_type = said.to_owned();
            }
            size = bytes.len() as u64;
        }
        Ok(Descriptor { media_type, digest, size, annotations: BTreeMap::new(), platform: None })
    }
}

impl Inner {
    fn details(self: &Arc<Self>, reference: &str, with_touches: bool) -> Result<ImageDetails, ImageError> {
        let catalog = self.catalog();
        let unknown = || ImageError::Unknown { reference: reference.to_owned() };
        let (id, _) = catalog.find_for_removal(reference).ok_or_else(unknown)?;
        let record = catalog.record(&id).ok_or_else(unknown)?.clone();
        let mut references = catalog.references(&id);
        drop(catalog);
        references.sort();
        let size = |path: PathBuf| std::fs::metadata(path).ok();
        let layers = record.layers.iter().map(|layer| {
            let blob = size(self.paths.blob(&layer.diff_id));
            let arrived = self.arrived(&layer.diff_id).filter(|_| blob.is_none());
            LayerDetails {
                digest: layer.digest,
                bytes: layer.bytes,
                diff_id: layer.diff_id,
                blob_bytes: layer.blob_bytes,
                allocated_bytes: blob.as_ref().map_or(arrived.map_or(0, |(_, pages)| pages), allocated_bytes),
                arrived_bytes: arrived.map(|(compressed, _)| compressed),
                read_by: self.read_by(&layer.diff_id).filter(|_| arrived.is_some()),
                index_bytes: size(self.paths.index(&layer.diff_id)).map_or(0, |index| index.len()),
                complete: blob.is_some_and(|blob| blob.len() == layer.blob_bytes),
            }
        });
        let trace = |(name, trace): (TraceName, crate::trace::Trace)| TraceDetails {
            command: name.shape,
            starts: trace.starts(),
            pages: trace.pages(),
            touches: if with_touches {
                trace.touches().iter().map(|touch| (touch.first.layer, touch.first.page, touch.pages)).collect()
            } else {
                Vec::new()
            },
        };
        Ok(ImageDetails {
            id,
            references,
            digest: record.manifest_digest,
            layers: layers.collect(),
            metadata_bytes: record.metadata_bytes,
            pack: self.publications.pack(&record.manifest_digest),
            traces: self.publications.traces().list(&record.manifest_digest).into_iter().map(trace).collect(),
        })
    }
}
