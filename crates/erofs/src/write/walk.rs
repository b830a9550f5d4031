//! The first pass: which inodes are reached, in which order they are written, how many links each has.
//!
//! The order is that of reading: all children of a directory stand together, sorted by name, followed by the children
//! of its first subdirectory. So listing a directory with its attributes touches neighbouring blocks.

use super::{Fault, WriteError};
use crate::limits::{IMAGE_BYTES_MAX, NAME_BYTES_MAX};
use crate::tree::{DirEntry, InodeId, Kind, Tree};

/// Stands for `.` and `..` among the sorted entries of a directory.
pub(super) const DOT: u32 = u32::MAX - 1;
pub(super) const DOT_DOT: u32 = u32::MAX;

const UNSEEN: u32 = u32::MAX;

/// What the walk found. `links` and `parents` are indexed by inode id.
pub(super) struct Walk {
    /// Ids of the reached inodes in the order of writing, root first.
    pub(super) order: Vec<u32>,
    pub(super) links: Vec<u32>,
    /// The first directory that names an inode; the root names itself.
    parents: Vec<u32>,
    /// The sorted entries of all directories, one after the other, and by id where those of each lie.
    sorted: Vec<u32>,
    spans: Vec<(usize, usize)>,
}

/// A directory entry as it is stored.
pub(super) struct Entry<'t> {
    pub(super) name: &'t [u8],
    pub(super) inode: InodeId,
}

impl Walk {
    pub(super) fn of(tree: &Tree) -> Result<Walk, WriteError> {
        let count = tree.inodes.len();
        if !matches!(tree.inode(tree.root).map(|inode| &inode.kind), Some(Kind::Directory(_))) {
            return Err(WriteError::RootNotDirectory);
        }
        let mut walk = Walk {
            order: Vec::with_capacity(count),
            links: vec![0; count],
            parents: vec![UNSEEN; count],
            sorted: Vec::with_capacity(count + count / 4),
            spans: vec![(0, 0); count],
        };
        let root = tree.root.0;
        walk.order.push(root);
        walk.links[tree.root.index()] = 2;
        walk.parents[tree.root.index()] = root;
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            let first_subdirectory = directories.len();
            walk.visit(tree, directory, &mut directories)?;
            directories[first_subdirectory..].reverse();
        }
        Ok(walk)
    }

    /// The entries of a directory in the order of the disk, `.` and `..` among them.
    pub(super) fn entries<'t>(&'t self, tree: &'t Tree, id: u32) -> impl Iterator<Item = Entry<'t>> {
        let (start, end) = self.spans[id as usize];
        let entries = directory_entries(tree, id);
        self.sorted[start..end].iter().map(move |&index| match index {
            DOT => Entry { name: b".", inode: InodeId(id) },
            DOT_DOT => Entry { name: b"..", inode: InodeId(self.parents[id as usize]) },
            index => Entry { name: &entries[index as usize].name, inode: entries[index as usize].inode },
        })
    }

    /// An error about an inode that the walk has reached.
    pub(super) fn fault(&self, tree: &Tree, id: u32, fault: Fault) -> WriteError {
        WriteError::Inode { path: self.path(tree, id), fault }
    }

    fn visit(&mut self, tree: &Tree, directory: u32, directories: &mut Vec<u32>) -> Result<(), WriteError> {
        let entries = directory_entries(tree, directory);
        let at_entry = |walk: &Walk, entry: &DirEntry, fault| {
            let parent = walk.path(tree, directory);
            let path = format!("{}/{}", parent.trim_end_matches('/'), String::from_utf8_lossy(&entry.name));
            WriteError::Inode { path, fault }
        };
        // An entry takes at least 13 bytes, so this many could not be stored, and an index fits in 32 bits.
        if entries.len() as u64 > IMAGE_BYTES_MAX / 13 {
            return Err(WriteError::TooLarge);
        }
        let start = self.sorted.len();
        self.sorted.extend(0..entries.len() as u32);
        self.sorted[start..].sort_unstable_by(|&a, &b| entries[a as usize].name.cmp(&entries[b as usize].name));

        for position in start..self.sorted.len() {
            let entry = &entries[self.sorted[position] as usize];
            if !name_is_valid(&entry.name) {
                return Err(at_entry(self, entry, Fault::Name));
            }
            if position > start && entries[self.sorted[position - 1] as usize].name == entry.name {
                return Err(at_entry(self, entry, Fault::DuplicateName));
            }
            let child = entry.inode;
            let Some(inode) = tree.inode(child) else {
                return Err(at_entry(self, entry, Fault::Dangling));
            };
            let first = self.parents[child.index()] == UNSEEN;
            let links = &mut self.links[child.index()];
            if matches!(inode.kind, Kind::Directory(_)) {
                if !first {
                    return Err(at_entry(self, entry, Fault::DirectoryLinkedTwice));
                }
                *links = 2;
                self.links[directory as usize] += 1;
                directories.push(child.0);
            } else {
                let Some(more) = links.checked_add(1) else {
                    return Err(at_entry(self, entry, Fault::TooManyLinks));
                };
                *links = more;
            }
            if first {
                self.parents[child.index()] = directory;
                self.order.push(child.0);
            }
        }
        self.add_dots(entries, start);
        self.spans[directory as usize] = (start, self.sorted.len());
        Ok(())
    }

    /// Puts `.` and `..` where their names sort: names that begin with `!` or `-`, for one, come before them.
    fn add_dots(&mut self, entries: &[DirEntry], start: usize) {
        let dots = self.sorted[start..].partition_point(|&index| entries[index as usize].name.as_slice() < b".");
        let dot_dots = self.sorted[start..].partition_point(|&index| entries[index as usize].name.as_slice() < b"..");
        self.sorted.insert(start + dot_dots, DOT_DOT);
        self.sorted.insert(start + dots, DOT);
    }

    /// The path of an inode by the first entry that was found for it.
    fn path(&self, tree: &Tree, id: u32) -> String {
        let mut names = Vec::new();
        let mut child = id;
        while child != tree.root.0 {
            let parent = self.parents[child as usize];
            let name = directory_entries(tree, parent).iter().find(|entry| entry.inode.0 == child);
            names.push(name.map_or_else(String::new, |entry| String::from_utf8_lossy(&entry.name).into_owned()));
            child = parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }
}

fn directory_entries(tree: &Tree, id: u32) -> &[DirEntry] {
    match tree.inode(InodeId(id)).map(|inode| &inode.kind) {
        Some(Kind::Directory(entries)) => entries,
        _ => &[],
    }
}

fn name_is_valid(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == 0 || byte == b'/')
}
