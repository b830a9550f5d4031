//! Layers in both formats, made here byte by byte as their descriptions say, read by their own tables.

use super::{LayerTree, Toc, TocError, TocHint, TocPiece, entries, footer};
use crate::index::{LayerIndex, front_range};
use crate::limits::{TOC_PIECE_BYTES_MAX, TOC_SKIPPED_BYTES_MAX};
use crate::testing::contents::{CHUNKED_DIGEST, CHUNKED_POSITION, ESTARGZ_DIGEST, Made, made};
use crate::testing::unpack_bytes;
use crate::tree::LayerTreeBuilder;
use proptest::prelude::*;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::{Descriptor, Layer};
use sampan_oci::media_type::Compression;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn files() -> Vec<(String, Vec<u8>)> {
    let files = [
        ("a/one", vec![1; 10]),
        ("a/empty", Vec::new()),
        ("a/two", vec![2; 40]),
        ("large", b"0123456789".repeat(20_000)),
        ("z", vec![b'z'; 5000]),
    ];
    files.map(|(name, data)| (name.to_owned(), data)).into()
}

fn estargz() -> Made {
    made(Compression::Gzip, &files(), |_lines| {})
}

fn zstd_chunked() -> Made {
    made(Compression::Zstd, &files(), |_lines| {})
}

impl Made {
    fn read(&self) -> Result<Toc, TocError> {
        let hint = TocHint::of(&self.layer()).unwrap();
        let bytes = self.layer.len() as u64;
        let first = hint.first_range(bytes);
        let place = hint.locate(&self.layer[first.start as usize..first.end as usize], bytes)?;
        hint.read(&self.layer[place.start as usize..place.end as usize], &place)
    }

    fn unpack_piece(&self, piece: &TocPiece) -> Vec<u8> {
        use std::io::Read;
        let stored = &self.layer[piece.compressed.start as usize..piece.compressed.end as usize];
        let wanted = (piece.skipped_bytes + piece.bytes) as usize;
        let mut bytes = vec![0; wanted];
        match self.compression {
            Compression::Zstd => zstd::stream::read::Decoder::new(stored).unwrap().read_exact(&mut bytes).unwrap(),
            _ => {
                let output = sampan_oci::inflate::OutputBuffer::with_capacity(wanted);
                let mut decoder = sampan_oci::gzip::GzipDecoder::new(output, None);
                decoder.feed(stored).unwrap();
                bytes.copy_from_slice(&decoder.output()[..wanted]);
            }
        }
        bytes.split_off(piece.skipped_bytes as usize)
    }
}

fn check_made(made: &Made) {
    let toc = made.read().unwrap();
    let mut stream = 0;
    for piece in &toc.pieces {
        assert_eq!(piece.stream_offset, stream, "pieces cover the stream without gaps");
        let bytes = made.unpack_piece(piece);
        assert!(piece.digest.matches(&bytes));
        stream += piece.bytes;
    }
    // What unpacking makes of the layer lies in the same places of its blob, under the same names.
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    let index = unpack_bytes(&made.layer, Digest::of(&made.tar), made.compression, &blob).unwrap();
    assert_eq!(toc.tree.blob_layout(), index.tree.blob_layout());
    let without_times = |tree: &LayerTree| {
        let mut tree = tree.clone();
        tree.contents.iter_mut().for_each(|content| content.stream_offset = 0);
        tree.inodes.iter_mut().for_each(|inode| (inode.seconds, inode.nanoseconds) = (0, 0));
        tree
    };
    assert_eq!(without_times(&toc.tree), without_times(&index.tree));
}

