//! Where a published file lies, and how pieces of it are read.

use crate::lazy::source::SourceError;
use crate::limits::PUBLISHED_READ_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use sampan_oci::manifest::Descriptor;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, FetchError, RegistryClient};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tokio::runtime::Handle;

/// One published file. What it gives is checked by whoever reads it.
#[allow(clippy::large_enum_variant, reason = "there are few of them, and nearly all are blobs")]
#[derive(Clone)]
pub(super) enum Place {
    /// A blob of an image's repository.
    Blob {
        client: RegistryClient,
        source: ImageSource,
        blob: Descriptor,
        credentials: Credentials,
    },
    /// A file of a web server.
    Url {
        client: RegistryClient,
        url: String,
    },
    File(PathBuf),
}

impl Place {
    /// Some bytes of it, all of them or an error.
    pub(super) async fn read_all(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        if range.end.saturating_sub(range.start) <= PUBLISHED_READ_BYTES_MAX {
            return self.read_some(range).await;
        }
        let mut whole = BytesMut::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start.saturating_add(PUBLISHED_READ_BYTES_MAX));
            whole.extend_from_slice(&self.read_some(start..end).await?);
            start = end;
        }
        Ok(whole.freeze())
    }

    async fn read_some(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let bytes = match self {
            Self::Blob { client, source, blob, credentials } => {
                let image = source.to_string();
                let (client, source, blob) = (client.clone(), source.clone(), blob.clone());
                let (credentials, runtime) = (credentials.clone(), Handle::current());
                // The client's futures cannot move between threads.
                let read = move || runtime.block_on(client.read_range(&source, &blob, range, &credentials));
                let read = tokio::task::spawn_blocking(read).await;
                read.unwrap_or_else(|_stopped| Err(FetchError::Cancelled { image }))?
            }
            Self::Url { client, url } => {
                let found = client.read_url(url, Some(range), wanted).await?;
                found.ok_or_else(|| SourceError::Damaged(format!("{url} is gone")))?
            }
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; usize::try_from(wanted).map_err(std::io::Error::other)?];
                    File::open(path)?.read_exact_at(&mut bytes, range.start)?;
                    Ok(Bytes::from(bytes))
                });
                let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                read.map_err(SourceError::Read)?
            }
        };
        if bytes.len() as u64 != wanted {
            return Err(SourceError::Damaged("it is shorter than it says".to_owned()));
        }
        Ok(bytes)
    }
}
