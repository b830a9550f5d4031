//! Where the bytes of a layer's stream stand in its blob, and the other way round.
//!
//! A *content* is the data of one file; its position in the stream, counted from its first byte, is called `within` here. In
//! the blob it begins on a page of its own. The chunk, 64 KiB of a content, is the least that can be verified; the page, 4 KiB
//! of the blob, is the least that is known to be here. Only in sparse files may a page hold bytes of two chunks.

use crate::tree::{BLOCK_BYTES, CHUNK_BYTES, Content};
use std::collections::HashMap;
use std::ops::Range;

#[derive(Debug)]
pub(crate) struct BlobMap {
    places: Vec<Place>,
    /// For sparse files only: where their runs of data stand.
    sparse: HashMap<usize, Vec<Piece>>,
    chunks: u64,
    /// To multiples of what the bytes that are to be read are rounded.
    grain: u64,
}

/// One content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) stream: u64,
    pub(crate) stream_bytes: u64,
    pub(crate) blob: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) first_chunk: u64,
}

/// Bytes that follow one another in content and blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) within: u64,
    pub(crate) blob: u64,
    pub(crate) bytes: u64,
}

impl BlobMap {
    pub(crate) fn new(contents: &[Content]) -> Self {
        let (mut blob, mut chunks) = (0u64, 0u64);
        let mut places = Vec::with_capacity(contents.len());
        let mut sparse = HashMap::new();
        for (number, content) in contents.iter().enumerate() {
            let (stream_bytes, blob_bytes) = (content.stream_bytes(), content.blob_bytes());
            places.push(Place { stream: content.stream_offset, stream_bytes, blob, blob_bytes, first_chunk: chunks });
            if content.segments.is_some() {
                sparse.insert(number, sparse_pieces(content, blob));
            }
            blob += blob_bytes;
            chunks += content.chunks();
        }
        Self { places, sparse, chunks, grain: CHUNK_BYTES }
    }

    /// The same for a layer whose digests stand for pieces of any length instead of chunks. Which pieces are needed follows
    /// from the spans.
    pub(crate) fn of_pieces(contents: &[Content]) -> Self {
        Self { grain: 1, ..Self::new(contents) }
    }

    #[cfg(test)]
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.places.last().map_or(0, |place| place.blob + place.blob_bytes)
    }

    pub(crate) fn place(&self, content: usize) -> Option<&Place> {
        self.places.get(content)
    }

    /// The first content that ends after a position of the stream.
    pub(crate) fn content_after(&self, stream: u64) -> usize {
        self.places.partition_point(|place| place.stream + place.stream_bytes <= stream)
    }

    /// The number of the first chunk that begins at a position of the stream or after it.
    pub(crate) fn chunk_after(&self, stream: u64) -> u64 {
        let content = self.content_after(stream);
        let Some(place) = self.places.get(content) else { return self.chunks };
        place.first_chunk + stream.saturating_sub(place.stream).div_ceil(CHUNK_BYTES)
    }

    /// What must be read of the stream, in whole chunks (where there are such), to have a part of the blob: one range for each content.
    pub(crate) fn stream_of(&self, blob: Range<u64>) -> Vec<Range<u64>> {
        let first = self.places.partition_point(|place| place.blob + place.blob_bytes <= blob.start);
        let mut ranges = Vec::new();
        for (number, place) in self.places.iter().enumerate().skip(first) {
            if place.blob >= blob.end {
                break;
            }
            let within = self.within_of(number, blob.start.max(place.blob)..blob.end);
            if within.is_empty() {
                continue;
            }
            let start = within.start / self.grain * self.grain;
            let end = within.end.next_multiple_of(self.grain).min(place.stream_bytes);
            ranges.push(place.stream + start..place.stream + end);
        }
        ranges
    }

    /// Where in the stream the content ends that a byte of the blob belongs to.
    pub(crate) fn stream_end_of(&self, blob: u64) -> Option<u64> {
        let content = self.places.partition_point(|place| place.blob + place.blob_bytes <= blob);
        self.places.get(content).map(|place| place.stream + place.stream_bytes)
    }

    /// From the first to the last byte of a content that stands in a part of the blob.
    fn within_of(&self, content: usize, blob: Range<u64>) -> Range<u64> {
        let Some(place) = self.places.get(content) else { return 0..0 };
        let Some(pieces) = self.sparse.get(&content) else {
            let start = blob.start.saturating_sub(place.blob).min(place.stream_bytes);
            return start..blob.end.saturating_sub(place.blob).clamp(start, place.stream_bytes);
        };
        let first = pieces.partition_point(|piece| piece.blob + piece.bytes <= blob.start);
        let end = pieces.partition_point(|piece| piece.blob < blob.end);
        let (Some(head), Some(tail)) = (pieces.get(first), end.checked_sub(1).and_then(|last| pieces.get(last))) else {
            return 0..0;
        };
        let start = head.within + blob.start.saturating_sub(head.blob);
        start..(tail.within + (blob.end - tail.blob).min(tail.bytes)).max(start)
    }

    /// Where a part of a content stands in the blob.
    pub(crate) fn pieces(&self, content: usize, within: Range<u64>) -> Vec<Piece> {
        let Some(place) = self.places.get(content) else { return Vec::new() };
        let Some(pieces) = self.sparse.get(&content) else {
            return vec![Piece {
                within: within.start,
                blob: place.blob + within.start,
                bytes: within.end - within.start,
            }];
        };
        let first = pieces.partition_point(|piece| piece.within + piece.bytes <= within.start);
        let pieces = pieces.iter().skip(first).take_while(|piece| piece.within < within.end);
        let cut = pieces.map(|piece| {
            let start = piece.within.max(within.start);
            let end = (piece.within + piece.bytes).min(within.end);
            Piece { within: start, blob: piece.blob + (start - piece.within), bytes: end - start }
        });
        cut.collect()
    }

    /// The pages of which a part of a content is all there is.
    pub(crate) fn pages_within(&self, content: usize, within: Range<u64>) -> Vec<Range<u64>> {
        let mut pages: Vec<Range<u64>> = Vec::new();
        for piece in self.pieces(content, within.clone()) {
            let mut start = piece.blob / BLOCK_BYTES;
            let mut end = (piece.blob + piece.bytes).div_ceil(BLOCK_BYTES);
            let is_whole = |page: u64| {
                let data = self.within_of(content, page * BLOCK_BYTES..(page + 1) * BLOCK_BYTES);
                within.start <= data.start && data.end <= within.end
            };
            if start < end && !is_whole(start) {
                start += 1;
            }
            if start < end && !is_whole(end - 1) {
                end -= 1;
            }
            match pages.last_mut() {
                Some(last) if start <= last.end && start < end => last.end = last.end.max(end),
                _ if start < end => pages.push(start..end),
                _ => {}
            }
        }
        pages
    }
}

