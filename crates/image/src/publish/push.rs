//! Publishing what this node has made: signed, into the image's own repository and into the index cache.

use super::Publications;
use super::describe::{ARTIFACT_TYPE, Description, EMPTY_CONFIG, Head, Subject, artifact};
use super::error::PublishError;
use crate::index::{HEADER_BYTES, LayerIndex, front_range};
use crate::pack::{self, PackHead};
use bytes::Bytes;
use sampan_oci::digest::{Algorithm, Digest, Hasher};
use sampan_oci::manifest::Descriptor;
use sampan_oci::media_type::OCI_MANIFEST;
use sampan_oci::reference::{ImageSource, Reference};
use sampan_registry::{Content, Credentials, Referrer};
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use tokio::runtime::Handle;

/// What was published of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishReport {
    pub manifest: Digest,
    /// The artifact in the image's repository; `None` where there is no such repository.
    pub artifact: Option<Digest>,
    /// Whether the registry lists it by itself; otherwise a tag does.
    pub listed_by_registry: bool,
    /// Where else it went.
    pub cache: Option<String>,
    pub files: Vec<PublishedFile>,
    pub signed_by: Vec<String>,
}

/// One file that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedFile {
    /// `index`, `pack` or `trace`.
    pub kind: &'static str,
    /// The layer or the manifest that it is about.
    pub about: Digest,
    pub bytes: u64,
}

/// An image as this node has it, with what it made of it.
#[derive(Debug, Clone)]
pub struct Publishable {
    pub source: ImageSource,
    /// As a user names it, for messages.
    pub reference: String,
    pub manifest: Descriptor,
    pub layers: Vec<PublishableLayer>,
    pub credentials: Credentials,
}

#[derive(Debug, Clone)]
pub struct PublishableLayer {
    /// Digest and size as the registry has it.
    pub digest: Digest,
    pub bytes: u64,
    pub diff_id: Digest,
    /// The index as this node keeps it.
    pub index: PathBuf,
}

impl Publications {
    /// Signs and writes the indexes of all layers, the pack and the trace of the image where there are any.
    pub async fn publish(&self, image: Publishable) -> Result<PublishReport, PublishError> {
        let publications = self.clone();
        let (runtime, reference) = (Handle::current(), image.reference.clone());
        // Files are read on this thread, and the client's futures cannot move between threads.
        let work = tokio::task::spawn_blocking(move || {
            let files = publications.describe(&image)?;
            let cached = publications.put_in_cache(&files)?;
            let pushed = match &image.source {
                ImageSource::Registry(reference) => {
                    Some(runtime.block_on(publications.push(reference, &image, &files))?)
                }
                ImageSource::Layout { .. } | ImageSource::Archive { .. } if cached.is_none() => {
                    return Err(PublishError::NoRegistry { reference: image.reference.clone() });
                }
                ImageSource::Layout { .. } | ImageSource::Archive { .. } => None,
            };
            Ok(report(&image, files, pushed, cached))
        });
        work.await.unwrap_or(Err(PublishError::Stopped { reference }))
    }

    fn describe(&self, image: &Publishable) -> Result<Vec<(Description, PathBuf)>, PublishError> {
        let mut files = Vec::new();
        for layer in &image.layers {
            let description = self.describe_index(image, layer)?;
            // The same layer may be there twice.
            if !files.iter().any(|(other, _): &(Description, PathBuf)| other.subject == description.subject) {
                files.push((description, layer.index.clone()));
            }
        }
        let manifest = image.manifest.digest;
        let pack = self.pack_path(&manifest);
        if pack.is_file() {
            files.push((self.describe_pack(manifest, &pack)?, pack));
        }
        if let Some((shape, trace)) = self.traces.newest(&manifest)
            && let Ok(bytes) = trace.encode()
        {
            let path = self.packs.join(format!("{}.trace", manifest.hex()));
            write(&path, &bytes)?;
            let (head, digest) = (Head::of(&bytes), Digest::of(&bytes));
            let subject = Subject::Trace { manifest };
            let size = bytes.len() as u64;
            files.push((Description::signed(&self.keys, digest, size, subject, head, &shape)?, path));
        }
        Ok(files)
    }

    fn describe_index(&self, image: &Publishable, layer: &PublishableLayer) -> Result<Description, PublishError> {
        let (path, digest) = (&layer.index, layer.digest);
        let none = || PublishError::NoIndex { reference: image.reference.clone(), layer: digest };
        if !path.is_file() {
            return Err(none());
        }
        let front = read_head(path, HEADER_BYTES, |header| front_range(header).ok().map(|range| range.end))?;
        let front = front.ok_or_else(none)?;
        let index = LayerIndex::decode(&front).map_err(|_unusable| none())?;
        if index.layer_digest != digest || index.layer_bytes != layer.bytes {
            return Err(PublishError::OtherPacking { reference: image.reference.clone(), layer: digest });
        }
        let subject = Subject::Index { layer: digest, layer_bytes: index.layer_bytes, diff_id: layer.diff_id };
        let (file_digest, size) = digest_of(path)?;
        Ok(Description::signed(&self.keys, file_digest, size, subject, Head::of(&front), "")?)
    }

