//! What publishing fails at, as a user reads it.

use crate::error::ImageError;
use crate::keys::KeyError;
use crate::pack::PackBuildError;
use sampan_oci::digest::Digest;
use sampan_registry::{FetchError, PushError};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(
        "{reference} is no image of a registry, so there is no place beside it; name it by its registry, or give the service an --index-cache folder"
    )]
    NoRegistry { reference: String },
    #[error("layer {layer} of {reference} has no index here yet; make one with: sampan image index {reference}")]
    NoIndex { reference: String, layer: Digest },
    #[error(
        "layer {layer} of {reference} was indexed from another packing of the same files; remove the image, then: sampan image index {reference}"
    )]
    OtherPacking { reference: String, layer: Digest },
    #[error(
        "layer {layer} of {reference} has not arrived whole yet; see how far it is with: sampan image inspect {reference}"
    )]
    Incomplete { reference: String, layer: Digest },
    #[error(
        "no start of {reference} was traced yet; run it, or say what to run: sampan image pack {reference} -- COMMAND"
    )]
    NoTrace { reference: String },
    #[error("cannot write {} into the index cache", .path.display())]
    Cache {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make a start pack of {reference}")]
    Pack {
        reference: String,
        #[source]
        source: PackBuildError,
    },
    #[error("cannot {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("publishing {reference} was stopped")]
    Stopped { reference: String },
}

impl PublishError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
