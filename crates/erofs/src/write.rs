//! The writer: a tree and its devices become the bytes of a metadata image.
//!
//! ```text
//! 0     1024         1152                                                             block boundary
//! | zero | superblock | device table | inodes, each with its attributes, | shared     | whole blocks of big   |
//! |      |            |              | chunk indexes or inline tail      | attributes | directories, symlinks |
//! ```
//!
//! Four passes: `walk` validates names and fixes the order, `file` maps extents, `place` gives every inode its offset,
//! `emit` fills the bytes. What keeps the image small: a file in one piece has one index entry of 8 bytes; inodes whose
//! time is the commonest one and whose ids are small take 32 bytes instead of 64; directories and symlinks end inside
//! their inode; gaps that inline data leaves before a block boundary are filled with later inodes; attributes that
//! repeat are stored once.

mod directory;
mod emit;
mod file;
mod place;
mod walk;
mod xattrs;

use crate::layout::{DEVICE_SLOT_BYTES, DEVICE_TABLE_OFFSET, NULL_BLOCK};
use crate::limits::{DEVICES_MAX, IMAGE_BYTES_MAX, TAG_BYTES_MAX};
use crate::tree::{Device, Tree};

pub use xattrs::xattr_name_is_storable;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WriteError {
    #[error("cannot store {path} in an image")]
    Inode {
        /// From the root, with bytes that are not UTF-8 replaced.
        path: String,
        #[source]
        fault: Fault,
    },
    #[error("the root of the tree is not a directory")]
    RootNotDirectory,
    #[error("{count} devices are more than the {DEVICES_MAX} that an image can have")]
    TooManyDevices { count: usize },
    #[error("the tag of device {device} is longer than {TAG_BYTES_MAX} bytes or contains a NUL")]
    DeviceTag { device: usize },
    #[error("the metadata and its devices span more than the 2^32 blocks that an image can address")]
    AddressSpace,
    #[error("the metadata would be larger than {IMAGE_BYTES_MAX} bytes")]
    TooLarge,
}

/// What is wrong with one inode.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Fault {
    #[error("the name is empty, longer than 255 bytes, `.`, `..`, or contains `/` or NUL")]
    Name,
    #[error("the directory has two entries of this name")]
    DuplicateName,
    #[error("the entry names an inode that does not exist")]
    Dangling,
    #[error("the directory has a second entry naming it")]
    DirectoryLinkedTwice,
    #[error("it has more links than fit in 32 bits")]
    TooManyLinks,
    #[error("the mode has bits outside 7777")]
    Mode,
    #[error("the nanoseconds of its time are not below a second")]
    Time,
    #[error("the symlink's target is empty, longer than 4095 bytes, or contains NUL")]
    Target,
    #[error("the device number has a major above 4095 or a minor above 1048575")]
    DeviceNumber,
    #[error("the file is larger than a signed 64-bit number of bytes")]
    FileSize,
    #[error("an extent is not aligned to 4096 bytes")]
    ExtentAlignment,
    #[error("the extents overlap, are out of order or empty, or exceed the file")]
    ExtentOrder,
    #[error("an extent lies outside its device")]
    ExtentDevice,
    #[error("an extended attribute's name is too long or of a kind that EROFS cannot hold")]
    XattrName,
    #[error("an extended attribute occurs twice")]
    XattrDuplicate,
    #[error("an extended attribute's value is longer than 65535 bytes")]
    XattrValue,
    #[error("the extended attributes together are too large")]
    XattrTotal,
}

/// Writes `tree` as a metadata image whose files lie on `devices`.
///
/// The length of the result is a multiple of 4096. An inode's number in the image has nothing to do with its
/// [`InodeId`](crate::InodeId).
///
/// # Errors
///
/// Names the first inode that the format or the kernel could not hold; nothing is truncated or left out in silence.
pub fn write(tree: &Tree, devices: &[Device]) -> Result<Vec<u8>, WriteError> {
    check_devices(devices)?;
    let walk = walk::Walk::of(tree)?;
    let shared = xattrs::Shared::choose(tree, &walk);
    let epoch = place::commonest_time(tree, &walk);
    let inodes_offset = DEVICE_TABLE_OFFSET + devices.len() as u64 * DEVICE_SLOT_BYTES;
    let plan = place::Plan::make(tree, devices, &walk, &shared, epoch, inodes_offset)?;
    let mapped = map_devices(devices, plan.blocks)?;
    Ok(emit::Emission { tree, devices, walk: &walk, shared: &shared, plan: &plan, mapped: &mapped }.bytes())
}

/// Makes the checksum of changed bytes right again, so that fuzzing and tests get past it.
#[doc(hidden)]
pub fn reseal(image: &mut [u8]) {
    emit::reseal(image);
}

fn check_devices(devices: &[Device]) -> Result<(), WriteError> {
    if devices.len() > DEVICES_MAX {
        return Err(WriteError::TooManyDevices { count: devices.len() });
    }
    match devices.iter().position(|device| device.tag.len() > TAG_BYTES_MAX || device.tag.contains(&0)) {
        Some(index) => Err(WriteError::DeviceTag { device: index + 1 }),
        None => Ok(()),
    }
}

/// Where each device begins in the unified address space, which starts with the metadata image itself.
fn map_devices(devices: &[Device], metadata_blocks: u32) -> Result<Vec<u32>, WriteError> {
    let mut next = u64::from(metadata_blocks);
    let mut mapped = Vec::with_capacity(devices.len());
    for device in devices {
        mapped.push(u32::try_from(next).map_err(|_overflow| WriteError::AddressSpace)?);
        next += u64::from(device.blocks);
    }
    if next >= u64::from(NULL_BLOCK) { Err(WriteError::AddressSpace) } else { Ok(mapped) }
}
