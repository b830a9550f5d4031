//! Extended attributes of one inode, inline and shared.

use super::ReadError;
use super::bytes::Bytes;
use super::inode::RawInode;
use crate::layout::{XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES, XATTR_PREFIXES, XATTR_SHARED_COUNT, xattr_prefix_is_whole};
use crate::limits::XATTR_NAME_BYTES_MAX;
use crate::tree::Xattr;

/// All attributes; `origin` is the byte from which references to shared ones count.
pub(super) fn xattrs(bytes: Bytes<'_>, inode: &RawInode, origin: u64) -> Result<Vec<Xattr>, ReadError> {
    if inode.xattr_bytes == 0 {
        return Ok(Vec::new());
    }
    let area = Bytes(bytes.slice(inode.xattr_offset, inode.xattr_bytes)?);
    let shared_count = u64::from(area.u8(XATTR_SHARED_COUNT)?);
    let mut found = Vec::new();
    let mut offset = XATTR_HEADER_BYTES;
    for _ in 0..shared_count {
        let reference = area.u32(offset).map_err(|_short| inode.wrong("its shared attributes exceed its area"))?;
        let (xattr, _) = entry(bytes, inode, origin.saturating_add(u64::from(reference).saturating_mul(4)))?;
        found.push(xattr);
        offset = offset.saturating_add(4);
    }
    while offset < inode.xattr_bytes {
        let (xattr, length) =
            entry(area, inode, offset).map_err(|_short| inode.wrong("an attribute exceeds its area"))?;
        found.push(xattr);
        offset = offset.saturating_add(length);
    }
    let mut names: Vec<&[u8]> = found.iter().map(|xattr| xattr.name.as_slice()).collect();
    names.sort_unstable();
    if found.is_empty() {
        return Err(inode.wrong("its attribute area is empty"));
    }
    if names.iter().zip(names.iter().skip(1)).any(|(one, next)| one == next) {
        return Err(inode.wrong("it has an attribute twice"));
    }
    Ok(found)
}

/// An entry and its length on disk.
fn entry(bytes: Bytes<'_>, inode: &RawInode, offset: u64) -> Result<(Xattr, u64), ReadError> {
    let name_length = u64::from(bytes.u8(offset)?);
    let prefix_index = bytes.u8(offset.saturating_add(1))?;
    let value_length = u64::from(bytes.u16(offset.saturating_add(2))?);
    let name_offset = offset.saturating_add(XATTR_ENTRY_BYTES);
    let suffix = bytes.slice(name_offset, name_length)?;
    let value = bytes.slice(name_offset.saturating_add(name_length), value_length)?;
    let prefix = XATTR_PREFIXES.iter().find(|(index, _)| *index == prefix_index);
    let (_, prefix) = prefix.ok_or_else(|| inode.wrong("an attribute has an unknown prefix"))?;
    let name = [*prefix, suffix].concat();
    let suffix_fits = suffix.is_empty() == xattr_prefix_is_whole(prefix_index);
    if !suffix_fits || suffix.contains(&0) || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(inode.wrong("an attribute has an impossible name"));
    }
    let length = XATTR_ENTRY_BYTES.saturating_add(name_length).saturating_add(value_length).next_multiple_of(4);
    Ok((Xattr { name, value: value.to_vec() }, length))
}
