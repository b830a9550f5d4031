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
use super::limits::{AHEAD_SPANS, FILE_REST_BYTES_MAX, GAP_BYTES_MAX, NEAR_SPANS, STRETCH_BYTES_MAX};
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

/// A stretch that a reader waits for, with what he will probably want next: the rest of his file if that is little, and a
/// little more of the layer if he has been reading just before it. It comes in the same request, behind what he waits for.
pub(crate) fn widened(
    index: &LayerIndex,
    map: &BlobMap,
    stretch: Range<usize>,
    blob: u64,
    is_here: impl Fn(usize) -> bool,
) -> Range<usize> {
    let mut end = stretch.end;
    if let Some(file_end) = map.stream_end_of(blob) {
        let rest = stretch.start..index.spans.partition_point(|span| span.stream_offset < file_end);
        let bytes = compressed_range(index, &rest);
        if bytes.end.saturating_sub(bytes.start) <= FILE_REST_BYTES_MAX {
            end = end.max(rest.end);
        }
    }
    if (stretch.start.saturating_sub(NEAR_SPANS)..stretch.start).any(&is_here) {
        end = end.max(stretch.end + AHEAD_SPANS).min(index.spans.len());
    }
    let end = (stretch.end..end).find(|span| is_here(*span)).unwrap_or(end);
    stretch.start..end
}

impl Book {
    /// Whether a stretch is fetched, or going to be, whoever asks for it.
    pub(crate) fn foresees(&self, stretch: &Range<usize>) -> bool {
        let covers = |other: &Range<usize>| other.start <= stretch.start && stretch.end <= other.end;
        let holder = self.wanted.range(..=stretch.start).next_back();
        self.running.iter().any(covers) || holder.is_some_and(|(start, wanted)| covers(&(*start..wanted.end)))
    }

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
    fn a_reader_gets_the_rest_of_a_small_file_and_more_of_what_he_reads_on() {
        // A file of 10 spans, one of 390.
        let mut index = index(400);
        let first = 10 * 100 * 1024 - 512;
        let contents = [(512, first), (512 + first, 390 * 100 * 1024)];
        index.tree.contents =
            contents.map(|(stream_offset, size)| Content { stream_offset, size, segments: None }).into();
        let map = BlobMap::new(&index.tree.contents);
        let second = map.place(1).unwrap().blob;
        let wide = |stretch: Range<usize>, blob: u64, here: &[usize]| {
            widened(&index, &map, stretch, blob, |span| here.contains(&span))
        };
        assert_eq!(wide(3..4, 400_000, &[]), 3..10, "the rest of the first file");
        assert_eq!(wide(3..4, 400_000, &[7]), 3..7, "up to what is here");
        assert_eq!(wide(50..52, second + 4_000_000, &[]), 50..52, "the rest of the second one is large");
        assert_eq!(wide(50..52, second + 4_000_000, &[46]), 50..54, "one reads on");
        assert_eq!(wide(50..52, second + 4_000_000, &[45, 51, 52]), 50..52);
        assert_eq!(wide(50..52, second + 4_000_000, &[49, 53]), 50..53);
        let tail = FILE_REST_BYTES_MAX / (40 * 1024);
        assert_eq!(wide(399..400, map.blob_bytes() - 1, &[398]), 399..400);
        let from = 400 - tail as usize;
        assert_eq!(
            wide(from..from + 1, map.blob_bytes() - tail * 100 * 1024 + 1, &[]),
            from..400,
            "its end is small again"
        );
    }

    #[test]
    fn what_is_wanted_or_under_way_is_foreseen() {
        let index = index(20);
        let mut book = Book::default();
        assert!(!book.foresees(&(3..4)));
        book.want(3..6, Class::Prefetch);
        assert!(book.foresees(&(4..6)) && !book.foresees(&(4..7)) && !book.foresees(&(2..4)));
        let taken = book.take(&index, 4, Class::Demand).unwrap();
        assert!(book.foresees(&(4..6)));
        book.done(&taken);
        assert!(!book.foresees(&(4..6)));
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
