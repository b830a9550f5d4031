//! The reader: bytes that may be anything become a tree, or an error that says what is wrong and where.
//!
//! It reads the images that [`write()`](crate::write()) makes and checks more than the kernel does: names in order, `.` and
//! `..` right, one entry for each directory, link counts true, every block on its device. It accepts nothing it does not
//! understand. Nothing here panics: slices and sums are checked, and lints keep it so.
//!
//! Memory: directories, chunk indexes and inodes are in proportion to the image. What may be shared on disk (attributes,
//! symlinks' blocks) counts against [`EXPANDED_BYTES_MAX`](crate::limits::EXPANDED_BYTES_MAX).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::expect_used)]

mod bytes;
mod directory;
mod file;
mod inode;
mod superblock;
mod traverse;
mod xattrs;

use crate::tree::{Device, Tree};

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub tree: Tree,
    pub devices: Vec<Device>,
}

/// Why bytes are not an image that this crate can read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    #[error("the image has {length} bytes where {needed} are needed at least")]
    Truncated { length: u64, needed: u64 },
    #[error("the image does not begin with an EROFS superblock")]
    NotErofs,
    #[error("the superblock's checksum is {stored:08x}, but its bytes give {computed:08x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("the image uses {what}, which this reader does not know")]
    Unsupported { what: &'static str },
    #[error("the superblock is wrong: {what}")]
    Superblock { what: &'static str },
    #[error("inode {nid} is wrong: {what}")]
    Inode { nid: u64, what: &'static str },
    #[error("the image unfolds to more than {max} bytes of attributes and symlinks")]
    Expanded { max: u64 },
}

/// Reads a whole metadata image and checks all of it.
///
/// Inode ids of the result follow the order of discovery from the root, which is 0.
///
/// # Errors
///
/// Names the first thing that is wrong; any bytes at all give either a tree or an error.
pub fn read(image: &[u8]) -> Result<Contents, ReadError> {
    let superblock = superblock::Superblock::parse(image)?;
    let tree = traverse::Traversal::of(image, &superblock)?;
    Ok(Contents { tree, devices: superblock.devices })
}
