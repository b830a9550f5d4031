//! What this crate's tests share: layers from short descriptions, a naive model of stacking, and ways to read images back.

pub(crate) mod contents;
pub(crate) mod layout;
pub(crate) mod model;
pub(crate) mod read_back;
pub(crate) mod registry;
pub(crate) mod stack;

use crate::index::LayerIndex;
use crate::unpack::{Input, UnpackError, UnpackJob, unpack};
use sampan_oci::digest::Digest;
use sampan_oci::layer::archive::ArchiveWriter;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, Timestamp};
use sampan_oci::media_type::Compression;
use std::path::Path;

/// An entry with ordinary attributes.
pub(crate) fn entry(path: &str, kind: EntryKind) -> Entry {
    let mode = if matches!(kind, EntryKind::Directory) { 0o755 } else { 0o644 };
    Entry {
        path: LayerPath::of_entry(path.as_bytes()).unwrap(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 5 },
        xattrs: Vec::new(),
        data_offset: 0,
    }
}

pub(crate) fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    for (entry, data) in entries {
        writer.entry(entry, data);
    }
    writer.finish()
}

pub(crate) fn compressed(archive: &[u8], compression: Compression) -> Vec<u8> {
    use std::io::Write;
    match compression {
        Compression::None => archive.to_vec(),
        // Two frames, so that there is something to enter in the middle.
        Compression::Zstd => {
            let (one, two) = archive.split_at(archive.len() / 2);
            [zstd::bulk::compress(one, 3).unwrap(), zstd::bulk::compress(two, 3).unwrap()].concat()
        }
        Compression::Gzip => {
            let mut child = std::process::Command::new("gzip")
                .args(["-6", "-c"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("this test needs gzip");
            let mut stdin = child.stdin.take().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(archive).unwrap());
                child.wait_with_output().unwrap().stdout
            })
        }
    }
}

/// Runs the pipeline over a layer; the blob stands at `blob` afterwards.
pub(crate) fn unpack_bytes(
    layer: &[u8],
    diff_id: Digest,
    compression: Compression,
    blob: &Path,
) -> Result<LayerIndex, UnpackError> {
    let job =
        UnpackJob { digest: Digest::of(layer), diff_id, compression, stream_bytes_max: 1 << 30, blob: blob.to_owned() };
    let mut input = input(layer);
    let unpacked = unpack(&job, &mut input)?;
    Ok(LayerIndex::decode(&unpacked.index_bytes).unwrap())
}

/// A layer that arrives in pieces and ends well.
pub(crate) fn input(layer: &[u8]) -> Input {
    let pieces: Vec<_> = layer.chunks(70_001).map(bytes::Bytes::copy_from_slice).collect();
    let (sender, receiver) = tokio::sync::mpsc::channel(pieces.len() + 1);
    for piece in pieces {
        sender.try_send(Ok(piece)).unwrap();
    }
    sender.try_send(Ok(bytes::Bytes::new())).unwrap();
    Input::new(receiver, Box::new(|_| {}))
}
