//! The start pack of an image: the pages that a start touches, in the order of first touch, ready to be put in place.
//!
//! ```text
//! byte 0    magic "SAMPANPK"
//!      8    version, u32: 1
//!     12    zero, u32
//!     16    bytes of the head as stored, u64
//!     24    bytes of the head unpacked, u64
//!     32    BLAKE3 of bytes 0..32 and the head as stored
//!     64    head: zstd of postcard of [`PackHead`]
//!      …    frames, one after another: zstd of whole pages of 4 KiB
//! ```
//!
//! Numbers are little-endian. The head names every frame's length and BLAKE3, so its own checksum vouches for the whole file, and
//! a signature over the file up to the first frame is one over all of it ([`crate::publish`]). A frame holds at most
//! [`PACK_FRAME_PAGES`] pages and can be used as soon as it is here.
//!
//! A page is named by its layer's place in the image and its own in the layer's blob. Blobs follow from the layers' streams
//! alone, so a pack fits wherever the image does; the head repeats the diffIDs so that it fits nowhere else.
//!
//! A pack that comes from elsewhere is hostile: [`PackHead::decode`] bounds what it unpacks and checks every number. It cannot
//! check that the pages are the layer's; that is what completion compares.

mod codec;
#[cfg(test)]
mod tests;
mod write;

pub use codec::{HEADER_BYTES, PackError, head_range};
pub use write::{PackBuildError, build};

use crate::index::Hash;
use crate::lazy::source::{PageNumber, Touch};
use sampan_oci::digest::Digest;
use serde::{Deserialize, Serialize};

/// Bytes of a page: EROFS' blocks and the kernel's pages.
pub const PAGE_BYTES: usize = 4096;
/// Pages of one frame, the last one's apart: 4 MiB, unpacked while the next is on its way.
pub const PACK_FRAME_PAGES: usize = 1024;
/// The version that is written and read.
pub const VERSION: u32 = 1;

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackHead {
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// diffIDs of the image's layers, lowest first.
    pub layers: Vec<Digest>,
    /// The shape of the command whose start it was made from ([`crate::trace::shape_of`]).
    pub shape: String,
    /// Its pages in order.
    runs: Vec<PageRun>,
    frames: Vec<Frame>,
}

/// Pages that follow one another in a blob and in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct PageRun {
    layer: u32,
    page: u32,
    pages: u32,
}

/// A piece of the pack that can be unpacked by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Frame {
    stored_bytes: u32,
    pages: u32,
    hash: Hash,
}

impl PackHead {
    /// Its pages in order.
    pub fn touches(&self) -> Vec<Touch> {
        let touch = |run: &PageRun| Touch { first: PageNumber { layer: run.layer, page: run.page }, pages: run.pages };
        self.runs.iter().map(touch).collect()
    }

    /// How many pages it holds.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of a frame as stored.
    pub fn frame_bytes(&self, frame: usize) -> Option<usize> {
        self.frames.get(frame).map(|frame| frame.stored_bytes as usize)
    }

    /// Bytes of all frames as stored.
    pub fn frames_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum()
    }

    /// Unpacks a frame, which must be the one that the head means: its pages' bytes, one after another.
    pub fn decode_frame(&self, frame: usize, stored: &[u8]) -> Result<Vec<u8>, PackError> {
        let frame = self.frames.get(frame).ok_or(PackError::Invalid("there is no such frame"))?;
        if stored.len() != frame.stored_bytes as usize || blake3::hash(stored).as_bytes() != &frame.hash {
            return Err(PackError::Checksum);
        }
        codec::unzstd(stored, u64::from(frame.pages) * PAGE_BYTES as u64)
    }

    /// The pages of each frame.
    pub fn frame_pages(&self) -> FramePages<'_> {
        FramePages { head: self, frame: 0, run: 0, taken: 0 }
    }
}

/// Gives the pages of one frame after another.
#[derive(Debug)]
pub struct FramePages<'head> {
    head: &'head PackHead,
    frame: usize,
    run: usize,
    /// Pages of the run that earlier frames hold.
    taken: u32,
}

impl Iterator for FramePages<'_> {
    type Item = Vec<PageNumber>;

    fn next(&mut self) -> Option<Vec<PageNumber>> {
        let wanted = self.head.frames.get(self.frame)?.pages as usize;
        self.frame += 1;
        let mut pages = Vec::with_capacity(wanted.min(PACK_FRAME_PAGES));
        while pages.len() < wanted {
            let run = self.head.runs.get(self.run)?;
            if self.taken == run.pages {
                (self.run, self.taken) = (self.run + 1, 0);
                continue;
            }
            pages.push(PageNumber { layer: run.layer, page: run.page + self.taken });
            self.taken += 1;
        }
        Some(pages)
    }
}
