//! Layers with tables of contents of their own, made byte by byte as the descriptions of both formats say.

use super::{archive, compressed, entry};
use sampan_oci::digest::Digest;
use sampan_oci::layer::EntryKind;
use sampan_oci::manifest::{Descriptor, Layer};
use sampan_oci::media_type::Compression;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) const ESTARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
pub(crate) const CHUNKED_DIGEST: &str = "io.github.containers.zstd-chunked.manifest-checksum";
pub(crate) const CHUNKED_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
/// A file's data as a layer has it: pieces of at most this length, which is none of whole pages.
pub(crate) const PIECE_BYTES: usize = 70_000;
/// What [`entry`] gives files, in whole seconds, as writers of eStargz round it.
const MODTIME: &str = "2023-11-14T22:13:20Z";

pub(crate) struct Made {
    pub(crate) layer: Vec<u8>,
    pub(crate) tar: Vec<u8>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) compression: Compression,
}

/// A layer of files. `told` may change what its table says of it.
pub(crate) fn made(compression: Compression, files: &[(String, Vec<u8>)], told: impl FnOnce(&mut Vec<Value>)) -> Made {
    let (layer, tar, mut lines) = cut(compression, files);
    told(&mut lines);
    match compression {
        Compression::Zstd => zstd_chunked(layer, tar, &lines),
        _ => estargz(layer, tar, &lines),
    }
}

fn pack(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        other => compressed(bytes, other),
    }
}

/// The layer up to its table: the archive cut before and after each piece of data, every cut packed by itself; but small files
/// stand together with their headers.
fn cut(compression: Compression, files: &[(String, Vec<u8>)]) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let mut entries = vec![(entry("a", EntryKind::Directory), Vec::new())];
    for (name, data) in files {
        entries.push((entry(name, EntryKind::File { size: data.len() as u64, segments: None }), data.clone()));
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
    let mut lines = vec![json!({"name": "a/", "type": "dir", "mode": 0o40755, "modtime": MODTIME})];
    let (mut layer, mut taken, mut from) = (Vec::new(), 0, 0);
    for (name, data) in files {
        let mut line = json!({"name": name, "type": "reg", "mode": 0o100_644, "size": data.len(), "modtime": MODTIME});
        if data.is_empty() {
            lines.push(line);
            continue;
        }
        let at = from + tar[from..].windows(data.len()).position(|window| window == data).unwrap();
        from = at + data.len();
        if compression == Compression::Gzip && data.len() < 100 {
            // Packed with what comes before it.
            line["offset"] = json!(layer.len());
            line["innerOffset"] = json!(at - taken);
            line["chunkDigest"] = json!(Digest::of(data));
            lines.push(line);
            layer.extend(pack(&tar[taken..from], compression));
            taken = from;
            continue;
        }
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
        taken = from;
    }
    layer.extend(pack(&tar[taken..], compression));
    lines.push(json!({"name": "link", "type": "symlink", "linkName": "a/one", "mode": 0o644, "modtime": MODTIME}));
    lines.push(json!({"name": ".wh.gone", "type": "reg", "mode": 0o644}));
    (layer, tar, lines)
}

fn estargz(mut layer: Vec<u8>, mut tar: Vec<u8>, lines: &[Value]) -> Made {
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

fn zstd_chunked(mut layer: Vec<u8>, tar: Vec<u8>, lines: &[Value]) -> Made {
    let table = json!({"version": 1, "entries": lines, "tarSplitDigest": "x"}).to_string().into_bytes();
    let stored = zstd::bulk::compress(&table, 3).unwrap();
    let offset = layer.len() + 8;
    layer.extend(skippable(&stored));
    layer.extend(skippable(&[0; 64]));
    let annotations = [
        (CHUNKED_DIGEST.to_owned(), Digest::of(&stored).to_string()),
        (CHUNKED_POSITION.to_owned(), format!("{offset}:{}:{}:1", stored.len(), table.len())),
    ];
    Made { layer, tar, annotations: annotations.into(), compression: Compression::Zstd }
}

impl Made {
    pub(crate) fn media_type(&self) -> &'static str {
        match self.compression {
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => super::layout::TAR_GZIP,
        }
    }

    /// As an image's manifest has it.
    pub(crate) fn layer(&self) -> Layer {
        let (media_type, digest) = (self.media_type().to_owned(), Digest::of(&self.layer));
        let (size, annotations) = (self.layer.len() as u64, self.annotations.clone());
        let descriptor = Descriptor { media_type, digest, size, annotations, platform: None };
        Layer { descriptor, compression: self.compression }
    }
}
