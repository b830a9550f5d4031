//! What the image store refuses or fails at, as a user reads it: the thing, the reason, the way out.
//!
//! Causes stand in `source`; [`sampan_kit::error_chain`] makes one line of them.

use crate::merge::MergeError;
use crate::unpack::UnpackError;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image reference {reference:?} is not valid")]
    Reference {
        reference: String,
        #[source]
        source: sampan_oci::reference::ReferenceError,
    },
    #[error(transparent)]
    Fetch(#[from] sampan_registry::FetchError),
    #[error("cannot pull {reference}")]
    Layer {
        reference: String,
        #[source]
        source: Arc<UnpackError>,
    },
    #[error("cannot pull {reference}; build the image again")]
    Merge {
        reference: String,
        #[source]
        source: MergeError,
    },
    #[error("cannot pull {reference}: its file tree cannot be stored")]
    Erofs {
        reference: String,
        #[source]
        source: sampan_erofs::WriteError,
    },
    #[error(
        "image {reference} is not on this machine, and the policy Never forbids pulling it; pull it first (sampan pull {reference})"
    )]
    NotPresent { reference: String },
    #[error("no image {reference:?} on this machine; sampan images lists those that are")]
    Unknown { reference: String },
    #[error("image {reference} is in use; remove the instances that use it first")]
    InUse { reference: String },
    #[error("cannot mount image {reference}")]
    Mount {
        reference: String,
        #[source]
        source: std::io::Error,
    },
    #[error("another service uses the images in {}; stop it, or give this one a --data-dir of its own", .path.display())]
    Locked { path: PathBuf },
    #[error("no space left on the disk of {}; free some, or remove images with sampan rmi", .path.display())]
    DiskFull { path: PathBuf },
    #[error("cannot {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the index of layer {} is not usable; remove the image and pull it again", .path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: crate::index::IndexError,
    },
    #[error(
        "cannot pull {reference}: names and attributes of all its layers take more than {limit} bytes; build the image with fewer files"
    )]
    TooLarge { reference: String, limit: u64 },
    #[error("cannot mend the image: {reference} is another one today; remove the image and pull it again")]
    Moved { reference: String },
    #[error("images that are still arriving cannot be served")]
    Lazy {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{reference} is in use, but has not arrived in whole: {cause}; this is tried again in the background")]
    Incomplete { reference: String, cause: String },
    #[error("pulling {reference} was stopped")]
    Stopped { reference: String },
}

impl ImageError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.parent().unwrap_or(&path).to_owned() }
            }
            _ => Self::File { action, path, source },
        }
    }
}
