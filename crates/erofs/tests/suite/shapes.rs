//! Trees of one particular shape each, where a format has its edges.

use std::time::{Duration, Instant};

use sampan_erofs::{Inode, InodeId, Kind, Timestamp, write};

use crate::check::{Files, check, check_reading};
use crate::sample::{BLOCK, Sample, at, directory, extent, file, xattr};
use crate::{fsck, kernel};

#[test]
fn an_empty_tree_is_one_block() {
    let sample = Sample::new(&[]);
    assert_eq!(check(&sample).len(), 4096);
}

#[test]
fn a_directory_of_a_hundred_thousand_entries() {
    let mut sample = Sample::new(&[1]);
    let big = sample.add(sample.root(), "big", directory());
    for number in 0..100_000 {
        let inode = at(number, 0, file(100, &[extent(0, 1, 0, 100)]));
        sample.add(big, format!("{:x}-entry-{number}", number % 16), inode);
    }
    let image = check_reading(&sample);
    let files = Files::of(&sample, &image);
    fsck::check(&files);
    let Some(mounted) = kernel::mount(&files) else { return };
    let path = mounted.path().join("big");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 100_000);
    for number in (0..100_000).step_by(97) {
        let metadata = std::fs::metadata(path.join(format!("{:x}-entry-{number}", number % 16))).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mtime(&metadata), number);
    }
    assert!(!path.join("0-entry-100000").exists());
}

#[test]
fn a_hundred_and_thirty_devices() {
    let mut sample = Sample::new(&[2; 130]);
    for device in 1..=130 {
        sample.add(sample.root(), format!("flat-{device}"), file(5000, &[extent(0, device, 0, 5000)]));
        let other = device % 130 + 1;
        let halves = [extent(0, device, 1, BLOCK), extent(1, other, 0, 100)];
        sample.add(sample.root(), format!("halves-{device}"), file(BLOCK + 100, &halves));
    }
    check(&sample);
}

#[test]
fn a_sparse_file_of_five_gigabytes() {
    let mut sample = Sample::new(&[8]);
    let size = 5 << 30;
    let blocks = size / BLOCK;
    sample.add(sample.root(), "hole", file(size, &[]));
    sample.add(sample.root(), "odd-hole", file(size + 1, &[]));
    // Data at powers of two keeps the chunks large, and with them the index small.
    let islands = [extent(0, 1, 0, 8 * BLOCK), extent(blocks / 2, 1, 0, 8 * BLOCK)];
    sample.add(sample.root(), "islands", file(size, &islands));
    let image = check_reading(&sample);
    let files = Files::of(&sample, &image);
    kernel::check(&sample, &files);
    fsck::check_metadata(&files);
    assert!(image.len() < 2 << 20, "{} bytes", image.len());
}

#[test]
fn more_than_65535_links() {
    let mut sample = Sample::new(&[]);
    let links = sample.add(sample.root(), "links", directory());
    let linked = sample.tree.push(file(0, &[]));
    for number in 0..66_000 {
        sample.link(links, format!("{number}"), linked);
    }
    let parent = sample.add(sample.root(), "subdirectories", directory());
    for number in 0..65_600 {
        sample.add(parent, format!("{number}"), directory());
    }
    let image = check_reading(&sample);
    let Some(mounted) = kernel::mount(&Files::of(&sample, &image)) else { return };
    let links_of = |path| std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(mounted.path().join(path)).unwrap());
    assert_eq!(links_of("links/65999"), 66_000);
    assert_eq!(links_of("subdirectories"), 65_602);
}

#[test]
fn names_of_255_bytes_fill_blocks_to_the_last_byte() {
    let mut sample = Sample::new(&[]);
    for first in 1_u8..=255 {
        if first != b'/' {
            let mut name = vec![first; 255];
            name[254] = b'x';
            sample.add(sample.root(), name, Inode::new(0o600, Kind::Fifo));
        }
    }
    // 12 bytes an entry: this directory has exactly 4096 bytes, dots included, and so no tail.
    let exact = sample.add(sample.root(), "exact", directory());
    let room = 4096 - (12 + 1) - (12 + 2);
    let count = room / (12 + 200);
    for number in 0..count {
        let length = if number == 0 { 200 + room % (12 + 200) } else { 200 };
        sample.add(exact, format!("{number:0length$}"), Inode::new(0o600, Kind::Fifo));
    }
    check(&sample);
}

#[test]
fn directories_and_symlinks_of_every_length_near_a_block() {
    let mut sample = Sample::new(&[]);
    for length in (3960..=4095).chain(1..40) {
        let inode = at(length as i64, 1, Inode::new(0o777, Kind::Symlink(vec![b'a'; length])));
        sample.add(sample.root(), format!("link-{length}"), inode);
    }
    for extra in 0..140 {
        let parent = sample.add(sample.root(), format!("directory-{extra}"), directory());
        for number in 0..18 {
            let length = if number == 0 { 60 + extra } else { 200 };
            sample.add(parent, format!("{number:0length$}"), Inode::new(0o600, Kind::Socket));
        }
    }
    check(&sample);
}

