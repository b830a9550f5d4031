//! The pass that gives every inode its form and its offset.

use std::collections::HashMap;

use super::directory::DirectorySize;
use super::file::{Mapping, mapping};
use super::walk::Walk;
use super::xattrs::Shared;
use super::{Fault, WriteError};
use crate::layout::{BLOCK_BYTES, CHUNK_INDEX_BYTES, NID_BYTES, inode};
use crate::limits::{DEVICE_MAJOR_MAX, DEVICE_MINOR_MAX, IMAGE_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::tree::{Device, Inode, Kind, Timestamp, Tree};

/// Partly used blocks that are remembered for filling; more would only slow the search.
const GAPS_MAX: usize = 16;

/// What follows an inode and its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Nothing,
    Special {
        number: u32,
    },
    Chunks {
        bits: u32,
        count: u64,
    },
    /// `blocks` whole blocks from `first` of the data area, and, if `tail` is not 0, that many bytes in the inode.
    Local {
        first: u64,
        blocks: u64,
        tail: u64,
    },
}

/// An inode with its place. `offset` is in bytes from the start of the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) offset: u64,
    pub(super) extended: bool,
    pub(super) xattr_bytes: u64,
    /// Of the file, the directory's data or the symlink's target.
    pub(super) size: u64,
    pub(super) body: Body,
}

/// The layout of the whole image.
pub(super) struct Plan {
    /// In the order of the walk.
    pub(super) placed: Vec<Placed>,
    /// By inode id.
    pub(super) nids: Vec<u32>,
    pub(super) epoch: Timestamp,
    pub(super) has_chunks: bool,
    pub(super) shared_offset: u64,
    /// Where the data area begins, and where the image ends, in blocks.
    pub(super) data_block: u32,
    pub(super) blocks: u32,
}

impl Plan {
    pub(super) fn make(
        tree: &Tree,
        devices: &[Device],
        walk: &Walk,
        shared: &Shared<'_>,
        epoch: Timestamp,
        inodes_offset: u64,
    ) -> Result<Plan, WriteError> {
        let mut placed = Vec::with_capacity(walk.order.len());
        let mut nids = vec![0; tree.inodes.len()];
        let mut packer = Packer { cursor: inodes_offset.next_multiple_of(NID_BYTES), gaps: Vec::new() };
        let mut data_blocks = 0;
        let mut has_chunks = false;
        for &id in &walk.order {
            let node = &tree.inodes[id as usize];
            let mut place =
                form(tree, devices, walk, shared, epoch, id).map_err(|fault| walk.fault(tree, id, fault))?;
            let head = head_bytes(place.extended) + place.xattr_bytes;
            let bytes = match &mut place.body {
                Body::Chunks { count, .. } => {
                    has_chunks = true;
                    head.next_multiple_of(CHUNK_INDEX_BYTES) + count.saturating_mul(CHUNK_INDEX_BYTES)
                }
                Body::Local { first, blocks, tail } => {
                    if *tail > 0 && head + *tail > BLOCK_BYTES {
                        (*blocks, *tail) = (*blocks + 1, 0);
                    }
                    *first = data_blocks;
                    data_blocks += *blocks;
                    head + *tail
                }
                Body::Nothing | Body::Special { .. } => head,
            };
            let whole = matches!(place.body, Body::Local { tail: 1.., .. }) || !matches!(node.kind, Kind::File { .. });
            place.offset = packer.place(bytes, whole && bytes <= BLOCK_BYTES);
            if packer.cursor + data_blocks * BLOCK_BYTES > IMAGE_BYTES_MAX {
                return Err(WriteError::TooLarge);
            }
            nids[id as usize] = (place.offset / NID_BYTES) as u32;
            placed.push(place);
        }
        let shared_offset = packer.cursor;
        let data_block = (shared_offset + shared.bytes()).div_ceil(BLOCK_BYTES);
        let blocks = data_block + data_blocks;
        if blocks > IMAGE_BYTES_MAX / BLOCK_BYTES {
            return Err(WriteError::TooLarge);
        }
        let (data_block, blocks) = (data_block as u32, blocks as u32);
        Ok(Plan { placed, nids, epoch, has_chunks, shared_offset, data_block, blocks })
    }
}

