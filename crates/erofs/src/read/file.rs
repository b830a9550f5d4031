//! File data: the extents of regular files, and the bytes of directories and symlinks.

use std::borrow::Cow;

use super::ReadError;
use super::bytes::Bytes;
use super::inode::{Layout, RawInode};
use super::superblock::Superblock;
use crate::layout::{BLOCK_BITS, BLOCK_BYTES, CHUNK_BITS_MAX, CHUNK_FORMAT_INDEXES, CHUNK_INDEX_BYTES, NULL_BLOCK};
use crate::tree::Extent;

/// The data of a directory or symlink, which lies inside the image: whole blocks, then perhaps an inline tail.
pub(super) fn local_data<'a>(
    bytes: Bytes<'a>,
    superblock: &Superblock,
    inode: &RawInode,
) -> Result<Cow<'a, [u8]>, ReadError> {
    let tail = match inode.layout {
        Layout::Plain => 0,
        Layout::Inline => inode.size % BLOCK_BYTES,
        Layout::Chunked => return Err(inode.wrong("a directory or symlink is stored in chunks")),
    };
    if inode.layout == Layout::Inline && tail == 0 {
        return Err(inode.wrong("an inline tail is a whole block"));
    }
    let whole_bytes = inode.size.saturating_sub(tail);
    let whole: &[u8] = if whole_bytes == 0 {
        &[]
    } else {
        if u64::from(inode.union).saturating_add(whole_bytes.div_ceil(BLOCK_BYTES)) > u64::from(superblock.blocks) {
            return Err(inode.wrong("its data lies outside the image"));
        }
        bytes.slice(u64::from(inode.union).saturating_mul(BLOCK_BYTES), whole_bytes)?
    };
    if tail == 0 {
        return Ok(Cow::Borrowed(whole));
    }
    let offset = inode.after_xattrs();
    if (offset % BLOCK_BYTES).saturating_add(tail) > BLOCK_BYTES {
        return Err(inode.wrong("its inline tail crosses a block boundary"));
    }
    let tail = bytes.slice(offset, tail)?;
    if whole.is_empty() { Ok(Cow::Borrowed(tail)) } else { Ok(Cow::Owned([whole, tail].concat())) }
}

/// The extents of a regular file.
pub(super) fn extents(bytes: Bytes<'_>, superblock: &Superblock, inode: &RawInode) -> Result<Vec<Extent>, ReadError> {
    match inode.layout {
        Layout::Plain if inode.size == 0 => Ok(Vec::new()),
        Layout::Plain | Layout::Inline => Err(inode.wrong("a file has its data in the metadata image")),
        Layout::Chunked => chunk_extents(bytes, superblock, inode),
    }
}

/// Size of a chunk of a chunked file: at most 2^43.
fn chunk_bytes(inode: &RawInode) -> u64 {
    BLOCK_BYTES << (inode.union & CHUNK_BITS_MAX)
}

/// Length of the chunk index of a file; 0 if it has none.
pub(super) fn index_bytes(inode: &RawInode) -> u64 {
    match inode.layout {
        Layout::Chunked => inode.size.div_ceil(chunk_bytes(inode)).saturating_mul(CHUNK_INDEX_BYTES),
        Layout::Plain | Layout::Inline => 0,
    }
}

fn chunk_extents(bytes: Bytes<'_>, superblock: &Superblock, inode: &RawInode) -> Result<Vec<Extent>, ReadError> {
    let bits = inode.union & CHUNK_BITS_MAX;
    if inode.union != bits | CHUNK_FORMAT_INDEXES {
        return Err(inode.wrong("its chunk format is unknown"));
    }
    let chunk_bytes = chunk_bytes(inode);
    let offset = inode.after_xattrs().next_multiple_of(CHUNK_INDEX_BYTES);
    let index = bytes.slice(offset, index_bytes(inode))?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut file_offset: u64 = 0;
    for entry in index.chunks_exact(CHUNK_INDEX_BYTES as usize) {
        let entry = Bytes(entry);
        let (reserved, device, block) = (entry.u16(0)?, entry.u16(2)?, entry.u32(4)?);
        let length = chunk_bytes.min(inode.size.saturating_sub(file_offset));
        if reserved != 0 {
            return Err(inode.wrong("a chunk index has reserved bits"));
        }
        if block != NULL_BLOCK {
            let extent = chunk_extent(superblock, inode, device, block, file_offset, length)?;
            push_extent(&mut extents, extent);
        }
        file_offset = file_offset.saturating_add(length);
    }
    Ok(extents)
}

fn chunk_extent(
    superblock: &Superblock,
    inode: &RawInode,
    device: u16,
    block: u32,
    file_offset: u64,
    length: u64,
) -> Result<Extent, ReadError> {
    let slot = usize::from(device).checked_sub(1).and_then(|index| superblock.devices.get(index));
    let slot = slot.ok_or_else(|| inode.wrong("a chunk names a device that does not exist"))?;
    if u64::from(block).saturating_add(length.div_ceil(BLOCK_BYTES)) > u64::from(slot.blocks) {
        return Err(inode.wrong("a chunk lies outside its device"));
    }
    Ok(Extent { file_offset, device, device_offset: u64::from(block) << BLOCK_BITS, length })
}

/// Appends an extent, as part of the last one where it continues it.
fn push_extent(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last)
            if last.device == extent.device
                && last.file_offset.saturating_add(last.length) == extent.file_offset
                && last.device_offset.saturating_add(last.length) == extent.device_offset =>
        {
            last.length = last.length.saturating_add(extent.length);
        }
        _ => extents.push(extent),
    }
}
