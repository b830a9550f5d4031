//! Tar headers, written and read: POSIX ustar with PAX extensions, and GNU's long names when reading.
//!
//! Pure. Reading is of foreign bytes: every field is checked, nothing is allocated by what a header claims. Formats: POSIX.1
//! `pax`, and GNU tar's manual, "Basic Tar Format".

use std::str;

/// Everything in an archive comes in blocks of this size.
pub(crate) const BLOCK: usize = 512;

/// One header block.
pub(crate) type Block = [u8; BLOCK];

/// What an entry is; content follows only a file's header and an extension's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// PAX records for the next entry.
    Extension,
    /// PAX records for all that follow; ignored.
    GlobalExtension,
    /// GNU: the next entry's name.
    LongName,
    /// GNU: the next entry's link target.
    LongLink,
}

/// One entry, its extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    pub(crate) device: (u32, u32),
}

/// Why a header makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TarError {
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("a number in a header makes no sense")]
    Number,
    #[error("an entry is of an unknown type")]
    Type,
    #[error("an extended header makes no sense")]
    Extension,
}

// Offset and length of the fields.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const UID: (usize, usize) = (108, 8);
const GID: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const MODIFIED: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const TYPE: (usize, usize) = (156, 1);
const LINK: (usize, usize) = (157, 100);
const MAGIC: (usize, usize) = (257, 8);
const MAJOR: (usize, usize) = (329, 8);
const MINOR: (usize, usize) = (337, 8);
const PREFIX: (usize, usize) = (345, 155);

const TYPES: [(u8, Kind); 12] = [
    (b'0', Kind::File),
    (0, Kind::File),
    (b'1', Kind::HardLink),
    (b'2', Kind::SymbolicLink),
    (b'3', Kind::CharacterDevice),
    (b'4', Kind::BlockDevice),
    (b'5', Kind::Directory),
    (b'6', Kind::Fifo),
    (b'x', Kind::Extension),
    (b'g', Kind::GlobalExtension),
    (b'L', Kind::LongName),
    (b'K', Kind::LongLink),
];

/// The largest number that a field of eight, and of twelve, octal places holds.
const OCTAL_8_MAX: u64 = 0o777_7777;
const OCTAL_12_MAX: u64 = 0o777_7777_7777;

impl Entry {
    /// The blocks that announce this entry, extensions included; its content is the caller's to write.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut record = |key: &str, value: &[u8]| push_record(&mut records, key, value);
        if self.name.len() > NAME.1 {
            record("path", &self.name);
        }
        if self.link.len() > LINK.1 {
            record("linkpath", &self.link);
        }
        for (key, value, most) in
            [("size", self.size, OCTAL_12_MAX), ("uid", self.uid, OCTAL_8_MAX), ("gid", self.gid, OCTAL_8_MAX)]
        {
            if value > most {
                record(key, value.to_string().as_bytes());
            }
        }
        if !(0..=OCTAL_12_MAX.cast_signed()).contains(&self.modified) {
            record("mtime", self.modified.to_string().as_bytes());
        }
        let mut out = Vec::new();
        if !records.is_empty() {
            let size = u64::try_from(records.len()).unwrap_or_default();
            let extension =
                Entry { kind: Kind::Extension, name: b"pax".to_vec(), link: Vec::new(), size, ..self.clone() };
            out.extend(extension.block());
            out.extend(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend(self.block());
        out
    }

    fn block(&self) -> Block {
        let mut block = [0_u8; BLOCK];
        let mut put = |field, bytes: &[u8]| write_field(&mut block, field, bytes);
        let octal = |value: u64, most: u64| if value > most { 0 } else { value };
        put(NAME, &self.name);
        put(LINK, &self.link);
        put(MODE, format!("{:07o}", self.mode & 0o7777).as_bytes());
        put(UID, format!("{:07o}", octal(self.uid, OCTAL_8_MAX)).as_bytes());
        put(GID, format!("{:07o}", octal(self.gid, OCTAL_8_MAX)).as_bytes());
        put(SIZE, format!("{:011o}", octal(self.size, OCTAL_12_MAX)).as_bytes());
        put(
            MODIFIED,
            format!("{:011o}", octal(u64::try_from(self.modified).unwrap_or_default(), OCTAL_12_MAX)).as_bytes(),
        );
        put(TYPE, &[TYPES.iter().find(|(_, kind)| *kind == self.kind).map_or(b'0', |(byte, _)| *byte)]);
        put(MAGIC, b"ustar\x0000");
        put(MAJOR, format!("{:07o}", self.device.0).as_bytes());
        put(MINOR, format!("{:07o}", self.device.1).as_bytes());
        let sum = checksum(&block);
        write_field(&mut block, CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// Reads a header; `None` is the end of the archive.
    pub(crate) fn decode(block: &Block) -> Result<Option<Self>, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if number(field(block, CHECKSUM))? != u64::from(checksum(block)) {
            return Err(TarError::Checksum);
        }
        let byte = field(block, TYPE).first().copied().unwrap_or_default();
        let kind = TYPES.iter().find(|(known, _)| *known == byte).map(|(_, kind)| *kind).ok_or(TarError::Type)?;
        let mut name = text(field(block, NAME)).to_vec();
        let prefix = text(field(block, PREFIX));
        if field(block, MAGIC).starts_with(b"ustar\0") && !prefix.is_empty() {
            name = [prefix, &name].join(&b'/');
        }
        let small = |value: u64| u32::try_from(value).map_err(|_too_large| TarError::Number);
        Ok(Some(Self {
            kind,
            name,
            link: text(field(block, LINK)).to_vec(),
            mode: small(number(field(block, MODE))? & 0o7777)?,
            uid: number(field(block, UID))?,
            gid: number(field(block, GID))?,
            size: number(field(block, SIZE))?,
            modified: number(field(block, MODIFIED))?.cast_signed(),
            device: (small(number(field(block, MAJOR))?)?, small(number(field(block, MINOR))?)?),
        }))
    }

    /// Applies PAX records to the entry that they announce.
    pub(crate) fn extend(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let (key, value, rest) = take_record(records).ok_or(TarError::Extension)?;
            records = rest;
            match key {
                b"path" => self.name = value.to_vec(),
                b"linkpath" => self.link = value.to_vec(),
                b"size" => self.size = decimal(value)?,
                b"uid" => self.uid = decimal(value)?,
                b"gid" => self.gid = decimal(value)?,
                b"mtime" => {
                    let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                    self.modified = decimal(whole)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn push_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let mut length = rest.saturating_add(1);
    while length != rest.saturating_add(length.to_string().len()) {
        length = rest.saturating_add(length.to_string().len());
    }
    out.extend(format!("{length} {key}=").as_bytes());
    out.extend(value);
    out.push(b'\n');
}

fn take_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let record = records.get(space.checked_add(1)?..length.checked_sub(1)?)?;
    if records.get(length.checked_sub(1)?) != Some(&b'\n') {
        return None;
    }
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals.checked_add(1)?..)?, records.get(length..)?))
}

fn decimal<T: str::FromStr>(bytes: &[u8]) -> Result<T, TarError> {
    str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or(TarError::Number)
}

fn field(block: &Block, (offset, length): (usize, usize)) -> &[u8] {
    block.get(offset..offset.saturating_add(length)).unwrap_or_default()
}

/// Writes as much as the field holds.
fn write_field(block: &mut Block, (offset, length): (usize, usize), bytes: &[u8]) {
    for (place, byte) in block.iter_mut().skip(offset).take(length).zip(bytes) {
        *place = *byte;
    }
}

/// Up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's base 256, marked by the highest bit.
fn number(field: &[u8]) -> Result<u64, TarError> {
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let mut value = u64::from(first & 0x7f);
        for byte in rest {
            value = value.checked_mul(256).ok_or(TarError::Number)? | u64::from(*byte);
        }
        return Ok(value);
    }
    let mut value = 0_u64;
    let is_padding = |byte: u8| byte == b' ' || byte == 0;
    let digits = field.iter().skip_while(|byte| is_padding(**byte)).take_while(|byte| !is_padding(**byte));
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8).ok_or(TarError::Number)?;
        value = value.checked_mul(8).ok_or(TarError::Number)? | u64::from(digit);
    }
    Ok(value)
}

