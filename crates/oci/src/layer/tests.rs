//! The reader against archives of our own, of the system's `tar`, and against the hostile.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]

use super::archive::ArchiveWriter;
use super::*;
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;

/// Everything that a reader says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Collected {
    files: Vec<(Entry, Vec<u8>)>,
    open: bool,
}

impl LayerSink for Collected {
    type Error = std::convert::Infallible;

    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error> {
        assert!(!self.open, "the last file had no end");
        self.open = matches!(entry.kind, EntryKind::File { .. });
        self.files.push((entry, Vec::new()));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        assert!(self.open && !bytes.is_empty());
        self.files.last_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Self::Error> {
        assert!(std::mem::take(&mut self.open));
        Ok(())
    }
}

fn read(archive: &[u8], step: usize) -> Result<Collected, LayerError> {
    let mut collected = Collected::default();
    let mut reader = LayerReader::new();
    for piece in archive.chunks(step.max(1)) {
        reader.feed(piece, &mut collected).map_err(|error| match error {
            ReadError::Layer(error) => error,
            ReadError::Sink(never) => match never {},
        })?;
    }
    reader.finish()?;
    assert!(!collected.open);
    Ok(collected)
}

fn refusal(archive: &[u8]) -> String {
    read(archive, 512).map(|files| format!("read {files:?}")).unwrap_err().to_string()
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,3}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>().prop_filter("a name", |byte| !matches!(byte, 0 | b'/')), 1..200)
            .prop_filter("a name", |name| !name.starts_with(b".") ),
    ]
}

