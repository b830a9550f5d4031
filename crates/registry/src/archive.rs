//! An archive as `docker save` and `podman save` write it: a tar with `manifest.json`, configurations and layers.
//!
//! Such an archive has no manifest that a digest could name. One is made here: layers that are not compressed, as these programs
//! write them, are named by the diffIDs of the configuration; compressed ones are read once for their digest. Source of the form:
//! Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
//!
//! The archive is looked through anew by every call, without reading its files' data: it may change at any time, and whatever is
//! read of it is checked against its digest.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, LayerReader, LayerSink, display_name};
use sampan_oci::limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use sampan_oci::manifest::{Descriptor, Document, ManifestError};
use sampan_oci::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use sampan_oci::platform::Platform;
use sampan_oci::reference::Reference;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::blob::LayoutFile;
use crate::client::Resolved;
use crate::error::ArchiveError;
use crate::limits::{ARCHIVE_LINKS_MAX, ARCHIVE_MEMBERS_MAX, ARCHIVE_READ_BYTES, FILE_CHUNK_BYTES};

const MANIFEST: &str = "manifest.json";
/// What is read at one time while headers are looked for: one block of a tar.
const HEADER_BYTES: usize = 512;

/// One image of `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    layers: Vec<String>,
}

/// Reads `null` as an empty list, as Go writes one.
fn null_as_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Item {
    /// What the image is called, of what can be a name.
    fn names(&self) -> impl Iterator<Item = Reference> {
        self.repo_tags.iter().filter_map(|tag| tag.parse().ok())
    }
}

/// What fetching an image can end in, besides what is wrong with the archive.
#[derive(Debug)]
pub(crate) enum ResolveError {
    Archive(ArchiveError),
    Manifest(ManifestError),
    Config(sampan_oci::config::ConfigError),
}

impl From<ArchiveError> for ResolveError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

pub(crate) struct Archive<'a> {
    path: &'a Path,
    file: File,
    members: HashMap<LayerPath, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File {
        start: u64,
        size: u64,
    },
    /// Older archives name a layer that stands in them already; counted from the link's own directory.
    Symlink(Vec<u8>),
    HardLink(LayerPath),
}

/// A layer in the archive.
struct LayerFile {
    start: u64,
    size: u64,
    media_type: String,
    is_compressed: bool,
}

