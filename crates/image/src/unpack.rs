//! One layer, from the bytes a registry sends to a blob and an index, in one pass.
//!
//! ```text
//!                            ┌─ digest thread: diffID, windows made small
//!  registry ──▶ this thread ─┤
//!  (async,      inflates     └─ write thread: tar, tree, BLAKE3 of chunks, blob
//!  hashed)
//! ```
//!
//! All hand-overs are bounded channels of shared buffers, which go back to a pool when the last thread lets go of them, so
//! a layer under way costs a fixed amount of memory whatever its size. No file of the layer is ever made: its bytes go to one
//! blob, its names to one index.
//!
//! Failure: every error ends all three threads, and the caller removes what was written. A layer that does not even have the
//! digest its manifest gives is reported as that, whatever else was wrong with it first.

mod blob;
mod error;
mod piece;
mod produce;
mod spans;
#[cfg(test)]
pub(crate) mod tests;
mod write;

pub use error::UnpackError;
pub(crate) use produce::Input;

use crate::index::{LayerIndex, WindowPacker};
use crate::limits::{CHANNEL_BUFFERS, DISK_RESERVE_BYTES};
use piece::Piece;
use produce::{Outputs, Produced};
use sampan_oci::digest::Digest;
use sampan_oci::media_type::Compression;
use sampan_registry::Mismatch;
use spans::WindowAt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use write::Written;

/// What is to be unpacked, and where to.
#[derive(Debug, Clone)]
pub(crate) struct UnpackJob {
    pub(crate) digest: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) compression: Compression,
    /// Most bytes that the uncompressed stream may have.
    pub(crate) stream_bytes_max: u64,
    /// The blob is written here; its parent directory exists.
    pub(crate) blob: PathBuf,
}

/// A layer whose digests were right. The blob stands where the job said, not yet synced.
#[derive(Debug)]
pub(crate) struct UnpackedLayer {
    /// The index as a file.
    pub(crate) index_bytes: Vec<u8>,
}

/// What the write thread receives: bytes, and the spans that were complete when they were.
struct Work {
    piece: Arc<Piece>,
}

/// What the digest thread has at its end.
struct Digested {
    diff_id: Digest,
    windows: Vec<WindowAt>,
}

/// Unpacks a layer on this thread and two more. Blocks until all is written or has failed.
pub(crate) fn unpack(job: &UnpackJob, input: &mut Input) -> Result<UnpackedLayer, UnpackError> {
    let stop = AtomicBool::new(false);
    let (write_sender, write_receiver) = sync_channel::<Work>(CHANNEL_BUFFERS);
    let (digest_sender, digest_receiver) = sync_channel::<spans::DigestWork>(CHANNEL_BUFFERS);
    let (produced, digested, written) = std::thread::scope(|scope| {
        let digest = std::thread::Builder::new()
            .name("layer-digest".to_owned())
            .spawn_scoped(scope, || digest(job, digest_receiver))
            .map_err(UnpackError::Thread)?;
        let write = std::thread::Builder::new()
            .name("layer-write".to_owned())
            .spawn_scoped(scope, || write::write(job, write_receiver, &stop))
            .map_err(UnpackError::Thread)?;
        let produced = produce::produce(job, input, Outputs::new(write_sender, digest_sender, &stop));
        let digested = digest.join().map_err(|_panic| UnpackError::Panic)?;
        let written = write.join().map_err(|_panic| UnpackError::Panic)?;
        Ok::<_, UnpackError>((produced, digested, written))
    })?;
    // Whoever failed first made the others end early; the producer says so with `Stopped`.
    let (produced, written) = match (produced, written) {
        (Ok(produced), Ok(written)) => (produced, written),
        (Err(UnpackError::Stopped), Err(error)) | (Ok(_), Err(error)) | (Err(error), _) => return Err(error),
    };
    let digested = digested?;
    if digested.diff_id != job.diff_id {
        let diff_ids = Box::new(Mismatch { expected: job.diff_id, actual: digested.diff_id });
        return Err(UnpackError::DiffId { layer: job.digest, diff_ids });
    }
    finish(job, produced, digested, written)
}

fn finish(
    job: &UnpackJob,
    produced: Produced,
    digested: Digested,
    written: Written,
) -> Result<UnpackedLayer, UnpackError> {
    let mut index = LayerIndex {
        layer_digest: job.digest,
        layer_bytes: produced.layer_bytes,
        compression: produced.compression,
        diff_id: digested.diff_id,
        stream_bytes: produced.stream_bytes,
        tree: written.tree,
        spans: Vec::new(),
    };
    let records = spans::records(&mut index, &digested.windows, &written.chunks)?;
    let index_bytes = index.encode(&records)?;
    Ok(UnpackedLayer { index_bytes })
}

fn digest(job: &UnpackJob, work: Receiver<spans::DigestWork>) -> Result<Digested, UnpackError> {
    let mut hasher = job.diff_id.hasher();
    let mut windows = Vec::new();
    let mut packer = WindowPacker::new()?;
    for item in work {
        match item {
            spans::DigestWork::Bytes(piece) => hasher.update(piece.bytes()),
            spans::DigestWork::Span(window) => windows.push(window.pack(&mut packer)?),
        }
    }
    Ok(Digested { diff_id: hasher.finish(), windows })
}

/// The limit for a layer on a disk with so much room: what cannot be stored need not be inflated to its end.
pub(crate) fn stream_bytes_max(configured: u64, free_bytes: u64) -> u64 {
    // Headers and padding are not stored; a gigabyte is two million entries' worth.
    configured.min(free_bytes.saturating_sub(DISK_RESERVE_BYTES).saturating_add(1 << 30))
}

fn is_stopped(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}