fn path() -> impl Strategy<Value = LayerPath> {
    prop::collection::vec(component(), 1..5)
        .prop_map(|components| LayerPath::of_entry(&components.join(&b'/')).unwrap())
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    prop::collection::vec((0u64..5000, 1u64..3000), 0..8).prop_map(|pairs| {
        let mut end = 0;
        pairs
            .into_iter()
            .map(|(gap, length)| {
                let offset = end + gap;
                end = offset + length;
                Segment { offset, length }
            })
            .collect()
    })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        3 => (0u64..4000).prop_map(|size| EntryKind::File { size, segments: None }),
        2 => (segments(), 0u64..5000).prop_map(|(segments, tail)| {
            let end = segments.last().map_or(0, |last| last.offset + last.length);
            EntryKind::File { size: end + tail, segments: Some(segments) }
        }),
        2 => Just(EntryKind::Directory),
        1 => prop::collection::vec(1u8..255, 1..150).prop_map(|target| EntryKind::Symlink { target }),
        1 => path().prop_map(|target| EntryKind::HardLink { target }),
        1 => (0u32..4096, 0u32..1_048_576).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => (0u32..4096, 0u32..1_048_576).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        1 => Just(EntryKind::Fifo),
        1 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ]
}

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..50), 0..3);
    let time = (-5_000_000_000i64..5_000_000_000, 0u32..1_000_000_000);
    (path(), kind(), 0u16..0o10000, 0..u32::MAX, 0..u32::MAX, time, xattrs, any::<u8>()).prop_map(
        |(path, kind, mode, uid, gid, (seconds, nanoseconds), xattrs, seed)| {
            let bytes = match &kind {
                EntryKind::File { segments: Some(segments), .. } => segments.iter().map(|segment| segment.length).sum(),
                EntryKind::File { size, .. } => *size,
                _ => 0,
            };
            let data = (0..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect();
            let mtime = Timestamp { seconds, nanoseconds };
            (Entry { path, kind, mode, uid, gid, mtime, xattrs, data_offset: 0 }, data)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_is_read_back(files in prop::collection::vec(entry(), 0..12), step in 1usize..3000) {
        let mut writer = ArchiveWriter::new();
        for (entry, data) in &files {
            writer.entry(entry, data);
        }
        let archive = writer.finish();
        let mut read = read(&archive, step).unwrap();
        for ((entry, data), (read_entry, read_data)) in files.iter().zip(&mut read.files) {
            if !data.is_empty() {
                let at = read_entry.data_offset as usize;
                prop_assert_eq!(&archive[at..at + data.len()], &data[..]);
            }
            read_entry.data_offset = 0;
            prop_assert_eq!(entry, &*read_entry);
            prop_assert_eq!(data, &*read_data);
        }
        prop_assert_eq!(files.len(), read.files.len());
    }

    #[test]
    fn damage_never_panics(
        files in prop::collection::vec(entry(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        fix in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        step in 1usize..2000,
    ) {
        let mut writer = ArchiveWriter::new();
        for (entry, data) in &files {
            writer.entry(entry, data);
        }
        let mut archive = writer.finish();
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
            if fix {
                // Repaired checksums let the damage reach the fields behind them.
                let block = at / 512 * 512;
                archive[block + 148..block + 156].fill(b' ');
                let sum: u32 = archive[block..block + 512].iter().map(|byte| u32::from(*byte)).sum();
                archive[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        archive.truncate(cut.index(archive.len()) + 1);
        // Any answer will do.
        read(&archive, step).ok();
    }
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("a PAX header of a gigabyte", ArchiveWriter::new().header(b"x", b'x', 1 << 30).finish()),
        ("climbs", ArchiveWriter::new().header(b"a/../../etc/passwd", b'0', 0).finish()),
        ("absolute", ArchiveWriter::new().header(b"/etc/passwd", b'0', 0).finish()),
        ("absolute by PAX", ArchiveWriter::new().pax(b"path", b"/etc/shadow").header(b"x", b'0', 0).finish()),
        ("link out", ArchiveWriter::new().pax(b"linkpath", b"../../etc/passwd").header(b"l", b'1', 0).finish()),
        ("unknown type", ArchiveWriter::new().header(b"odd", b'Q', 0).finish()),
        ("huge file", ArchiveWriter::new().header(b"huge", b'0', u64::MAX >> 1).finish()),
        ("owner", ArchiveWriter::new().pax(b"uid", b"4294967295").header(b"o", b'0', 0).finish()),
        ("cut", ArchiveWriter::new().header(b"cut", b'0', 5000).bytes().to_vec()),
    ];
    let said: String = cases.iter().map(|(case, archive)| format!("{case}: {}\n", refusal(archive))).collect();
    expect_test::expect![[r#"
        a PAX header of a gigabyte: PAX header of 1073741824 bytes is refused: the limit is 1048576 bytes
        climbs: tar entry "a/../../etc/passwd" is refused: its name climbs out of the image's root
        absolute: tar entry "/etc/passwd" is refused: an absolute name
        absolute by PAX: tar entry "/etc/shadow" is refused: an absolute name
        link out: tar entry "l" is refused: its link target "../../etc/passwd" climbs out of the image's root
        unknown type: tar entry "odd" has an unknown type 'Q'
        huge file: tar entry "huge" is refused: its size is 9223372036854775807, more than the limit of 17592186044416
        owner: tar entry "o" is refused: its owner is 4294967295, more than the limit of 4294967294
        cut: tar archive ends in the middle of a file's data
    "#]]
    .assert_eq(&said);
}

#[test]
fn archives_of_the_system_tar_are_understood_in_every_format() {
    let directory = std::env::temp_dir().join(format!("sampan-layer-{}", std::process::id()));
    let tree = directory.join("tree");
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(140));
    std::fs::create_dir_all(tree.join("d".repeat(120))).unwrap();
    std::fs::write(tree.join("plain"), b"some bytes").unwrap();
    std::fs::write(tree.join(&long), b"behind a long name").unwrap();
    std::fs::hard_link(tree.join("plain"), tree.join("zlink")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), tree.join("symlink")).unwrap();
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    for at in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[at as u8 + 1; 4096], at * 65536).unwrap();
    }
    sparse.set_len(4 << 20).unwrap();
    drop(sparse);
    let formats: [&[&str]; 6] = [
        &["--format=v7"],
        &["--format=ustar"],
        &["--format=oldgnu", "--sparse"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ];
    for format in formats {
        check_system_tar(&tree, &long, format);
    }
    check_system_tar(&tree, &long, &["--format=posix", "--sparse", "--sparse-version=0.1"]);
    std::fs::remove_dir_all(directory).unwrap();
}

fn check_system_tar(tree: &Path, long: &str, format: &[&str]) {
    let is_short = matches!(format[0], "--format=v7" | "--format=ustar");
    let names: &[&str] = if is_short { &["./plain", "./zlink", "./sparse"] } else { &["."] };
    let output =
        Command::new("tar").args(format).args(["-cf", "-", "--sort=name", "-C"]).arg(tree).args(names).output();
    let output = output.expect("this test needs the system's tar");
    assert!(output.status.success(), "{format:?}: {}", String::from_utf8_lossy(&output.stderr));
    let read = read(&output.stdout, 700).unwrap_or_else(|error| panic!("{format:?}: {error}"));
    let find = |name: &str| {
        let found = read.files.iter().find(|(entry, _)| entry.path.as_bytes() == name.as_bytes());
        found.unwrap_or_else(|| panic!("{format:?} lacks {name}"))
    };
    assert_eq!(find("plain").1, b"some bytes");
    assert!(matches!(&find("zlink").0.kind, EntryKind::HardLink { target } if target.as_bytes() == b"plain"));
    let (sparse, packed) = find("sparse");
    let EntryKind::File { size, segments } = &sparse.kind else { panic!("{sparse:?}") };
    assert_eq!(*size, 4 << 20);
    let mut whole = vec![0u8; *size as usize];
    let mut packed = &packed[..];
    for segment in segments.as_deref().unwrap_or(&[Segment { offset: 0, length: *size }]) {
        let (now, later) = packed.split_at(segment.length as usize);
        whole[segment.offset as usize..][..now.len()].copy_from_slice(now);
        packed = later;
    }
    assert!(whole == std::fs::read(tree.join("sparse")).unwrap(), "{format:?}: sparse file differs");
    if !is_short {
        assert!(segments.is_some(), "{format:?}: tar wrote no map");
        assert_eq!(find(long).1, b"behind a long name");
        let target = "t".repeat(150).into_bytes();
        assert_eq!(find("symlink").0.kind, EntryKind::Symlink { target });
    }
}
