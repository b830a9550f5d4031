//! The superblock and the device table.

use super::ReadError;
use super::bytes::Bytes;
use crate::crc32c;
use crate::layout::{
    BLOCK_BITS, BLOCK_BYTES, DEVICE_BLOCKS, DEVICE_MAPPED_BLOCK, DEVICE_SLOT_BYTES, NULL_BLOCK, superblock as field,
};
use crate::limits::{DEVICES_MAX, IMAGE_BYTES_MAX, TAG_BYTES_MAX};
use crate::tree::{Device, Timestamp};

pub(super) struct Superblock {
    pub(super) root_nid: u64,
    pub(super) inodes: u64,
    pub(super) epoch: Timestamp,
    pub(super) blocks: u32,
    /// Byte from which references to shared attributes count.
    pub(super) xattr_origin: u64,
    pub(super) devices: Vec<Device>,
}

impl Superblock {
    pub(super) fn parse(image: &[u8]) -> Result<Superblock, ReadError> {
        let bytes = Bytes(image);
        let at = |offset: u64| field::OFFSET.saturating_add(offset);
        if bytes.u32(at(field::MAGIC))? != field::MAGIC_VALUE {
            return Err(ReadError::NotErofs);
        }
        if bytes.length() > IMAGE_BYTES_MAX {
            return Err(ReadError::Superblock { what: "the image is larger than any that is written" });
        }
        verify_checksum(bytes)?;
        if bytes.u32(at(field::FEATURE_COMPAT))? != field::COMPAT_CHECKSUM | field::COMPAT_MTIME {
            return Err(ReadError::Unsupported { what: "other compatible features than checksum and mtime" });
        }
        let incompat = bytes.u32(at(field::FEATURE_INCOMPAT))?;
        if incompat & !(field::INCOMPAT_CHUNKED_FILE | field::INCOMPAT_DEVICE_TABLE) != 0 {
            return Err(ReadError::Unsupported { what: "other features than chunked files and devices" });
        }
        if u32::from(bytes.u8(at(field::BLOCK_SIZE_BITS))?) != BLOCK_BITS {
            return Err(ReadError::Unsupported { what: "a block size other than 4096" });
        }
        let must_be_zero = [(field::EXTENSION_SLOTS, 1), (field::META_BLOCK, 4), (field::DIRECTORY_BLOCK_BITS, 1)];
        for (offset, length) in must_be_zero {
            if !bytes.zero(at(offset), length)? {
                return Err(ReadError::Unsupported { what: "superblock extensions" });
            }
        }
        let epoch = Timestamp {
            seconds: bytes.u64(at(field::EPOCH))?.cast_signed(),
            nanoseconds: bytes.u32(at(field::EPOCH_NANOSECONDS))?,
        };
        let blocks = bytes.u32(at(field::BLOCKS))?;
        if u64::from(blocks).checked_mul(BLOCK_BYTES) != Some(bytes.length()) {
            return Err(ReadError::Superblock { what: "the number of blocks differs from the length of the image" });
        }
        let devices =
            if incompat & field::INCOMPAT_DEVICE_TABLE == 0 { Vec::new() } else { device_table(bytes, blocks)? };
        Ok(Superblock {
            root_nid: u64::from(bytes.u16(at(field::ROOT_NID))?),
            inodes: bytes.u64(at(field::INODES))?,
            epoch,
            blocks,
            xattr_origin: u64::from(bytes.u32(at(field::XATTR_BLOCK))?).saturating_mul(BLOCK_BYTES),
            devices,
        })
    }
}

/// The checksum covers the first block from the superblock on, with its own four bytes zero.
fn verify_checksum(bytes: Bytes<'_>) -> Result<(), ReadError> {
    let stored = bytes.u32(field::OFFSET.saturating_add(field::CHECKSUM))?;
    let before = bytes.slice(field::OFFSET, field::CHECKSUM)?;
    let after_offset = field::OFFSET.saturating_add(field::CHECKSUM).saturating_add(4);
    let after = bytes.slice(after_offset, BLOCK_BYTES.saturating_sub(after_offset))?;
    let computed = crc32c::update(crc32c::update(crc32c::update(!0, before), &[0; 4]), after);
    if stored == computed { Ok(()) } else { Err(ReadError::Checksum { stored, computed }) }
}

fn device_table(bytes: Bytes<'_>, metadata_blocks: u32) -> Result<Vec<Device>, ReadError> {
    let wrong = |what| ReadError::Superblock { what };
    let count = bytes.u16(field::OFFSET.saturating_add(field::EXTRA_DEVICES))?;
    let first = u64::from(bytes.u16(field::OFFSET.saturating_add(field::DEVICE_TABLE_SLOT))?);
    if usize::from(count) > DEVICES_MAX {
        return Err(wrong("it has more devices than are ever written"));
    }
    let mut devices = Vec::with_capacity(usize::from(count));
    let mut next = u64::from(metadata_blocks);
    for index in 0..u64::from(count) {
        let slot = first.saturating_add(index).saturating_mul(DEVICE_SLOT_BYTES);
        let tag = bytes.slice(slot, TAG_BYTES_MAX as u64)?;
        let tag: Vec<u8> = tag.iter().copied().take_while(|&byte| byte != 0).collect();
        let blocks = bytes.u32(slot.saturating_add(DEVICE_BLOCKS))?;
        let mapped_block = bytes.u32(slot.saturating_add(DEVICE_MAPPED_BLOCK))?;
        if u64::from(mapped_block) != next {
            return Err(wrong("a device is not mapped right behind the one before it"));
        }
        next = next.saturating_add(u64::from(blocks));
        devices.push(Device { blocks, tag });
    }
    if next >= u64::from(NULL_BLOCK) { Err(wrong("the devices exceed the address space")) } else { Ok(devices) }
}
