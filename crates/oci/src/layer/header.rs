//! The 512-byte header block: fields, numbers and checksum of every dialect.

use super::entry::Segment;
use super::error::LayerError;

pub(super) const BLOCK_BYTES: usize = 512;

/// One header block whose checksum holds.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK_BYTES],
    offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// `None` for a block of zeros, which ends an archive. `offset` is where the block stands in the stream.
    pub(super) fn parse(block: &'a [u8; BLOCK_BYTES], offset: u64) -> Result<Option<Self>, LayerError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Self { block, offset };
        let stored = header.number("checksum", 148, 8)?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned = unsigned.wrapping_add(i64::from(byte));
            signed = signed.wrapping_add(i64::from(byte.cast_signed()));
        }
        if stored != unsigned && stored != signed {
            return Err(LayerError::Checksum { offset });
        }
        Ok(Some(header))
    }

    fn dialect(&self) -> Dialect {
        match self.bytes(257, 8) {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar") && self.bytes(508, 4) == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix: &[u8] = match self.dialect() {
            Dialect::Ustar => self.text(345, 155),
            Dialect::Star => self.text(345, 131),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link_target(&self) -> &'a [u8] {
        self.text(157, 100)
    }

    pub(super) fn kind(&self) -> u8 {
        self.bytes(156, 1).first().copied().unwrap_or(0)
    }

    pub(super) fn mode(&self) -> Result<u16, LayerError> {
        let mode = self.number("mode", 100, 8)?;
        // The type that some writers leave in the mode is said by the type flag.
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<i64, LayerError> {
        self.number("owner", 108, 8)
    }

    pub(super) fn gid(&self) -> Result<i64, LayerError> {
        self.number("group", 116, 8)
    }

    pub(super) fn size(&self) -> Result<u64, LayerError> {
        u64::try_from(self.number("size", 124, 12)?)
            .ok()
            .ok_or(LayerError::Number { offset: self.offset, field: "size" })
    }

    pub(super) fn mtime(&self) -> Result<i64, LayerError> {
        self.number("time", 136, 12)
    }

    pub(super) fn device(&self) -> Result<(u32, u32), LayerError> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        let (major, minor) = (self.number("device number", 329, 8)?, self.number("device number", 337, 8)?);
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) => Ok((major, minor)),
            _ => Err(LayerError::Number { offset: self.offset, field: "device number" }),
        }
    }

    /// The old GNU sparse header: the four segments that stand here, whether more follow, and the file's real size.
    pub(super) fn gnu_sparse(&self) -> Result<(Vec<Segment>, bool, u64), LayerError> {
        let segments = segments_at(self.block, 386, 4, self.offset)?;
        let extended = self.bytes(482, 1) != [0];
        let size = u64::try_from(self.number("real size", 483, 12)?)
            .ok()
            .ok_or(LayerError::Number { offset: self.offset, field: "real size" })?;
        Ok((segments, extended, size))
    }

    fn number(&self, field: &'static str, start: usize, length: usize) -> Result<i64, LayerError> {
        number(self.bytes(start, length)).ok_or(LayerError::Number { offset: self.offset, field })
    }

    fn bytes(&self, start: usize, length: usize) -> &'a [u8] {
        self.block.get(start..).and_then(|rest| rest.get(..length)).unwrap_or(&[])
    }

    fn text(&self, start: usize, length: usize) -> &'a [u8] {
        until_nul(self.bytes(start, length))
    }
}

/// A block that continues an old GNU sparse header: 21 segments, and whether yet another block follows.
pub(super) fn gnu_sparse_continuation(
    block: &[u8; BLOCK_BYTES],
    offset: u64,
) -> Result<(Vec<Segment>, bool), LayerError> {
    let segments = segments_at(block, 0, 21, offset)?;
    Ok((segments, block.get(504).is_some_and(|byte| *byte != 0)))
}

fn segments_at(block: &[u8], start: usize, count: usize, offset: u64) -> Result<Vec<Segment>, LayerError> {
    let mut segments = Vec::new();
    for pair in block.get(start..).unwrap_or(&[]).chunks_exact(24).take(count) {
        let (first, second) = pair.split_at(12);
        if first.first() == Some(&0) {
            break;
        }
        let parsed = number(first).zip(number(second));
        let parsed = parsed.and_then(|(at, length)| Some((u64::try_from(at).ok()?, u64::try_from(length).ok()?)));
        let Some((at, length)) = parsed else { return Err(LayerError::Number { offset, field: "sparse map" }) };
        segments.push(Segment { offset: at, length });
    }
    Ok(segments)
}

/// Octal digits between spaces and NULs, or GNU's base-256: a first bit of one, then two's complement, high byte first.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The first bit is the mark; the second is the sign.
        let mut value = if first & 0x40 != 0 { -1i64 } else { 0 };
        value = (value << 6) | i64::from(first & 0x3f);
        for byte in rest {
            let shifted = value.checked_mul(256)?;
            value = shifted | i64::from(*byte);
        }
        return Some(value);
    }
    let digits = until_nul(field).trim_ascii();
    let mut value = 0i64;
    for digit in digits {
        let digit = (b'0'..=b'7').contains(digit).then(|| i64::from(digit.wrapping_sub(b'0')))?;
        value = value.checked_mul(8)?.checked_add(digit)?;
    }
    Some(value)
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_of_every_dialect() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x05"), Some(5));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), None, "beyond 63 bits");
        assert_eq!(number(b"00009\0"), None);
    }
}
