//! Random stacks of layers over few names, so that entries meet.

use proptest::prelude::*;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, Segment, Timestamp, Xattr};

/// Entries with their data, in the order of an archive.
pub(crate) type LayerEntries = Vec<(Entry, Vec<u8>)>;

fn component() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![3 => Just(&b"a"[..]), 3 => Just(&b"b"[..]), 2 => Just(&b"c"[..]), 1 => Just(&b"\xff\xfe d"[..])]
}

fn path(depth: usize) -> impl Strategy<Value = LayerPath> {
    prop::collection::vec(component(), 1..=depth).prop_map(|parts| LayerPath::of_entry(&parts.join(&b'/')).unwrap())
}

fn symlink_target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"a".to_vec()),
        Just(b"/b".to_vec()),
        Just(b"../a".to_vec()),
        Just(b"/c/a".to_vec()),
        Just(b"./b/../c".to_vec()),
    ]
}

fn file() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        1 => Just(EntryKind::File { size: 0, segments: None }),
        4 => (1u64..20_000).prop_map(|size| EntryKind::File { size, segments: None }),
        1 => (60_000u64..200_000).prop_map(|size| EntryKind::File { size, segments: None }),
        2 => sparse(),
    ]
}

fn sparse() -> impl Strategy<Value = EntryKind> {
    (prop::collection::vec((0u64..30_000, 1u64..9_000), 0..5), 0u64..20_000).prop_map(|(pairs, tail)| {
        let mut end = 0;
        let mut segments = Vec::new();
        for (gap, length) in pairs {
            segments.push(Segment { offset: end + gap, length });
            end += gap + length;
        }
        EntryKind::File { size: end + tail, segments: Some(segments) }
    })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        5 => file(),
        5 => Just(EntryKind::Directory),
        2 => symlink_target().prop_map(|target| EntryKind::Symlink { target }),
        2 => path(3).prop_map(|target| EntryKind::HardLink { target }),
        1 => Just(EntryKind::Fifo),
        1 => (1u32..200, 1u32..200).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => (1u32..200, 1u32..200).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        3 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    let value = prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::btree_map(prop_oneof![Just("user.one"), Just("trusted.two"), Just("user.three")], value, 0..3)
        .prop_map(|map| map.into_iter().map(|(name, value)| Xattr { name: name.into(), value }).collect())
}

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let times = (-1_000_000i64..2_000_000_000, 0u32..1_000_000_000);
    let ids = (0u32..100_000, 0u32..100_000);
    (path(3), kind(), 0u16..0o10000, ids, times, xattrs(), any::<u8>()).prop_map(
        |(path, kind, mode, (uid, gid), (seconds, nanoseconds), xattrs, seed)| {
            let bytes = match &kind {
                EntryKind::File { segments: Some(segments), .. } => segments.iter().map(|segment| segment.length).sum(),
                EntryKind::File { size, .. } => *size,
                _ => 0,
            };
            let data = (0..bytes).map(|at| ((at / 7) as u8).wrapping_mul(29).wrapping_add(seed) | 1).collect();
            // user. attributes stand on files and directories alone.
            let is_plain = matches!(kind, EntryKind::File { .. } | EntryKind::Directory);
            let xattrs = if is_plain { xattrs } else { Vec::new() };
            let mtime = Timestamp { seconds, nanoseconds };
            (Entry { path, kind, mode, uid, gid, mtime, xattrs, data_offset: 0 }, data)
        },
    )
}

/// A stack, lowest layer first. Some of the entries may be refused.
pub(crate) fn stack(layers: std::ops::Range<usize>, entries: usize) -> impl Strategy<Value = Vec<LayerEntries>> {
    prop::collection::vec(prop::collection::vec(entry(), 0..entries), layers)
}

/// The bytes that a file shows, holes included.
pub(crate) fn content(entry: &Entry, data: &[u8]) -> Vec<u8> {
    let EntryKind::File { size, segments } = &entry.kind else { return Vec::new() };
    let Some(segments) = segments else { return data.to_vec() };
    let mut whole = vec![0; *size as usize];
    let mut rest = data;
    for segment in segments {
        let (now, later) = rest.split_at(segment.length as usize);
        whole[segment.offset as usize..][..now.len()].copy_from_slice(now);
        rest = later;
    }
    whole
}
