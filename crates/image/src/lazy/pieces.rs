//! The same as [`super::decode`] for layers that are read by their own tables of contents: members or frames that are entered
//! at their beginning, and pieces of files, of any length, in them.
//!
//! A piece is the least that can be verified, and is gathered in memory for that; [`crate::limits`] bounds it. Pieces need
//! not begin on pages: a page that holds the end of one and the beginning of the next is marked when both were verified.

use super::decode::{Sink, Stretch, compressed_range, place_verified};
use super::error::LazyError;
use super::limits::DECODE_BYTES;
use crate::index::Compression;
use crate::limits::{TOC_LARGE_PIECE_BYTES, TOC_LARGE_PIECES_AT_ONCE};
use crate::toc::SpanPiece;
use sampan_oci::gzip::GzipDecoder;
use sampan_oci::inflate::OutputBuffer;
use std::ops::Range;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Memory for large pieces, of all layers together.
static LARGE_PIECES: Semaphore = Semaphore::const_new(TOC_LARGE_PIECES_AT_ONCE);

/// Takes what a span unpacks to, and puts its pieces where they belong.
struct Pieces<'a, 'b> {
    stretch: &'a Stretch<'b>,
    /// Those that are still to come; the first one stands at `stream`.
    pieces: &'a [SpanPiece],
    stream: u64,
    /// Unpacked so far.
    unpacked: u64,
    gathered: Vec<u8>,
    /// The content of the last piece, and where in it pieces begin that have been verified without a gap.
    verified: Option<(usize, u64)>,
}

impl Stretch<'_> {
    /// Unpacks spans one by one; `records` has the pieces of each.
    pub(super) fn unpack_pieces(&self, records: &[Vec<SpanPiece>]) -> Result<(), LazyError> {
        let mut verified = None;
        for (span, pieces) in self.spans.clone().zip(records) {
            let stream = self.index.span_stream(span).unwrap_or(0..0).start;
            let input = compressed_range(self.index, &(span..span + 1));
            let mut sink = Pieces { stretch: self, pieces, stream, unpacked: 0, gathered: Vec::new(), verified };
            let is_large = pieces.iter().any(|piece| piece.bytes > TOC_LARGE_PIECE_BYTES);
            let _memory = if is_large { Some(self.room_for_large(&input)?) } else { None };
            match self.index.compression {
                Compression::Gzip => {
                    let decoder = GzipDecoder::new(OutputBuffer::with_capacity(DECODE_BYTES), None);
                    self.gzip(decoder, input, &mut sink)?;
                }
                Compression::Zstd => self.zstd(input, &mut sink)?,
                Compression::None => self.plain(input, &mut sink)?,
            }
            verified = sink.verified;
        }
        Ok(())
    }

    /// Waits until all bytes of a span are here, and then its turn: nobody may wait for the network with such memory in hand.
    fn room_for_large(&self, input: &Range<u64>) -> Result<SemaphorePermit<'static>, LazyError> {
        let stopped = || LazyError::Stopped { layer: self.layer() };
        let mut here = input.start;
        while here < input.end {
            here = self.compressed.wait(here, self.given_up).ok_or_else(stopped)?;
        }
        Handle::current().block_on(LARGE_PIECES.acquire()).map_err(|_closed| stopped())
    }
}

impl Pieces<'_, '_> {
    /// Verifies the next piece and puts it into the blob.
    fn piece(&mut self, piece: &SpanPiece, bytes: &[u8]) -> Result<(), LazyError> {
        let Stretch { map, pages, arrived, .. } = self.stretch;
        let layer = self.stretch.layer();
        let content = map.content_after(self.stream);
        let place = map.place(content).filter(|place| place.stream <= self.stream);
        let (Some(place), true) = (place, piece.digest.matches(bytes)) else {
            return Err(LazyError::Corrupt { layer });
        };
        let start = self.stream - place.stream;
        let from = self.verified.filter(|(last, _)| *last == content).map_or(start, |(_, from)| from);
        self.verified = Some((content, from));
        let marked = place_verified(map, pages, content, from, start..start + piece.bytes, bytes);
        if marked.map_err(LazyError::cache(layer))? {
            arrived();
        }
        self.stream += piece.bytes;
        Ok(())
    }
}

