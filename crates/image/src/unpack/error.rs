//! Why a layer cannot be had.

use crate::index::IndexError;
use crate::tree::TreeError;
use sampan_oci::digest::Digest;
use sampan_oci::inflate::InflateError;
use sampan_oci::layer::LayerError;
use sampan_registry::Mismatch;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Fetch(#[from] sampan_registry::FetchError),
    #[error("layer {layer} is refused; build and push the image again")]
    Tar {
        layer: Digest,
        #[source]
        source: LayerError,
    },
    #[error("layer {layer} is refused; build the image again without this entry")]
    Tree {
        layer: Digest,
        #[source]
        source: TreeError,
    },
    #[error("layer {layer} cannot be unpacked; push the image again")]
    Gzip {
        layer: Digest,
        #[source]
        source: InflateError,
    },
    #[error("layer {layer} cannot be unpacked: its zstd stream is {what}; push the image again")]
    Zstd {
        layer: Digest,
        what: &'static str,
        #[source]
        source: Option<std::io::Error>,
    },
    #[error("layer {layer} unpacks to {}, not to {} as the image's configuration says; build the image again", .diff_ids.actual, .diff_ids.expected)]
    DiffId { layer: Digest, diff_ids: Box<Mismatch> },
    #[error(
        "layer {layer} is refused: it expands to more than {limit} bytes, the limit for this disk; raise the limit, or free space, if the layer is meant to be so large"
    )]
    Expands { layer: Digest, limit: u64 },
    #[error("no space left on the disk of {} for layer {layer}; free some, or remove images with sampan rmi", .path.display())]
    DiskFull { layer: Digest, path: PathBuf },
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make the index of a layer")]
    Index(#[from] IndexError),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("a thread that unpacks a layer has panicked")]
    Panic,
    /// Another thread of the same layer has failed and tells why; no user ever sees this one.
    #[error("unpacking was stopped")]
    Stopped,
    #[error("the download of layer {layer} was cut off")]
    Cancelled { layer: Digest },
}
