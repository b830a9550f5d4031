//! Sparse maps: their check, and the text map that stands before the data in GNU's version 1.0.

use super::entry::Segment;
use super::error::LayerError;
use super::header::BLOCK_BYTES;
use super::limits::{FILE_BYTES_MAX, SPARSE_MAP_BYTES_MAX, SPARSE_SEGMENTS_MAX};
use super::name::display_name;
use super::pax::decimal;

/// Checks that `segments` are in order inside `size` bytes and hold exactly `data_bytes`, and drops empty ones.
pub(super) fn checked(
    entry: &[u8],
    segments: Vec<Segment>,
    size: u64,
    data_bytes: u64,
) -> Result<Vec<Segment>, LayerError> {
    let bad = |reason| LayerError::Sparse { entry: display_name(entry), reason };
    if size > FILE_BYTES_MAX {
        return Err(too_large(entry, size));
    }
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(bad("its segments overlap or are out of order"));
        }
        end = segment.offset.checked_add(segment.length).ok_or_else(|| bad("a segment ends beyond every file"))?;
        sum = sum.checked_add(segment.length).ok_or_else(|| bad("its segments are longer than every file"))?;
    }
    if end > size {
        return Err(bad("a segment ends beyond the file's size"));
    }
    if sum != data_bytes {
        return Err(bad("its segments do not add up to the data in the archive"));
    }
    Ok(segments.into_iter().filter(|segment| segment.length > 0).collect())
}

pub(super) fn too_large(entry: &[u8], size: u64) -> LayerError {
    LayerError::TooLarge { entry: display_name(entry), what: "its size", value: size, limit: FILE_BYTES_MAX }
}

/// Collects the map of version 1.0, block by block, until it is whole.
#[derive(Debug, Default)]
pub(super) struct TextMap {
    text: Vec<u8>,
    parsed: usize,
    numbers: Vec<u64>,
}

impl TextMap {
    /// Takes one block; gives the segments when the map has come to its end.
    pub(super) fn add(&mut self, entry: &[u8], block: &[u8; BLOCK_BYTES]) -> Result<Option<Vec<Segment>>, LayerError> {
        let bad = |reason| LayerError::Sparse { entry: display_name(entry), reason };
        self.text.extend_from_slice(block);
        if self.text.len() > SPARSE_MAP_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        loop {
            if let Some(expected) = self.expected(&bad)?
                && self.numbers.len() == expected
            {
                let pairs = self.numbers.get(1..).unwrap_or(&[]).chunks_exact(2);
                let segments = pairs.filter_map(|pair| Some(Segment { offset: *pair.first()?, length: *pair.last()? }));
                return Ok(Some(segments.collect()));
            }
            let rest = self.text.get(self.parsed..).unwrap_or(&[]);
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
            let value = rest.get(..end).and_then(decimal).ok_or_else(|| bad("it holds something that is no number"))?;
            self.numbers.push(value);
            self.parsed = self.parsed.saturating_add(end).saturating_add(1);
        }
    }

    /// How many numbers the map has, once its first one, the count of segments, is known.
    fn expected(&self, bad: &impl Fn(&'static str) -> LayerError) -> Result<Option<usize>, LayerError> {
        let Some(count) = self.numbers.first() else { return Ok(None) };
        let count = usize::try_from(*count).ok().filter(|count| *count <= SPARSE_SEGMENTS_MAX);
        let count = count.ok_or_else(|| bad("it has too many segments"))?;
        Ok(Some(count.saturating_mul(2).saturating_add(1)))
    }
}