#[test]
fn times_and_owners_at_their_limits() {
    let mut sample = Sample::new(&[]);
    let times = [(i64::MIN, 0), (-1, 999_999_999), (0, 0), (1 << 33, 1), (i64::MAX, 999_999_999)];
    for (number, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        sample.add(sample.root(), format!("time-{number}"), at(seconds, nanoseconds, file(0, &[])));
    }
    for id in [65_535, 65_536, u32::MAX - 1] {
        sample.add(sample.root(), format!("uid-{id}"), Inode { uid: id, ..file(0, &[]) });
        sample.add(sample.root(), format!("gid-{id}"), Inode { gid: id, ..file(0, &[]) });
    }
    check(&sample);
}

#[test]
fn large_and_many_attributes() {
    let mut sample = Sample::new(&[]);
    let longest = format!("user.{}", "n".repeat(250));
    let mut one = file(0, &[]);
    one.xattrs = vec![xattr(&longest, vec![7; 65_535]), xattr("user.empty", "")];
    sample.add(sample.root(), "large", one);
    let mut many = file(0, &[]);
    // More than 255 that are worth sharing: the others stand inline.
    many.xattrs = (0..400).map(|number| xattr(&format!("user.{number}"), [number as u8; 64])).collect();
    sample.add(sample.root(), "many-1", many.clone());
    sample.add(sample.root(), "many-2", many);
    let mut several = directory();
    several.xattrs = (0..6).map(|number| xattr(&format!("trusted.{number}"), vec![number; 60_000])).collect();
    let several = sample.add(sample.root(), "several", several);
    sample.add(several, "child", directory());
    // A version 2 file capability: cap_net_raw+ep.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sample.add(sample.root(), "ping", Inode { xattrs: vec![xattr("security.capability", capability)], ..file(0, &[]) });
    check(&sample);
}

#[test]
fn device_numbers_at_their_limits() {
    let mut sample = Sample::new(&[]);
    for (major, minor) in [(0, 0), (1, 3), (4095, 0xF_FFFF), (255, 256), (256, 255)] {
        let name = format!("{major}-{minor}");
        sample.add(sample.root(), format!("c{name}"), Inode::new(0o600, Kind::CharDevice { major, minor }));
        sample.add(sample.root(), format!("b{name}"), Inode::new(0o600, Kind::BlockDevice { major, minor }));
    }
    check(&sample);
}

#[test]
fn dump_shows_what_was_written() {
    let mut sample = Sample::new(&[4, 4]);
    let usr = sample.add(sample.root(), "usr", directory());
    sample.add(usr, "file", Inode { uid: 70_000, ..file(5000, &[extent(0, 2, 1, 5000)]) });
    let image = check(&sample);
    let files = Files::of(&sample, &image);
    let Some(superblock) = fsck::dump(&["-s"], &files) else { return };
    assert!(superblock.contains("0xE0F5E1E2"), "{superblock}");
    assert!(superblock.contains("sb_csum mtime"), "{superblock}");
    let shown = fsck::dump(&["--path=/usr/file"], &files).unwrap();
    assert!(shown.contains("5000") && shown.contains("Uid: 70000"), "{shown}");
}

/// A distribution's tree in numbers: 200,000 inodes in 12,000 directories, fifty of them at a time.
fn distribution(inodes: u32) -> Sample {
    let mut sample = Sample::new(&[1]);
    sample.devices[0].blocks = inodes;
    let mut parents: Vec<InodeId> = vec![sample.root()];
    for number in 0..inodes {
        let parent = parents[number as usize / 17 % parents.len()];
        let mut inode = match number % 100 {
            0..6 => directory(),
            6..12 => Inode::new(0o777, Kind::Symlink(b"../lib/x86_64-linux-gnu/libfoo.so.1".to_vec())),
            _ => file(4000, &[extent(0, 1, u64::from(number), 4000)]),
        };
        inode.mtime = Timestamp { seconds: 1_600_000_000 + i64::from(number) / 50, nanoseconds: 0 };
        let is_directory = matches!(inode.kind, Kind::Directory(_));
        let id = sample.add(parent, format!("file-name-{number}"), inode);
        if is_directory {
            parents.push(id);
        }
    }
    sample
}

#[test]
fn two_hundred_thousand_inodes_are_quick_and_small() {
    let sample = distribution(200_000);
    let started = Instant::now();
    let image = write(&sample.tree, &sample.devices).unwrap();
    let taken = started.elapsed();
    let each = image.len() as f64 / 200_000.0;
    eprintln!("200,000 inodes: {} bytes, {each:.1} each, in {taken:?}", image.len());
    assert!(each < 128.0, "{each} bytes an inode");
    // The promise is half a second of a release build on an idle machine; this is neither.
    assert!(taken < Duration::from_secs(5), "{taken:?}");
    check_reading(&sample);
}
