//! Manifests and indexes, OCI's and Docker's schema 2: which configuration and layers make an image, and for which platform.
//!
//! Sources: OCI image specification, manifest.md and image-index.md; Docker image manifest V2 schema 2. Invariants: a
//! [`Manifest`] in hand has a configuration and layers that can be read (anything else was refused by its name), and a document
//! that could be taken for both a manifest and an index is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json::null_as_default;
use crate::limits::{CONFIG_BYTES_MAX, INDEX_ENTRIES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX};
use crate::media_type::{self, Compression, DocumentKind, LayerKind};
use crate::platform::Platform;
use crate::quote::Quote;

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {bytes} bytes, more than the {MANIFEST_BYTES_MAX} allowed; this is not a usable image")]
    TooLarge { bytes: u64 },
    #[error("the manifest is not valid; rebuild or re-push the image")]
    Json(#[source] serde_json::Error),
    #[error(
        "the image has a Docker schema 1 manifest, a form withdrawn since 2019; pull and push it again with a current docker or skopeo"
    )]
    Schema1,
    #[error("the manifest has the unknown media type \"{}\"; only OCI and Docker schema 2 images are supported", Quote(.0))]
    UnknownMediaType(String),
    #[error("the manifest can be read both as an image and as an index, which hides what is run; rebuild the image")]
    Ambiguous,
    #[error("the manifest names no configuration and no other images; rebuild or re-push the image")]
    Incomplete,
    #[error("this is not a container image but an artifact of type \"{}\"; name an image that can be run", Quote(.0))]
    Artifact(String),
    #[error("layer {digest} has the media type \"{}\", which is not distributed by registries (a foreign layer); use an image without such layers", Quote(.media_type))]
    ForeignLayer { digest: Digest, media_type: String },
    #[error("layer {digest} is encrypted (media type \"{}\"); use an image that is not", Quote(.media_type))]
    EncryptedLayer { digest: Digest, media_type: String },
    #[error("layer {digest} has the unknown media type \"{}\"; tar, tar+gzip and tar+zstd layers are supported", Quote(.media_type))]
    UnknownLayer { digest: Digest, media_type: String },
    #[error("the image's indexes are nested too deeply; name one of the images inside")]
    TooDeep,
    #[error("the manifest names {0} layers or images, more than are allowed; rebuild it with fewer")]
    TooManyEntries(usize),
    #[error(
        "the image configuration has {bytes} bytes, more than the {CONFIG_BYTES_MAX} allowed; rebuild the image with a shorter history"
    )]
    ConfigTooLarge { bytes: u64 },
    #[error("the image has {layers} layers but its configuration lists {diff_ids} diffIDs; rebuild or re-push it")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("the image is not made for this machine: it offers {}, this machine is {wanted}; use an image built for {wanted}", list(.offered))]
    WrongPlatform { wanted: Platform, offered: Vec<Platform> },
}

fn list(platforms: &[Platform]) -> String {
    const SHOWN: usize = 12;
    let mut names: Vec<String> =
        platforms.iter().take(SHOWN).map(|platform| Quote(&platform.to_string()).to_string()).collect();
    names.dedup();
    match platforms.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "no platform".to_owned(),
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// A pointer to content: what it is, its digest and its exact size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// A layer that can be read, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub descriptor: Descriptor,
    pub compression: Compression,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub annotations: BTreeMap<String, String>,
}

/// One image per platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

/// What a tag or digest may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// The union of both forms as they stand on the wire; unknown members are allowed by the specification.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default, deserialize_with = "null_as_default")]
    schema_version: u64,
    #[serde(default, deserialize_with = "null_as_default")]
    media_type: String,
    #[serde(default, deserialize_with = "null_as_default")]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "null_as_default")]
    annotations: BTreeMap<String, String>,
}

