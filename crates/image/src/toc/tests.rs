//! Layers in both formats, made here byte by byte as their descriptions say, read by their own tables.

use super::*;
use crate::testing::{archive, compressed, entry, unpack_bytes};
use proptest::prelude::*;
use sampan_oci::layer::EntryKind;
use sampan_oci::manifest::Descriptor;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A file's data as a layer has it: pieces of at most this length.
const PIECE_BYTES: usize = 70_000;

struct Made {
    layer: Vec<u8>,
    tar: Vec<u8>,
    annotations: BTreeMap<String, String>,
    compression: Compression,
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a/one", vec![1; 10]),
        ("a/empty", Vec::new()),
        ("large", b"0123456789".repeat(20_000)),
        ("z", vec![b'z'; 5000]),
    ]
}

fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        other => compressed(bytes, other),
    }
}

/// The layer up to its table: the archive cut before and after each piece of data, every cut packed by itself.
fn cut(compression: Compression) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let mut entries = vec![(entry("a", EntryKind::Directory), Vec::new())];
    for (name, data) in files() {
        entries.push((entry(name, EntryKind::File { size: data.len() as u64, segments: None }), data));
    }
    let link = EntryKind::Symlink { target: b"a/one".to_vec() };
    entries.push((entry("link", link), Vec::new()));
    entries.push((entry("gone", EntryKind::Whiteout), Vec::new()));
    let mut tar = archive(&entries);
    if compression == Compression::Gzip {
        // The archive goes on where its end would be: the table is its last file.
        while tar.ends_with(&[0; 512]) {
            tar.truncate(tar.len() - 512);
        }
    }
    let mut lines = vec![json!({"name": "a/", "type": "dir", "mode": 0o40755, "modtime": "2023-11-14T22:13:20Z"})];
    let (mut layer, mut taken) = (Vec::new(), 0);
    let mut from = 0;
    for (name, data) in files() {
        let mut line = json!({"name": name, "type": "reg", "mode": 0o100_644, "size": data.len(), "modtime": "2023-11-14T22:13:20Z"});
        if data.is_empty() {
            lines.push(line);
            continue;
        }
        let at = from + tar[from..].windows(data.len()).position(|window| window == data).unwrap();
        layer.extend(pack(&tar[taken..at], compression));
        let pieces: Vec<&[u8]> = data.chunks(PIECE_BYTES).collect();
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                line = json!({"name": name, "type": "chunk", "chunkOffset": number * PIECE_BYTES});
            }
            line["offset"] = json!(layer.len());
            // The last piece leaves its size out.
            line["chunkSize"] = json!(if number + 1 == pieces.len() { 0 } else { piece.len() });
            line["chunkDigest"] = json!(Digest::of(piece));
            lines.push(line.clone());
            layer.extend(pack(piece, compression));
        }
        from = at + data.len();
        taken = from;
    }
    layer.extend(pack(&tar[taken..], compression));
    lines.push(json!({"name": "link", "type": "symlink", "linkName": "a/one", "mode": 0o644, "modtime": "2023-11-14T22:13:20Z"}));
    lines.push(json!({"name": ".wh.gone", "type": "reg", "mode": 0o644}));
    (layer, tar, lines)
}

fn estargz() -> Made {
    let (mut layer, mut tar, lines) = cut(Compression::Gzip);
    let table = json!({"version": 1, "entries": lines}).to_string().into_bytes();
    let kind = EntryKind::File { size: table.len() as u64, segments: None };
    let own = archive(&[(entry("stargz.index.json", kind), table.clone())]);
    let offset = layer.len();
    layer.extend(pack(&own, Compression::Gzip));
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    footer.extend(format!("{offset:016x}STARGZ").into_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(footer.len(), 51);
    layer.extend(footer);
    tar.extend(own);
    let annotations = [(ESTARGZ_DIGEST.to_owned(), Digest::of(&table).to_string())];
    Made { layer, tar, annotations: annotations.into(), compression: Compression::Gzip }
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&0x184d_2a50_u32.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn zstd_chunked() -> Made {
    let (mut layer, tar, lines) = cut(Compression::Zstd);
    let table = json!({"version": 1, "entries": lines, "tarSplitDigest": "x"}).to_string().into_bytes();
    let stored = zstd::bulk::compress(&table, 3).unwrap();
    let offset = layer.len() + 8;
    layer.extend(skippable(&stored));
    layer.extend(skippable(&[0; 64]));
    let annotations = [
        (CHUNKED_DIGEST[0].to_owned(), Digest::of(&stored).to_string()),
        (CHUNKED_POSITION[0].to_owned(), format!("{offset}:{}:{}:1", stored.len(), table.len())),
    ];
    Made { layer, tar, annotations: annotations.into(), compression: Compression::Zstd }
}

impl Made {
    fn layer(&self) -> Layer {
        let (media_type, digest, size) = (String::new(), Digest::of(&self.layer), self.layer.len() as u64);
        let descriptor = Descriptor { media_type, digest, size, annotations: self.annotations.clone(), platform: None };
        Layer { descriptor, compression: self.compression }
    }

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

#[test]
fn a_layer_is_the_same_by_its_table_and_by_its_archive() {
    check_made(&estargz());
    check_made(&zstd_chunked());
}

#[test]
fn a_table_with_another_digest_is_refused() {
    for mut made in [estargz(), zstd_chunked()] {
        let name = if made.compression == Compression::Gzip { ESTARGZ_DIGEST } else { CHUNKED_DIGEST[0] };
        made.annotations.insert(name.to_owned(), Digest::of(b"other").to_string());
        assert!(matches!(made.read(), Err(TocError::Digest { .. })));
    }
}

#[test]
fn layers_without_a_usable_hint_have_no_table() {
    let mut made = zstd_chunked();
    for position in ["", "1:2:3:2", "1:2:3", "0:18446744073709551615:1:1", "5:99999999:1:1", "a:b:c:1", "1:2:3:1:5"] {
        made.annotations.insert(CHUNKED_POSITION[0].to_owned(), position.to_owned());
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
