//! Random trees of everything the format has, given to all judges.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sampan_erofs::{Extent, Inode, InodeId, Kind, Timestamp, Xattr};

use crate::check::check;
use crate::sample::{BLOCK, Sample, acl};

const DEVICE_BLOCKS: u64 = 24;

/// What one step adds to the tree.
#[derive(Debug, Clone)]
enum Content {
    Directory,
    File { size: u64, pieces: Vec<Piece> },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Device { block: bool, major: u32, minor: u32 },
    HardLink(Index),
}

/// Blocks to leave out, then blocks to take from a place on a device.
#[derive(Debug, Clone)]
struct Piece {
    hole: u64,
    blocks: u64,
    device: u16,
    from: u64,
}

#[derive(Debug, Clone)]
struct Step {
    parent: Index,
    name: Vec<u8>,
    content: Content,
    mode: u16,
    owner: (u32, u32),
    time: Timestamp,
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name holds these", |byte| !matches!(byte, 0 | b'/'));
    let odd = vec(byte, 1..=255);
    let plain = "[!-.0-~]{1,12}".prop_map(String::into_bytes);
    prop_oneof![4 => plain, 1 => odd].prop_filter("reserved", |name| name != b"." && name != b"..")
}

fn piece() -> impl Strategy<Value = Piece> {
    (prop_oneof![2 => Just(0), 1 => 0_u64..20], 1_u64..6, 1_u16..=3, 0_u64..DEVICE_BLOCKS)
        .prop_map(|(hole, blocks, device, from)| Piece { hole, blocks, device, from })
}

fn content() -> impl Strategy<Value = Content> {
    let size = prop_oneof![Just(0), 1_u64..5000, (1_u64..30).prop_map(|blocks| blocks * BLOCK), 1_u64..200_000];
    let target = || prop_oneof![4 => vec(1_u8..=255, 1..60), 1 => vec(1_u8..=255, 1..4096)];
    prop_oneof![
        3 => Just(Content::Directory),
        6 => (size, vec(piece(), 0..6)).prop_map(|(size, pieces)| Content::File { size, pieces }),
        2 => target().prop_map(Content::Symlink),
        1 => Just(Content::Fifo),
        1 => Just(Content::Socket),
        1 => (any::<bool>(), 0_u32..4096, 0_u32..(1 << 20))
            .prop_map(|(block, major, minor)| Content::Device { block, major, minor }),
        2 => any::<Index>().prop_map(Content::HardLink),
    ]
}

fn time() -> impl Strategy<Value = Timestamp> {
    let any_time = (-(1_i64 << 40)..(1_i64 << 40), 0_u32..1_000_000_000)
        .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
    prop_oneof![2 => Just(Timestamp { seconds: 1_700_000_000, nanoseconds: 5 }), 1 => any_time]
}

fn xattrs() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    let value = prop_oneof![
        3 => select(vec![b"shared".to_vec(), b"system_u:object_r:lib_t:s0\0".to_vec(), Vec::new()]),
        2 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 0..9000),
    ];
    let long = "user.a-name-that-is-quite-long-and-goes-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on";
    let names = vec!["user.a", "user.b", long, "trusted.overlay.opaque", "trusted.x", "security.sampan", "security.y"];
    let access = (0_u16..8).prop_map(|group| ("system.posix_acl_access", acl(group)));
    let default = (0_u16..8).prop_map(|group| ("system.posix_acl_default", acl(group)));
    let one = prop_oneof![6 => (select(names), value), 1 => access, 1 => default];
    prop_oneof![2 => Just(Vec::new()), 1 => vec(one, 0..6)]
}

fn step() -> impl Strategy<Value = Step> {
    let id = || prop_oneof![4 => 0_u32..2000, 1 => 60_000_u32..70_000, 1 => 0..u32::MAX];
    (any::<Index>(), name(), content(), 0_u16..=0o7777, (id(), id()), time(), xattrs()).prop_map(
        |(parent, name, content, mode, owner, time, xattrs)| Step { parent, name, content, mode, owner, time, xattrs },
    )
}

/// The kernel shows `user.` only on files and directories, access lists not on symlinks, defaults only on directories.
fn fits(kind: &Kind, name: &str) -> bool {
    match name {
        "system.posix_acl_access" => !matches!(kind, Kind::Symlink(_)),
        "system.posix_acl_default" => matches!(kind, Kind::Directory(_)),
        name if name.starts_with("user.") => matches!(kind, Kind::Directory(_) | Kind::File { .. }),
        _ => true,
    }
}

fn extents(size: u64, pieces: &[Piece]) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut next = 0;
    for piece in pieces {
        let file_offset = next + piece.hole * BLOCK;
        let blocks = piece.blocks.min(DEVICE_BLOCKS - piece.from);
        let length = (blocks * BLOCK).min(size.saturating_sub(file_offset));
        if length > 0 {
            extents.push(Extent { file_offset, device: piece.device, device_offset: piece.from * BLOCK, length });
        }
        next = file_offset + blocks * BLOCK;
    }
    extents
}

fn build(steps: Vec<Step>) -> Sample {
    let mut sample = Sample::new(&[DEVICE_BLOCKS as u32; 3]);
    let mut directories: Vec<(InodeId, usize)> = vec![(sample.root(), 0)];
    let mut others: Vec<InodeId> = Vec::new();
    let mut taken = std::collections::HashSet::new();
    for step in steps {
        let (parent, depth) = directories[step.parent.index(directories.len())];
        if !taken.insert((parent, step.name.clone())) {
            continue;
        }
        let kind = match step.content {
            Content::Directory if depth > 8 => continue,
            Content::Directory => Kind::Directory(Vec::new()),
            Content::File { size, pieces } => Kind::File { size, extents: extents(size, &pieces) },
            Content::Symlink(target) => Kind::Symlink(target),
            Content::Fifo => Kind::Fifo,
            Content::Socket => Kind::Socket,
            Content::Device { block: true, major, minor } => Kind::BlockDevice { major, minor },
            Content::Device { block: false, major, minor } => Kind::CharDevice { major, minor },
            Content::HardLink(_) if others.is_empty() => continue,
            Content::HardLink(index) => {
                sample.link(parent, &step.name, others[index.index(others.len())]);
                continue;
            }
        };
        let mut seen = std::collections::HashSet::new();
        let xattrs = step.xattrs.into_iter().filter(|(name, _)| fits(&kind, name) && seen.insert(*name));
        let xattrs = xattrs.map(|(name, value)| Xattr { name: name.into(), value }).collect();
        let is_directory = matches!(kind, Kind::Directory(_));
        let (uid, gid) = step.owner;
        let inode = Inode { mode: step.mode, uid, gid, mtime: step.time, xattrs, kind };
        let id = sample.add(parent, &step.name, inode);
        if is_directory {
            directories.push((id, depth + 1));
        } else {
            others.push(id);
        }
    }
    sample
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_judge_sees_the_tree_that_was_written(steps in vec(step(), 0..120)) {
        check(&build(steps));
    }
}