    fn describe_pack(&self, manifest: Digest, path: &Path) -> Result<Description, PublishError> {
        let damaged = || PublishError::file("use", path)(std::io::Error::other("it is no start pack; remove it"));
        let head = read_head(path, pack::HEADER_BYTES, |header| pack::head_range(header).ok().map(|range| range.end))?;
        let head = head.ok_or_else(damaged)?;
        let shape = PackHead::decode(&head).map_err(|_unusable| damaged())?.shape;
        let (digest, size) = digest_of(path)?;
        let subject = Subject::Pack { manifest };
        Ok(Description::signed(&self.keys, digest, size, subject, Head::of(&head), &shape)?)
    }

    fn put_in_cache(&self, files: &[(Description, PathBuf)]) -> Result<Option<String>, PublishError> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let mut written = false;
        for (description, path) in files {
            written = cache.put(description, path)?;
        }
        Ok(written.then(|| format!("{cache:?}")))
    }

    async fn push(
        &self,
        reference: &Reference,
        image: &Publishable,
        files: &[(Description, PathBuf)],
    ) -> Result<(Digest, bool), PublishError> {
        let credentials = &image.credentials;
        for (description, path) in files {
            let content = Content::File(path.clone(), description.size);
            self.client.push_blob(reference, &description.digest, &content, credentials).await?;
        }
        let config = Content::Bytes(Bytes::from_static(EMPTY_CONFIG));
        self.client.push_blob(reference, &Digest::of(EMPTY_CONFIG), &config, credentials).await?;
        let descriptions: Vec<Description> = files.iter().map(|(description, _)| description.clone()).collect();
        let mut manifest = artifact(&image.manifest, &descriptions);
        let created = format!("{:.0}", jiff::Timestamp::now());
        let annotations = [("org.opencontainers.image.created".to_owned(), created)];
        manifest["annotations"] = serde_json::json!(std::collections::BTreeMap::from(annotations.clone()));
        let bytes = Bytes::from(manifest.to_string());
        let size = bytes.len() as u64;
        let pushed = self.client.push_manifest(reference, None, OCI_MANIFEST, bytes, credentials).await?;
        if !pushed.knows_subjects {
            let referrer = Referrer {
                media_type: OCI_MANIFEST.to_owned(),
                digest: pushed.digest,
                size,
                artifact_type: ARTIFACT_TYPE.to_owned(),
                annotations: annotations.into(),
            };
            self.client.tag_referrer(reference, &image.manifest.digest, referrer, credentials).await?;
        }
        Ok((pushed.digest, pushed.knows_subjects))
    }

    /// Where the pack of an image is kept.
    pub(super) fn pack_path(&self, manifest: &Digest) -> PathBuf {
        self.packs.join(format!("{}.pack", manifest.hex()))
    }
}

fn report(
    image: &Publishable,
    files: Vec<(Description, PathBuf)>,
    pushed: Option<(Digest, bool)>,
    cache: Option<String>,
) -> PublishReport {
    let mut signed_by: Vec<String> =
        files.iter().flat_map(|(file, _)| &file.signatures).map(|signature| signature.key.to_string()).collect();
    signed_by.sort();
    signed_by.dedup();
    let published = |description: &Description| {
        let (kind, about) = match description.subject {
            Subject::Index { layer, .. } => ("index", layer),
            Subject::Pack { manifest } => ("pack", manifest),
            Subject::Trace { manifest } => ("trace", manifest),
        };
        PublishedFile { kind, about, bytes: description.size }
    };
    PublishReport {
        manifest: image.manifest.digest,
        artifact: pushed.map(|(digest, _)| digest),
        listed_by_registry: pushed.is_some_and(|(_, listed)| listed),
        cache,
        files: files.iter().map(|(description, _)| published(description)).collect(),
        signed_by,
    }
}

/// The beginning of a file up to where `end` says, which it learns from the first `header` bytes.
fn read_head(
    path: &Path,
    header: usize,
    end: impl FnOnce(&[u8]) -> Option<u64>,
) -> Result<Option<Vec<u8>>, PublishError> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path).map_err(PublishError::file("open", path))?;
    let mut head = vec![0; header];
    if file.read_exact_at(&mut head, 0).is_err() {
        return Ok(None);
    }
    let Some(end) = end(&head).and_then(|end| usize::try_from(end).ok()) else { return Ok(None) };
    // The end is bounded by the format's own limit.
    head.resize(end, 0);
    Ok(file.read_exact_at(&mut head, 0).is_ok().then_some(head))
}

fn digest_of(path: &Path) -> Result<(Digest, u64), PublishError> {
    let file = File::open(path).map_err(PublishError::file("open", path))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer).map_err(PublishError::file("read", path))?;
        if count == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
}

/// Replaces a file of ours.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PublishError> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(PublishError::file("create", folder))?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(PublishError::file("write", path))
}