impl Sink for Pieces<'_, '_> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), LazyError> {
        while let Some((piece, rest)) = self.pieces.split_first() {
            let before = usize::try_from(piece.skipped_bytes.saturating_sub(self.unpacked)).unwrap_or(usize::MAX);
            let wanted = usize::try_from(piece.bytes).unwrap_or(usize::MAX).saturating_sub(self.gathered.len());
            if bytes.len() <= before {
                break;
            }
            let (skipped, here) = bytes.split_at(before);
            let (now, later) = here.split_at(here.len().min(wanted));
            self.unpacked += (skipped.len() + now.len()) as u64;
            bytes = later;
            if now.len() < wanted {
                self.gathered.extend_from_slice(now);
                break;
            }
            if self.gathered.is_empty() {
                self.piece(piece, now)?;
            } else {
                let mut whole = std::mem::take(&mut self.gathered);
                whole.extend_from_slice(now);
                self.piece(piece, &whole)?;
            }
            self.pieces = rest;
        }
        self.unpacked += bytes.len() as u64;
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{LayerIndex, front_range};
    use crate::lazy::blob_map::BlobMap;
    use crate::lazy::compressed::CompressedCache;
    use crate::lazy::decode::Records;
    use crate::lazy::pages::PageCache;
    use crate::testing::contents::{Made, PIECE_BYTES, made};
    use crate::testing::{entry, unpack_bytes};
    use crate::toc::{Toc, TocHint, TocPiece};
    use crate::tree::{BLOCK_BYTES, LayerTreeBuilder};
    use bytes::Bytes;
    use sampan_oci::digest::Digest;
    use sampan_oci::layer::EntryKind;
    use sampan_oci::manifest::Layer;
    use sampan_oci::media_type;

    struct Case {
        directory: tempfile::TempDir,
        index: LayerIndex,
        file: Vec<u8>,
        compressed: CompressedCache,
    }

    impl Case {
        fn new(toc: Toc, layer: &Layer, bytes: &[u8]) -> Self {
            let (index, file) = toc.into_index(layer, Digest::of(b"tar")).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let compressed = CompressedCache::create(directory.path(), index.layer_bytes).unwrap();
            compressed.put(0, &Bytes::copy_from_slice(bytes)).unwrap();
            Self { directory, index, file, compressed }
        }

        fn of(made: &Made) -> Self {
            let (layer, bytes) = (made.layer(), made.layer.len() as u64);
            let hint = TocHint::of(&layer).unwrap();
            let first = hint.first_range(bytes);
            let place = hint.locate(&made.layer[first.start as usize..first.end as usize], bytes).unwrap();
            let toc = hint.read(&made.layer[place.start as usize..place.end as usize], &place).unwrap();
            Self::new(toc, &layer, &made.layer)
        }

        /// Unpacks spans, and gives what is here then: the pages, and the blob with nothing in the others.
        fn unpack(&self, spans: Range<usize>) -> (Result<(), LazyError>, Vec<u64>, Vec<u8>) {
            let blob_bytes = self.index.tree.blob_layout().1;
            let pages = PageCache::create(&tempfile::tempdir_in(&self.directory).unwrap().keep(), blob_bytes).unwrap();
            let front_end = front_range(&self.file).unwrap().end;
            let record = |span: usize| {
                let range = self.index.record_range(front_end, span).unwrap();
                self.index.decode_pieces(span, &self.file[range.start as usize..range.end as usize]).unwrap()
            };
            let stretch = Stretch {
                index: &self.index,
                map: &BlobMap::of_pieces(&self.index.tree.contents),
                pages: &pages,
                compressed: &self.compressed,
                records: Records::Pieces(spans.clone().map(record).collect()),
                spans,
                given_up: &|| true,
                arrived: &|| {},
            };
            let result = stretch.unpack();
            let mut blob = vec![0; blob_bytes as usize];
            std::os::unix::fs::FileExt::read_at(pages.file(), &mut blob, 0).unwrap();
            (result, pages.all_present().ranges().flatten().collect(), blob)
        }
    }

