//! The binary inputs that fuzzing begins with, made by our own writers: small, and each accepted by its target.
//!
//! They are committed in `fuzz/corpus`, so that a run needs nothing but them; `fuzz-seeds` writes them there. Seeds that
//! are text stand there too, written by hand.

mod published;

use std::io::Write;

use anyhow::Context;
use sampan_erofs::{Device, DirEntry, Extent, Inode, Kind, Tree, Xattr};
use sampan_image::index::{Compression, LayerIndex, SpanEntry};
use sampan_image::tree::LayerTreeBuilder;
use sampan_oci::digest::Digest;
use sampan_oci::layer::archive::ArchiveWriter;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, LayerReader, LayerSink, Segment, Timestamp};
use sampan_wire::agent::{FromDaemon, PodConfiguration, Request};

/// One input of one target.
#[derive(Debug)]
pub struct Seed {
    /// The target's name.
    pub target: &'static str,
    /// Its own name.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
}

/// All seeds that are made.
pub fn all() -> anyhow::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    let mut add = |target, name, bytes| seeds.push(Seed { target, name, bytes });
    let archive = archive()?;
    add("erofs_image", "small", erofs_image()?);
    add("layer_tar", "pax", archive.clone());
    add("layer_tar", "gnu", gnu_archive());
    add("gzip", "dynamic", gzip(&archive, 9)?);
    add("gzip", "stored", gzip(b"stored", 0)?);
    add("gzip", "members", [gzip(b"one", 6)?, gzip(&[7; 3000], 1)?].concat());
    add("inflate_span", "fixed", inflate_span()?);
    let front = index_front(&archive)?;
    add("layer_index", "file", crate::images::seal_index(&front).context("the index cannot be packed")?);
    add("layer_index", "front", front);
    add("wire_frames", "requests", frames()?);
    let (pack, trace) = published::pack_and_trace()?;
    add("start_pack", "two-layers", pack);
    add("start_trace", "two-starts", trace);
    add("docker_archive", "image", crate::archives::around(br#"[{"Config":"config.json","Layers":["layer.tar"]}]"#));
    add("publication", "artifact", published::artifact());
    add("layer_toc", "table", published::table());
    Ok(seeds)
}

fn entry(path: &str, kind: EntryKind) -> anyhow::Result<Entry> {
    Ok(Entry {
        path: LayerPath::of_entry(path.as_bytes())?,
        kind,
        mode: 0o4755,
        uid: 1000,
        gid: 70_000,
        mtime: Timestamp { seconds: -1, nanoseconds: 5 },
        xattrs: vec![sampan_oci::layer::Xattr { name: b"user.a".to_vec(), value: b"\0\xff".to_vec() }],
        data_offset: 0,
    })
}

/// An entry of every kind.
fn archive() -> anyhow::Result<Vec<u8>> {
    let mut writer = ArchiveWriter::new();
    let plain = |size| EntryKind::File { size, segments: None };
    let sparse = EntryKind::File { size: 20_000, segments: Some(vec![Segment { offset: 8192, length: 4 }]) };
    let target = || LayerPath::of_entry(b"d/file");
    for (path, kind, data) in [
        ("d", EntryKind::Directory, &b""[..]),
        ("d/file", plain(5), b"hello"),
        ("d/sparse", sparse, b"data"),
        ("d/link", EntryKind::HardLink { target: target()? }, b""),
        ("d/symlink", EntryKind::Symlink { target: b"../d/file".to_vec() }, b""),
        ("d/null", EntryKind::CharDevice { major: 1, minor: 3 }, b""),
        ("d/fifo", EntryKind::Fifo, b""),
        ("implied/a/gone", EntryKind::Whiteout, b""),
        ("d", EntryKind::Opaque, b""),
    ] {
        writer.entry(&entry(path, kind)?, data);
    }
    Ok(writer.finish())
}

/// What other programs write: plain ustar, GNU long names.
fn gnu_archive() -> Vec<u8> {
    let long = [b'n'; 150];
    let mut writer = ArchiveWriter::new();
    writer.header(b"././@LongLink", b'L', 151).data(&[&long[..], b"\0"].concat());
    writer.header(b"cut", b'0', 3).data(b"abc").header(b"dir/", b'5', 0).finish()
}

fn gzip(data: &[u8], level: u32) -> anyhow::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

/// Bit 0, a window of 4 bytes, 12 bytes of output.
fn inflate_span() -> anyhow::Result<Vec<u8>> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(b"abcabcabcabc")?;
    Ok([&[0, 4, 0, 12, 0][..], b"wind", &encoder.finish()?].concat())
}