impl<'a> Archive<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self, ArchiveError> {
        if path.is_relative() {
            return Err(ArchiveError::Relative(path.to_owned()));
        }
        let read = |source| ArchiveError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        let mut reader = LayerReader::new();
        let mut members = Members::default();
        let mut block = vec![0; ARCHIVE_READ_BYTES];
        let mut at = 0;
        while at < bytes {
            let skipped = reader.skippable().min(bytes - at);
            reader.skip(skipped);
            at += skipped;
            let read = file.read_at(&mut block, at).map_err(read)?;
            if read == 0 {
                break;
            }
            let mut fed = block.get(..read).unwrap_or_default();
            // Headers lie one after another where files are small; where data begin, the rest of the block is left out.
            while !fed.is_empty() && reader.skippable() == 0 {
                let (head, rest) = fed.split_at(fed.len().min(HEADER_BYTES));
                let taken = reader.feed(head, &mut members);
                taken.map_err(|source| ArchiveError::Damaged { path: path.to_owned(), source: Box::new(source) })?;
                at += head.len() as u64;
                fed = rest;
            }
        }
        let finished = reader.finish().map_err(sampan_oci::layer::ReadError::Layer);
        finished.map_err(|source| ArchiveError::Damaged { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { path, file, members: members.0 })
    }

    /// What the images of the archive are called.
    pub(crate) fn names(&self) -> Result<Vec<Reference>, ArchiveError> {
        Ok(self.items()?.iter().flat_map(Item::names).collect())
    }

    /// The image of that name, or the only one; with a manifest made for it.
    pub(crate) fn resolve(&self, name: Option<&Reference>, platform: &Platform) -> Result<Resolved, ResolveError> {
        let item = self.find(name)?;
        let (config_bytes, config) = self.config(&item)?;
        let layers = self.layers(&item)?;
        if layers.len() != config.rootfs.diff_ids.len() {
            let (layers, diff_ids) = (layers.len(), config.rootfs.diff_ids.len());
            return Err(ResolveError::Manifest(ManifestError::LayerCount { layers, diff_ids }));
        }
        let mut descriptors = Vec::new();
        for (layer, diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
            let digest = if layer.is_compressed { self.digest(layer, diff_id)? } else { *diff_id };
            descriptors.push(json!({"mediaType": layer.media_type, "digest": digest.to_string(), "size": layer.size}));
        }
        let document = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG, "digest": Digest::of(&config_bytes).to_string(), "size": config_bytes.len(),
            },
            "layers": descriptors,
        });
        let manifest_bytes = Bytes::from(document.to_string());
        let parsed = Document::parse(&manifest_bytes, Some(OCI_MANIFEST)).map_err(ResolveError::Manifest)?;
        let Document::Manifest(manifest) = parsed else {
            return Err(ResolveError::Manifest(ManifestError::Incomplete));
        };
        manifest.check_config(&config, platform).map_err(ResolveError::Manifest)?;
        let digest = Digest::of(&manifest_bytes);
        let name = item.names().find(|own| name.is_none_or(|name| name == own));
        Ok(Resolved { digest, manifest_digest: digest, manifest, manifest_bytes, config, config_bytes, name })
    }

    /// A layer to be read from.
    pub(crate) fn blob(self, name: Option<&Reference>, blob: &Descriptor) -> Result<LayoutFile, ResolveError> {
        let item = self.find(name)?;
        let (_, config) = self.config(&item)?;
        let layers = self.layers(&item)?;
        let mut candidates = layers.iter().zip(&config.rootfs.diff_ids);
        let found = match candidates.find(|(layer, diff_id)| !layer.is_compressed && **diff_id == blob.digest) {
            Some((layer, _)) => Some(layer),
            None => {
                let same_size = |layer: &&LayerFile| layer.is_compressed && layer.size == blob.size;
                let alike: Vec<&LayerFile> = layers.iter().filter(same_size).collect();
                match alike[..] {
                    // Whoever reads it checks its digest.
                    [only] => Some(only),
                    _ => {
                        let digests = alike.iter().map(|layer| self.digest(layer, &blob.digest));
                        let digests = digests.collect::<Result<Vec<_>, _>>()?;
                        let place = digests.iter().position(|digest| *digest == blob.digest);
                        place.and_then(|place| alike.get(place).copied())
                    }
                }
            }
        };
        let missing = || ArchiveError::NoMember { path: self.path.to_owned(), member: blob.digest.to_string() };
        let layer = found.ok_or_else(missing)?;
        if layer.size != blob.size {
            let (path, member) = (self.path.to_owned(), blob.digest.to_string());
            let (expected, actual) = (blob.size, layer.size);
            return Err(ArchiveError::Size { path, member, expected, actual }.into());
        }
        let (start, size) = (layer.start, layer.size);
        Ok(LayoutFile { path: self.path.to_owned(), file: self.file, start, size })
    }

    fn items(&self) -> Result<Vec<Item>, ArchiveError> {
        let (start, size) = self.member(MANIFEST).map_err(|error| match error {
            ArchiveError::NoMember { path, .. } => ArchiveError::NotAnArchive(path),
            other => other,
        })?;
        let bytes = self.read(MANIFEST, start, size, MANIFEST_BYTES_MAX)?;
        serde_json::from_slice(&bytes).map_err(|source| ArchiveError::Json { path: self.path.to_owned(), source })
    }

    fn find(&self, name: Option<&Reference>) -> Result<Item, ArchiveError> {
        let mut items = self.items()?;
        let path = || self.path.to_owned();
        match name {
            None if items.len() == 1 => {}
            None if items.is_empty() => return Err(ArchiveError::Empty(path())),
            None => return Err(ArchiveError::NameNeeded { path: path(), offered: offered(&items) }),
            Some(name) => {
                let all = offered(&items);
                items.retain(|item| item.names().any(|own| own == *name));
                if items.is_empty() {
                    return Err(ArchiveError::NoSuchName { path: path(), name: name.to_string(), offered: all });
                }
            }
        }
        items.into_iter().next().ok_or_else(|| ArchiveError::Empty(path()))
    }

    fn config(&self, item: &Item) -> Result<(Bytes, ImageConfig), ResolveError> {
        let (start, size) = self.member(&item.config)?;
        let bytes = Bytes::from(self.read(&item.config, start, size, CONFIG_BYTES_MAX)?);
        let config = ImageConfig::parse(&bytes).map_err(ResolveError::Config)?;
        Ok((bytes, config))
    }

    fn layers(&self, item: &Item) -> Result<Vec<LayerFile>, ArchiveError> {
        item.layers.iter().map(|name| self.layer(name)).collect()
    }

    fn layer(&self, name: &str) -> Result<LayerFile, ArchiveError> {
        let (start, size) = self.member(name)?;
        let mut magic = [0; 4];
        let length = size.min(magic.len() as u64) as usize;
        let read = self.file.read_exact_at(magic.get_mut(..length).unwrap_or_default(), start);
        read.map_err(|source| ArchiveError::Read { path: self.path.to_owned(), source })?;
        let compression = match magic {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
            _ => "",
        };
        let media_type = format!("{OCI_LAYER}{compression}");
        Ok(LayerFile { start, size, media_type, is_compressed: !compression.is_empty() })
    }

    /// Reads a layer for its digest, of the kind of `like`.
    fn digest(&self, layer: &LayerFile, like: &Digest) -> Result<Digest, ArchiveError> {
        let mut hasher = like.hasher();
        let mut block = vec![0; FILE_CHUNK_BYTES];
        let (mut at, end) = (layer.start, layer.start.saturating_add(layer.size));
        while at < end {
            let length = (end - at).min(block.len() as u64) as usize;
            let part = block.get_mut(..length).unwrap_or_default();
            let read = self.file.read_exact_at(part, at);
            read.map_err(|source| ArchiveError::Read { path: self.path.to_owned(), source })?;
            hasher.update(part);
            at += length as u64;
        }
        Ok(hasher.finish())
    }

    /// Where a file of the archive is, links followed.
    fn member(&self, name: &str) -> Result<(u64, u64), ArchiveError> {
        let missing = || ArchiveError::NoMember { path: self.path.to_owned(), member: name.to_owned() };
        let mut path = LayerPath::of_entry(name.as_bytes()).map_err(|_invalid| missing())?;
        for _ in 0..ARCHIVE_LINKS_MAX {
            match self.members.get(&path).ok_or_else(missing)? {
                Member::File { start, size } => return Ok((*start, *size)),
                Member::HardLink(target) => path = target.clone(),
                Member::Symlink(target) => {
                    let parent = path.split_last().map(|(parent, _)| parent).unwrap_or_default();
                    path = beside(&parent, target).ok_or_else(missing)?;
                }
            }
        }
        Err(missing())
    }

    fn read(&self, name: &str, start: u64, size: u64, limit: usize) -> Result<Vec<u8>, ArchiveError> {
        let length = usize::try_from(size).ok().filter(|size| *size <= limit);
        let too_large =
            || ArchiveError::TooLarge { path: self.path.to_owned(), member: display_name(name.as_bytes()), limit };
        let mut bytes = vec![0; length.ok_or_else(too_large)?];
        let read = self.file.read_exact_at(&mut bytes, start);
        read.map_err(|source| ArchiveError::Read { path: self.path.to_owned(), source })?;
        Ok(bytes)
    }
}