    fn files() -> Vec<(String, Vec<u8>)> {
        let byte = |at: usize, file: usize| ((at * 7 + at / 251 + file) % 256) as u8;
        let files = [10, 3 * PIECE_BYTES + 5, 60, 0, PIECE_BYTES, 99, 4096].into_iter().enumerate();
        files.map(|(file, size)| (format!("f{file}"), (0..size).map(|at| byte(at, file)).collect())).collect()
    }

    #[test]
    fn all_pieces_make_the_blob_that_unpacking_makes() {
        for compression in [media_type::Compression::Gzip, media_type::Compression::Zstd] {
            let made = made(compression, &files(), |_lines| {});
            let case = Case::of(&made);
            let (result, pages, blob) = case.unpack(0..case.index.spans.len());
            result.unwrap();
            assert_eq!(pages, (0..blob.len() as u64 / BLOCK_BYTES).collect::<Vec<_>>());
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("blob");
            unpack_bytes(&made.layer, Digest::of(&made.tar), compression, &path).unwrap();
            assert!(blob == std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn a_page_is_there_when_all_pieces_in_it_were_verified() {
        let case = Case::of(&made(media_type::Compression::Zstd, &files(), |_lines| {}));
        // The first span is a file of one page, the next four are a file: pieces end in pages 17, 34, 51 of it.
        assert_eq!(case.unpack(0..1).1, [0]);
        assert_eq!(case.unpack(1..2).1, (1..18).collect::<Vec<_>>());
        assert_eq!(case.unpack(2..3).1, (19..35).collect::<Vec<_>>());
        assert_eq!(case.unpack(1..3).1, (1..35).collect::<Vec<_>>());
        assert_eq!(case.unpack(3..5).1, (36..53).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_not_there() {
        let made = made(media_type::Compression::Gzip, &files(), |lines| {
            lines[3]["chunkDigest"] = serde_json::json!(Digest::of(b"other"));
        });
        let case = Case::of(&made);
        let (result, pages, _) = case.unpack(0..case.index.spans.len());
        assert!(result.unwrap_err().is_corruption());
        assert_eq!(pages, (0..18).collect::<Vec<_>>(), "what comes before it is");
        // Bytes that are not there, or are others.
        for span in 0..case.index.spans.len() {
            let start = case.index.spans[span].compressed_offset;
            case.compressed.put(start + 12, &Bytes::from_static(&[0x55; 3])).unwrap();
            assert!(case.unpack(span..span + 1).0.unwrap_err().is_corruption(), "span {span}");
        }
    }

    #[tokio::test]
    async fn large_pieces_are_unpacked_when_all_of_their_bytes_are_here() {
        let bytes: Vec<u8> = (0..TOC_LARGE_PIECE_BYTES + 5000).map(|at| (at % 253) as u8).collect();
        let size = bytes.len() as u64;
        let mut tree = LayerTreeBuilder::new();
        tree.add(entry("file", EntryKind::File { size, segments: None })).unwrap();
        let piece = TocPiece {
            compressed: 0..size,
            skipped_bytes: 0,
            stream_offset: 0,
            bytes: size,
            digest: Digest::of(&bytes),
        };
        let mut layer = made(media_type::Compression::Zstd, &[], |_lines| {}).layer();
        (layer.descriptor.size, layer.compression) = (size, media_type::Compression::None);
        let case = Case::new(Toc { tree: tree.finish(), pieces: vec![piece] }, &layer, &bytes);
        let unpacking = tokio::task::spawn_blocking(move || {
            let (result, pages, blob) = case.unpack(0..1);
            result.unwrap();
            assert!(blob.starts_with(&bytes));
            // The last byte does not come.
            case.compressed.forget(size - 1..size).unwrap();
            assert!(matches!(case.unpack(0..1).0, Err(LazyError::Stopped { .. })));
            pages.len()
        });
        assert_eq!(unpacking.await.unwrap() as u64, size.div_ceil(BLOCK_BYTES));
    }
}