fn erofs_image() -> anyhow::Result<Vec<u8>> {
    let mut tree = Tree::new(Inode::new(0o755, Kind::Directory(Vec::new())));
    let extents = vec![
        Extent { file_offset: 0, device: 1, device_offset: 4096, length: 4096 },
        Extent { file_offset: 8192, device: 2, device_offset: 0, length: 100 },
    ];
    let mut file = Inode::new(0o4755, Kind::File { size: 8292, extents });
    file.xattrs = vec![Xattr { name: b"security.capability".to_vec(), value: vec![1; 20] }];
    let kinds = [
        ("fifo", Inode::new(0o600, Kind::Fifo)),
        ("file", file),
        ("sub", Inode::new(0o700, Kind::Directory(Vec::new()))),
        ("symlink", Inode::new(0o777, Kind::Symlink(b"sub/../file".to_vec()))),
    ];
    let mut entries = Vec::new();
    for (name, inode) in kinds {
        entries.push(DirEntry { name: name.as_bytes().to_vec(), inode: tree.push(inode) });
    }
    if let Some(root) = tree.inode_mut(tree.root) {
        root.kind = Kind::Directory(entries);
    }
    let device = |blocks, tag: &[u8]| Device { blocks, tag: tag.to_vec() };
    Ok(sampan_erofs::write(&tree, &[device(2, b"one"), device(1, b"two")])?)
}

struct TreeSink(LayerTreeBuilder);

impl LayerSink for TreeSink {
    type Error = sampan_image::tree::TreeError;

    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error> {
        self.0.add(entry)
    }

    fn data(&mut self, _bytes: &[u8]) -> Result<(), Self::Error> {
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The unpacked front part of the index of an uncompressed layer in two spans.
fn index_front(archive: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut reader, mut sink) = (LayerReader::new(), TreeSink(LayerTreeBuilder::new()));
    reader.feed(archive, &mut sink).ok().context("our own archive is refused")?;
    let span = |at| SpanEntry {
        compressed_offset: at,
        bit: 0,
        stream_offset: at,
        record_bytes: 0,
        record_hash: *blake3::hash(b"").as_bytes(),
    };
    let digest = Digest::of(archive);
    let bytes = archive.len() as u64;
    let index = LayerIndex {
        layer_digest: digest,
        layer_bytes: bytes,
        compression: Compression::None,
        diff_id: digest,
        stream_bytes: bytes,
        tree: sink.0.finish(),
        spans: vec![span(0), span(2048)],
    };
    postcard::to_stdvec(&index).context("the index cannot be written")
}

fn frames() -> anyhow::Result<Vec<u8>> {
    let configuration = PodConfiguration {
        hostname: "pod".to_owned(),
        cgroups: Vec::new(),
        sysctls: vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())],
        drop_to_mapped_root: true,
        share_process_namespace: false,
        host_process_namespace: false,
    };
    let mut bytes = Vec::new();
    for (request_id, request) in [(1, Request::Hello), (2, Request::Configure(configuration))] {
        bytes.extend(sampan_wire::frame::encode(&FromDaemon { request_id, request }, 0)?);
    }
    Ok(bytes)
}
