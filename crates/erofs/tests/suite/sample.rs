//! Building trees and the blobs behind them, and what a file should read as.

use sampan_erofs::{Device, DirEntry, Extent, Inode, InodeId, Kind, Timestamp, Tree, Xattr};

pub(crate) const BLOCK: u64 = 4096;

/// A tree with the content of its devices.
pub(crate) struct Sample {
    pub(crate) tree: Tree,
    pub(crate) devices: Vec<Device>,
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Sample {
    /// Only a root directory, and devices of so many blocks whose every block is different.
    pub(crate) fn new(device_blocks: &[u32]) -> Sample {
        let blobs = device_blocks.iter().enumerate().map(|(index, &blocks)| noise(index as u64, blocks)).collect();
        let devices = device_blocks
            .iter()
            .enumerate()
            .map(|(index, &blocks)| Device { blocks, tag: format!("sha256:device-{index}").into_bytes() })
            .collect();
        Sample { tree: Tree::new(Inode::new(0o755, Kind::Directory(Vec::new()))), devices, blobs }
    }

    pub(crate) fn root(&self) -> InodeId {
        self.tree.root
    }

    pub(crate) fn add(&mut self, parent: InodeId, name: impl AsRef<[u8]>, inode: Inode) -> InodeId {
        let id = self.tree.push(inode);
        self.link(parent, name, id);
        id
    }

    pub(crate) fn link(&mut self, parent: InodeId, name: impl AsRef<[u8]>, inode: InodeId) {
        match &mut self.tree.inode_mut(parent).unwrap().kind {
            Kind::Directory(entries) => entries.push(DirEntry { name: name.as_ref().to_vec(), inode }),
            other => panic!("{other:?} is no directory"),
        }
    }

    /// What `length` bytes from `offset` of a file read as.
    pub(crate) fn content(&self, size: u64, extents: &[Extent], offset: u64, length: u64) -> Vec<u8> {
        let end = size.min(offset + length);
        let mut content = vec![0; end.saturating_sub(offset) as usize];
        for extent in extents {
            let from = extent.file_offset.max(offset);
            let to = (extent.file_offset + extent.length).min(end);
            if from < to {
                let blob = &self.blobs[usize::from(extent.device) - 1];
                let start = (extent.device_offset + from - extent.file_offset) as usize;
                let bytes = &blob[start..start + (to - from) as usize];
                content[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        }
        content
    }
}

fn noise(seed: u64, blocks: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = u64::from(blocks) * BLOCK / 8;
    (0..words)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

pub(crate) fn directory() -> Inode {
    Inode::new(0o755, Kind::Directory(Vec::new()))
}

pub(crate) fn file(size: u64, extents: &[Extent]) -> Inode {
    Inode::new(0o644, Kind::File { size, extents: extents.to_vec() })
}

pub(crate) fn extent(file_block: u64, device: u16, device_block: u64, length: u64) -> Extent {
    Extent { file_offset: file_block * BLOCK, device, device_offset: device_block * BLOCK, length }
}

pub(crate) fn at(seconds: i64, nanoseconds: u32, inode: Inode) -> Inode {
    Inode { mtime: Timestamp { seconds, nanoseconds }, ..inode }
}

pub(crate) fn xattr(name: &str, value: impl AsRef<[u8]>) -> Xattr {
    Xattr { name: name.into(), value: value.as_ref().to_vec() }
}

/// The smallest valid access control list, with a permission to tell several apart.
pub(crate) fn acl(group_permission: u16) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permission) in [(1_u16, 6), (4, group_permission), (0x20, 4)] {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permission.to_le_bytes());
        list.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    list
}
