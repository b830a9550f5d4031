//! Where a table of contents stands, and its way out of tar, gzip and zstd.

use super::TocError;
use crate::limits::TOC_BYTES_MAX;
use sampan_oci::gzip::{DecoderState, GzipDecoder};
use sampan_oci::inflate::OutputBuffer;
use sampan_oci::layer::{Entry, EntryKind, LayerReader, LayerSink};
use std::io::Read;
use std::ops::Range;

/// An empty gzip member whose extra field says where the table begins.
const FOOTER_BYTES: u64 = 51;
/// Magic, DEFLATE, the flag of an extra field; time, level and system may be anything.
const FOOTER_BEGIN: [u8; 4] = [0x1f, 0x8b, 8, 4];
/// Length of the extra field (26), its name, length of the subfield (22).
const FOOTER_FIELD: [u8; 6] = [26, 0, b'S', b'G', 22, 0];
const TOC_NAME: &[u8] = b"stargz.index.json";
const INFLATE_BYTES: usize = 256 << 10;

/// Where the table of an eStargz layer stands, out of the layer's last bytes.
pub(super) fn estargz_toc(tail: &[u8], layer_bytes: u64) -> Result<Range<u64>, TocError> {
    let start = tail.len().checked_sub(FOOTER_BYTES as usize).ok_or(TocError::Footer)?;
    let footer = tail.get(start..).ok_or(TocError::Footer)?;
    if !footer.starts_with(&FOOTER_BEGIN) || footer.get(10..16) != Some(&FOOTER_FIELD[..]) {
        return Err(TocError::Footer);
    }
    let digits = footer.get(16..32).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(TocError::Footer)?;
    if footer.get(32..38) != Some(b"STARGZ") || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(TocError::Footer);
    }
    let offset = u64::from_str_radix(digits, 16).map_err(|_overflow| TocError::Footer)?;
    let end = layer_bytes.checked_sub(FOOTER_BYTES).ok_or(TocError::Footer)?;
    if offset < end { Ok(offset..end) } else { Err(TocError::Footer) }
}

/// The table of an eStargz layer: a file of the layer like others.
pub(super) struct PackedToc {
    pub(super) json: Vec<u8>,
    /// The file's entry.
    pub(super) entry: Entry,
    /// Bytes before its data in the unpacked member.
    pub(super) skipped_bytes: u64,
}

#[derive(Default)]
struct Sink {
    entry: Option<Entry>,
    json: Vec<u8>,
    ended: bool,
}

impl LayerSink for Sink {
    type Error = TocError;

    fn entry(&mut self, entry: Entry) -> Result<(), TocError> {
        let is_toc = entry.path.as_bytes() == TOC_NAME && matches!(entry.kind, EntryKind::File { segments: None, .. });
        if !is_toc || self.entry.is_some() {
            return Err(TocError::Unpack("its archive holds something else"));
        }
        self.entry = Some(entry);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), TocError> {
        if (self.json.len() + bytes.len()) as u64 > TOC_BYTES_MAX {
            return Err(TocError::TooLarge);
        }
        self.json.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), TocError> {
        self.ended = true;
        Ok(())
    }
}

pub(super) fn unpack_estargz(member: &[u8]) -> Result<PackedToc, TocError> {
    let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(INFLATE_BYTES), None);
    let (mut reader, mut sink) = (LayerReader::new(), Sink::default());
    let mut rest = member;
    loop {
        let progress = decoder.feed(rest).map_err(|_inflate| TocError::Unpack("its gzip stream is damaged"))?;
        rest = rest.get(progress.consumed..).unwrap_or_default();
        let fed = reader.feed(decoder.output(), &mut sink);
        fed.map_err(|_layer| TocError::Unpack("its archive is damaged, or holds something else"))?;
        decoder.clear_output();
        // Two blocks of zeros, the end of the layer, follow the file.
        if reader.offset() > TOC_BYTES_MAX + (1 << 20) {
            return Err(TocError::TooLarge);
        }
        if progress.state == DecoderState::NeedsInput {
            break;
        }
    }
    decoder.finish().map_err(|_inflate| TocError::Truncated)?;
    match sink.entry {
        Some(entry) if sink.ended => Ok(PackedToc { json: sink.json, skipped_bytes: entry.data_offset, entry }),
        _ => Err(TocError::Truncated),
    }
}

/// Unpacks exactly `length` bytes and never more.
pub(super) fn unzstd(stored: &[u8], length: u64) -> Result<Vec<u8>, TocError> {
    let damaged = |_zstd| TocError::Unpack("its zstd frame is damaged");
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(damaged)?;
    decoder.take(length.min(TOC_BYTES_MAX).saturating_add(1)).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(TocError::Unpack("its length is wrong")) }
}
