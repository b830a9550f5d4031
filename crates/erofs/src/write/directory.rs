//! Directory data: blocks of fixed-size entries followed by their names, names ascending over all blocks.
//!
//! The kernel finds a name by bisecting first over the first names of the blocks, then inside one block; names compare
//! as bytes. The last name of a block ends at a NUL or at the end of the block or directory.

use super::walk::Entry;
use crate::layout::{BLOCK_BYTES, DIRENT_BYTES};

/// Bytes of a directory's data: whole blocks, then what its last block uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectorySize {
    pub(super) blocks: u64,
    pub(super) tail: u64,
}

impl DirectorySize {
    pub(super) fn of<'t>(entries: impl Iterator<Item = Entry<'t>>) -> DirectorySize {
        let mut size = DirectorySize { blocks: 0, tail: 0 };
        for entry in entries {
            let needed = DIRENT_BYTES + entry.name.len() as u64;
            if size.tail + needed > BLOCK_BYTES {
                size.blocks += 1;
                size.tail = 0;
            }
            size.tail += needed;
        }
        size
    }

    pub(super) fn bytes(self) -> u64 {
        self.blocks * BLOCK_BYTES + self.tail
    }
}

/// Encodes entries block by block into `data`, which is cleared first. `number` gives nid and `FT_*` type of an entry.
pub(super) fn encode<'t>(
    entries: impl Iterator<Item = Entry<'t>>,
    number: impl Fn(&Entry<'t>) -> (u64, u8),
    data: &mut Vec<u8>,
) {
    data.clear();
    let mut block: Vec<Entry<'t>> = Vec::new();
    let mut used = 0;
    for entry in entries {
        let needed = DIRENT_BYTES as usize + entry.name.len();
        if used + needed > BLOCK_BYTES as usize {
            flush(&block, &number, data);
            data.resize(data.len().next_multiple_of(BLOCK_BYTES as usize), 0);
            block.clear();
            used = 0;
        }
        used += needed;
        block.push(entry);
    }
    flush(&block, &number, data);
}

fn flush<'t>(block: &[Entry<'t>], number: &impl Fn(&Entry<'t>) -> (u64, u8), data: &mut Vec<u8>) {
    let mut name_offset = block.len() * DIRENT_BYTES as usize;
    for entry in block {
        let (nid, file_type) = number(entry);
        data.extend_from_slice(&nid.to_le_bytes());
        // A block has 4096 bytes, so an offset in it fits.
        data.extend_from_slice(&(name_offset as u16).to_le_bytes());
        data.extend_from_slice(&[file_type, 0]);
        name_offset += entry.name.len();
    }
    for entry in block {
        data.extend_from_slice(entry.name);
    }
}
