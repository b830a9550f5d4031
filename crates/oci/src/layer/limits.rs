//! What one layer may ask for. A stream that asks for more is refused by name.

/// Entries in one layer. The largest published images have about a million files in all their layers.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// Bytes in the whole name of an entry or in the target of a link: Linux' `PATH_MAX` less its final NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Bytes in one component of a name: Linux' and EROFS' `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes in one PAX header or GNU long name. Go's archive/tar, which made most images, draws the same line.
pub const EXTENDED_HEADER_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all names and values of one entry's extended attributes: Linux' limit for a list of names is 64 KiB, and so is
/// its limit for one value; EROFS ends at 256 KiB an inode.
pub const XATTR_BYTES_MAX: usize = 128 << 10;
/// Bytes in the name of one extended attribute: Linux' `XATTR_NAME_MAX`.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Extended attributes of one entry.
pub const XATTRS_MAX: usize = 1024;
/// Data segments of one sparse file.
pub const SPARSE_SEGMENTS_MAX: usize = 1 << 16;
/// Bytes of the map in front of a sparse file's data: two numbers of up to 20 digits and their newlines a segment.
pub const SPARSE_MAP_BYTES_MAX: usize = SPARSE_SEGMENTS_MAX * 42 + 64;
/// Apparent size of one file: 16 TiB, what the largest common file systems hold with 4 KiB blocks.
pub const FILE_BYTES_MAX: u64 = 16 << 40;

const _: () = assert!(NAME_BYTES_MAX < PATH_BYTES_MAX);
const _: () = assert!(XATTR_NAME_BYTES_MAX < XATTR_BYTES_MAX);
