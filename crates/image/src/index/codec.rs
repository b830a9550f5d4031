//! Bytes to index and back.

use super::{Hash, LayerIndex, SpanEntry, SpanRecord, StreamLayout, VERSION};
use crate::limits::{INDEX_FRONT_BYTES_MAX, INDEX_FRONT_STORED_BYTES_MAX, SPAN_RECORD_BYTES_MAX};
use crate::tree::TreeFault;
use std::io::Read;
use std::ops::Range;

/// Bytes before the front part.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"SAMPANIX";
const WINDOW_BYTES_MAX: usize = 32 << 10;
/// Windows are mostly zeros: the fastest level finds them.
const WINDOW_ZSTD_LEVEL: i32 = 1;
const FRONT_ZSTD_LEVEL: i32 = 3;

/// Why bytes are no index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the index is cut short")]
    Truncated,
    #[error("the file is no layer index")]
    Magic,
    #[error("the index has version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("the index says that it is larger than the limit")]
    TooLarge,
    #[error("the index is damaged: its checksum is wrong")]
    Checksum,
    #[error("the index is damaged: {0}")]
    Invalid(&'static str),
    #[error("the index cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    #[error("the index cannot be packed")]
    Pack(#[source] std::io::Error),
    #[error("the index cannot be decoded")]
    Decode(#[source] postcard::Error),
}

impl From<TreeFault> for IndexError {
    fn from(fault: TreeFault) -> Self {
        IndexError::Invalid(fault.0)
    }
}

/// Where in the file the front part stands, from its first [`HEADER_BYTES`].
pub fn front_range(header: &[u8]) -> Result<Range<u64>, IndexError> {
    let (stored, unpacked) = header_fields(header)?;
    if stored > INDEX_FRONT_STORED_BYTES_MAX || unpacked > INDEX_FRONT_BYTES_MAX {
        return Err(IndexError::TooLarge);
    }
    Ok(HEADER_BYTES as u64..HEADER_BYTES as u64 + stored)
}

/// Bytes of the front part unpacked, from the file's first [`HEADER_BYTES`]: what decoding it takes in memory, roughly.
pub fn front_unpacked_bytes(header: &[u8]) -> Result<u64, IndexError> {
    front_range(header)?;
    Ok(header_fields(header)?.1)
}

/// What vouches for the front part, and through it for the whole file.
pub(crate) fn front_checksum(header: &[u8]) -> Option<&Hash> {
    header.get(32..HEADER_BYTES)?.first_chunk()
}

fn header_fields(header: &[u8]) -> Result<(u64, u64), IndexError> {
    let header = header.get(..HEADER_BYTES).ok_or(IndexError::Truncated)?;
    if !header.starts_with(MAGIC) {
        return Err(IndexError::Magic);
    }
    match le_u32(header, 8) {
        VERSION => Ok((le_u64(header, 16), le_u64(header, 24))),
        other => Err(IndexError::Version(other)),
    }
}

/// Header and front part of a file, from a front part that is not packed yet.
pub(super) fn seal(front: &[u8]) -> std::io::Result<Vec<u8>> {
    let stored = zstd::bulk::compress(front, FRONT_ZSTD_LEVEL)?;
    let mut file = Vec::with_capacity(HEADER_BYTES + stored.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&0u32.to_le_bytes());
    file.extend_from_slice(&(stored.len() as u64).to_le_bytes());
    file.extend_from_slice(&(front.len() as u64).to_le_bytes());
    let hash = checksum(&file, &stored);
    file.extend_from_slice(&hash);
    file.extend_from_slice(&stored);
    Ok(file)
}

impl LayerIndex {
    /// The whole file. `records` come from [`SpanRecord::encode`] and are entered in the span table here.
    pub fn encode(&mut self, records: &[Vec<u8>]) -> Result<Vec<u8>, IndexError> {
        for (span, record) in self.spans.iter_mut().zip(records) {
            span.record_bytes = u32::try_from(record.len()).ok().ok_or(IndexError::TooLarge)?;
            span.record_hash = *blake3::hash(record).as_bytes();
        }
        let mut file = self.encode_front()?;
        file.reserve_exact(records.iter().map(Vec::len).sum());
        for record in records {
            file.extend_from_slice(record);
        }
        Ok(file)
    }

    /// Header and front part alone, of an index whose span table is filled.
    pub(crate) fn encode_front(&self) -> Result<Vec<u8>, IndexError> {
        let front = postcard::to_stdvec(self).map_err(IndexError::Decode)?;
        if front.len() as u64 > INDEX_FRONT_BYTES_MAX {
            return Err(IndexError::TooLarge);
        }
        seal(&front).map_err(IndexError::Pack)
    }

    /// Reads header and front part; what follows them in `bytes` is ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let range = front_range(bytes)?;
        let stored = bytes.get(HEADER_BYTES..).ok_or(IndexError::Truncated)?;
        let length = usize::try_from(range.end - range.start).ok().ok_or(IndexError::TooLarge)?;
        let stored = stored.get(..length).ok_or(IndexError::Truncated)?;
        let (fields, rest) = bytes.split_at(32);
        if rest.get(..32) != Some(&checksum(fields, stored)[..]) {
            return Err(IndexError::Checksum);
        }
        let (_, unpacked) = header_fields(bytes)?;
        let front = unzstd(stored, unpacked)?;
        let (index, rest) = postcard::take_from_bytes::<LayerIndex>(&front).map_err(IndexError::Decode)?;
        if !rest.is_empty() {
            return Err(IndexError::Invalid("bytes follow the front part"));
        }
        index.check()?;
        Ok(index)
    }

    /// Where a span's record stands in the file, given where the front part ends.
    pub fn record_range(&self, front_end: u64, span: usize) -> Option<Range<u64>> {
        let entry = self.spans.get(span)?;
        let before: u64 = self.spans[..span].iter().map(|span| u64::from(span.record_bytes)).sum();
        let start = front_end + before;
        Some(start..start + u64::from(entry.record_bytes))
    }

    /// The part of the uncompressed stream that a span holds.
    pub fn span_stream(&self, span: usize) -> Option<Range<u64>> {
        let start = self.spans.get(span)?.stream_offset;
        Some(start..self.spans.get(span + 1).map_or(self.stream_bytes, |next| next.stream_offset))
    }

    /// Reads the record of a span, which must be the one that the span table means.
    pub fn decode_record(&self, layout: &StreamLayout, span: usize, bytes: &[u8]) -> Result<SpanRecord, IndexError> {
        let entry = self.spans.get(span).ok_or(IndexError::Invalid("there is no such span"))?;
        if blake3::hash(bytes).as_bytes() != &entry.record_hash {
            return Err(IndexError::Checksum);
        }
        let record = SpanRecord::decode(bytes)?;
        let stream = self.span_stream(span).unwrap_or(0..0);
        let chunks = layout.chunks_in(stream);
        if record.chunks.len() as u64 != chunks.end - chunks.start || record.window.len() as u64 > entry.stream_offset {
            return Err(IndexError::Invalid("a span's record does not fit the span"));
        }
        Ok(record)
    }

    pub(crate) fn check(&self) -> Result<(), IndexError> {
        self.tree.check(self.stream_bytes)?;
        let mut last: Option<&SpanEntry> = None;
        for span in &self.spans {
            let in_order = match last {
                None => span.stream_offset == 0,
                Some(last) => {
                    span.stream_offset > last.stream_offset
                        && (span.compressed_offset, span.bit) > (last.compressed_offset, last.bit)
                }
            };
            if !in_order || span.bit > 7 || span.compressed_offset >= self.layer_bytes {
                return Err(IndexError::Invalid("spans are out of order"));
            }
            if span.stream_offset >= self.stream_bytes || span.record_bytes > SPAN_RECORD_BYTES_MAX {
                return Err(IndexError::Invalid("a span lies outside the stream, or its record is too long"));
            }
            last = Some(span);
        }
        if self.spans.is_empty() && self.stream_bytes > 0 {
            return Err(IndexError::Invalid("the stream has no spans"));
        }
        Ok(())
    }
}

impl SpanRecord {
    pub fn encode(&self) -> Result<Vec<u8>, IndexError> {
        encode_record(&WindowPacker::new()?.pack(&self.window)?, &self.chunks)
    }

    fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let head = bytes.get(..8).ok_or(IndexError::Truncated)?;
        let stored = le_u32(head, 0) as usize;
        let unpacked = le_u32(head, 4) as usize;
        if unpacked > WINDOW_BYTES_MAX {
            return Err(IndexError::TooLarge);
        }
        let rest = bytes.get(8..).unwrap_or_default();
        let (window, chunks) = rest.split_at_checked(stored).ok_or(IndexError::Truncated)?;
        let window = if unpacked == 0 { Vec::new() } else { unzstd(window, unpacked as u64)? };
        let (chunks, odd) = chunks.as_chunks::<32>();
        if !odd.is_empty() {
            return Err(IndexError::Truncated);
        }
        Ok(Self { window, chunks: chunks.to_vec() })
    }
}

