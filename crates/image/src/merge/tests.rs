//! Random stacks of layers, through the whole machine, against the naive model: read back by our reader and by the kernel.

mod elsewhere;

use super::*;
use crate::testing::model::{self, assert_same};
use crate::testing::stack::{LayerEntries, stack};
use crate::testing::{archive, compressed, entry, read_back, unpack_bytes};
use crate::tree::LayerTreeBuilder;
use proptest::prelude::*;
use sampan_oci::digest::Digest;
use sampan_oci::layer::EntryKind;
use sampan_oci::media_type::Compression;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The entries that are not refused, layer by layer; what a hard link to lower layers would not find is left out.
pub(crate) fn accepted(layers: Vec<LayerEntries>) -> Vec<LayerEntries> {
    let mut kept: Vec<LayerEntries> = Vec::new();
    for entries in layers {
        let mut layer = LayerEntries::new();
        let mut builder = LayerTreeBuilder::new();
        for (entry, data) in entries {
            let mut attempt = builder.clone();
            if attempt.add(entry.clone()).is_err() {
                continue;
            }
            let mut stack: Vec<LayerTree> = kept.iter().map(tree_of).collect();
            stack.push(attempt.clone().finish());
            if merge(&stack.iter().collect::<Vec<_>>(), &[]).is_ok() {
                builder = attempt;
                layer.push((entry, data));
            }
        }
        kept.push(layer);
    }
    kept
}

fn tree_of(entries: &LayerEntries) -> LayerTree {
    let mut builder = LayerTreeBuilder::new();
    for (entry, _) in entries {
        builder.add(entry.clone()).unwrap();
    }
    builder.finish()
}

/// An image on the disk, as the store makes it.
struct Built {
    metadata: Vec<u8>,
    files: Vec<PathBuf>,
    blobs: Vec<Vec<u8>>,
}

fn build(layers: &[LayerEntries], directory: &Path) -> Built {
    let compressions = [Compression::Gzip, Compression::None, Compression::Zstd];
    let mut trees = Vec::new();
    let mut paths = Vec::new();
    for (number, entries) in layers.iter().enumerate() {
        let tar = archive(entries);
        let compression = compressions[number % compressions.len()];
        let layer = compressed(&tar, compression);
        let blob = directory.join(format!("blob-{number}"));
        let index = unpack_bytes(&layer, Digest::of(&tar), compression, &blob).unwrap();
        assert_eq!(index.tree.blob_layout().1, std::fs::metadata(&blob).unwrap().len());
        trees.push(index.tree);
        paths.push(blob);
    }
    let merged = merge(&trees.iter().collect::<Vec<_>>(), &[]).unwrap();
    let metadata = sampan_erofs::write(&merged.tree, &merged.devices).unwrap();
    let file = directory.join("metadata");
    std::fs::write(&file, &metadata).unwrap();
    let devices: Vec<PathBuf> = merged.device_layers.iter().map(|layer| paths[*layer].clone()).collect();
    let blobs = devices.iter().map(|path| std::fs::read(path).unwrap()).collect();
    Built { metadata, files: [vec![file], devices].concat(), blobs }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn stacks_show_what_the_model_says(layers in stack(1..5, 14)) {
        let layers = accepted(layers);
        let expected = model::stacked(&layers);
        let directory = tempfile::tempdir().unwrap();
        let built = build(&layers, directory.path());
        let read = sampan_erofs::read(&built.metadata).unwrap();
        assert_same(&expected, &read_back::erofs(&read.tree, &built.blobs), "our reader");
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: the kernel's own reading needs root");
            return Ok(());
        }
        let mount = crate::store::mount_image(&built.files, true).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
        assert_same(&expected, &read_back::directory(&root), "the kernel");
    }
}

#[test]
fn a_layer_with_small_and_large_files_has_two_devices() {
    let file = |name: &str, size: usize| {
        (entry(name, EntryKind::File { size: size as u64, segments: None }), vec![size as u8; size])
    };
    let chunk = crate::tree::CHUNK_BYTES as usize;
    let layers = [
        vec![file("a", 10), file("b", chunk), file("c", chunk + 1)],
        vec![file("d", 3), file("e", chunk)],
        vec![file("f", 3 * chunk)],
    ];
    let directory = tempfile::tempdir().unwrap();
    let built = build(&layers, directory.path());
    let names: Vec<_> = built.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["metadata", "blob-0", "blob-0", "blob-1", "blob-2"]);
    let read = sampan_erofs::read(&built.metadata).unwrap();
    assert_same(&model::stacked(&layers), &read_back::erofs(&read.tree, &built.blobs), "our reader");
}

#[test]
fn loop_devices_show_what_files_show() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: loop devices need root and /dev/loop-control");
        return;
    }
    let file =
        |name: &str, size: usize| (entry(name, EntryKind::File { size: size as u64, segments: None }), vec![9; size]);
    let layers = [vec![file("a", 5000), file("large", 200_000)], vec![file("b", 5000)]];
    let directory = tempfile::tempdir().unwrap();
    let built = build(&layers, directory.path());
    let mount = crate::store::mount_loops(&built.files, true).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
    assert_same(&model::stacked(&layers), &read_back::directory(&root), "the kernel over loop devices");
}

#[test]
fn an_image_on_its_files_reads_ahead_as_far_as_their_disk() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let layers = vec![(entry("a", EntryKind::File { size: 5000, segments: None }), vec![9; 5000])];
    let directory = tempfile::tempdir().unwrap();
    let built = build(&[layers], directory.path());
    let Ok((_mount, raised)) = crate::store::mount_files(&built.files, true) else {
        eprintln!("SKIPPED: this kernel cannot mount files (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE)");
        return;
    };
    raised.unwrap();
    let Some(disk) = sampan_sys::read_ahead::below(&std::fs::File::open(&built.files[0]).unwrap()).unwrap() else {
        eprintln!("SKIPPED: there is no disk below {}", directory.path().display());
        return;
    };
    let record = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path();
    let mut records = std::fs::read_dir("/sys/class/bdi").unwrap().map(record);
    let is_ours = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("erofs-");
    let kib = |path: &PathBuf| std::fs::read_to_string(path.join("read_ahead_kb")).unwrap_or_default();
    assert!(records.any(|path| is_ours(&path) && kib(&path).trim().parse::<u64>().is_ok_and(|kib| kib >= disk)));
}
