//! Looking whether what lies on the disk is still what was pulled, and fetching anew what is not.
//!
//! The chunk digests of a layer's index, which its own checksum vouches for, are held against the blob. A damaged layer is
//! pulled again beside the old one, and what differs is written over the damage: the file stays the same one, so that live
//! mounts read the right bytes again.

use super::layers::Layers;
use super::paths::rename;
use super::registry::Origin;
use super::{Image, ImageStore, Inner, ProgressSender, blocking, pull};
use crate::error::ImageError;
use crate::index::StreamLayout;
use crate::lazy::blob_map::BlobMap;
use crate::limits::BUFFER_BYTES;
use crate::tree::CHUNK_BYTES;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_registry::Credentials;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was found of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedLayer {
    /// As the registry has it.
    pub digest: Digest,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every byte is right.
    Good,
    /// It was damaged, and was fetched again.
    Mended,
    /// It is not here yet; it is checked as it comes.
    Arriving,
}

impl ImageStore {
    /// Reads all of an image that is here against its digests, and fetches again what is damaged. Running instances read
    /// the right bytes again, but for pages that the kernel has in its memory.
    pub async fn verify(&self, reference: &str) -> Result<Vec<VerifiedLayer>, ImageError> {
        let unknown = || ImageError::Unknown { reference: reference.to_owned() };
        let image = self.find(reference).ok_or_else(unknown)?;
        let record = self.inner.catalog().record(&image.id).cloned().ok_or_else(unknown)?;
        let mut verified = Vec::with_capacity(record.layers.len());
        let mut damaged = Vec::new();
        for layer in &record.layers {
            let (inner, diff_id) = (self.inner.clone(), layer.diff_id);
            let verdict = if !inner.has_blob(&diff_id) {
                Verdict::Arriving
            } else if blocking("a layer", move || Ok(inner.is_good(&diff_id))).await? {
                Verdict::Good
            } else {
                damaged.push(diff_id);
                Verdict::Mended
            };
            verified.push(VerifiedLayer { digest: layer.digest, verdict });
        }
        if !damaged.is_empty() {
            self.mend(&image, &damaged).await?;
        }
        Ok(verified)
    }

    async fn mend(&self, image: &Arc<Image>, damaged: &[Digest]) -> Result<(), ImageError> {
        let reference = self.inner.catalog().references(&image.id).into_iter().next();
        let reference = reference.unwrap_or_else(|| image.reference.clone());
        let source =
            reference.parse().map_err(|source| ImageError::Reference { reference: reference.clone(), source })?;
        let origin = Origin { source, credentials: Credentials::host() };
        let resolved = self.inner.client.resolve(&origin, &self.inner.config.platform).await?;
        if resolved.manifest.config.digest != image.id {
            return Err(ImageError::Moved { reference });
        }
        let pins = Layers::pin(&self.inner, damaged.to_vec());
        let aside = {
            let (inner, damaged) = (self.inner.clone(), damaged.to_vec());
            blocking("a layer", move || damaged.iter().map(|id| inner.put_aside(id)).collect::<Result<Vec<_>, _>>())
                .await?
        };
        let diff_ids = &resolved.config.rootfs.diff_ids;
        let progress = ProgressSender::none();
        let fetched =
            pull::fetch_whole(&self.inner, &origin, &reference, &resolved.manifest, diff_ids, &progress).await;
        let inner = self.inner.clone();
        let mended = blocking("a layer", move || {
            let put_back = aside.into_iter().map(|aside| inner.put_back(aside));
            put_back.collect::<Result<(), _>>()
        })
        .await;
        drop(pins);
        fetched.and(mended)
    }
}

/// A damaged layer while another is fetched.
struct Aside {
    diff_id: Digest,
    blob: PathBuf,
}

