//! One entry of a layer, as the sink receives it: every number checked, every name normalised.

use super::name::LayerPath;

/// Seconds since 1970 and the nanoseconds after them; `nanoseconds` is below 10⁹ also before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// A run of data in a sparse file. Runs are in order, not empty, and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// An extended attribute with its full name, `security.capability`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file. `segments` is `None` for a file without holes, whose `size` bytes follow through the sink's `data`;
    /// otherwise the bytes of the segments follow, packed.
    File {
        size: u64,
        segments: Option<Vec<Segment>>,
    },
    Directory,
    /// The target's bytes, as they are.
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of the file at `target`, which stands in this layer or in a lower one.
    HardLink {
        target: LayerPath,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// `.wh.NAME`: the entry's path names what lower layers no longer show.
    Whiteout,
    /// `.wh..wh..opq`: the entry's path is the directory of which lower layers show nothing.
    Opaque,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: LayerPath,
    pub kind: EntryKind,
    /// Permissions, set-uid, set-gid and sticky bits; no type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// In order of name, each name once.
    pub xattrs: Vec<Xattr>,
    /// Where in the stream the entry's data begin.
    pub data_offset: u64,
}
