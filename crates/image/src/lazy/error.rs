//! Why a part of a layer cannot be had.

use super::source::SourceError;
use crate::index::IndexError;
use sampan_oci::digest::Digest;
use sampan_oci::inflate::InflateError;
use sampan_registry::FetchError;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LazyError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the index of layer {layer} cannot be read")]
    Records {
        layer: Digest,
        #[source]
        source: SourceError,
    },
    #[error("the index of layer {layer} is damaged")]
    Index {
        layer: Digest,
        #[source]
        source: IndexError,
    },
    #[error(
        "a part of layer {layer} is not what its index says; the registry, or something between, is damaged or hostile"
    )]
    Corrupt { layer: Digest },
    #[error("a part of layer {layer} cannot be unpacked")]
    Inflate {
        layer: Digest,
        #[source]
        source: InflateError,
    },
    #[error("a part of layer {layer} cannot be unpacked")]
    Zstd {
        layer: Digest,
        #[source]
        source: std::io::Error,
    },
    #[error("no space left on the disk for layer {layer}; free some, or remove images with sampan rmi")]
    DiskFull { layer: Digest },
    #[error("the cache of layer {layer} cannot be used")]
    Cache {
        layer: Digest,
        #[source]
        source: std::io::Error,
    },
    #[error("fetching layer {layer} was stopped")]
    Stopped { layer: Digest },
}

impl LazyError {
    pub(crate) fn cache(layer: Digest) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { layer },
            _ => Self::Cache { layer, source },
        }
    }

    /// How long the registry asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Fetch(FetchError::RateLimited { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// Whether the bytes were at fault, and not their way here.
    pub(crate) fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Inflate { .. } | Self::Zstd { .. })
    }
}