impl Inner {
    /// Whether blob and index of a layer are what they should be.
    fn is_good(&self, diff_id: &Digest) -> bool {
        match check(&self.paths.index(diff_id), &self.paths.blob(diff_id)) {
            Ok(None) => true,
            Ok(Some(what)) => {
                tracing::error!(layer = %diff_id, what, "a layer is damaged on the disk; it is fetched again");
                false
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::error!(layer = %diff_id, %error, "a layer cannot be read from the disk; it is fetched again");
                false
            }
        }
    }

    fn put_aside(&self, diff_id: &Digest) -> Result<Aside, ImageError> {
        let blob = self.incoming();
        rename(&self.paths.blob(diff_id), &blob)?;
        Ok(Aside { diff_id: *diff_id, blob })
    }

    /// Makes the damaged file like the new one, and puts it back into its place. Without a new one it goes back as it is: that
    /// is better than nothing.
    fn put_back(&self, aside: Aside) -> Result<(), ImageError> {
        let path = self.paths.blob(&aside.diff_id);
        if path.is_file() {
            overwrite(&path, &aside.blob).map_err(ImageError::file("mend", &aside.blob))?;
        }
        rename(&aside.blob, &path)
    }
}

/// Writes what differs in `good` over `damaged`, and has it synced: it was sealed once.
fn overwrite(good: &Path, damaged: &Path) -> io::Result<()> {
    let (good, damaged) = (File::open(good)?, File::options().read(true).write(true).open(damaged)?);
    let bytes = good.metadata()?.len();
    damaged.set_len(bytes)?;
    let (mut right, mut wrong) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    for at in (0..bytes).step_by(BUFFER_BYTES) {
        let length = (bytes - at).min(BUFFER_BYTES as u64) as usize;
        let (right, wrong) = (&mut right[..length], &mut wrong[..length]);
        good.read_exact_at(right, at)?;
        // What cannot be read is damaged, too.
        if damaged.read_exact_at(wrong, at).is_err() || right != wrong {
            damaged.write_all_at(right, at)?;
        }
    }
    damaged.sync_all()
}

/// What is wrong with a layer, if anything is.
fn check(index: &Path, blob: &Path) -> Result<Option<&'static str>, ImageError> {
    let (index, front_end, file) = super::lazy::open_index(index)?;
    let layout = StreamLayout::new(&index.tree);
    let map = BlobMap::new(&index.tree.contents);
    let data = File::open(blob).map_err(ImageError::file("open", blob))?;
    let read = |error| ImageError::file("read", blob)(error);
    if data.metadata().map_err(read)?.len() != layout.blob_bytes() {
        return Ok(Some("its blob has another length"));
    }
    let mut digests = Vec::new();
    let mut start = front_end;
    for span in 0..index.spans.len() {
        let length = index.spans.get(span).map_or(0, |span| u64::from(span.record_bytes));
        let mut record = vec![0; length as usize];
        if file.read_exact_at(&mut record, start).is_err() {
            return Ok(Some("its index is cut short"));
        }
        start += length;
        let Ok(record) = index.decode_record(&layout, span, &record) else {
            return Ok(Some("a record of its index is damaged"));
        };
        digests.extend(record.chunks);
    }
    let mut digests = digests.into_iter();
    let mut chunk = Vec::new();
    for (number, content) in index.tree.contents.iter().enumerate() {
        let bytes = content.stream_bytes();
        for begin in (0..bytes).step_by(CHUNK_BYTES as usize) {
            chunk.clear();
            for piece in map.pieces(number, begin..bytes.min(begin + CHUNK_BYTES)) {
                let filled = chunk.len();
                chunk.resize(filled + piece.bytes as usize, 0);
                data.read_exact_at(chunk.get_mut(filled..).unwrap_or_default(), piece.blob).map_err(read)?;
            }
            if digests.next() != Some(*blake3::hash(&chunk).as_bytes()) {
                return Ok(Some("its blob holds other bytes"));
            }
        }
    }
    Ok(None)
}
