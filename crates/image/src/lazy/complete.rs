//! Making a layer whole behind its readers' backs, and finding out whether what they were given was the truth.
//!
//! The layer goes through the ordinary pipeline from its first byte to its last: bytes that are here already come from the
//! compressed cache, the others from the registry, past the cache. What comes out is a blob and an index as a plain pull makes
//! them. Then
//! - the compressed digest and the diffID were right, or there is no result;
//! - the index that comes out must be the one that was used: same tree, spans, windows, digests of chunks (of a layer that is read
//!   by its own table of contents: see `contents`);
//! - every page that is in the demand cache must be the same in the new blob (chunks vouch for pages that were unpacked, nothing
//!   else does for those that came in a start pack).
//!
//! What is found to be untrue is told, not mended: the caller takes the layer away from those who use it.

use super::contents;
use super::error::LazyError;
use super::layer::LazyLayer;
use super::state::ReadBy;
use super::traffic::Class;
use crate::error::ImageError;
use crate::index::{LayerIndex, SpanEntry, front_range};
use crate::limits::{BUFFER_BYTES, CHUNKS_QUEUED};
use crate::tree::BLOCK_BYTES;
use crate::unpack::{Input, UnpackError, UnpackJob, unpack};
use bytes::Bytes;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::media_type::Compression;
use sampan_registry::{FetchError, Mismatch, Site};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Niceness of the threads that complete a layer.
const NICENESS: i32 = 10;

/// Why a layer is not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompletionError {
    /// Later it may work.
    #[error(transparent)]
    Bring(Box<LazyError>),
    #[error(transparent)]
    Unpack(Box<UnpackError>),
    /// The index, or what it led to, is wrong.
    #[error("{0}")]
    Untrue(String),
    #[error("the new blob cannot be compared")]
    Compare(#[source] io::Error),
}

impl From<LazyError> for CompletionError {
    fn from(error: LazyError) -> Self {
        Self::Bring(Box::new(error))
    }
}

impl From<UnpackError> for CompletionError {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(Box::new(error))
    }
}

/// Where the results go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The blob, which must not be there yet.
    pub(crate) blob: PathBuf,
    pub(crate) stream_bytes_max: u64,
}

/// Completes a layer; gives its index as a file. The blob is at the target. On an error nothing is left there.
pub(crate) async fn complete(layer: &Arc<LazyLayer>, target: Target) -> Result<Vec<u8>, CompletionError> {
    let stopped = || LazyError::Stopped { layer: layer.index().layer_digest };
    let traffic = layer.surroundings().traffic.clone();
    let _permit = traffic.permits(Class::Background).acquire().await.map_err(|_closed| stopped())?;
    let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED);
    let failure = Arc::new(Mutex::new(None));
    let feeding = tokio::spawn(feed(layer.clone(), sender, failure.clone()));
    let (done, result) = tokio::sync::oneshot::channel();
    let me = layer.clone();
    let thread = std::thread::Builder::new().name("layer-complete".to_owned()).spawn(move || {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "completing a layer keeps its priority");
        }
        let result = make(&me, &target, receiver);
        if result.is_err() {
            // It may not have been made at all.
            std::fs::remove_file(&target.blob).ok();
        }
        // Whoever waited may have gone.
        done.send(result).ok();
    });
    thread.map_err(UnpackError::Thread)?;
    let result = result.await.unwrap_or(Err(UnpackError::Panic.into()));
    feeding.abort();
    let cause = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (result, cause) {
        (Err(_), Some(cause)) => Err(cause.into()),
        (result, _) => result,
    }
}

fn make(
    layer: &LazyLayer,
    target: &Target,
    chunks: mpsc::Receiver<Result<Bytes, FetchError>>,
) -> Result<Vec<u8>, CompletionError> {
    let index = layer.index();
    let job = UnpackJob {
        digest: index.layer_digest,
        diff_id: index.diff_id,
        compression: match index.compression {
            crate::index::Compression::None => Compression::None,
            crate::index::Compression::Gzip => Compression::Gzip,
            crate::index::Compression::Zstd => Compression::Zstd,
        },
        stream_bytes_max: target.stream_bytes_max,
        blob: target.blob.clone(),
    };
    let mut input = Input::new(chunks, Box::new(|_bytes| {}));
    let unpacked = unpack(&job, &mut input).map_err(|error| match error {
        // The bytes are the layer's; the index described something else as good.
        UnpackError::Tar { .. }
        | UnpackError::Tree { .. }
        | UnpackError::Gzip { .. }
        | UnpackError::Zstd { .. }
        | UnpackError::DiffId { .. } => CompletionError::Untrue(ErrorChain(&error).to_string()),
        error => error.into(),
    })?;
    let blob = File::open(&target.blob).map_err(CompletionError::Compare)?;
    compare_index(layer, &unpacked.index_bytes, &blob)?;
    compare_pages(layer, &blob)?;
    Ok(unpacked.index_bytes)
}