/// A link's target, which may climb, but not out of the archive.
fn beside(parent: &LayerPath, target: &[u8]) -> Option<LayerPath> {
    let mut components: Vec<&[u8]> = parent.components().collect();
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()?),
            name => components.push(name),
        }
    }
    LayerPath::of_entry(&components.join(&b'/')).ok()
}

fn offered(items: &[Item]) -> Vec<String> {
    items.iter().flat_map(Item::names).map(|name| name.to_string()).collect()
}

/// Notes where files are; takes no data.
#[derive(Debug, Default)]
struct Members(HashMap<LayerPath, Member>);

impl LayerSink for Members {
    type Error = TooManyMembers;

    fn entry(&mut self, entry: Entry) -> Result<(), TooManyMembers> {
        let member = match entry.kind {
            EntryKind::File { size, segments: None } => Member::File { start: entry.data_offset, size },
            EntryKind::Symlink { target } => Member::Symlink(target),
            EntryKind::HardLink { target } => Member::HardLink(target),
            _ => return Ok(()),
        };
        if self.0.len() == ARCHIVE_MEMBERS_MAX {
            return Err(TooManyMembers);
        }
        self.0.insert(entry.path, member);
        Ok(())
    }

    fn data(&mut self, _bytes: &[u8]) -> Result<(), TooManyMembers> {
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), TooManyMembers> {
        Ok(())
    }
}

/// More files than any image has.
#[derive(Debug, thiserror::Error)]
#[error("it has more than {ARCHIVE_MEMBERS_MAX} files")]
pub struct TooManyMembers;
