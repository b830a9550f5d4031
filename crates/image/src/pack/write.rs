//! Making a pack out of a trace and the blobs of an image that is here.

use super::codec::{PackError, seal};
use super::{Frame, PACK_FRAME_PAGES, PAGE_BYTES, PackHead, PageRun};
use crate::lazy::source::{PageNumber, Touch};
use crate::limits::PACK_PAGES_MAX;
use sampan_oci::digest::Digest;
use std::collections::HashSet;
use std::io;

/// Frames are made once and fetched many times.
const FRAME_ZSTD_LEVEL: i32 = 9;

/// Why a pack could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PackBuildError {
    #[error("a page of layer {} cannot be read", .page.layer)]
    Read {
        page: PageNumber,
        #[source]
        source: io::Error,
    },
    #[error("the start pack cannot be packed")]
    Pack(#[source] io::Error),
    #[error("the start pack cannot be encoded")]
    Encode(#[source] postcard::Error),
    #[error(transparent)]
    Unfit(#[from] PackError),
}

/// The whole file. `touches` are the pages in the order in which they are wanted; those beyond [`PACK_PAGES_MAX`], and second
/// mentions, are left out. `read` fills in a page; a blob's end is a whole page.
pub fn build(
    manifest: Digest,
    layers: Vec<Digest>,
    shape: String,
    touches: &[Touch],
    mut read: impl FnMut(PageNumber, &mut [u8]) -> io::Result<()>,
) -> Result<Vec<u8>, PackBuildError> {
    let pages = distinct(touches);
    let mut compressor = zstd::bulk::Compressor::new(FRAME_ZSTD_LEVEL).map_err(PackBuildError::Pack)?;
    let (mut frames, mut stored) = (Vec::new(), Vec::new());
    for piece in pages.chunks(PACK_FRAME_PAGES) {
        let mut plain = vec![0; piece.len() * PAGE_BYTES];
        for (page, into) in piece.iter().zip(plain.chunks_exact_mut(PAGE_BYTES)) {
            read(*page, into).map_err(|source| PackBuildError::Read { page: *page, source })?;
        }
        let frame = compressor.compress(&plain).map_err(PackBuildError::Pack)?;
        frames.push(Frame {
            // A frame has at most 4 MiB, and zstd adds little.
            stored_bytes: frame.len() as u32,
            pages: piece.len() as u32,
            hash: *blake3::hash(&frame).as_bytes(),
        });
        stored.push(frame);
    }
    let head = PackHead { manifest, layers, shape, runs: runs(&pages), frames };
    head.check()?;
    let plain = postcard::to_stdvec(&head).map_err(PackBuildError::Encode)?;
    let mut file = seal(&plain).map_err(PackBuildError::Pack)?;
    stored.iter().for_each(|frame| file.extend_from_slice(frame));
    Ok(file)
}

fn distinct(touches: &[Touch]) -> Vec<PageNumber> {
    let mut seen = HashSet::new();
    let pages = touches.iter().flat_map(|touch| {
        let first = touch.first;
        (first.page..first.page.saturating_add(touch.pages)).map(move |page| PageNumber { page, ..first })
    });
    pages.filter(|page| seen.insert(*page)).take(PACK_PAGES_MAX).collect()
}

fn runs(pages: &[PageNumber]) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.layer == page.layer && last.page.checked_add(last.pages) == Some(page.page) => {
                last.pages += 1;
            }
            _ => runs.push(PageRun { layer: page.layer, page: page.page, pages: 1 }),
        }
    }
    runs
}
