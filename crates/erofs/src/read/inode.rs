//! One inode's fixed part.

use super::ReadError;
use super::bytes::Bytes;
use super::superblock::Superblock;
use crate::layout::{NID_BYTES, XATTR_HEADER_BYTES, inode as field};
use crate::limits::FILE_BYTES_MAX;
use crate::tree::Timestamp;

/// Where the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Plain,
    Inline,
    Chunked,
}

pub(super) struct RawInode {
    pub(super) nid: u64,
    pub(super) layout: Layout,
    pub(super) type_bits: u16,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) union: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattr_offset: u64,
    pub(super) xattr_bytes: u64,
}

impl RawInode {
    pub(super) fn parse(bytes: Bytes<'_>, superblock: &Superblock, nid: u64) -> Result<RawInode, ReadError> {
        let wrong = |what| ReadError::Inode { nid, what };
        let base = nid.checked_mul(NID_BYTES).ok_or_else(|| wrong("its number lies outside the image"))?;
        let at = |offset: u64| base.saturating_add(offset);
        let format = bytes.u16(at(field::FORMAT))?;
        let extended = format & field::FORMAT_EXTENDED != 0;
        let layout = match format >> field::FORMAT_LAYOUT_SHIFT {
            field::LAYOUT_FLAT_PLAIN => Layout::Plain,
            field::LAYOUT_FLAT_INLINE => Layout::Inline,
            field::LAYOUT_CHUNKED => Layout::Chunked,
            _ => return Err(wrong("its format is unknown")),
        };
        let st_mode = bytes.u16(at(field::MODE))?;
        let xattr_count = u64::from(bytes.u16(at(field::XATTR_COUNT))?);
        let head = if extended { field::EXTENDED_BYTES } else { field::COMPACT_BYTES };
        let raw = RawInode {
            nid,
            layout,
            type_bits: st_mode & 0o170_000,
            mode: st_mode & 0o7777,
            links: if extended {
                bytes.u32(at(field::EXTENDED_LINKS))?
            } else {
                u32::from(bytes.u16(at(field::COMPACT_LINKS))?)
            },
            size: if extended { bytes.u64(at(field::SIZE))? } else { u64::from(bytes.u32(at(field::SIZE))?) },
            union: bytes.u32(at(field::UNION))?,
            uid: owner(bytes, extended, at(field::EXTENDED_UID), at(field::COMPACT_UID))?,
            gid: owner(bytes, extended, at(field::EXTENDED_GID), at(field::COMPACT_GID))?,
            mtime: if extended { time(bytes, at(0))? } else { superblock.epoch },
            xattr_offset: at(head),
            xattr_bytes: match xattr_count.checked_sub(1) {
                None => 0,
                Some(words) => words.saturating_mul(4).saturating_add(XATTR_HEADER_BYTES),
            },
        };
        if !extended && bytes.u32(at(field::COMPACT_MTIME))? != 0 {
            return Err(wrong("a compact inode has a time of its own"));
        }
        if raw.mtime.nanoseconds >= 1_000_000_000 {
            return Err(wrong("its nanoseconds exceed a second"));
        }
        if raw.size > FILE_BYTES_MAX {
            return Err(wrong("its size is negative"));
        }
        Ok(raw)
    }

    pub(super) fn wrong(&self, what: &'static str) -> ReadError {
        ReadError::Inode { nid: self.nid, what }
    }

    /// Where chunk indexes or inline data may begin.
    pub(super) fn after_xattrs(&self) -> u64 {
        self.xattr_offset.saturating_add(self.xattr_bytes)
    }
}

fn owner(bytes: Bytes<'_>, extended: bool, wide: u64, narrow: u64) -> Result<u32, ReadError> {
    if extended { bytes.u32(wide) } else { bytes.u16(narrow).map(u32::from) }
}

fn time(bytes: Bytes<'_>, base: u64) -> Result<Timestamp, ReadError> {
    Ok(Timestamp {
        seconds: bytes.u64(base.saturating_add(field::EXTENDED_MTIME))?.cast_signed(),
        nanoseconds: bytes.u32(base.saturating_add(field::EXTENDED_MTIME_NANOSECONDS))?,
    })
}