/// Sends the layer on, from its first byte to its last; the empty chunk at the end says that its digest was right.
async fn feed(
    layer: Arc<LazyLayer>,
    sender: mpsc::Sender<Result<Bytes, FetchError>>,
    failure: Arc<Mutex<Option<LazyError>>>,
) {
    let last = match feed_all(&layer, &sender).await {
        Ok(digest) if digest == layer.index().layer_digest => Ok(Bytes::new()),
        Ok(actual) => {
            // Whatever is wrong stands in the cache: it is brought anew the next time.
            if let Err(error) = layer.compressed.forget(0..layer.compressed.bytes()) {
                tracing::warn!(layer = %layer.index().layer_digest, %error, "wrong bytes could not be forgotten");
            }
            let image = layer.remote.origin().source.to_string();
            let site = Arc::new(Site { host: "the registry".to_owned(), image });
            let digests = Box::new(Mismatch { expected: layer.index().layer_digest, actual });
            Err(FetchError::DigestMismatch { site, what: "a layer", digests })
        }
        Err(None) => return,
        Err(Some(error)) => {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Err(FetchError::Cancelled { image: layer.remote.origin().source.to_string() })
        }
    };
    // A receiver that has gone tells why itself.
    sender.send(last).await.ok();
}

/// The digest of what was sent; `None` as the error when nobody listens.
async fn feed_all(
    layer: &Arc<LazyLayer>,
    sender: &mpsc::Sender<Result<Bytes, FetchError>>,
) -> Result<Digest, Option<LazyError>> {
    let digest = layer.index().layer_digest;
    let end = layer.compressed.bytes();
    let mut hasher = digest.hasher();
    let mut coming: VecDeque<(u64, JoinHandle<Result<(), LazyError>>)> = VecDeque::new();
    let (mut at, mut asked) = (0, 0);
    while at < end {
        let (part_bytes, parts_ahead) = layer.surroundings().traffic.background_parts();
        while asked < end && coming.len() <= parts_ahead {
            let part = asked..end.min(asked + part_bytes);
            asked = part.end;
            let layer = layer.clone();
            coming.push_back((part.end, tokio::spawn(async move { bring(&layer, part).await })));
        }
        let Some((part_end, part)) = coming.pop_front() else { break };
        let stopped = || LazyError::Stopped { layer: digest };
        part.await.unwrap_or_else(|_panic| Err(stopped())).map_err(Some)?;
        while at < part_end {
            let length = (part_end - at).min(BUFFER_BYTES as u64) as usize;
            let (me, mut hashing) = (layer.clone(), hasher);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; length];
                me.compressed.file().read_exact_at(&mut bytes, at)?;
                hashing.update(&bytes);
                Ok((Bytes::from(bytes), hashing))
            });
            let read: io::Result<_> = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            let (bytes, hashed) = read.map_err(|error| Some(LazyError::cache(digest)(error)))?;
            hasher = hashed;
            at += bytes.len() as u64;
            sender.send(Ok(bytes)).await.map_err(|_gone| None)?;
        }
    }
    Ok(hasher.finish())
}

async fn bring(layer: &LazyLayer, part: std::ops::Range<u64>) -> Result<(), LazyError> {
    tokio::select! {
        brought = layer.remote.bring(&layer.compressed, part, Class::Background) => brought,
        () = layer.until_closed() => Err(LazyError::Stopped { layer: layer.index().layer_digest }),
    }
}

/// The index that was used against the one that came out.
fn compare_index(layer: &LazyLayer, made: &[u8], blob: &File) -> Result<(), CompletionError> {
    let untrue =
        |what: &str| CompletionError::Untrue(format!("the index of layer {} {what}", layer.index().layer_digest));
    let made_index = LayerIndex::decode(made).map_err(UnpackError::from)?;
    let used_index = layer.read_whole_index().map_err(|error| match error {
        // A layer that was given up meanwhile has no files; that says nothing of what they said.
        ImageError::File { .. } => CompletionError::Compare(io::Error::other(error)),
        error => untrue(&ErrorChain(&error).to_string()),
    })?;
    if layer.read_by() == ReadBy::Contents {
        return contents::compare(layer, &used_index, &made_index, blob);
    }
    if used_index == made_index {
        return Ok(());
    }
    let without_records = |index: &LayerIndex| LayerIndex {
        spans: index.spans.iter().map(|span| SpanEntry { record_bytes: 0, record_hash: [0; 32], ..*span }).collect(),
        ..index.clone()
    };
    if without_records(&used_index) != without_records(&made_index) {
        return Err(untrue("describes other files than the layer has"));
    }
    // Another version of the compressor packs the same windows into other bytes.
    let front_end = front_range(made).map_err(UnpackError::from)?.end;
    for span in 0..made_index.spans.len() {
        let range = made_index.record_range(front_end, span).unwrap_or(0..0);
        let bytes = made.get(range.start as usize..range.end as usize).unwrap_or_default();
        let made_record = made_index.decode_record(layer.layout(), span, bytes);
        let made_record = made_record.map_err(UnpackError::from)?;
        if layer.surroundings().runtime.block_on(layer.record(span))? != made_record {
            return Err(untrue("has a window or a digest that is not the layer's"));
        }
    }
    Ok(())
}

/// The pages that readers may have seen against the blob that came out.
fn compare_pages(layer: &LazyLayer, blob: &File) -> Result<(), CompletionError> {
    layer.refuse_packs();
    let (mut served, mut made) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    for pages in layer.pages.all_present().ranges() {
        let (mut at, end) = (pages.start * BLOCK_BYTES, pages.end * BLOCK_BYTES);
        while at < end {
            let length = (end - at).min(BUFFER_BYTES as u64) as usize;
            let (served, made) = (&mut served[..length], &mut made[..length]);
            layer.pages.file().read_exact_at(served, at).map_err(CompletionError::Compare)?;
            blob.read_exact_at(made, at).map_err(CompletionError::Compare)?;
            if served != made {
                let what = format!("pages of layer {} were not the layer's", layer.index().layer_digest);
                return Err(CompletionError::Untrue(what));
            }
            at += length as u64;
        }
    }
    Ok(())
}
