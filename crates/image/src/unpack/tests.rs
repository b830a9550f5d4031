//! Layers that must not be had, and what is said of them.

use super::*;
use crate::testing::{archive, compressed, entry, input, unpack_bytes};
use expect_test::{Expect, expect};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::layer::EntryKind;
use sampan_oci::layer::archive::ArchiveWriter;

/// Unpacks a layer, and gives its index decoded and as a file.
pub(crate) fn unpack_whole(
    layer: &[u8],
    tar: &[u8],
    compression: Compression,
) -> Result<(LayerIndex, Vec<u8>), UnpackError> {
    let directory = tempfile::tempdir().unwrap();
    let job = UnpackJob {
        digest: Digest::of(layer),
        diff_id: Digest::of(tar),
        compression,
        stream_bytes_max: 1 << 30,
        blob: directory.path().join("blob"),
    };
    let unpacked = unpack(&job, &mut input(layer))?;
    Ok((LayerIndex::decode(&unpacked.index_bytes).unwrap(), unpacked.index_bytes))
}

/// Checks what is said of a layer, with digests cut short.
fn check(layer: &[u8], tar: &[u8], limit: u64, expected: Expect) {
    let directory = tempfile::tempdir().unwrap();
    let job = UnpackJob {
        digest: Digest::of(b"layer"),
        diff_id: Digest::of(tar),
        compression: Compression::Gzip,
        stream_bytes_max: limit,
        blob: directory.path().join("blob"),
    };
    let error = unpack(&job, &mut input(layer)).map(|_| ()).unwrap_err();
    let said = ErrorChain(&error).to_string();
    let said = said.split(' ').map(|word| if word.starts_with("sha256:") { "sha256:…" } else { word });
    expected.assert_eq(&said.collect::<Vec<_>>().join(" "));
}

fn file(path: &str, size: usize) -> (sampan_oci::layer::Entry, Vec<u8>) {
    (entry(path, EntryKind::File { size: size as u64, segments: None }), vec![7; size])
}

#[test]
fn damaged_gzip_is_told() {
    let tar = archive(&[file("a", 500_000)]);
    let layer = compressed(&tar, Compression::Gzip);
    check(
        &layer[..layer.len() / 2],
        &tar,
        1 << 30,
        expect![
            "layer sha256:… cannot be unpacked; push the image again: the gzip stream is truncated: it ends after 342 bytes in the middle of its data"
        ],
    );
    let mut damaged = layer.clone();
    let at = damaged.len() - 8;
    damaged[at] ^= 1;
    check(
        &damaged,
        &tar,
        1 << 30,
        expect![
            "layer sha256:… cannot be unpacked; push the image again: the gzip stream is corrupt near byte 680: checksum mismatch"
        ],
    );
    check(
        b"this is no gzip at all",
        &tar,
        1 << 30,
        expect![
            "layer sha256:… cannot be unpacked; push the image again: not a gzip stream: it does not start with 1f 8b 08"
        ],
    );
}

#[test]
fn damaged_zstd_is_told() {
    let tar = archive(&[file("a", 500_000)]);
    let layer = compressed(&tar, Compression::Zstd);
    check(
        &layer[..layer.len() - 3],
        &tar,
        1 << 30,
        expect!["layer sha256:… cannot be unpacked: its zstd stream is truncated; push the image again"],
    );
}

#[test]
fn a_wrong_diff_id_is_told() {
    let tar = archive(&[file("a", 500)]);
    check(
        &compressed(&tar, Compression::Gzip),
        b"other",
        1 << 30,
        expect![
            "layer sha256:… unpacks to sha256:… not to sha256:… as the image's configuration says; build the image again"
        ],
    );
}

#[test]
fn a_layer_without_end_is_refused_at_its_limit() {
    let tar = archive(&[file("a", 5_000_000)]);
    check(
        &compressed(&tar, Compression::Gzip),
        &tar,
        3_000_000,
        expect![
            "layer sha256:… is refused: it expands to more than 3000000 bytes, the limit for this disk; raise the limit, or free space, if the layer is meant to be so large"
        ],
    );
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let bomb = ArchiveWriter::new().header(b"x", b'x', 1 << 30).finish();
    check(
        &compressed(&bomb, Compression::Gzip),
        &bomb,
        1 << 30,
        expect![
            "layer sha256:… is refused; build and push the image again: PAX header of 1073741824 bytes is refused: the limit is 1048576 bytes"
        ],
    );
    let symlink = entry("out", EntryKind::Symlink { target: b"../../etc".to_vec() });
    let climbs = archive(&[(symlink, Vec::new()), file("out/passwd", 4)]);
    check(
        &compressed(&climbs, Compression::Gzip),
        &climbs,
        1 << 30,
        expect![[
            r#"layer sha256:… is refused; build the image again without this entry: tar entry "out/passwd" is refused: a symbolic link on its way leads out of the image's root"#
        ]],
    );
}

#[test]
fn a_wrong_media_type_is_overlooked_where_the_bytes_are_clear() {
    let tar = archive(&[file("a", 5000)]);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let layer = compressed(&tar, compression);
        for declared in [Compression::None, Compression::Gzip, Compression::Zstd] {
            unpack_whole(&layer, &tar, declared).unwrap();
        }
    }
}

#[test]
fn a_download_that_ends_without_its_mark_is_no_layer() {
    let tar = archive(&[file("a", 5000)]);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.try_send(Ok(bytes::Bytes::copy_from_slice(&tar))).unwrap();
    drop(sender);
    let directory = tempfile::tempdir().unwrap();
    let job = UnpackJob {
        digest: Digest::of(&tar),
        diff_id: Digest::of(&tar),
        compression: Compression::None,
        stream_bytes_max: 1 << 30,
        blob: directory.path().join("blob"),
    };
    let error = unpack(&job, &mut Input::new(receiver, Box::new(|_| {}))).unwrap_err();
    assert!(matches!(error, UnpackError::Cancelled { .. }), "{error}");
}

#[test]
fn a_full_disk_is_told_as_that() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: a small disk needs root");
        return;
    }
    let context = sampan_sys::mount::FsContext::open("tmpfs").unwrap();
    context.set_string("size", "70m").unwrap();
    let mount = context.mount(rustix::mount::MountAttrFlags::empty()).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount)));
    let tar = archive(&[file("a", 90 << 20)]);
    let error = unpack_bytes(&tar, Digest::of(&tar), Compression::None, &root.join("blob")).unwrap_err();
    assert!(matches!(error, UnpackError::DiskFull { .. }), "{error}");
    assert!(error.to_string().starts_with("no space left on the disk of /proc/self/fd/"), "{error}");
}
