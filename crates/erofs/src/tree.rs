//! The model both directions share: a file tree as inodes with numbers, and the devices that hold the bytes.
//!
//! A hard link is two directory entries that name the same [`InodeId`]; link counts are computed, never stored here.
//! The file type is the [`Kind`], so a mode that contradicts it cannot be expressed.

/// The number of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub u32);

impl InodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Inodes by number. An inode that no entry reaches from `root` is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub root: InodeId,
    pub inodes: Vec<Inode>,
}

impl Tree {
    /// A tree of one inode, which should be a directory.
    #[must_use]
    pub fn new(root: Inode) -> Self {
        Tree { root: InodeId(0), inodes: vec![root] }
    }

    /// Adds an inode that no entry names yet.
    pub fn push(&mut self, inode: Inode) -> InodeId {
        // A tree past 2^32 inodes cannot be written; the id saturates and writing reports the entry as dangling.
        let id = InodeId(u32::try_from(self.inodes.len()).unwrap_or(u32::MAX));
        self.inodes.push(inode);
        id
    }

    #[must_use]
    pub fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id.index())
    }

    pub fn inode_mut(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(id.index())
    }
}

/// One file system object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Permission, set-id and sticky bits (`0o7777`); the type is `kind`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// At most one of each name, in any order.
    pub xattrs: Vec<Xattr>,
    pub kind: Kind,
}

impl Inode {
    /// An inode owned by root, modified at the epoch, without attributes.
    #[must_use]
    pub fn new(mode: u16, kind: Kind) -> Self {
        Inode { mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new(), kind }
    }

    /// `st_mode`: type and permission bits.
    #[must_use]
    pub fn st_mode(&self) -> u16 {
        self.kind.type_bits() | self.mode
    }
}

/// Seconds since 1970, which may be negative, and nanoseconds below 1,000,000,000 to add to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// An extended attribute with its full name, such as `security.capability`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Entries in any order, without `.` and `..`; each name once. A directory has exactly one entry naming it.
    Directory(Vec<DirEntry>),
    /// Extents in ascending order without overlap; what they leave out are holes, which read as zeros.
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    /// 1 to 4095 bytes without NUL.
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
}

impl Kind {
    /// The `S_IFMT` bits.
    #[must_use]
    pub fn type_bits(&self) -> u16 {
        match self {
            Kind::Directory(_) => 0o040_000,
            Kind::File { .. } => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
            Kind::CharDevice { .. } => 0o020_000,
            Kind::BlockDevice { .. } => 0o060_000,
        }
    }
}

/// One name in a directory: 1 to 255 bytes, any but `/` and NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub inode: InodeId,
}

/// Where a piece of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Multiple of 4096.
    pub file_offset: u64,
    /// Number in the device table, from 1.
    pub device: u16,
    /// Multiple of 4096.
    pub device_offset: u64,
    /// In bytes: a multiple of 4096, or up to the end of the file. What the device holds between the end of the file
    /// and the end of that block is never shown to a reader of the file, except through `mmap`: keep it zero.
    pub length: u64,
}

/// A data blob as the device table describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Size in 4 KiB blocks, the last one counted whole.
    pub blocks: u32,
    /// Free text for people and tools, at most 64 bytes without a NUL at the end: the digest of the blob.
    pub tag: Vec<u8>,
}