/// The sum of all bytes, those of the checksum itself taken as spaces.
fn checksum(block: &Block) -> u32 {
    let in_field = |place: usize| place >= CHECKSUM.0 && place < CHECKSUM.0.saturating_add(CHECKSUM.1);
    block.iter().enumerate().map(|(place, byte)| u32::from(if in_field(place) { b' ' } else { *byte })).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(bytes: &[u8]) -> Result<Entry, TarError> {
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        let first = Entry::decode(&blocks[0])?.unwrap();
        if first.kind != Kind::Extension {
            return Ok(first);
        }
        let records = &bytes[BLOCK..BLOCK + usize::try_from(first.size).unwrap()];
        let mut entry = Entry::decode(blocks.last().unwrap())?.unwrap();
        entry.extend(records)?;
        Ok(entry)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in prop::collection::vec(1..=255_u8, 1..300),
            link in prop::collection::vec(1..=255_u8, 0..300),
            mode in 0..0o10000_u32, uid in any::<u32>(), gid in any::<u32>(), size in any::<u64>(), modified in any::<i64>(),
            device in (0..0xfff_u32, 0..0xfffff_u32),
        ) {
            let (uid, gid) = (u64::from(uid), u64::from(gid));
            let entry = Entry { kind: Kind::File, name, link, mode, uid, gid, size, modified, device };
            prop_assert_eq!(decode_all(&entry.encode()), Ok(entry));
        }

        #[test]
        fn any_block_is_survived(bytes in prop::collection::vec(any::<u8>(), BLOCK..=BLOCK), records in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut block: Block = bytes.try_into().unwrap();
            drop(Entry::decode(&block));
            let sum = format!("{:06o}\0 ", checksum(&block));
            block[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].copy_from_slice(sum.as_bytes());
            if let Ok(Some(mut entry)) = Entry::decode(&block) {
                entry.extend(&records).ok();
            }
        }
    }

    #[test]
    fn bad_headers_are_refused() {
        let entry = Entry {
            kind: Kind::File,
            name: b"x".to_vec(),
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            modified: 0,
            device: (0, 0),
        };
        let mut block: Block = entry.encode().try_into().unwrap();
        block[0] = b'y';
        assert_eq!(Entry::decode(&block), Err(TarError::Checksum));
        let mut entry = entry;
        assert_eq!(entry.extend(b"99999999999999999999 path=x\n"), Err(TarError::Extension));
        assert_eq!(entry.extend(b"0 path=x\n"), Err(TarError::Extension));
    }
}
