//! The media types of manifests, configurations and layers, OCI's and Docker's, and what is refused by name.
//!
//! Sources: OCI image specification, media-types.md; Docker image manifest V2 schema 2.

use std::fmt;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a client must send as `Accept` to be given everything that this crate reads.
pub const ACCEPTED_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const DOCKER_SCHEMA_1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_LAYER_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// How the bytes of a layer's tar are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// The kinds of top-level document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    Manifest,
    Index,
    Schema1,
}

/// `None` for a media type that names no image document (`application/json`, for example, names none).
pub fn document_kind(media_type: &str) -> Option<DocumentKind> {
    match essence(media_type) {
        OCI_INDEX | DOCKER_LIST => Some(DocumentKind::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(DocumentKind::Manifest),
        DOCKER_SCHEMA_1 | DOCKER_SCHEMA_1_SIGNED => Some(DocumentKind::Schema1),
        _ => None,
    }
}

pub fn is_config(media_type: &str) -> bool {
    matches!(essence(media_type), OCI_CONFIG | DOCKER_CONFIG)
}

/// What a layer's media type says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    Tar(Compression),
    /// Not distributed by registries; its bytes would come from URLs in the manifest.
    Foreign,
    Encrypted,
    Unknown,
}

pub fn layer_kind(media_type: &str) -> LayerKind {
    let media_type = essence(media_type);
    if media_type.ends_with("+encrypted") {
        return LayerKind::Encrypted;
    }
    if media_type.starts_with(OCI_LAYER_FOREIGN) || media_type.starts_with(DOCKER_LAYER_FOREIGN) {
        return LayerKind::Foreign;
    }
    let suffix = media_type.strip_prefix(OCI_LAYER).or_else(|| media_type.strip_prefix(DOCKER_LAYER));
    match suffix {
        Some("") => LayerKind::Tar(Compression::None),
        Some("+gzip" | ".gzip") => LayerKind::Tar(Compression::Gzip),
        Some("+zstd" | ".zstd") => LayerKind::Tar(Compression::Zstd),
        _ => LayerKind::Unknown,
    }
}

/// A media type without parameters (`; charset=utf-8`), which some registries add.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_apart_by_name() {
        for (media_type, kind) in [
            (OCI_LAYER, LayerKind::Tar(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", LayerKind::Tar(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", LayerKind::Tar(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", LayerKind::Tar(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", LayerKind::Tar(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", LayerKind::Foreign),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", LayerKind::Foreign),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", LayerKind::Encrypted),
            ("application/vnd.oci.image.layer.v1.tar+brotli", LayerKind::Unknown),
            ("", LayerKind::Unknown),
        ] {
            assert_eq!(layer_kind(media_type), kind, "{media_type}");
        }
    }

    #[test]
    fn parameters_do_not_hide_a_document() {
        assert_eq!(document_kind("application/vnd.oci.image.index.v1+json; charset=utf-8"), Some(DocumentKind::Index));
        assert_eq!(document_kind(DOCKER_SCHEMA_1_SIGNED), Some(DocumentKind::Schema1));
        assert_eq!(document_kind("application/json"), None);
        for accepted in ACCEPTED_MANIFESTS.split(", ") {
            assert!(document_kind(accepted).is_some(), "{accepted}");
        }
    }
}