/// What a table makes is an index that can be read again, and has the same pieces; or it is refused.
fn check_index(toc: Toc) -> Option<LayerIndex> {
    let layer = made(Compression::Zstd, &[], |_lines| {}).layer();
    let layer = Layer { descriptor: Descriptor { size: 1 << 40, ..layer.descriptor }, ..layer };
    let told = toc.clone();
    let (index, file) = toc.into_index(&layer, Digest::of(b"tar")).ok()?;
    assert_eq!(LayerIndex::decode(&file).unwrap(), index);
    let front_end = front_range(&file).unwrap().end;
    let mut pieces = told.pieces.iter();
    for span in 0..index.spans.len() {
        let range = index.record_range(front_end, span).unwrap();
        let record = &file[range.start as usize..range.end as usize];
        for piece in index.decode_pieces(span, record).unwrap() {
            let told = pieces.next().unwrap();
            assert_eq!(told.compressed.start, index.spans[span].compressed_offset);
            assert_eq!((told.skipped_bytes, told.bytes, told.digest), (piece.skipped_bytes, piece.bytes, piece.digest));
        }
        assert!(index.decode_pieces(span, &record[1..]).is_err(), "not that record");
    }
    assert!(pieces.next().is_none());
    Some(index)
}

#[test]
fn a_table_makes_an_index_that_holds_every_piece_once() {
    for made in [estargz(), zstd_chunked()] {
        let toc = made.read().unwrap();
        let members: BTreeSet<u64> = toc.pieces.iter().map(|piece| piece.compressed.start).collect();
        let index = check_index(toc).unwrap();
        assert_eq!(index.spans.len(), members.len());
        assert_eq!(index.pages_before_landmark(), 0..0);
    }
    let files = [("first", vec![1; 5000]), (".prefetch.landmark", vec![15]), ("last", vec![2; 9000])];
    let made = made(Compression::Gzip, &files.map(|(name, data)| (name.to_owned(), data)), |_lines| {});
    assert_eq!(check_index(made.read().unwrap()).unwrap().pages_before_landmark(), 0..2);
}

#[test]
fn pieces_that_overlap_or_are_too_long_make_no_index() {
    let digest = Digest::of(b"");
    let toc = |pieces: &[(u64, u64, u64)]| {
        let mut stream_offset = 0;
        let pieces = pieces.iter().map(|(start, skipped_bytes, bytes)| {
            let (compressed, skipped_bytes, bytes) = (*start..start + 1, *skipped_bytes, *bytes);
            let piece = TocPiece { compressed, skipped_bytes, stream_offset, bytes, digest };
            stream_offset += bytes;
            piece
        });
        let tree = LayerTreeBuilder::new().finish();
        check_index(Toc { tree, pieces: pieces.collect() })
    };
    assert!(toc(&[(5, 0, 10), (5, 10, 10), (6, 3, 1)]).is_some());
    assert!(toc(&[(5, 0, 10), (5, 9, 10)]).is_none(), "overlap");
    assert!(toc(&[(5, 0, TOC_PIECE_BYTES_MAX)]).is_some());
    assert!(toc(&[(5, 0, TOC_PIECE_BYTES_MAX + 1)]).is_none());
    assert!(toc(&[(5, TOC_SKIPPED_BYTES_MAX + 1, 1)]).is_none());
}

#[test]
fn a_layer_is_the_same_by_its_table_and_by_its_archive() {
    check_made(&estargz());
    check_made(&zstd_chunked());
}

#[test]
fn a_table_with_another_digest_is_refused() {
    for mut made in [estargz(), zstd_chunked()] {
        let name = if made.compression == Compression::Gzip { ESTARGZ_DIGEST } else { CHUNKED_DIGEST };
        made.annotations.insert(name.to_owned(), Digest::of(b"other").to_string());
        assert!(matches!(made.read(), Err(TocError::Digest { .. })));
    }
}

#[test]
fn layers_without_a_usable_hint_have_no_table() {
    let mut made = zstd_chunked();
    for position in ["", "1:2:3:2", "1:2:3", "0:18446744073709551615:1:1", "5:99999999:1:1", "a:b:c:1", "1:2:3:1:5"] {
        made.annotations.insert(CHUNKED_POSITION.to_owned(), position.to_owned());
        assert_eq!(TocHint::of(&made.layer()), None, "{position}");
    }
    made.compression = Compression::None;
    assert_eq!(TocHint::of(&made.layer()), None);
}

