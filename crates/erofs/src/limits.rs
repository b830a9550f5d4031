//! Every bound of this crate, with its reason.

/// Longest name of a directory entry (`EROFS_NAME_LEN`).
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symlink: the kernel reads it into one page and ends it with a NUL.
pub const SYMLINK_BYTES_MAX: usize = 4095;

/// Longest full name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Longest value of an extended attribute: one byte less than the kernel's `XATTR_SIZE_MAX`, because the format
/// stores the length in 16 bits.
pub const XATTR_VALUE_BYTES_MAX: usize = 65535;

/// Largest `i_xattr_icount`, which counts the attribute area of one inode in words of four bytes.
pub const XATTR_WORDS_MAX: u64 = 65535;

/// Attributes of one inode that can be kept in the shared area (`h_shared_count` is one byte).
pub const XATTR_SHARED_MAX: usize = 255;

/// Longest tag of a device.
pub const TAG_BYTES_MAX: usize = 64;

/// Most devices of one image. Far above any image's layers, and low enough that the root inode, which stands behind
/// the device table, keeps a number of 16 bits.
pub const DEVICES_MAX: usize = 4096;
const _: () = assert!(
    (crate::layout::DEVICE_TABLE_OFFSET + (DEVICES_MAX as u64) * crate::layout::DEVICE_SLOT_BYTES)
        / crate::layout::NID_BYTES
        < 65536
);

/// Largest file: `i_size` is a signed 64-bit number in the kernel.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Largest metadata image: ten million files. It stops a hostile sparse file from asking for an index of petabytes.
pub const IMAGE_BYTES_MAX: u64 = 1 << 30;
const _: () = assert!(IMAGE_BYTES_MAX / crate::layout::NID_BYTES < u32::MAX as u64);

/// Most bytes of symlink targets and attributes that reading one image may unfold. Attributes are shared on disk, so a
/// small hostile image could otherwise name a large value without end.
pub const EXPANDED_BYTES_MAX: u64 = 1 << 30;

/// Largest device number the format holds: 12 bits of major and 20 bits of minor.
pub const DEVICE_MAJOR_MAX: u32 = (1 << 12) - 1;
/// See [`DEVICE_MAJOR_MAX`].
pub const DEVICE_MINOR_MAX: u32 = (1 << 20) - 1;
