//! From the entries of a layer, in the order of the archive, to its tree.
//!
//! What decides where archives and file systems differ:
//! - The last entry of a name wins. A directory over a directory changes its attributes and keeps what is in it; anything
//!   else replaces what was there, with everything below it.
//! - A parent that is a symbolic link *of this layer* is followed, inside the root. Links of lower layers are not: a
//!   directory takes their place, as it does where overlay stacks layers.
//! - Parents that the layer never names are implied.
//! - A whiteout hides lower layers only. With a directory of the same name in the same layer that means an opaque directory.
//! - The attributes in a hard link's entry are ignored, as GNU tar does: the file has had its own.

use super::{Child, Content, Directory, Inode, Kind, LayerTree, Name};
use crate::limits::{DEPTH_MAX, SYMLINKS_FOLLOWED_MAX, TREE_BYTES_MAX};
use sampan_oci::layer::{Entry, EntryKind, LayerPath, Segment, display_name};
use std::collections::HashMap;

/// Why a layer is no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("tar entry {entry} is refused: a symbolic link on its way leads out of the image's root")]
    Escapes { entry: String },
    #[error("tar entry {entry} is refused: its parent {parent} is not a directory")]
    ParentNotDirectory { entry: String, parent: String },
    #[error("tar entry {entry} is refused: too many symbolic links on its way")]
    SymlinkLoop { entry: String },
    #[error("tar entry {entry} is refused: it lies deeper than {DEPTH_MAX} directories")]
    TooDeep { entry: String },
    #[error("tar entry {entry} is refused: a hard link to the directory {target}")]
    LinkToDirectory { entry: String, target: String },
    #[error("tar entry {entry} is refused: the root of an image is a directory")]
    RootNotDirectory { entry: String },
    #[error("tar entry {entry} is refused: names, links and attributes up to it take more than {TREE_BYTES_MAX} bytes")]
    TooLarge { entry: String },
    #[error("the layer has more than 4 billion inodes")]
    TooManyInodes,
}

/// Takes entries, gives a tree.
#[derive(Debug, Clone)]
pub struct LayerTreeBuilder {
    inodes: Vec<Inode>,
    contents: Vec<Content>,
    /// The directories of paths already walked; emptied whenever a walk could end elsewhere.
    walked: HashMap<Vec<u8>, u32>,
    /// About what all this takes in memory.
    bytes: u64,
}

/// What a walk without making directories finds.
enum Found {
    Child(Child),
    /// Nothing of this layer; this is the path without the layer's symbolic links.
    Nothing(Vec<u8>),
    Directory,
}

impl Default for LayerTreeBuilder {
    fn default() -> Self {
        Self { inodes: vec![implied_directory()], contents: Vec::new(), walked: HashMap::new(), bytes: 0 }
    }
}

