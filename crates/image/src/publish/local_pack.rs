//! Start packs that this node makes of its own images, and keeps to publish them.

use super::Publications;
use super::error::PublishError;
use super::push::write;
use crate::lazy::source::{PageNumber, Touch};
use crate::pack::{self, PAGE_BYTES, PackHead};
use sampan_oci::digest::Digest;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A pack that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PackReport {
    pub manifest: Digest,
    /// The shape of the command that it is for.
    pub command: String,
    pub pages: u64,
    /// Bytes of the pack as it is stored and travels.
    pub bytes: u64,
}

impl Publications {
    /// Makes the pack of an image out of the trace of `shape`'s starts, or of the starts that were traced last. `blobs` are the
    /// diffIDs and files of its layers, lowest first, all of them complete. Takes the place of an older pack. Blocks.
    pub fn make_pack(
        &self,
        reference: &str,
        manifest: Digest,
        blobs: &[(Digest, PathBuf)],
        shape: Option<&str>,
    ) -> Result<PackReport, PublishError> {
        let none = || PublishError::NoTrace { reference: reference.to_owned() };
        let (shape, trace) = match shape {
            Some(shape) => (shape.to_owned(), self.traces.get(&manifest, shape).ok_or_else(none)?),
            None => self.traces.newest(&manifest).ok_or_else(none)?,
        };
        self.pack_touches(reference, manifest, blobs, shape, &trace.touches())
    }

    fn pack_touches(
        &self,
        reference: &str,
        manifest: Digest,
        blobs: &[(Digest, PathBuf)],
        shape: String,
        touches: &[Touch],
    ) -> Result<PackReport, PublishError> {
        let mut files = Vec::new();
        for (_, path) in blobs {
            let file = File::open(path).map_err(PublishError::file("open", path))?;
            let bytes = file.metadata().map_err(PublishError::file("look at", path))?.len();
            files.push((file, bytes));
        }
        let layers = blobs.iter().map(|(diff_id, _)| *diff_id).collect();
        // A trace may be older than the blobs that it was recorded on; what is not there any more is no longer wanted.
        let touches: Vec<Touch> = touches.iter().filter_map(|touch| within(touch, &files)).collect();
        let read = |page: PageNumber, into: &mut [u8]| {
            let (file, _) = files.get(page.layer as usize).ok_or(io::ErrorKind::NotFound)?;
            file.read_exact_at(into, u64::from(page.page) * PAGE_BYTES as u64)
        };
        let packed = pack::build(manifest, layers, shape.clone(), &touches, read);
        let bytes = packed.map_err(|source| PublishError::Pack { reference: reference.to_owned(), source })?;
        write(&self.pack_path(&manifest), &bytes)?;
        let pages = touches.iter().map(|touch| u64::from(touch.pages)).sum();
        Ok(PackReport { manifest, command: shape, pages, bytes: bytes.len() as u64 })
    }

    /// Removes what was made to be published of an image that goes. What was published stays where it is.
    pub(crate) fn forget(&self, manifest: &Digest) {
        let pack = self.pack_path(manifest);
        for path in [pack.with_extension("trace"), pack] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "what was published of a removed image stays");
                }
                _ => {}
            }
        }
    }

    /// The pack that this node has of an image.
    pub fn pack(&self, manifest: &Digest) -> Option<PackReport> {
        let path = self.pack_path(manifest);
        let file = File::open(&path).ok()?;
        let bytes = file.metadata().ok()?.len();
        let mut header = [0; pack::HEADER_BYTES];
        file.read_exact_at(&mut header, 0).ok()?;
        let end = pack::head_range(&header).ok()?.end;
        let mut head = vec![0; usize::try_from(end).ok()?];
        file.read_exact_at(&mut head, 0).ok()?;
        let head = PackHead::decode(&head).ok()?;
        Some(PackReport { manifest: *manifest, pages: head.pages(), command: head.shape, bytes })
    }
}

/// The part of a run of pages that lies inside its blob.
fn within(touch: &Touch, files: &[(File, u64)]) -> Option<Touch> {
    let (_, bytes) = files.get(touch.first.layer as usize)?;
    let left = (bytes / PAGE_BYTES as u64).checked_sub(u64::from(touch.first.page))?;
    let pages = touch.pages.min(u32::try_from(left).unwrap_or(u32::MAX));
    (pages > 0).then_some(Touch { first: touch.first, pages })
}