/// The time that compact inodes will share: the commonest among those that could be compact, and of equals the oldest.
pub(super) fn commonest_time(tree: &Tree, walk: &Walk) -> Timestamp {
    let mut counts: HashMap<Timestamp, u32> = HashMap::new();
    for &id in &walk.order {
        let inode = &tree.inodes[id as usize];
        if fits_compact(inode, walk.links[id as usize]) && inode.mtime.nanoseconds < 1_000_000_000 {
            *counts.entry(inode.mtime).or_default() += 1;
        }
    }
    let best = counts.into_iter().max_by_key(|&(time, count)| (count, std::cmp::Reverse(time)));
    best.map_or_else(Timestamp::default, |(time, _)| time)
}

fn fits_compact(inode: &Inode, links: u32) -> bool {
    let short = |number: u32| number <= u32::from(u16::MAX);
    let size_fits = !matches!(inode.kind, Kind::File { size, .. } if size > u64::from(u32::MAX));
    short(inode.uid) && short(inode.gid) && short(links) && size_fits
}

pub(super) fn head_bytes(extended: bool) -> u64 {
    if extended { inode::EXTENDED_BYTES } else { inode::COMPACT_BYTES }
}

/// Checks an inode and finds its form; the offset stays open.
fn form(
    tree: &Tree,
    devices: &[Device],
    walk: &Walk,
    shared: &Shared<'_>,
    epoch: Timestamp,
    id: u32,
) -> Result<Placed, Fault> {
    let inode = &tree.inodes[id as usize];
    if inode.mode & !0o7777 != 0 {
        return Err(Fault::Mode);
    }
    if inode.mtime.nanoseconds >= 1_000_000_000 {
        return Err(Fault::Time);
    }
    let (size, body) = match &inode.kind {
        Kind::Directory(_) => {
            let size = DirectorySize::of(walk.entries(tree, id));
            (size.bytes(), local(size.bytes()))
        }
        Kind::File { size, extents } => {
            let body = match mapping(*size, extents, devices)? {
                Mapping::Empty => Body::Nothing,
                Mapping::Chunks { bits, count } => Body::Chunks { bits, count },
            };
            (*size, body)
        }
        Kind::Symlink(target) => {
            if !(1..=SYMLINK_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
                return Err(Fault::Target);
            }
            (target.len() as u64, local(target.len() as u64))
        }
        Kind::Fifo | Kind::Socket => (0, Body::Nothing),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            if *major > DEVICE_MAJOR_MAX || *minor > DEVICE_MINOR_MAX {
                return Err(Fault::DeviceNumber);
            }
            (0, Body::Special { number: (minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12) })
        }
    };
    // A directory's data is bounded by the image, which is checked right after, so its size needs no look here.
    let compact = inode.mtime == epoch && fits_compact(inode, walk.links[id as usize]);
    Ok(Placed { offset: 0, extended: !compact, xattr_bytes: shared.area_bytes(&inode.xattrs)?, size, body })
}

fn local(bytes: u64) -> Body {
    Body::Local { first: 0, blocks: bytes / BLOCK_BYTES, tail: bytes % BLOCK_BYTES }
}

/// Hands out offsets in steps of an inode slot.
struct Packer {
    cursor: u64,
    /// Unused ends of blocks.
    gaps: Vec<(u64, u64)>,
}

impl Packer {
    /// A place for `bytes`; if `whole`, inside one block.
    fn place(&mut self, bytes: u64, whole: bool) -> u64 {
        let bytes = bytes.next_multiple_of(NID_BYTES);
        if let Some(index) = self.gaps.iter().position(|&(start, end)| end - start >= bytes) {
            let (start, end) = self.gaps[index];
            if start + bytes == end {
                self.gaps.remove(index);
            } else {
                self.gaps[index].0 += bytes;
            }
            return start;
        }
        let room = BLOCK_BYTES - self.cursor % BLOCK_BYTES;
        if whole && bytes > room {
            if self.gaps.len() == GAPS_MAX {
                self.gaps.remove(0);
            }
            self.gaps.push((self.cursor, self.cursor + room));
            self.cursor += room;
        }
        let offset = self.cursor;
        self.cursor = self.cursor.saturating_add(bytes);
        offset
    }
}
