//! One blob that is read here and there for as long as its reader likes.
//!
//! What was found out once (which mirror serves it, where the registry redirects to, what it grants) is kept, so that a range
//! costs one request. Signed addresses and tokens that end are renewed in passing. Nothing vouches for the bytes: the caller
//! checks them. A server that ignores ranges is told as such instead of being asked for everything again and again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, channel};

use crate::blob::LayoutFile;
use crate::error::{FetchError, LayoutError};
use crate::limits::{FILE_CHUNK_BYTES, RANGE_CHUNKS_QUEUED};
use crate::transfer::{Body, Transfer};

/// A blob, ready for random reads. Cheap to clone.
#[derive(Clone)]
pub struct RangedBlob {
    origin: Origin,
}

#[derive(Clone)]
enum Origin {
    Transfer(Arc<Transfer>),
    File { image: Arc<str>, file: Arc<LayoutFile> },
}

/// The bytes of one range in order. Ends after an error, or when all were given. Dropping it ends the transfer.
pub type RangeStream = Receiver<Result<Bytes, FetchError>>;

impl RangedBlob {
    /// Asks for the first range at once, so that what is permanently wrong is found here.
    pub(crate) async fn open(transfer: Transfer, range: Range<u64>) -> Result<(Self, RangeStream), FetchError> {
        let transfer = Arc::new(transfer);
        let body = transfer.repository.patiently(|| transfer.open(&range)).await?;
        let stream = start(&transfer, range, Some(body));
        Ok((Self { origin: Origin::Transfer(transfer) }, stream))
    }

    pub(crate) fn of_file(image: &str, file: LayoutFile) -> Self {
        Self { origin: Origin::File { image: image.into(), file: Arc::new(file) } }
    }

    /// Starts to bring a range. Must be called inside of a tokio runtime.
    pub fn stream(&self, range: Range<u64>) -> RangeStream {
        match &self.origin {
            Origin::Transfer(transfer) => start(transfer, range, None),
            Origin::File { image, file } => {
                let (out, stream) = channel(RANGE_CHUNKS_QUEUED);
                let (image, file) = (Arc::clone(image), Arc::clone(file));
                tokio::task::spawn_blocking(move || {
                    let mut at = range.start;
                    while at < range.end {
                        let end = range.end.min(at.saturating_add(FILE_CHUNK_BYTES as u64));
                        let read = file.read_range(at..end).and_then(|bytes| match bytes.is_empty() {
                            true => Err(std::io::ErrorKind::UnexpectedEof.into()),
                            false => Ok(bytes),
                        });
                        let read = read.map_err(|source| {
                            let source = Box::new(LayoutError::Read { path: file.path.clone(), source });
                            FetchError::Layout { image: image.to_string(), source }
                        });
                        at = at.saturating_add(read.as_ref().map_or(0, |bytes| bytes.len() as u64));
                        let failed = read.is_err();
                        if out.blocking_send(read.map(Bytes::from)).is_err() || failed {
                            return;
                        }
                    }
                });
                stream
            }
        }
    }
}

fn start(transfer: &Arc<Transfer>, range: Range<u64>, body: Option<Body>) -> RangeStream {
    let (out, stream) = channel(RANGE_CHUNKS_QUEUED);
    let transfer = Arc::clone(transfer);
    tokio::spawn(async move {
        let body = match body {
            Some(body) => Ok(body),
            None => transfer.repository.patiently(|| transfer.open(&range)).await,
        };
        let refused = match body {
            Ok(body) if body.is_whole && range != (0..transfer.size) => FetchError::NoRanges { site: body.site },
            Ok(body) => return transfer.deliver(range, Some(body), out).await,
            Err(error) => error,
        };
        // Without a listener there is nobody to tell.
        out.send(Err(refused)).await.ok();
    });
    stream
}