impl Document {
    /// Reads a manifest or an index; any bytes are safe to pass. `declared` is the media type of the descriptor or the
    /// `Content-Type` that led here; the document's own word goes first.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: bytes.len() as u64 });
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if wire.schema_version == 1 || wire.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let is_image = wire.config.is_some() || wire.layers.is_some();
        if is_image && wire.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let said = if wire.media_type.is_empty() { declared.unwrap_or_default() } else { wire.media_type.as_str() };
        match media_type::document_kind(said) {
            Some(DocumentKind::Schema1) => Err(ManifestError::Schema1),
            Some(DocumentKind::Manifest) if wire.manifests.is_some() => Err(ManifestError::Ambiguous),
            Some(DocumentKind::Index) if is_image => Err(ManifestError::Ambiguous),
            Some(_) => Self::from_wire(wire),
            // Registries serve documents without a type of their own under a general one; the members then tell.
            None if wire.media_type.is_empty() && (is_image || wire.manifests.is_some()) => Self::from_wire(wire),
            None => Err(ManifestError::UnknownMediaType(said.to_owned())),
        }
    }

    fn from_wire(wire: Wire) -> Result<Self, ManifestError> {
        let Some(config) = wire.config else {
            let manifests = wire.manifests.ok_or(ManifestError::Incomplete)?;
            if manifests.len() > INDEX_ENTRIES_MAX {
                return Err(ManifestError::TooManyEntries(manifests.len()));
            }
            return Ok(Self::Index(Index { manifests, annotations: wire.annotations }));
        };
        if !media_type::is_config(&config.media_type) {
            let kind = if wire.artifact_type.is_empty() { config.media_type } else { wire.artifact_type };
            return Err(ManifestError::Artifact(kind));
        }
        if config.size > CONFIG_BYTES_MAX as u64 {
            return Err(ManifestError::ConfigTooLarge { bytes: config.size });
        }
        let layers = wire.layers.unwrap_or_default();
        if layers.len() > LAYERS_MAX {
            return Err(ManifestError::TooManyEntries(layers.len()));
        }
        let layers = layers.into_iter().map(Layer::new).collect::<Result<_, _>>()?;
        Ok(Self::Manifest(Manifest { config, layers, annotations: wire.annotations }))
    }
}

impl Layer {
    fn new(descriptor: Descriptor) -> Result<Self, ManifestError> {
        let (digest, media_type) = (descriptor.digest, descriptor.media_type.clone());
        match media_type::layer_kind(&descriptor.media_type) {
            LayerKind::Tar(compression) => Ok(Self { descriptor, compression }),
            LayerKind::Foreign => Err(ManifestError::ForeignLayer { digest, media_type }),
            LayerKind::Encrypted => Err(ManifestError::EncryptedLayer { digest, media_type }),
            LayerKind::Unknown => Err(ManifestError::UnknownLayer { digest, media_type }),
        }
    }
}

impl Index {
    /// The image that runs best on `platform`. Entries without a platform fit any machine, after all that name theirs.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let fit = |descriptor: &Descriptor| match &descriptor.platform {
            Some(offered) => platform.fit(offered).map(|fit| fit.saturating_add(1)),
            None => media_type::document_kind(&descriptor.media_type).map(|_| 0),
        };
        let mut best: Option<(u32, &Descriptor)> = None;
        for descriptor in &self.manifests {
            // Of two that fit equally well the first wins, as the specification says.
            if let Some(fit) = fit(descriptor).filter(|fit| best.is_none_or(|(best, _)| *fit > best)) {
                best = Some((fit, descriptor));
            }
        }
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
            // Attestations call their platform "unknown"; they are nothing to run.
            let named = self.manifests.iter().filter_map(|descriptor| descriptor.platform.clone());
            let offered = named.filter(|platform| platform.os != "unknown").collect();
            ManifestError::WrongPlatform { wanted: platform.clone(), offered }
        })
    }
}

impl Manifest {
    /// Sum of the layers as they travel, in bytes.
    pub fn layers_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.descriptor.size))
    }

    /// Checks that `config` belongs to this manifest and runs on `platform`. Builders of the simplest images leave the
    /// architecture out; those are let through.
    pub fn check_config(&self, config: &crate::config::ImageConfig, platform: &Platform) -> Result<(), ManifestError> {
        if config.rootfs.diff_ids.len() != self.layers.len() {
            return Err(ManifestError::LayerCount {
                layers: self.layers.len(),
                diff_ids: config.rootfs.diff_ids.len(),
            });
        }
        let offered = &config.platform;
        if !offered.architecture.is_empty() && platform.fit(offered).is_none() {
            return Err(ManifestError::WrongPlatform { wanted: platform.clone(), offered: vec![offered.clone()] });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
