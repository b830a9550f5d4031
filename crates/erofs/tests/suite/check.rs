//! The whole check of one sample: write it, read it back, let fsck and the kernel judge it.

use std::collections::HashMap;

use sampan_erofs::{Extent, Inode, InodeId, Kind, Tree, read, write};

use crate::sample::Sample;
use crate::{fsck, kernel};

/// Writes the sample and gives the image to all judges.
pub(crate) fn check(sample: &Sample) -> Vec<u8> {
    let image = check_reading(sample);
    let files = Files::of(sample, &image);
    kernel::check(sample, &files);
    fsck::check(&files);
    image
}

/// Writes the sample and reads it back.
pub(crate) fn check_reading(sample: &Sample) -> Vec<u8> {
    let image = write(&sample.tree, &sample.devices).unwrap();
    assert_eq!(image.len() % 4096, 0);
    assert_eq!(image, write(&sample.tree, &sample.devices).unwrap(), "writing twice differs");
    let contents = read(&image).unwrap();
    assert_eq!(contents.devices, sample.devices);
    assert_same(&sample.tree, &contents.tree);
    image
}

/// The image and its devices as files.
pub(crate) struct Files {
    pub(crate) image: std::path::PathBuf,
    pub(crate) devices: Vec<std::path::PathBuf>,
    _directory: tempfile::TempDir,
}

impl Files {
    pub(crate) fn of(sample: &Sample, image: &[u8]) -> Files {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: String, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let devices = sample.blobs.iter().enumerate().map(|(index, blob)| write(format!("device{index}"), blob));
        Files { image: write("image".into(), image), devices: devices.collect(), _directory: directory }
    }
}

/// Panics where two trees differ in anything but the numbers of inodes.
fn assert_same(written: &Tree, got: &Tree) {
    let mut pairs: HashMap<InodeId, InodeId> = HashMap::new();
    let mut pending = vec![(written.root, got.root)];
    while let Some((one, other)) = pending.pop() {
        if let Some(&known) = pairs.get(&one) {
            assert_eq!(known, other, "hard links differ");
            continue;
        }
        pairs.insert(one, other);
        let (mut one, mut other) = (canonical(written.inode(one).unwrap()), canonical(got.inode(other).unwrap()));
        if let (Kind::Directory(ones), Kind::Directory(others)) = (&mut one.kind, &mut other.kind) {
            let names = |entries: &[sampan_erofs::DirEntry]| -> Vec<Vec<u8>> {
                entries.iter().map(|entry| entry.name.clone()).collect()
            };
            assert_eq!(names(ones), names(others));
            pending.extend(ones.drain(..).zip(others.drain(..)).map(|(one, other)| (one.inode, other.inode)));
        }
        assert_eq!(one, other);
    }
    let distinct: std::collections::HashSet<_> = pairs.values().collect();
    assert_eq!(distinct.len(), pairs.len(), "hard links differ");
    assert_eq!(got.inodes.len(), pairs.len(), "inodes that no name reaches");
}

/// The inode with its parts in one order: entries and attributes by name, extents merged and cut at the file's end.
fn canonical(inode: &Inode) -> Inode {
    let mut inode = inode.clone();
    inode.xattrs.sort_by(|one, other| one.name.cmp(&other.name));
    match &mut inode.kind {
        Kind::Directory(entries) => entries.sort_by(|one, other| one.name.cmp(&other.name)),
        Kind::File { size, extents } => {
            let mut merged: Vec<Extent> = Vec::new();
            for extent in extents.iter() {
                match merged.last_mut() {
                    Some(last)
                        if last.device == extent.device
                            && last.file_offset + last.length == extent.file_offset
                            && last.device_offset + last.length == extent.device_offset =>
                    {
                        last.length += extent.length;
                    }
                    _ => merged.push(*extent),
                }
            }
            if let Some(last) = merged.last_mut() {
                last.length = last.length.min(*size - last.file_offset);
            }
            *extents = merged;
        }
        _ => {}
    }
    inode
}
