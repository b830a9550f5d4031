//! Offsets, sizes and flags of the on-disk format, as `fs/erofs/erofs_fs.h` of the kernel defines them.

pub(crate) const BLOCK_BITS: u32 = 12;
pub(crate) const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;

/// Inode numbers count slots of this size from the start of the image (`meta_blkaddr` is 0).
pub(crate) const NID_BYTES: u64 = 32;

/// Offsets within the superblock, which stands at byte 1024 and is 128 bytes long.
pub(crate) mod superblock {
    pub(crate) const OFFSET: u64 = 1024;
    pub(crate) const BYTES: u64 = 128;
    pub(crate) const MAGIC_VALUE: u32 = 0xE0F5_E1E2;

    pub(crate) const MAGIC: u64 = 0;
    pub(crate) const CHECKSUM: u64 = 4;
    pub(crate) const FEATURE_COMPAT: u64 = 8;
    pub(crate) const BLOCK_SIZE_BITS: u64 = 12;
    pub(crate) const EXTENSION_SLOTS: u64 = 13;
    pub(crate) const ROOT_NID: u64 = 14;
    pub(crate) const INODES: u64 = 16;
    pub(crate) const EPOCH: u64 = 24;
    pub(crate) const EPOCH_NANOSECONDS: u64 = 32;
    pub(crate) const BLOCKS: u64 = 36;
    pub(crate) const META_BLOCK: u64 = 40;
    pub(crate) const XATTR_BLOCK: u64 = 44;
    pub(crate) const UUID: u64 = 48;
    pub(crate) const FEATURE_INCOMPAT: u64 = 80;
    pub(crate) const EXTRA_DEVICES: u64 = 86;
    pub(crate) const DEVICE_TABLE_SLOT: u64 = 88;
    pub(crate) const DIRECTORY_BLOCK_BITS: u64 = 90;

    pub(crate) const COMPAT_CHECKSUM: u32 = 1;
    pub(crate) const COMPAT_MTIME: u32 = 2;
    pub(crate) const INCOMPAT_CHUNKED_FILE: u32 = 4;
    pub(crate) const INCOMPAT_DEVICE_TABLE: u32 = 8;
}

/// The device table follows the superblock; slots are numbered from the start of the image.
pub(crate) const DEVICE_SLOT_BYTES: u64 = 128;
pub(crate) const DEVICE_TABLE_OFFSET: u64 = superblock::OFFSET + superblock::BYTES;
const _: () = assert!(DEVICE_TABLE_OFFSET.is_multiple_of(DEVICE_SLOT_BYTES));
/// Offsets within a slot of the device table; the tag comes first.
pub(crate) const DEVICE_BLOCKS: u64 = 64;
pub(crate) const DEVICE_MAPPED_BLOCK: u64 = 68;

/// Offsets within an inode. The first sixteen bytes of `compact` and `extended` inodes begin alike.
pub(crate) mod inode {
    pub(crate) const COMPACT_BYTES: u64 = 32;
    pub(crate) const EXTENDED_BYTES: u64 = 64;

    pub(crate) const FORMAT: u64 = 0;
    pub(crate) const XATTR_COUNT: u64 = 2;
    pub(crate) const MODE: u64 = 4;
    pub(crate) const COMPACT_LINKS: u64 = 6;
    pub(crate) const SIZE: u64 = 8;
    /// Reserved up to Linux 6.14, seconds after the epoch from 6.15: zero means the same to both.
    pub(crate) const COMPACT_MTIME: u64 = 12;
    /// Block address, device number or chunk format.
    pub(crate) const UNION: u64 = 16;
    pub(crate) const NUMBER: u64 = 20;
    pub(crate) const COMPACT_UID: u64 = 24;
    pub(crate) const COMPACT_GID: u64 = 26;
    pub(crate) const EXTENDED_UID: u64 = 24;
    pub(crate) const EXTENDED_GID: u64 = 28;
    pub(crate) const EXTENDED_MTIME: u64 = 32;
    pub(crate) const EXTENDED_MTIME_NANOSECONDS: u64 = 40;
    pub(crate) const EXTENDED_LINKS: u64 = 44;

    /// Bit 0 of the format tells extended from compact, bits 1 to 3 are the data layout, the others must be zero.
    pub(crate) const FORMAT_EXTENDED: u16 = 1;
    pub(crate) const FORMAT_LAYOUT_SHIFT: u16 = 1;
    pub(crate) const LAYOUT_FLAT_PLAIN: u16 = 0;
    pub(crate) const LAYOUT_FLAT_INLINE: u16 = 2;
    pub(crate) const LAYOUT_CHUNKED: u16 = 4;
}

/// Chunk format: the low five bits are the chunk size as a power of two in blocks.
pub(crate) const CHUNK_BITS_MAX: u32 = 31;
pub(crate) const CHUNK_FORMAT_INDEXES: u32 = 0x20;
/// A chunk index: reserved (2 bytes), device (2), block on that device (4).
pub(crate) const CHUNK_INDEX_BYTES: u64 = 8;
/// The block address of a hole, or of nothing.
pub(crate) const NULL_BLOCK: u32 = u32::MAX;

/// A directory entry: nid (8 bytes), offset of the name in its block (2), file type (1), reserved (1).
pub(crate) const DIRENT_BYTES: u64 = 12;

/// Attributes: the header of an inode's area (filter, shared count, reserved), and that of one entry.
pub(crate) const XATTR_HEADER_BYTES: u64 = 12;
pub(crate) const XATTR_SHARED_COUNT: u64 = 4;
pub(crate) const XATTR_ENTRY_BYTES: u64 = 4;

/// Attribute name prefixes by their index on disk. The two access control lists are whole names.
pub(crate) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Whether the name of a prefix is complete without a suffix.
pub(crate) fn xattr_prefix_is_whole(index: u8) -> bool {
    matches!(index, 2 | 3)
}

/// The `FT_*` value that directory entries carry for a type in `S_IFMT` bits.
pub(crate) fn file_type(type_bits: u16) -> u8 {
    match type_bits {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}
