//! From the root to every inode, without recursion, checking what holds between inodes.

use std::collections::HashMap;

use super::ReadError;
use super::bytes::Bytes;
use super::inode::RawInode;
use super::superblock::Superblock;
use super::{directory, file, xattrs};
use crate::layout::file_type;
use crate::limits::{EXPANDED_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::tree::{DirEntry, Inode, InodeId, Kind, Tree};

pub(super) struct Traversal<'a> {
    bytes: Bytes<'a>,
    superblock: &'a Superblock,
    tree: Tree,
    by_nid: HashMap<u64, InodeId>,
    /// By inode id: number, links stored, links counted.
    links: Vec<(u64, u32, u32)>,
    /// Directories to descend into: their raw inode, id and parent's nid.
    pending: Vec<(RawInode, InodeId, u64)>,
    expanded: u64,
    /// Bytes of the image that belong to one inode each and are seen so far.
    owned: u64,
}

impl<'a> Traversal<'a> {
    pub(super) fn of(image: &'a [u8], superblock: &'a Superblock) -> Result<Tree, ReadError> {
        let mut traversal = Traversal {
            bytes: Bytes(image),
            superblock,
            tree: Tree { root: InodeId(0), inodes: Vec::new() },
            by_nid: HashMap::new(),
            links: Vec::new(),
            pending: Vec::new(),
            expanded: 0,
            owned: 0,
        };
        let root_nid = superblock.root_nid;
        let root = traversal.discover(root_nid, root_nid)?;
        if !matches!(traversal.tree.inode(root).map(|inode| &inode.kind), Some(Kind::Directory(_))) {
            return Err(ReadError::Inode { nid: root_nid, what: "the root is not a directory" });
        }
        while let Some((raw, id, parent)) = traversal.pending.pop() {
            traversal.descend(&raw, id, parent)?;
        }
        traversal.finish()
    }

    /// Reads an inode that was not met before.
    fn discover(&mut self, nid: u64, parent: u64) -> Result<InodeId, ReadError> {
        let raw = RawInode::parse(self.bytes, self.superblock, nid)?;
        let xattrs = xattrs::xattrs(self.bytes, &raw, self.superblock.xattr_origin)?;
        for xattr in &xattrs {
            self.expand(xattr.name.len().saturating_add(xattr.value.len()))?;
        }
        let kind = self.kind(&raw)?;
        let is_directory = matches!(kind, Kind::Directory(_));
        let id = self.tree.push(Inode { mode: raw.mode, uid: raw.uid, gid: raw.gid, mtime: raw.mtime, xattrs, kind });
        self.by_nid.insert(nid, id);
        self.links.push((nid, raw.links, if is_directory { 2 } else { 0 }));
        if is_directory {
            self.pending.push((raw, id, parent));
        }
        Ok(id)
    }

    fn kind(&mut self, raw: &RawInode) -> Result<Kind, ReadError> {
        let number = raw.union;
        let (major, minor) = ((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & !0xFF));
        Ok(match raw.type_bits {
            0o040_000 => Kind::Directory(Vec::new()),
            0o100_000 => {
                self.own(raw, file::index_bytes(raw))?;
                Kind::File { size: raw.size, extents: file::extents(self.bytes, self.superblock, raw)? }
            }
            0o120_000 => {
                if raw.size == 0 || raw.size > SYMLINK_BYTES_MAX as u64 {
                    return Err(raw.wrong("a symlink's target is empty or too long"));
                }
                let target = file::local_data(self.bytes, self.superblock, raw)?.into_owned();
                self.expand(target.len())?;
                if target.contains(&0) {
                    return Err(raw.wrong("a symlink's target contains NUL"));
                }
                Kind::Symlink(target)
            }
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            0o020_000 => Kind::CharDevice { major, minor },
            0o060_000 => Kind::BlockDevice { major, minor },
            _ => return Err(raw.wrong("its type is unknown")),
        })
    }

    /// Reads the entries of a directory.
    fn descend(&mut self, raw: &RawInode, id: InodeId, parent: u64) -> Result<(), ReadError> {
        self.own(raw, raw.size)?;
        let data = file::local_data(self.bytes, self.superblock, raw)?;
        let mut dots = 0_u32;
        let mut entries = Vec::new();
        for entry in directory::entries(raw, &data)? {
            let dot_of = match entry.name {
                b"." => Some(raw.nid),
                b".." => Some(parent),
                _ => None,
            };
            if let Some(nid) = dot_of {
                dots = dots.saturating_add(1);
                if entry.nid != nid || entry.file_type != file_type(0o040_000) {
                    return Err(raw.wrong("`.` or `..` leads elsewhere"));
                }
                continue;
            }
            let (child, first) = match self.by_nid.get(&entry.nid) {
                Some(&known) => (known, false),
                None => (self.discover(entry.nid, raw.nid)?, true),
            };
            self.count_link(raw, id, child, first, entry.file_type)?;
            entries.push(DirEntry { name: entry.name.to_vec(), inode: child });
        }
        if dots != 2 {
            return Err(raw.wrong("`.` or `..` is missing"));
        }
        if let Some(inode) = self.tree.inode_mut(id) {
            inode.kind = Kind::Directory(entries);
        }
        Ok(())
    }

    /// Counts an entry that names `child`, and whether it is the `first`.
    fn count_link(
        &mut self,
        raw: &RawInode,
        directory: InodeId,
        child: InodeId,
        first: bool,
        stored: u8,
    ) -> Result<(), ReadError> {
        let kind = self.tree.inode(child).map_or(0, |inode| file_type(inode.kind.type_bits()));
        if kind != stored {
            return Err(raw.wrong("an entry's type differs from its inode's"));
        }
        let linked = if kind == file_type(0o040_000) {
            if !first {
                return Err(raw.wrong("a directory has two names"));
            }
            directory
        } else {
            child
        };
        if let Some((.., counted)) = self.links.get_mut(linked.index()) {
            *counted = counted.saturating_add(1);
        }
        Ok(())
    }

    /// Accounts for directory data and chunk indexes, which belong to one inode each.
    fn own(&mut self, raw: &RawInode, bytes: u64) -> Result<(), ReadError> {
        self.owned = self.owned.saturating_add(bytes);
        if self.owned > self.bytes.length() { Err(raw.wrong("its data overlaps that of others")) } else { Ok(()) }
    }

    fn expand(&mut self, more: usize) -> Result<(), ReadError> {
        self.expanded = self.expanded.saturating_add(more as u64);
        if self.expanded > EXPANDED_BYTES_MAX { Err(ReadError::Expanded { max: EXPANDED_BYTES_MAX }) } else { Ok(()) }
    }

    fn finish(self) -> Result<Tree, ReadError> {
        if let Some((nid, ..)) = self.links.iter().find(|(_, stored, counted)| stored != counted) {
            return Err(ReadError::Inode { nid: *nid, what: "its link count is not the number of its names" });
        }
        if self.tree.inodes.len() as u64 != self.superblock.inodes {
            return Err(ReadError::Superblock { what: "the number of inodes differs from those found" });
        }
        Ok(self.tree)
    }
}