impl LayerTreeBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Files with data so far.
    pub fn contents(&self) -> usize {
        self.contents.len()
    }

    /// The data of the file that was added last, if it has any.
    pub fn last_content(&self) -> Option<&Content> {
        self.contents.last()
    }

    /// Adds the next entry.
    pub fn add(&mut self, entry: Entry) -> Result<(), TreeError> {
        self.bytes += size_of_entry(&entry);
        if self.bytes > TREE_BYTES_MAX {
            return Err(TreeError::TooLarge { entry: display_name(entry.path.as_bytes()) });
        }
        let Some((parent, name)) = entry.path.split_last() else { return self.add_root(entry) };
        if matches!(entry.kind, EntryKind::Opaque) {
            let directory = self.walk(&entry.path, &entry.path)?;
            self.directory_mut(directory).opaque = true;
            return Ok(());
        }
        let directory = self.walk(&parent, &entry.path)?;
        let name: Name = name.into();
        match &entry.kind {
            EntryKind::Whiteout => self.add_whiteout(directory, name),
            EntryKind::HardLink { target } => return self.add_link(directory, name, target, &entry.path),
            EntryKind::Directory => self.add_directory(directory, name, entry)?,
            _ => {
                let kind = self.leaf_kind(&entry)?;
                let inode = self.push(Inode { kind, ..attributes(entry) })?;
                self.set_child(directory, name, Child::Inode(inode));
            }
        }
        Ok(())
    }

    /// The tree, without what was replaced, inodes numbered in the order of a walk.
    pub fn finish(mut self) -> LayerTree {
        // The bookkeeping of AUFS in very old images: hard links pointed into it, nobody sees it.
        self.directory_mut(0).entries.retain(|name, _| !name.starts_with(b".wh..wh."));
        let mut numbers: HashMap<u32, u32> = HashMap::from([(0, 0)]);
        let mut order: Vec<u32> = vec![0];
        let mut next = 0;
        while let Some(old) = order.get(next).copied() {
            next += 1;
            let Kind::Directory(directory) = &mut self.inodes[old as usize].kind else { continue };
            for child in directory.entries.values_mut() {
                let Child::Inode(inode) = child else { continue };
                let number = *numbers.entry(*inode).or_insert_with(|| {
                    order.push(*inode);
                    (order.len() - 1) as u32
                });
                *inode = number;
            }
        }
        let mut old: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let inodes = order.into_iter().filter_map(|number| old[number as usize].take()).collect();
        LayerTree { inodes, contents: self.contents }
    }

    fn add_root(&mut self, entry: Entry) -> Result<(), TreeError> {
        match entry.kind {
            EntryKind::Directory => {
                let directory = std::mem::take(self.directory_mut(0));
                let kind = Kind::Directory(Directory { implied: false, ..directory });
                self.inodes[0] = Inode { kind, ..attributes(entry) };
                Ok(())
            }
            EntryKind::Opaque => {
                self.directory_mut(0).opaque = true;
                Ok(())
            }
            _ => Err(TreeError::RootNotDirectory { entry: display_name(entry.path.as_bytes()) }),
        }
    }

    fn add_whiteout(&mut self, parent: u32, name: Name) {
        match self.directory_mut(parent).entries.get(&name) {
            None | Some(Child::Whiteout) => self.set_child(parent, name, Child::Whiteout),
            Some(Child::Inode(inode)) => {
                let inode = *inode;
                if let Kind::Directory(directory) = &mut self.inodes[inode as usize].kind {
                    directory.opaque = true;
                    directory.implied = false;
                }
            }
            Some(Child::LowerLink(_)) => {}
        }
    }

    fn add_directory(&mut self, parent: u32, name: Name, entry: Entry) -> Result<(), TreeError> {
        let existing = self.directory_mut(parent).entries.get(&name).cloned();
        if let Some(Child::Inode(inode)) = existing
            && let Kind::Directory(directory) = &mut self.inodes[inode as usize].kind
        {
            let kind = Kind::Directory(Directory { implied: false, ..std::mem::take(directory) });
            self.inodes[inode as usize] = Inode { kind, ..attributes(entry) };
            return Ok(());
        }
        let opaque = existing == Some(Child::Whiteout);
        let kind = Kind::Directory(Directory { opaque, ..Directory::default() });
        let inode = self.push(Inode { kind, ..attributes(entry) })?;
        self.set_child(parent, name, Child::Inode(inode));
        Ok(())
    }

    fn add_link(&mut self, parent: u32, name: Name, target: &LayerPath, path: &LayerPath) -> Result<(), TreeError> {
        let child = match self.find(target, path)? {
            Found::Child(Child::Whiteout) => Child::LowerLink(target.as_bytes().into()),
            Found::Child(child) => child,
            Found::Nothing(path) => Child::LowerLink(path.into()),
            Found::Directory => {
                return Err(TreeError::LinkToDirectory {
                    entry: display_name(path.as_bytes()),
                    target: display_name(target.as_bytes()),
                });
            }
        };
        if self.directory_mut(parent).entries.get(&name) != Some(&child) {
            self.set_child(parent, name, child);
        }
        Ok(())
    }

    fn leaf_kind(&mut self, entry: &Entry) -> Result<Kind, TreeError> {
        Ok(match &entry.kind {
            EntryKind::File { size, segments } => {
                let pairs = |segments: &Vec<Segment>| segments.iter().map(|s| (s.offset, s.length)).collect();
                let segments: Option<Vec<(u64, u64)>> = segments.as_ref().map(pairs);
                let content = Content { stream_offset: entry.data_offset, size: *size, segments };
                let number = u32::try_from(self.contents.len()).ok().ok_or(TreeError::TooManyInodes)?;
                let has_data = content.stream_bytes() > 0;
                if has_data {
                    self.contents.push(content);
                }
                Kind::File { size: *size, content: has_data.then_some(number) }
            }
            EntryKind::Symlink { target } => Kind::Symlink { target: target.as_slice().into() },
            EntryKind::CharDevice { major, minor } => Kind::CharDevice { major: *major, minor: *minor },
            EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major: *major, minor: *minor },
            EntryKind::Directory => Kind::Directory(Directory::default()),
            EntryKind::Fifo | EntryKind::HardLink { .. } | EntryKind::Whiteout | EntryKind::Opaque => Kind::Fifo,
        })
    }

    fn push(&mut self, inode: Inode) -> Result<u32, TreeError> {
        let number = u32::try_from(self.inodes.len()).ok().ok_or(TreeError::TooManyInodes)?;
        self.inodes.push(inode);
        Ok(number)
    }

    fn set_child(&mut self, parent: u32, name: Name, child: Child) {
        if self.directory_mut(parent).entries.insert(name, child).is_some() {
            self.walked.clear();
        }
    }

    /// The directory with this number. Only numbers of directories are ever passed.
    fn directory_mut(&mut self, inode: u32) -> &mut Directory {
        match &mut self.inodes[inode as usize].kind {
            Kind::Directory(directory) => directory,
            _ => unreachable!("a walk ends at directories only"),
        }
    }

    /// The directory at `path`, made where the layer has none; `entry` is named in errors.
    fn walk(&mut self, path: &LayerPath, entry: &LayerPath) -> Result<u32, TreeError> {
        if let Some(inode) = self.walked.get(path.as_bytes()) {
            return Ok(*inode);
        }
        let mut walk = Walk::new(path, entry);
        while let Some(component) = walk.next()? {
            let here = walk.here();
            let child = self.directory_mut(here).entries.get(&component).cloned();
            let opaque = match child {
                Some(Child::Inode(inode)) => {
                    walk.enter(component, inode, &self.inodes[inode as usize].kind)?;
                    continue;
                }
                Some(Child::LowerLink(_)) => return Err(walk.not_directory(&component)),
                Some(Child::Whiteout) => true,
                None => false,
            };
            let mut made = implied_directory();
            if let Kind::Directory(directory) = &mut made.kind {
                directory.opaque = opaque;
                directory.implied = !opaque;
            }
            let kind = made.kind.clone();
            let inode = self.push(made)?;
            self.directory_mut(here).entries.insert(component.clone(), Child::Inode(inode));
            walk.enter(component, inode, &kind)?;
        }
        let inode = walk.here();
        self.walked.insert(path.as_bytes().to_vec(), inode);
        Ok(inode)
    }

    /// What the layer has at `path`, without following a link at its end and without making anything.
    fn find(&self, path: &LayerPath, entry: &LayerPath) -> Result<Found, TreeError> {
        let Some((parent, name)) = path.split_last() else { return Ok(Found::Directory) };
        let mut walk = Walk::new(&parent, entry);
        let child_of = |inode: u32, name: &[u8]| match &self.inodes[inode as usize].kind {
            Kind::Directory(directory) => directory.entries.get(name).cloned(),
            _ => None,
        };
        while let Some(component) = walk.next()? {
            match child_of(walk.here(), &component) {
                Some(Child::Inode(inode)) => walk.enter(component, inode, &self.inodes[inode as usize].kind)?,
                Some(Child::LowerLink(_)) => return Err(walk.not_directory(&component)),
                None | Some(Child::Whiteout) => return Ok(Found::Nothing(walk.rest_of_path(&component, name))),
            }
        }
        Ok(match child_of(walk.here(), name) {
            Some(Child::Inode(inode)) if matches!(self.inodes[inode as usize].kind, Kind::Directory(_)) => {
                Found::Directory
            }
            Some(child) => Found::Child(child),
            None => Found::Nothing(walk.rest_of_path(name, b"")),
        })
    }
}

