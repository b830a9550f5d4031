//! The header of a gzip member (RFC 1952, 2.3), a byte at a time. Its contents (name, comment, time) are of no interest
//! here; that it is well-formed is.

use crate::inflate::{Corruption, InflateError, Input};

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// What a call of [`HeaderParser::advance`] achieved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    NeedsInput,
    /// These bytes begin no member.
    NotAMember,
    Done,
}

/// Parses one header.
#[derive(Debug)]
pub(super) struct HeaderParser {
    field: Field,
    flags: u8,
    checksum: crc32fast::Hasher,
}

#[derive(Debug, Clone, Copy)]
enum Field {
    /// The ten fixed bytes, of which so many are read.
    Fixed(usize),
    ExtraLength(usize, u16),
    Extra(u16),
    Name,
    Comment,
    Checksum(usize, u16),
}

impl HeaderParser {
    pub(super) fn new() -> Self {
        Self { field: Field::Fixed(0), flags: 0, checksum: crc32fast::Hasher::new() }
    }

    /// Whether enough was seen to know that this is a member's header.
    pub(super) fn is_certain(&self) -> bool {
        !matches!(self.field, Field::Fixed(read) if read < 2)
    }

    /// Reads on. `later` says that another member came before, so that foreign bytes are no error.
    pub(super) fn advance(&mut self, input: &mut Input<'_>, later: bool) -> Result<Step, InflateError> {
        loop {
            let Some(next) = self.skip_absent() else { return Ok(Step::Done) };
            self.field = next;
            // The header's checksum covers all before itself.
            let covered = !matches!(next, Field::Checksum(..));
            let Some(byte) = input.take(8) else { return Ok(Step::NeedsInput) };
            let byte = byte as u8;
            if covered {
                self.checksum.update(&[byte]);
            }
            self.field = match next {
                Field::Fixed(n @ 0..3) if byte != MAGIC[n] => {
                    return if later { Ok(Step::NotAMember) } else { Err(InflateError::NotGzip) };
                }
                Field::Fixed(n) => {
                    if n == 3 {
                        self.flags = byte;
                        if byte & RESERVED != 0 {
                            return Err(corrupt(input, Corruption::HeaderFlags));
                        }
                    }
                    Field::Fixed(n + 1)
                }
                Field::ExtraLength(0, _) => Field::ExtraLength(1, u16::from(byte)),
                Field::ExtraLength(_, low) => Field::Extra(low | u16::from(byte) << 8),
                Field::Extra(left) => Field::Extra(left - 1),
                Field::Name if byte == 0 => Field::Comment,
                Field::Comment if byte == 0 => Field::Checksum(0, 0),
                Field::Name => Field::Name,
                Field::Comment => Field::Comment,
                Field::Checksum(0, _) => Field::Checksum(1, u16::from(byte)),
                Field::Checksum(_, low) => {
                    let expected = low | u16::from(byte) << 8;
                    if self.checksum.clone().finalize() as u16 != expected {
                        return Err(corrupt(input, Corruption::HeaderChecksum));
                    }
                    return Ok(Step::Done);
                }
            };
        }
    }

    /// The field that the next byte belongs to; `None` when the header is over.
    fn skip_absent(&self) -> Option<Field> {
        let mut field = self.field;
        loop {
            field = match field {
                Field::Fixed(10) => Field::ExtraLength(0, 0),
                Field::ExtraLength(0, _) if self.flags & FEXTRA == 0 => Field::Name,
                Field::Extra(0) => Field::Name,
                Field::Name if self.flags & FNAME == 0 => Field::Comment,
                Field::Comment if self.flags & FCOMMENT == 0 => Field::Checksum(0, 0),
                Field::Checksum(0, _) if self.flags & FHCRC == 0 => return None,
                other => return Some(other),
            };
        }
    }
}

fn corrupt(input: &Input<'_>, what: Corruption) -> InflateError {
    InflateError::Corrupt { at: input.offset(), what }
}
