//! One layer as a tree of inodes: what an overlay would keep of it in that layer's own directory.
//!
//! A tree holds what the layer *says*, not what an image shows: whiteouts, opaque directories, directories that are only
//! implied by a path below them, and hard links to files that only a lower layer may have. [`crate::merge`] lays trees over
//! one another.
//!
//! Invariants of a finished tree, which `LayerTree::check` holds a decoded one to:
//! - inode 0 is the root, a directory;
//! - every directory but the root has exactly one entry that names it, and every inode is reached;
//! - contents stand in the order of the stream and do not overlap in it.

mod build;
mod check;
#[cfg(test)]
mod tests;

pub use build::{LayerTreeBuilder, TreeError};
pub(crate) use check::TreeFault;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The bytes of a blob are laid out in blocks of this size, and so are the kernel's pages.
pub const BLOCK_BYTES: u64 = 4096;
/// A digest stands for this many bytes of a file.
pub const CHUNK_BYTES: u64 = 64 << 10;

/// A name or a path, any bytes.
pub type Name = Box<[u8]>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerTree {
    pub inodes: Vec<Inode>,
    pub contents: Vec<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub kind: Kind,
    /// Permissions, set-uid, set-gid and sticky bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub seconds: i64,
    pub nanoseconds: u32,
    /// In order of name.
    pub xattrs: Vec<(Name, Name)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Directory(Directory),
    /// `content` is `None` for a file without a byte of data.
    File {
        size: u64,
        content: Option<u32>,
    },
    Symlink {
        target: Name,
    },
    Fifo,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub entries: BTreeMap<Name, Child>,
    /// Lower layers show nothing in it.
    pub opaque: bool,
    /// No entry of the layer speaks of it: where a lower layer has this directory, that one's attributes stay.
    pub implied: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Child {
    Inode(u32),
    /// Lower layers' entry of this name is hidden.
    Whiteout,
    /// Another name of the file that lower layers show at this path.
    LowerLink(Name),
}

/// The data of one file of the layer, also of one that a later entry of the same layer replaced: its bytes stand in stream
/// and blob all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Where in the uncompressed stream its bytes begin.
    pub stream_offset: u64,
    /// Apparent size of the file.
    pub size: u64,
    /// The runs of data (offset, length) of a sparse file; `None` for a file without holes.
    pub segments: Option<Vec<(u64, u64)>>,
}

/// A run of whole blocks of a file that stand one after another in the blob, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub file_offset: u64,
    pub blob_offset: u64,
    /// A multiple of [`BLOCK_BYTES`].
    pub length: u64,
}

impl Content {
    /// Bytes in the stream.
    pub fn stream_bytes(&self) -> u64 {
        match &self.segments {
            None => self.size,
            Some(segments) => segments.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length)),
        }
    }

    /// How many digests stand for it.
    pub fn chunks(&self) -> u64 {
        self.stream_bytes().div_ceil(CHUNK_BYTES)
    }

    /// Where its blocks stand in a blob in which they begin at `blob_offset`. Blocks without data are left out.
    pub fn runs(&self, blob_offset: u64) -> Vec<Run> {
        let whole = [(0, self.size)];
        let segments = self.segments.as_deref().unwrap_or(&whole);
        let mut runs: Vec<Run> = Vec::new();
        let mut next = blob_offset;
        for (offset, length) in segments.iter().filter(|(_, length)| *length > 0) {
            let first = offset / BLOCK_BYTES * BLOCK_BYTES;
            let end = offset.saturating_add(*length).next_multiple_of(BLOCK_BYTES);
            match runs.last_mut() {
                Some(last) if first <= last.file_offset + last.length => {
                    let longer = (end - last.file_offset).max(last.length);
                    next += longer - last.length;
                    last.length = longer;
                }
                _ => {
                    runs.push(Run { file_offset: first, blob_offset: next, length: end - first });
                    next += end - first;
                }
            }
        }
        runs
    }

    /// Bytes in the blob: its runs together.
    pub fn blob_bytes(&self) -> u64 {
        match &self.segments {
            None => self.size.next_multiple_of(BLOCK_BYTES),
            Some(_) => self.runs(0).last().map_or(0, |run| run.blob_offset + run.length),
        }
    }
}

impl LayerTree {
    /// Where in the blob each content begins, and the size of the blob.
    pub fn blob_layout(&self) -> (Vec<u64>, u64) {
        let mut next = 0;
        let mut offsets = Vec::with_capacity(self.contents.len());
        for content in &self.contents {
            offsets.push(next);
            next += content.blob_bytes();
        }
        (offsets, next)
    }
}