/// A walk down a path: the directories entered and the components still to come.
struct Walk<'a> {
    entry: &'a LayerPath,
    entered: Vec<(Name, u32)>,
    /// Last one first.
    pending: Vec<Name>,
    symlinks: usize,
}

impl<'a> Walk<'a> {
    fn new(path: &LayerPath, entry: &'a LayerPath) -> Self {
        let pending = path.components().rev().map(Name::from).collect();
        Self { entry, entered: Vec::new(), pending, symlinks: 0 }
    }

    fn here(&self) -> u32 {
        self.entered.last().map_or(0, |(_, inode)| *inode)
    }

    /// The next component that is a name.
    fn next(&mut self) -> Result<Option<Name>, TreeError> {
        while let Some(component) = self.pending.pop() {
            match &*component {
                b"" | b"." => {}
                b".." => {
                    if self.entered.pop().is_none() {
                        return Err(TreeError::Escapes { entry: display_name(self.entry.as_bytes()) });
                    }
                }
                _ => return Ok(Some(component)),
            }
        }
        Ok(None)
    }

    fn enter(&mut self, component: Name, inode: u32, kind: &Kind) -> Result<(), TreeError> {
        match kind {
            Kind::Directory(_) => {
                self.entered.push((component, inode));
                if self.entered.len() > DEPTH_MAX {
                    return Err(TreeError::TooDeep { entry: display_name(self.entry.as_bytes()) });
                }
                Ok(())
            }
            Kind::Symlink { target } => {
                self.symlinks += 1;
                if self.symlinks > SYMLINKS_FOLLOWED_MAX {
                    return Err(TreeError::SymlinkLoop { entry: display_name(self.entry.as_bytes()) });
                }
                if target.first() == Some(&b'/') {
                    self.entered.clear();
                }
                self.pending.extend(target.rsplit(|byte| *byte == b'/').map(Name::from));
                Ok(())
            }
            _ => Err(self.not_directory(&component)),
        }
    }

