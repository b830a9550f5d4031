//! Directory data: entries out of blocks.

use super::ReadError;
use super::bytes::Bytes;
use super::inode::RawInode;
use crate::layout::{BLOCK_BYTES, DIRENT_BYTES};
use crate::limits::NAME_BYTES_MAX;

pub(super) struct RawEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// All entries, `.` and `..` included, with valid names in strictly ascending order.
pub(super) fn entries<'a>(inode: &RawInode, data: &'a [u8]) -> Result<Vec<RawEntry<'a>>, ReadError> {
    let mut entries: Vec<RawEntry<'a>> = Vec::new();
    for block in data.chunks(BLOCK_BYTES as usize) {
        block_entries(inode, block, &mut entries)?;
    }
    let ascending = entries.iter().zip(entries.iter().skip(1)).all(|(one, next)| one.name < next.name);
    if ascending { Ok(entries) } else { Err(inode.wrong("its names are not in order")) }
}

fn block_entries<'a>(inode: &RawInode, block: &'a [u8], entries: &mut Vec<RawEntry<'a>>) -> Result<(), ReadError> {
    let bytes = Bytes(block);
    let wrong = || inode.wrong("its entries are malformed");
    let entry_at = |offset: u64| -> Result<(u64, u64, u8, u8), ReadError> {
        let offset = |more: u64| offset.saturating_add(more);
        Ok((
            bytes.u64(offset(0)).map_err(|_short| wrong())?,
            u64::from(bytes.u16(offset(8)).map_err(|_short| wrong())?),
            bytes.u8(offset(10)).map_err(|_short| wrong())?,
            bytes.u8(offset(11)).map_err(|_short| wrong())?,
        ))
    };
    let (_, names_offset, ..) = entry_at(0)?;
    let count = names_offset / DIRENT_BYTES;
    if count == 0 || names_offset % DIRENT_BYTES != 0 {
        return Err(wrong());
    }
    let mut name_offset = names_offset;
    for index in 0..count {
        let (nid, stored_offset, file_type, reserved) = entry_at(index.saturating_mul(DIRENT_BYTES))?;
        let next = index.saturating_add(1);
        let end = if next < count { entry_at(next.saturating_mul(DIRENT_BYTES))?.1 } else { bytes.length() };
        let length = end.checked_sub(name_offset).ok_or_else(wrong)?;
        let mut name = bytes.slice(name_offset, length).map_err(|_short| wrong())?;
        if next == count {
            name = name.split(|&byte| byte == 0).next().unwrap_or(name);
        }
        if stored_offset != name_offset || reserved != 0 || !name_is_valid(name) {
            return Err(wrong());
        }
        entries.push(RawEntry { name, nid, file_type });
        name_offset = end;
    }
    Ok(())
}

fn name_is_valid(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.iter().any(|&byte| byte == 0 || byte == b'/')
}
