//! Fetching the tables of contents that layers carry themselves, for those whose index is not known.
//!
//! A table is as trustworthy as the image: its digest stands in the manifest. One that cannot be had, or is not sound, is told
//! in the log, and its layer is pulled.

use super::super::Inner;
use super::choose::Stored;
use crate::error::ImageError;
use crate::index::{LayerIndex, front_range};
use crate::lazy::records::FileRecords;
use crate::lazy::source::WantedImage;
use crate::lazy::state::ReadBy;
use crate::limits::{FIND_MAX, LAYERS_AT_ONCE};
use crate::store::paths::write_new;
use crate::store::registry::Origin;
use crate::toc::{TocError, TocHint};
use bytes::{Bytes, BytesMut};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Layer;
use sampan_registry::{FetchError, RangeStream};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Tables that are unpacked at one time, over all images: each takes as much memory as a layer's tree.
static READING: Semaphore = Semaphore::const_new(1);

/// A layer's index out of its own table of contents.
pub(crate) struct FromContents {
    pub(super) index: LayerIndex,
    /// The same as a file, records and all.
    file: Vec<u8>,
    /// What was fetched of the layer on the way.
    fetched: Vec<(u64, Bytes)>,
}

/// Why a layer is not read by its own table of contents.
#[derive(Debug, thiserror::Error)]
enum ContentsError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Toc(#[from] TocError),
    #[error("it does not come")]
    Timeout,
    #[error("the service is stopping")]
    Stopped,
}

/// The tables of some layers, by diffID; those that cannot be used are left out.
pub(super) async fn find(
    inner: &Arc<Inner>,
    wanted: &WantedImage,
    layers: Vec<(Layer, Digest)>,
) -> Vec<(Digest, FromContents)> {
    let origin = Origin { source: wanted.source.clone(), credentials: wanted.credentials.clone() };
    let (mut waiting, mut reading, mut found) = (layers.into_iter(), JoinSet::new(), Vec::new());
    loop {
        while reading.len() < LAYERS_AT_ONCE
            && let Some((layer, diff_id)) = waiting.next()
        {
            let (inner, origin) = (inner.clone(), origin.clone());
            reading.spawn(async move { (diff_id, read(&inner, &origin, layer, diff_id).await) });
        }
        match reading.join_next().await {
            Some(Ok((diff_id, Some(contents)))) => found.push((diff_id, contents)),
            Some(_) => {}
            None => return found,
        }
    }
}

async fn read(inner: &Inner, origin: &Origin, layer: Layer, diff_id: Digest) -> Option<FromContents> {
    let hint = TocHint::of(&layer)?;
    let digest = layer.descriptor.digest;
    let read = timeout(FIND_MAX, fetch(inner, origin, hint, layer, diff_id)).await;
    match read.unwrap_or(Err(ContentsError::Timeout)) {
        Ok(contents) => Some(contents),
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(image = %origin.source, layer = %digest, %error, "a layer's own table of contents is not used; the layer is pulled");
            None
        }
    }
}

async fn fetch(
    inner: &Inner,
    origin: &Origin,
    hint: TocHint,
    layer: Layer,
    diff_id: Digest,
) -> Result<FromContents, ContentsError> {
    let bytes = layer.descriptor.size;
    let range = hint.first_range(bytes);
    let (blob, stream) = inner.client.ranged_blob(origin, &layer.descriptor, range.clone()).await?;
    let first = gather(origin, stream, &range).await?;
    let place = hint.locate(&first, bytes)?;
    let mut fetched = vec![(range.start, first.clone())];
    let mut stored = BytesMut::new();
    if place.start < range.start {
        let before = place.start..range.start.min(place.end);
        let more = gather(origin, blob.stream(before.clone()), &before).await?;
        stored.extend_from_slice(&more);
        fetched.push((before.start, more));
    }
    let from = place.start.max(range.start);
    let within = from.saturating_sub(range.start) as usize..place.end.saturating_sub(range.start) as usize;
    stored.extend_from_slice(first.get(within).unwrap_or_default());
    let _turn = READING.acquire().await.map_err(|_closed| ContentsError::Stopped)?;
    let made = tokio::task::spawn_blocking(move || hint.read(&stored, &place)?.into_index(&layer, diff_id));
    let (index, file) = made.await.map_err(|_stopped| ContentsError::Stopped)??;
    Ok(FromContents { index, file, fetched })
}

async fn gather(origin: &Origin, mut stream: RangeStream, range: &Range<u64>) -> Result<Bytes, FetchError> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.recv().await {
        bytes.extend_from_slice(&chunk?);
    }
    if bytes.len() as u64 == range.end - range.start {
        Ok(bytes.freeze())
    } else {
        Err(FetchError::Cancelled { image: origin.source.to_string() })
    }
}

impl FromContents {
    /// Puts the index into a layer's folder, and opens it there.
    pub(super) fn store(self, path: &Path) -> Result<Stored, ImageError> {
        write_new(path, &self.file)?;
        let front = front_range(&self.file).map_err(|source| ImageError::Index { path: path.to_owned(), source })?;
        let file = File::open(path).map_err(ImageError::file("open", path))?;
        Ok(Stored {
            index: self.index,
            read_by: ReadBy::Contents,
            front_end: front.end,
            records: Arc::new(FileRecords(file)),
            fetched: self.fetched,
        })
    }
}