/// A window made small before the digests of its span's chunks are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedWindow {
    stored: Vec<u8>,
    unpacked: u32,
}

/// Makes one window after another small, with one compressor for all.
pub(crate) struct WindowPacker(zstd::bulk::Compressor<'static>);

impl WindowPacker {
    pub(crate) fn new() -> Result<Self, IndexError> {
        Ok(Self(zstd::bulk::Compressor::new(WINDOW_ZSTD_LEVEL).map_err(IndexError::Pack)?))
    }

    pub(crate) fn pack(&mut self, window: &[u8]) -> Result<PackedWindow, IndexError> {
        if window.len() > WINDOW_BYTES_MAX {
            return Err(IndexError::TooLarge);
        }
        let stored = match window {
            [] => Vec::new(),
            _ => self.0.compress(window).map_err(IndexError::Pack)?,
        };
        Ok(PackedWindow { stored, unpacked: window.len() as u32 })
    }
}

pub(crate) fn encode_record(window: &PackedWindow, chunks: &[Hash]) -> Result<Vec<u8>, IndexError> {
    let mut record = Vec::with_capacity(8 + window.stored.len() + chunks.len() * 32);
    record.extend_from_slice(&u32::try_from(window.stored.len()).ok().ok_or(IndexError::TooLarge)?.to_le_bytes());
    record.extend_from_slice(&window.unpacked.to_le_bytes());
    record.extend_from_slice(&window.stored);
    record.extend_from_slice(chunks.as_flattened());
    if record.len() as u64 > u64::from(SPAN_RECORD_BYTES_MAX) {
        return Err(IndexError::TooLarge);
    }
    Ok(record)
}

/// Unpacks exactly `length` bytes and never more.
fn unzstd(stored: &[u8], length: u64) -> Result<Vec<u8>, IndexError> {
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(IndexError::Unpack)?;
    decoder.take(length.saturating_add(1)).read_to_end(&mut bytes).map_err(IndexError::Unpack)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(IndexError::Invalid("a length is wrong")) }
}

fn checksum(fields: &[u8], stored: &[u8]) -> Hash {
    *blake3::Hasher::new().update(fields).update(stored).finalize().as_bytes()
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
