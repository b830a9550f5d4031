//! Extended attributes: which are shared between inodes, and the bytes of an inode's attribute area.
//!
//! An attribute that several inodes carry with the same value is stored once in the shared area, where four bytes refer
//! to it. So are large ones, even single: inline they would push directory and symlink data out of the inode's block.

use std::collections::HashMap;

use super::Fault;
use super::walk::Walk;
use crate::layout::{XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES, XATTR_PREFIXES, xattr_prefix_is_whole};
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_SHARED_MAX, XATTR_VALUE_BYTES_MAX, XATTR_WORDS_MAX};
use crate::tree::{Tree, Xattr};

/// From this size on an attribute is shared although only one inode has it.
const LARGE_ENTRY_BYTES: u64 = 1024;

/// Whether EROFS can hold an attribute of this name at all: `user.`, `trusted.`, `security.` and the two POSIX access
/// control lists.
#[must_use]
pub fn xattr_name_is_storable(name: &[u8]) -> bool {
    name.len() <= XATTR_NAME_BYTES_MAX && split(name).is_some()
}

/// Prefix index and what follows the prefix.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.contains(&0) {
        return None;
    }
    XATTR_PREFIXES.iter().find_map(|&(index, prefix)| {
        let suffix = name.strip_prefix(prefix)?;
        (suffix.is_empty() == xattr_prefix_is_whole(index)).then_some((index, suffix))
    })
}

fn entry_bytes(xattr: &Xattr) -> u64 {
    let suffix = split(&xattr.name).map_or(0, |(_, suffix)| suffix.len());
    (XATTR_ENTRY_BYTES + suffix as u64 + xattr.value.len() as u64).next_multiple_of(4)
}

fn encode_entry(xattr: &Xattr, out: &mut Vec<u8>) {
    let (index, suffix) = split(&xattr.name).unwrap_or((0, &[]));
    // Both lengths were checked against the format's limits.
    out.extend_from_slice(&[suffix.len() as u8, index]);
    out.extend_from_slice(&(xattr.value.len() as u16).to_le_bytes());
    out.extend_from_slice(suffix);
    out.extend_from_slice(&xattr.value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes that stand in the shared area, by their position in it.
pub(super) struct Shared<'t> {
    positions: HashMap<(&'t [u8], &'t [u8]), u64>,
    /// In the order of their positions.
    entries: Vec<&'t Xattr>,
    bytes: u64,
}

impl<'t> Shared<'t> {
    pub(super) fn choose(tree: &'t Tree, walk: &Walk) -> Shared<'t> {
        let mut uses: HashMap<(&[u8], &[u8]), usize> = HashMap::new();
        let mut found: Vec<(&Xattr, u64)> = Vec::new();
        for &id in &walk.order {
            for xattr in &tree.inodes[id as usize].xattrs {
                let candidate = *uses.entry((&xattr.name, &xattr.value)).or_insert_with(|| {
                    found.push((xattr, 0));
                    found.len() - 1
                });
                found[candidate].1 += 1;
            }
        }
        let mut shared = Shared { positions: HashMap::new(), entries: Vec::new(), bytes: 0 };
        for (xattr, count) in found {
            let bytes = entry_bytes(xattr);
            if bytes >= LARGE_ENTRY_BYTES || count * bytes > bytes + count * 4 {
                shared.positions.insert((&xattr.name, &xattr.value), shared.bytes);
                shared.entries.push(xattr);
                shared.bytes += bytes;
            }
        }
        shared
    }

    /// Length of the shared area.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for xattr in &self.entries {
            encode_entry(xattr, &mut out);
        }
        out
    }

    fn position(&self, xattr: &Xattr) -> Option<u64> {
        self.positions.get(&(xattr.name.as_slice(), xattr.value.as_slice())).copied()
    }

    /// Length of the attribute area of an inode with these attributes, after checking them.
    pub(super) fn area_bytes(&self, xattrs: &[Xattr]) -> Result<u64, Fault> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut names: Vec<&[u8]> = xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Fault::XattrDuplicate);
        }
        let mut bytes = XATTR_HEADER_BYTES;
        let mut shared = 0;
        for xattr in xattrs {
            if !xattr_name_is_storable(&xattr.name) {
                return Err(Fault::XattrName);
            }
            if xattr.value.len() > XATTR_VALUE_BYTES_MAX {
                return Err(Fault::XattrValue);
            }
            if shared < XATTR_SHARED_MAX && self.position(xattr).is_some() {
                shared += 1;
                bytes += 4;
            } else {
                bytes += entry_bytes(xattr);
            }
        }
        if area_words(bytes) > XATTR_WORDS_MAX { Err(Fault::XattrTotal) } else { Ok(bytes) }
    }

    /// The attribute area itself; `origin` is the distance of the shared area from the block its positions count from.
    pub(super) fn encode_area(&self, xattrs: &[Xattr], origin: u64) -> Vec<u8> {
        let mut references = Vec::new();
        let mut inline = Vec::new();
        for xattr in xattrs {
            match self.position(xattr) {
                Some(position) if references.len() < XATTR_SHARED_MAX => references.push((origin + position) / 4),
                _ => encode_entry(xattr, &mut inline),
            }
        }
        let mut area = vec![0; XATTR_HEADER_BYTES as usize];
        area[crate::layout::XATTR_SHARED_COUNT as usize] = references.len() as u8;
        for reference in references {
            // The whole image is at most a gigabyte.
            area.extend_from_slice(&(reference as u32).to_le_bytes());
        }
        area.extend_from_slice(&inline);
        area
    }
}

/// `i_xattr_icount` of an area of this length.
pub(super) fn area_words(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { 1 + (bytes - XATTR_HEADER_BYTES) / 4 }
}
