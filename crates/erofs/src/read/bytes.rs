//! Little-endian numbers out of an image, by offset, with every bound checked.

use super::ReadError;

#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn length(self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn slice(self, offset: u64, length: u64) -> Result<&'a [u8], ReadError> {
        let needed = offset.saturating_add(length);
        let truncated = ReadError::Truncated { length: self.length(), needed };
        match (usize::try_from(offset), usize::try_from(needed)) {
            (Ok(start), Ok(end)) => self.0.get(start..end).ok_or(truncated),
            _ => Err(truncated),
        }
    }

    fn array<const N: usize>(self, offset: u64) -> Result<[u8; N], ReadError> {
        let bytes = self.slice(offset, N as u64)?;
        // `slice` returned exactly N bytes.
        Ok(bytes.try_into().unwrap_or([0; N]))
    }

    pub(super) fn u8(self, offset: u64) -> Result<u8, ReadError> {
        self.array::<1>(offset).map(u8::from_le_bytes)
    }

    pub(super) fn u16(self, offset: u64) -> Result<u16, ReadError> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, offset: u64) -> Result<u32, ReadError> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub(super) fn u64(self, offset: u64) -> Result<u64, ReadError> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// All zero, as reserved bytes must be.
    pub(super) fn zero(self, offset: u64, length: u64) -> Result<bool, ReadError> {
        self.slice(offset, length).map(|bytes| bytes.iter().all(|&byte| byte == 0))
    }
}
