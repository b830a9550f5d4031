//! The span part of an index: from a file of this node, or from where it was published.

use super::source::{IndexSource, RecordSource, SourceError, WantedImage};
use crate::store::registry::{Client, Origin};
use async_trait::async_trait;
use bytes::Bytes;
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// An index file that is here whole.
pub(crate) struct FileRecords(pub(crate) File);

#[async_trait]
impl RecordSource for FileRecords {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        // The file may be shorter than the front part says: never trust a length before it was read.
        let end = range.end.min(self.0.metadata().map_err(SourceError::Read)?.len());
        let mut bytes = vec![0; end.saturating_sub(range.start) as usize];
        self.0.read_exact_at(&mut bytes, range.start).map_err(SourceError::Read)?;
        Ok(bytes.into())
    }
}

/// Records of a published index that an earlier process began to use: they are looked for again when one is needed. The front
/// part, which is here, vouches for them.
pub(crate) struct RefoundRecords {
    pub(crate) client: Client,
    pub(crate) origin: Origin,
    pub(crate) platform: Platform,
    pub(crate) index_source: Arc<dyn IndexSource>,
    pub(crate) diff_id: Digest,
    pub(crate) found: OnceCell<Arc<dyn RecordSource>>,
}

impl RefoundRecords {
    async fn find(&self) -> Result<Arc<dyn RecordSource>, SourceError> {
        let resolved = self.client.resolve(&self.origin, &self.platform).await?;
        let wanted = WantedImage {
            source: self.origin.source.clone(),
            credentials: self.origin.credentials.clone(),
            manifest: resolved.manifest_digest,
            layers: resolved.manifest.layers,
            diff_ids: resolved.config.rootfs.diff_ids,
        };
        let number = wanted.diff_ids.iter().position(|diff_id| *diff_id == self.diff_id);
        let published = self.index_source.find(&wanted).await;
        let layer = published.zip(number).and_then(|(mut image, at)| image.layers.get_mut(at)?.take());
        let gone = || SourceError::Damaged("the index is no longer published".to_owned());
        Ok(layer.ok_or_else(gone)?.records)
    }
}

#[async_trait]
impl RecordSource for RefoundRecords {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        self.found.get_or_try_init(|| self.find()).await?.read(range).await
    }
}
