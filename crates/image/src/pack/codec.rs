//! Bytes to a pack's head and back.

use super::{PACK_FRAME_PAGES, PAGE_BYTES, PackHead, VERSION};
use crate::index::Hash;
use crate::limits::{PACK_HEAD_BYTES_MAX, PACK_PAGES_MAX, SHAPE_BYTES_MAX};
use std::collections::HashSet;
use std::io::Read;
use std::ops::Range;

/// Bytes before the head.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"SAMPANPK";
const HEAD_ZSTD_LEVEL: i32 = 9;
/// zstd never makes a frame longer than this beyond its contents.
const FRAME_EXCESS_BYTES: usize = 4096;

/// Why bytes are no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("the start pack is cut short")]
    Truncated,
    #[error("the file is no start pack")]
    Magic,
    #[error("the start pack has version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("the start pack says that it is larger than the limit")]
    TooLarge,
    #[error("the start pack is damaged: its checksum is wrong")]
    Checksum,
    #[error("the start pack is damaged: {0}")]
    Invalid(&'static str),
    #[error("the start pack cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    #[error("the start pack cannot be decoded")]
    Decode(#[source] postcard::Error),
}

/// Where in the file the head stands, from its first [`HEADER_BYTES`].
pub fn head_range(header: &[u8]) -> Result<Range<u64>, PackError> {
    let (stored, unpacked) = header_fields(header)?;
    if stored > PACK_HEAD_BYTES_MAX || unpacked > PACK_HEAD_BYTES_MAX {
        return Err(PackError::TooLarge);
    }
    Ok(HEADER_BYTES as u64..HEADER_BYTES as u64 + stored)
}

fn header_fields(header: &[u8]) -> Result<(u64, u64), PackError> {
    let header = header.get(..HEADER_BYTES).ok_or(PackError::Truncated)?;
    if !header.starts_with(MAGIC) {
        return Err(PackError::Magic);
    }
    let number =
        |at: usize| header.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    match header.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes)) {
        VERSION => Ok((number(16), number(24))),
        other => Err(PackError::Version(other)),
    }
}

/// Header and head of a file, from a head that is not packed yet.
pub(super) fn seal(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let stored = zstd::bulk::compress(plain, HEAD_ZSTD_LEVEL)?;
    let mut file = Vec::with_capacity(HEADER_BYTES + stored.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&0u32.to_le_bytes());
    file.extend_from_slice(&(stored.len() as u64).to_le_bytes());
    file.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    let hash = checksum(&file, &stored);
    file.extend_from_slice(&hash);
    file.extend_from_slice(&stored);
    Ok(file)
}

impl PackHead {
    /// Reads header and head; what follows them in `bytes` is ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        let range = head_range(bytes)?;
        let length = usize::try_from(range.end - range.start).ok().ok_or(PackError::TooLarge)?;
        let stored = bytes.get(HEADER_BYTES..).and_then(|rest| rest.get(..length)).ok_or(PackError::Truncated)?;
        let (fields, rest) = bytes.split_at_checked(32).ok_or(PackError::Truncated)?;
        if rest.get(..32) != Some(&checksum(fields, stored)[..]) {
            return Err(PackError::Checksum);
        }
        let (_, unpacked) = header_fields(bytes)?;
        let plain = unzstd(stored, unpacked)?;
        let (head, rest) = postcard::take_from_bytes::<Self>(&plain).map_err(PackError::Decode)?;
        if !rest.is_empty() {
            return Err(PackError::Invalid("bytes follow the head"));
        }
        head.check()?;
        Ok(head)
    }

    pub(super) fn check(&self) -> Result<(), PackError> {
        if self.layers.len() > sampan_oci::limits::LAYERS_MAX || self.shape.len() > SHAPE_BYTES_MAX {
            return Err(PackError::Invalid("it names too much"));
        }
        let mut pages = 0u64;
        for run in &self.runs {
            pages += u64::from(run.pages);
            let is_sound =
                run.pages > 0 && (run.layer as usize) < self.layers.len() && run.page.checked_add(run.pages).is_some();
            if !is_sound || pages > PACK_PAGES_MAX as u64 {
                return Err(PackError::Invalid("a run of pages is out of range"));
            }
        }
        let mut framed = 0u64;
        for (number, frame) in self.frames.iter().enumerate() {
            let is_last = number + 1 == self.frames.len();
            let count = frame.pages as usize;
            let fits = if is_last { (1..=PACK_FRAME_PAGES).contains(&count) } else { count == PACK_FRAME_PAGES };
            if !fits || frame.stored_bytes as usize > count * PAGE_BYTES + FRAME_EXCESS_BYTES {
                return Err(PackError::Invalid("a frame has a wrong size"));
            }
            framed += u64::from(frame.pages);
        }
        if framed != pages {
            return Err(PackError::Invalid("frames and pages do not fit each other"));
        }
        let mut seen = HashSet::with_capacity(pages as usize);
        if !self.frame_pages().flatten().all(|page| seen.insert(page)) {
            return Err(PackError::Invalid("a page is there twice"));
        }
        Ok(())
    }
}

/// Unpacks exactly `length` bytes and never more.
pub(super) fn unzstd(stored: &[u8], length: u64) -> Result<Vec<u8>, PackError> {
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(PackError::Unpack)?;
    decoder.take(length.saturating_add(1)).read_to_end(&mut bytes).map_err(PackError::Unpack)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(PackError::Invalid("a length is wrong")) }
}

fn checksum(fields: &[u8], stored: &[u8]) -> Hash {
    *blake3::Hasher::new().update(fields).update(stored).finalize().as_bytes()
}