fn sparse_pieces(content: &Content, blob: u64) -> Vec<Piece> {
    let runs = content.runs(blob);
    let mut within = 0;
    let mut pieces = Vec::new();
    for (offset, length) in content.segments.iter().flatten() {
        let run = runs.partition_point(|run| run.file_offset <= *offset).checked_sub(1).and_then(|run| runs.get(run));
        if let Some(run) = run {
            pieces.push(Piece { within, blob: run.blob_offset + (offset - run.file_offset), bytes: *length });
        }
        within += length;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Contents with odd gaps between them in the stream, some of them sparse.
    fn contents() -> impl Strategy<Value = Vec<Content>> {
        let segments = prop::collection::vec((0u64..9000, 1u64..9000), 1..12);
        let content = (1u64..300_000, prop::option::of(segments), 0u64..2000);
        prop::collection::vec(content, 0..8).prop_map(|list| {
            let mut stream = 512;
            let mut contents = Vec::new();
            for (size, segments, gap) in list {
                let mut end = 0;
                let segments = segments.map(|gaps| {
                    let placed = gaps.iter().map(|(gap, length)| {
                        let start = end + gap;
                        end = start + length;
                        (start, *length)
                    });
                    placed.collect::<Vec<_>>()
                });
                let content = Content { stream_offset: stream, size: size.max(end), segments };
                stream += content.stream_bytes() + gap;
                contents.push(content);
            }
            contents
        })
    }

    proptest! {
        #[test]
        fn every_byte_has_one_place_and_every_page_its_bytes(contents in contents(), cut in any::<prop::sample::Index>()) {
            let map = BlobMap::new(&contents);
            let (offsets, blob_bytes) = crate::tree::LayerTree { inodes: Vec::new(), contents: contents.clone() }.blob_layout();
            prop_assert_eq!(map.blob_bytes(), blob_bytes);
            // Which byte of which content stands at each position of the blob.
            let mut owner: Vec<Option<(usize, u64)>> = vec![None; blob_bytes as usize];
            for (number, content) in contents.iter().enumerate() {
                prop_assert_eq!(map.place(number).unwrap().blob, offsets[number]);
                let mut next = 0;
                for piece in map.pieces(number, 0..content.stream_bytes()) {
                    prop_assert_eq!(piece.within, next);
                    next += piece.bytes;
                    for byte in 0..piece.bytes {
                        let place = &mut owner[(piece.blob + byte) as usize];
                        prop_assert_eq!(*place, None);
                        *place = Some((number, piece.within + byte));
                    }
                }
                prop_assert_eq!(next, content.stream_bytes());
            }
            for (page, bytes) in owner.chunks(BLOCK_BYTES as usize).enumerate() {
                let page = page as u64;
                let data: Vec<(usize, u64)> = bytes.iter().flatten().copied().collect();
                prop_assert!(!data.is_empty(), "page {} holds nothing", page);
                let ranges = map.stream_of(page * BLOCK_BYTES..(page + 1) * BLOCK_BYTES);
                for (content, within) in &data {
                    let place = map.place(*content).unwrap();
                    prop_assert!(ranges.iter().any(|range| range.contains(&(place.stream + within))));
                }
                for range in &ranges {
                    let place = map.place(map.content_after(range.start)).unwrap();
                    prop_assert_eq!((range.start - place.stream) % CHUNK_BYTES, 0);
                    let chunk = place.first_chunk + (range.start - place.stream) / CHUNK_BYTES;
                    prop_assert_eq!(map.chunk_after(range.start), chunk);
                }
            }
            for (number, content) in contents.iter().enumerate() {
                let at = cut.index(content.stream_bytes() as usize) as u64;
                for part in [0..at, at..content.stream_bytes(), at / 2..at] {
                    let pages: Vec<u64> = map.pages_within(number, part.clone()).into_iter().flatten().collect();
                    let expected: Vec<u64> = (0..blob_bytes / BLOCK_BYTES)
                        .filter(|page| {
                            let bytes = &owner[(page * BLOCK_BYTES) as usize..((page + 1) * BLOCK_BYTES) as usize];
                            bytes.iter().flatten().all(|(content, within)| *content == number && part.contains(within))
                        })
                        .collect();
                    prop_assert_eq!(pages, expected);
                }
            }
        }
    }
}