    fn not_directory(&self, component: &[u8]) -> TreeError {
        let mut parent: Vec<u8> = Vec::new();
        for (name, _) in &self.entered {
            parent.extend_from_slice(name);
            parent.push(b'/');
        }
        parent.extend_from_slice(component);
        TreeError::ParentNotDirectory { entry: display_name(self.entry.as_bytes()), parent: display_name(&parent) }
    }

    /// The directories entered, `component`, what is pending, and `name`, as one path.
    fn rest_of_path(&self, component: &[u8], name: &[u8]) -> Vec<u8> {
        let entered = self.entered.iter().map(|(name, _)| &**name);
        let pending = self.pending.iter().rev().map(|name| &**name);
        let parts: Vec<&[u8]> =
            entered.chain([component]).chain(pending).chain([name]).filter(|part| !part.is_empty()).collect();
        parts.join(&b'/')
    }
}

/// What an entry adds to the index, roughly; replaced entries count on, so that a layer cannot replace without end.
fn size_of_entry(entry: &Entry) -> u64 {
    let xattrs: usize = entry.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum();
    let kind = match &entry.kind {
        EntryKind::File { segments: Some(segments), .. } => segments.len() * size_of::<Segment>(),
        EntryKind::Symlink { target } => target.len(),
        EntryKind::HardLink { target } => target.as_bytes().len(),
        _ => 0,
    };
    (entry.path.as_bytes().len() + xattrs + kind + 32) as u64
}

/// A directory that nothing speaks of: 0755, of root, without a time.
fn implied_directory() -> Inode {
    let kind = Kind::Directory(Directory { implied: true, ..Directory::default() });
    Inode { kind, mode: 0o755, uid: 0, gid: 0, seconds: 0, nanoseconds: 0, xattrs: Vec::new() }
}

/// The attributes of an entry; the kind is for the caller to set.
fn attributes(entry: Entry) -> Inode {
    Inode {
        kind: Kind::Fifo,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        seconds: entry.mtime.seconds,
        nanoseconds: entry.mtime.nanoseconds,
        xattrs: entry.xattrs.into_iter().map(|xattr| (xattr.name.into(), xattr.value.into())).collect(),
    }
}
