//! The last pass: every planned byte is put in its place.

use super::directory;
use super::file::{chunk_index, runs};
use super::place::{Body, Placed, Plan, head_bytes};
use super::walk::Walk;
use super::xattrs::{Shared, area_words};
use crate::crc32c;
use crate::layout::{
    BLOCK_BITS, BLOCK_BYTES, CHUNK_FORMAT_INDEXES, CHUNK_INDEX_BYTES, DEVICE_BLOCKS, DEVICE_MAPPED_BLOCK,
    DEVICE_SLOT_BYTES, DEVICE_TABLE_OFFSET, NULL_BLOCK, file_type, inode, superblock,
};
use crate::tree::{Device, Inode, Kind, Tree};

pub(super) struct Emission<'t> {
    pub(super) tree: &'t Tree,
    pub(super) devices: &'t [Device],
    pub(super) walk: &'t Walk,
    pub(super) shared: &'t Shared<'t>,
    pub(super) plan: &'t Plan,
    /// The first unified block of each device.
    pub(super) mapped: &'t [u32],
}

/// The image while it is filled.
struct Output(Vec<u8>);

impl Output {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, offset: u64, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    fn u32(&mut self, offset: u64, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    fn u64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }
}

impl Emission<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Output(vec![0; (u64::from(self.plan.blocks) * BLOCK_BYTES) as usize]);
        self.superblock(&mut out);
        self.device_table(&mut out);
        let mut scratch = Vec::new();
        for (index, (&id, placed)) in self.walk.order.iter().zip(&self.plan.placed).enumerate() {
            self.inode(&mut out, index, id, placed);
            self.body(&mut out, id, placed, &mut scratch);
        }
        out.put(self.plan.shared_offset, &self.shared.encode());
        seal(&mut out);
        out.0
    }

    fn superblock(&self, out: &mut Output) {
        let at = |field: u64| superblock::OFFSET + field;
        let mut incompat = 0;
        if self.plan.has_chunks {
            incompat |= superblock::INCOMPAT_CHUNKED_FILE;
        }
        if !self.devices.is_empty() {
            incompat |= superblock::INCOMPAT_DEVICE_TABLE;
            // Bounded by the limits: at most 4096 devices, and the table directly behind the superblock.
            out.u16(at(superblock::EXTRA_DEVICES), self.devices.len() as u16);
            out.u16(at(superblock::DEVICE_TABLE_SLOT), (DEVICE_TABLE_OFFSET / DEVICE_SLOT_BYTES) as u16);
        }
        out.u32(at(superblock::MAGIC), superblock::MAGIC_VALUE);
        out.u32(at(superblock::FEATURE_COMPAT), superblock::COMPAT_CHECKSUM | superblock::COMPAT_MTIME);
        out.u32(at(superblock::FEATURE_INCOMPAT), incompat);
        out.put(at(superblock::BLOCK_SIZE_BITS), &[BLOCK_BITS as u8]);
        // The root is the first inode behind the device table, whose length the limits bound.
        out.u16(at(superblock::ROOT_NID), self.plan.nids[self.tree.root.index()] as u16);
        out.u64(at(superblock::INODES), self.walk.order.len() as u64);
        out.u64(at(superblock::EPOCH), self.plan.epoch.seconds as u64);
        out.u32(at(superblock::EPOCH_NANOSECONDS), self.plan.epoch.nanoseconds);
        out.u32(at(superblock::BLOCKS), self.plan.blocks);
        out.u32(at(superblock::XATTR_BLOCK), (self.plan.shared_offset / BLOCK_BYTES) as u32);
    }

    fn device_table(&self, out: &mut Output) {
        for (index, (device, &mapped)) in self.devices.iter().zip(self.mapped).enumerate() {
            let slot = DEVICE_TABLE_OFFSET + index as u64 * DEVICE_SLOT_BYTES;
            out.put(slot, &device.tag);
            out.u32(slot + DEVICE_BLOCKS, device.blocks);
            out.u32(slot + DEVICE_MAPPED_BLOCK, mapped);
        }
    }

    fn inode(&self, out: &mut Output, index: usize, id: u32, placed: &Placed) {
        let node = &self.tree.inodes[id as usize];
        let links = self.walk.links[id as usize];
        let (data_layout, union) = self.data_layout(placed);
        let at = |field: u64| placed.offset + field;
        let format =
            (data_layout << inode::FORMAT_LAYOUT_SHIFT) | (u16::from(placed.extended) * inode::FORMAT_EXTENDED);
        out.u16(at(inode::FORMAT), format);
        out.u16(at(inode::XATTR_COUNT), area_words(placed.xattr_bytes) as u16);
        out.u16(at(inode::MODE), node.st_mode());
        out.u32(at(inode::UNION), union);
        out.u32(at(inode::NUMBER), index as u32 + 1);
        if placed.extended {
            out.u64(at(inode::SIZE), placed.size);
            out.u32(at(inode::EXTENDED_UID), node.uid);
            out.u32(at(inode::EXTENDED_GID), node.gid);
            out.u64(at(inode::EXTENDED_MTIME), node.mtime.seconds as u64);
            out.u32(at(inode::EXTENDED_MTIME_NANOSECONDS), node.mtime.nanoseconds);
            out.u32(at(inode::EXTENDED_LINKS), links);
        } else {
            // That these fit is what makes an inode compact.
            out.u32(at(inode::SIZE), placed.size as u32);
            out.u16(at(inode::COMPACT_UID), node.uid as u16);
            out.u16(at(inode::COMPACT_GID), node.gid as u16);
            out.u16(at(inode::COMPACT_LINKS), links as u16);
        }
        if placed.xattr_bytes > 0 {
            let area = self.shared.encode_area(&node.xattrs, self.plan.shared_offset % BLOCK_BYTES);
            out.put(at(head_bytes(placed.extended)), &area);
        }
    }

    /// Data layout and the four bytes whose meaning depends on it.
    fn data_layout(&self, placed: &Placed) -> (u16, u32) {
        match placed.body {
            Body::Nothing => (inode::LAYOUT_FLAT_PLAIN, NULL_BLOCK),
            Body::Special { number } => (inode::LAYOUT_FLAT_PLAIN, number),
            Body::Chunks { bits, .. } => (inode::LAYOUT_CHUNKED, bits | CHUNK_FORMAT_INDEXES),
            Body::Local { first, tail, blocks } => {
                let layout = if tail > 0 { inode::LAYOUT_FLAT_INLINE } else { inode::LAYOUT_FLAT_PLAIN };
                let block = if blocks > 0 { self.plan.data_block + first as u32 } else { NULL_BLOCK };
                (layout, block)
            }
        }
    }

    fn body(&self, out: &mut Output, id: u32, placed: &Placed, scratch: &mut Vec<u8>) {
        let node = &self.tree.inodes[id as usize];
        let after_head = placed.offset + head_bytes(placed.extended) + placed.xattr_bytes;
        match placed.body {
            Body::Nothing | Body::Special { .. } => {}
            Body::Chunks { bits, .. } => self.chunks(out, node, bits, after_head),
            Body::Local { first, blocks, .. } => {
                match &node.kind {
                    Kind::Symlink(target) => scratch.clone_from(target),
                    _ => directory::encode(
                        self.walk.entries(self.tree, id),
                        |entry| {
                            let nid = self.plan.nids[entry.inode.index()];
                            let kind = &self.tree.inodes[entry.inode.index()].kind;
                            (u64::from(nid), file_type(kind.type_bits()))
                        },
                        scratch,
                    ),
                }
                let in_blocks = scratch.len().min((blocks * BLOCK_BYTES) as usize);
                let (whole, tail) = scratch.split_at(in_blocks);
                out.put((u64::from(self.plan.data_block) + first) * BLOCK_BYTES, whole);
                out.put(after_head, tail);
            }
        }
    }

    fn chunks(&self, out: &mut Output, node: &Inode, bits: u32, after_head: u64) {
        let Kind::File { size, extents } = &node.kind else { return };
        // The same call succeeded when the plan was made.
        let runs = runs(*size, extents, self.devices).unwrap_or_default();
        let mut offset = after_head.next_multiple_of(CHUNK_INDEX_BYTES);
        for (device, block) in chunk_index(&runs, bits) {
            out.u16(offset + 2, device);
            out.u32(offset + 4, block);
            offset += CHUNK_INDEX_BYTES;
        }
    }
}

/// Names the image by its content (a UUID of version 8, RFC 9562) and adds the checksum of the first block.
fn seal(out: &mut Output) {
    let mut uuid: [u8; 16] = [0; 16];
    uuid.copy_from_slice(&blake3::hash(&out.0).as_bytes()[..16]);
    uuid[6] = (uuid[6] & 0x0F) | 0x80;
    uuid[8] = (uuid[8] & 0x3F) | 0x80;
    out.put(superblock::OFFSET + superblock::UUID, &uuid);
    reseal(&mut out.0);
}

/// Renews the checksum of an image's first block; what is shorter than a block stays as it is.
pub(super) fn reseal(image: &mut [u8]) {
    let Some(block) = image.get_mut(superblock::OFFSET as usize..BLOCK_BYTES as usize) else { return };
    let field = superblock::CHECKSUM as usize;
    block[field..field + 4].fill(0);
    let checksum = crc32c::update(!0, block);
    block[field..field + 4].copy_from_slice(&checksum.to_le_bytes());
}
