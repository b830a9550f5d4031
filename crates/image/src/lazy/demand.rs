//! Which spans are to be fetched for whom: the book of one layer, without clock, tasks or I/O.
//!
//! ```text
//!  wish (pages) ─▶ wanted stretches of spans ─take, merged with neighbours─▶ running ─done─▶ wishes looked at again
//! ```
//!
//! A *stretch* is a range of spans that must be unpacked in one go, because a wanted chunk reaches over their borders.
//! Invariant: a stretch that someone waits for is wanted, running, or left to a start pack that is on its way.

use super::blob_map::BlobMap;
use super::decode::compressed_range;
use super::limits::{GAP_BYTES_MAX, STRETCH_BYTES_MAX};
use super::traffic::Class;
use crate::index::LayerIndex;
use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By first span: where it ends, and for whom.
    wanted: BTreeMap<usize, Wanted>,
    running: Vec<Range<usize>>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    end: usize,
    class: Class,
}

/// The stretches that hold a part of the blob.
pub(crate) fn stretches(index: &LayerIndex, map: &BlobMap, blob: Range<u64>) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for stream in map.stream_of(blob) {
        let first = index.spans.partition_point(|span| span.stream_offset <= stream.start).saturating_sub(1);
        let end = index.spans.partition_point(|span| span.stream_offset < stream.end).max(first + 1);
        match stretches.last_mut() {
            Some(last) if first < last.end => last.end = last.end.max(end),
            _ => stretches.push(first..end),
        }
    }
    stretches
}

impl Book {
    /// Enters a stretch; whether a transfer for it is to be started.
    pub(crate) fn want(&mut self, stretch: Range<usize>, class: Class) -> bool {
        let covers = |other: &Range<usize>| other.start <= stretch.start && stretch.end <= other.end;
        if stretch.is_empty() || self.running.iter().any(covers) {
            return false;
        }
        let holder = self.wanted.range_mut(..=stretch.start).next_back();
        match holder {
            Some((_, wanted)) if stretch.end <= wanted.end => {
                let is_raised = wanted.class < class;
                wanted.class = wanted.class.max(class);
                is_raised
            }
            Some((start, wanted)) if *start == stretch.start => {
                let is_raised = wanted.class < class;
                *wanted = Wanted { end: stretch.end, class: wanted.class.max(class) };
                is_raised
            }
            _ => {
                self.wanted.insert(stretch.start, Wanted { end: stretch.end, class });
                true
            }
        }
    }

    /// Takes the wanted stretch that holds `span`, with its neighbours that are so near that fetching all of them as one is
    /// cheaper; it runs until [`Book::done`]. `None` if another transfer has taken it, or if it matters more than `class`.
    pub(crate) fn take(&mut self, index: &LayerIndex, span: usize, class: Class) -> Option<Range<usize>> {
        let (start, wanted) = self.wanted.range(..=span).next_back().map(|(start, wanted)| (*start, *wanted))?;
        if wanted.end <= span || wanted.class > class {
            return None;
        }
        self.wanted.remove(&start);
        let mut stretch = start..wanted.end;
        while let Some((start, next)) = self.wanted.range(stretch.start..).next().map(|(start, next)| (*start, *next)) {
            if !joins(index, &stretch, &(start..next.end)) {
                break;
            }
            self.wanted.remove(&start);
            stretch.end = stretch.end.max(next.end);
        }
        while let Some((start, before)) =
            self.wanted.range(..stretch.start).next_back().map(|(start, it)| (*start, *it))
        {
            if !joins(index, &(start..before.end), &stretch) {
                break;
            }
            self.wanted.remove(&start);
            stretch = start..stretch.end.max(before.end);
        }
        self.running.push(stretch.clone());
        Some(stretch)
    }

    pub(crate) fn done(&mut self, stretch: &Range<usize>) {
        if let Some(at) = self.running.iter().position(|running| running == stretch) {
            self.running.swap_remove(at);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.running.is_empty()
    }
}

/// Whether two stretches, the second of which does not begin before the first, are better fetched as one.
fn joins(index: &LayerIndex, one: &Range<usize>, two: &Range<usize>) -> bool {
    let (first, second) = (compressed_range(index, one), compressed_range(index, two));
    let is_near = second.start.saturating_sub(first.end) <= GAP_BYTES_MAX;
    is_near && second.end.max(first.end) - first.start <= STRETCH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Compression, SpanEntry};
    use crate::tree::{Content, LayerTree};
    use sampan_oci::digest::Digest;

    /// Spans of 100 KiB of stream each, 40 KiB compressed, and one file over all of them.
    fn index(spans: u64) -> LayerIndex {
        let entry = |number: u64| SpanEntry {
            compressed_offset: number * 40 * 1024,
            bit: 0,
            stream_offset: number * 100 * 1024,
            record_bytes: 0,
            record_hash: [0; 32],
        };
        let bytes = spans * 100 * 1024;
        LayerIndex {
            layer_digest: Digest::of(b"layer"),
            layer_bytes: spans * 40 * 1024,
            compression: Compression::Gzip,
            diff_id: Digest::of(b"tar"),
            stream_bytes: bytes,
            tree: LayerTree {
                inodes: Vec::new(),
                contents: vec![Content { stream_offset: 512, size: bytes - 512, segments: None }],
            },
            spans: (0..spans).map(entry).collect(),
        }
    }

    #[test]
    fn a_chunk_over_a_border_needs_both_spans() {
        let index = index(20);
        let map = BlobMap::new(&index.tree.contents);
        let found = |blob: Range<u64>| {
            let found = stretches(&index, &map, blob).into_iter();
            found.map(|stretch| (stretch.start, stretch.end)).collect::<Vec<_>>()
        };
        assert_eq!(found(0..4096), [(0, 1)]);
        assert_eq!(found(65536..65536 + 4096), [(0, 2)], "64 to 128 KiB of the file");
        assert_eq!(found(131_072..131_072 + 4096), [(1, 2)]);
        assert_eq!(found(0..map.blob_bytes()), [(0, 20)]);
    }

    #[test]
    fn neighbours_are_fetched_as_one_and_nothing_twice() {
        let index = index(400);
        let mut book = Book::default();
        assert!(book.want(10..11, Class::Prefetch));
        assert!(!book.want(10..11, Class::Prefetch));
        assert!(book.want(10..11, Class::Demand), "someone waits for it now");
        assert!(book.want(11..13, Class::Demand));
        assert!(book.want(8..10, Class::Prefetch));
        assert!(book.want(14..15, Class::Prefetch), "a gap of 40 KiB");
        assert!(book.take(&index, 10, Class::Prefetch).is_none(), "a reader's is taken by the reader's transfer");
        let taken = book.take(&index, 10, Class::Demand).unwrap();
        assert_eq!(taken, 8..13);
        assert!(!book.want(9..12, Class::Demand), "it is under way");
        assert!(book.want(12..14, Class::Demand), "only a part of it is");
        assert!(book.take(&index, 11, Class::Demand).is_none());
        book.done(&taken);
        assert_eq!(book.take(&index, 13, Class::Demand), Some(12..15));
        assert!(!book.is_idle());
        book.done(&(12..15));
        assert!(book.is_idle());
        for span in 100..300 {
            assert!(book.want(span..span + 1, Class::Demand));
        }
        let taken = book.take(&index, 200, Class::Demand).unwrap();
        assert!(compressed_range(&index, &taken).end - compressed_range(&index, &taken).start <= STRETCH_BYTES_MAX);
        assert!(taken.len() > 90, "{taken:?}");
    }
}