#[test]
fn tables_that_lie_are_refused() {
    let digest = Digest::of(b"").to_string();
    let read = |lines: Value| entries::read(json!({"version": 1, "entries": lines}).to_string().as_bytes(), 1000, None);
    let reg = |offset: u64| json!({"name": "a", "type": "reg", "size": 5, "offset": offset, "chunkDigest": digest});
    assert!(read(json!([reg(10)])).is_ok());
    assert!(
        read(json!([reg(10), {"name": "b", "type": "reg", "size": 1, "offset": 9, "chunkDigest": digest}])).is_err()
    );
    assert!(read(json!([reg(1000)])).is_err(), "beyond the data");
    assert!(read(json!([{"name": "a", "type": "reg", "size": 5, "offset": 1}])).is_err(), "no digest");
    assert!(read(json!([{"name": "../a", "type": "dir"}])).is_err());
    assert!(read(json!([{"name": "a", "type": "door"}])).is_err());
    assert!(read(json!([{"name": "a", "type": "chunk", "offset": 1}])).is_err());
    let cut = json!({"name": "a", "type": "reg", "size": 5, "offset": 1, "chunkSize": 3, "chunkDigest": digest});
    assert!(read(json!([cut])).is_err(), "a piece is missing");
    assert!(read(json!([{"name": "a", "type": "reg", "size": u64::MAX, "offset": 1, "chunkDigest": digest}])).is_err());
    assert!(read(json!([{"name": "a\u{fffd}", "type": "dir"}])).is_err(), "its name was something else");
    assert!(read(json!(null)).unwrap().pieces.is_empty());
    assert!(entries::read(br#"{"version":2,"entries":[]}"#, 0, None).is_err());
    assert!(entries::read(br#"{"version":1,"entries":[]} x"#, 0, None).is_err());
}

fn line() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["a", "b", "a/b", "a/.wh.b", ".wh..wh..opq", "../x", "", "c/d"]);
    let kind = prop::sample::select(vec!["dir", "reg", "chunk", "symlink", "hardlink", "char", "fifo", "x"]);
    let number = || prop_oneof![0u64..12, any::<u64>()];
    (name, kind, number(), number(), number(), number(), any::<bool>()).prop_map(
        |(name, kind, size, offset, chunk_offset, chunk_size, has_digest)| {
            let digest = if has_digest { Digest::of(b"").to_string() } else { String::new() };
            json!({
                "name": name, "type": kind, "size": size, "offset": offset, "endOffset": offset.wrapping_add(3),
                "chunkOffset": chunk_offset, "chunkSize": chunk_size, "chunkDigest": digest, "linkName": "a/b",
                "mode": offset as i64, "xattrs": {"user.a": "AAA="}, "innerOffset": size,
            })
        },
    )
}

proptest! {
    #[test]
    fn any_table_is_sound_or_refused(lines in prop::collection::vec(line(), 0..8), end in 0u64..100) {
        let json = json!({"version": 1, "entries": lines}).to_string();
        if let Ok(toc) = entries::read(json.as_bytes(), end, None) {
            let mut stream = 0;
            for piece in &toc.pieces {
                prop_assert_eq!(piece.stream_offset, stream);
                prop_assert!(piece.compressed.start < piece.compressed.end && piece.compressed.end <= end);
                stream += piece.bytes;
            }
            toc.tree.check(stream).unwrap();
            check_index(toc);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
        footer::estargz_toc(&bytes, size).ok();
        footer::unpack_estargz(&bytes).ok();
        entries::read(&bytes, size, None).ok();
        footer::unzstd(&bytes, size).ok();
    }

    #[test]
    fn damage_to_a_layer_is_refused(at in any::<prop::sample::Index>(), byte in 1u8.., chunked in any::<bool>()) {
        let mut made = if chunked { zstd_chunked() } else { estargz() };
        let right = made.read().unwrap();
        // The table and the footer stand at the end.
        let from = right.pieces.iter().rev().nth(usize::from(!chunked)).unwrap().compressed.start as usize;
        let at = from + at.index(made.layer.len() - from);
        made.layer[at] ^= byte;
        prop_assert!(made.read().map_or(true, |read| read == right));
    }
}
