//! The span part of an index, from a file of this node.

use super::source::{RecordSource, SourceError};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

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
