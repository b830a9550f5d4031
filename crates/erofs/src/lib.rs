//! EROFS metadata images, written and read over bytes; no I/O.
//!
//! An image of Sampan is one small *metadata image* (names, modes, owners, times, attributes, and where the bytes of
//! each file are) and one data blob per layer, which the image's device table calls its devices. The kernel's EROFS
//! mounts the metadata image with the blobs as `device=`. [`write()`] turns a [`Tree`] into such an image, [`read`] turns
//! one back into a [`Tree`] and believes nothing it has not checked.
//!
//! Invariants:
//! - The same tree and devices always give the same bytes: the order of inodes follows the names, the UUID the content.
//! - No file content is ever inside the metadata image; directories, symlinks and attributes always are.
//! - [`read`] never panics, and allocates in proportion to the image, whatever the bytes are.
//! - What is written needs nothing newer than Linux 5.16: 4 KiB blocks, no long attribute prefixes, no 48-bit addresses.
//!
//! The on-disk format is that of the kernel's `fs/erofs/erofs_fs.h`; the module `layout` names its fields.

pub mod limits;

mod crc32c;
mod layout;
mod tree;

mod read;
mod write;

pub use read::{Contents, ReadError, read};
pub use tree::{Device, DirEntry, Extent, Inode, InodeId, Kind, Timestamp, Tree, Xattr};
#[doc(hidden)]
pub use write::reseal;
pub use write::{Fault, WriteError, write, xattr_name_is_storable};
