//! Stacking as simply as it can be said: flat maps from path to node, every rule applied by looking through all of it.

use super::stack::{LayerEntries, content};
use sampan_oci::layer::{Entry, EntryKind, LayerPath};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Path = Vec<Vec<u8>>;

/// What a path shows, in an image or in its mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) what: What,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Equal for names of one file; otherwise meaningless.
    pub(crate) file: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
}

pub(crate) type Tree = BTreeMap<Path, Node>;

/// One layer by itself.
#[derive(Default)]
struct Layer {
    nodes: Tree,
    implied: BTreeSet<Path>,
    whiteouts: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
    lower_links: BTreeMap<Path, Path>,
}

/// The tree that a stack shows. Entries must be such that none is refused.
pub(crate) fn stacked(layers: &[LayerEntries]) -> Tree {
    let mut image = Tree::from([(Vec::new(), implied(0))]);
    let mut files = 1;
    for entries in layers {
        let layer = Layer::read(entries, &mut files);
        image = layer.over(&image);
    }
    image
}

fn implied(file: u64) -> Node {
    Node {
        what: What::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        seconds: 0,
        nanoseconds: 0,
        xattrs: BTreeMap::new(),
        file,
    }
}

fn split(path: &LayerPath) -> Path {
    path.components().map(<[u8]>::to_vec).collect()
}

impl Layer {
    fn read(entries: &LayerEntries, files: &mut u64) -> Self {
        let mut layer = Self::default();
        layer.nodes.insert(Vec::new(), implied(0));
        layer.implied.insert(Vec::new());
        for (entry, data) in entries {
            *files += 1;
            layer.add(entry, data, *files);
        }
        layer
    }

    fn add(&mut self, entry: &Entry, data: &[u8], file: u64) {
        let mut path = split(&entry.path);
        if matches!(entry.kind, EntryKind::Opaque) {
            let path = self.walk(&path, true);
            self.opaque.insert(path);
            return;
        }
        let name = path.pop().unwrap();
        let mut path = self.walk(&path, true);
        path.push(name);
        let here = self.nodes.get(&path).cloned();
        let is_directory = here.as_ref().is_some_and(|node| node.what == What::Directory);
        match &entry.kind {
            EntryKind::Whiteout => {
                if is_directory {
                    self.opaque.insert(path.clone());
                    self.implied.remove(&path);
                } else if here.is_none() && !self.lower_links.contains_key(&path) {
                    self.whiteouts.insert(path);
                }
            }
            EntryKind::Directory => {
                if !is_directory {
                    if self.whiteouts.contains(&path) {
                        self.opaque.insert(path.clone());
                    }
                    self.forget(&path, false);
                }
                self.implied.remove(&path);
                self.nodes.insert(path, node(entry, data, file));
            }
            EntryKind::HardLink { target } => self.link(path, &split(target)),
            _ => {
                self.forget(&path, true);
                self.nodes.insert(path, node(entry, data, file));
            }
        }
    }

    fn link(&mut self, path: Path, target: &[Vec<u8>]) {
        let (name, parent) = target.split_last().unwrap();
        let mut target = self.walk(parent, false);
        target.push(name.clone());
        if let Some(found) = self.nodes.get(&target).cloned() {
            if target != path {
                self.forget(&path, true);
                self.nodes.insert(path, found);
            }
        } else {
            let target = self.lower_links.get(&target).cloned().unwrap_or(target);
            self.forget(&path, true);
            self.lower_links.insert(path, target);
        }
    }

    /// Drops what this layer has said of a path and all below it.
    fn forget(&mut self, path: &Path, opaque_too: bool) {
        self.nodes.retain(|known, _| !known.starts_with(path));
        self.lower_links.retain(|known, _| !known.starts_with(path));
        self.whiteouts.retain(|known| !known.starts_with(path));
        self.implied.retain(|known| !known.starts_with(path));
        self.opaque.retain(|known| !known.starts_with(path) || (known == path && !opaque_too));
    }

    /// Where a directory's path leads in this layer.
    fn walk(&mut self, path: &[Vec<u8>], make: bool) -> Path {
        let mut pending: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        let mut here: Path = Vec::new();
        while let Some(component) = pending.pop() {
            match &component[..] {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                _ => {}
            }
            here.push(component);
            match self.nodes.get(&here).map(|node| node.what.clone()) {
                Some(What::Symlink(target)) => {
                    here.pop();
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    pending.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(_) => {}
                None if make => {
                    if self.whiteouts.remove(&here) {
                        self.opaque.insert(here.clone());
                    } else {
                        self.implied.insert(here.clone());
                    }
                    self.nodes.insert(here.clone(), implied(0));
                }
                None => {}
            }
        }
        here
    }

    fn over(&self, lower: &Tree) -> Tree {
        let mut image = lower.clone();
        let links: Vec<(&Path, Node)> =
            self.lower_links.iter().map(|(path, target)| (path, lower_node(lower, target).unwrap())).collect();
        for path in &self.whiteouts {
            image.retain(|known, _| !known.starts_with(path));
        }
        for path in &self.opaque {
            image.retain(|known, _| !known.starts_with(path) || known == path);
        }
        for (path, node) in &self.nodes {
            let lower_is_directory = image.get(path).is_some_and(|lower| lower.what == What::Directory);
            if node.what == What::Directory && lower_is_directory {
                if !self.implied.contains(path) {
                    image.insert(path.clone(), node.clone());
                }
                continue;
            }
            image.retain(|known, _| !known.starts_with(path));
            image.insert(path.clone(), node.clone());
        }
        for (path, node) in links {
            image.retain(|known, _| !known.starts_with(path));
            image.insert(path.clone(), node);
        }
        image
    }
}

/// What a hard link to a lower layer's file finds, links on the way followed; `None` if nothing.
pub(crate) fn lower_node(lower: &Tree, target: &[Vec<u8>]) -> Option<Node> {
    let mut pending: Vec<Vec<u8>> = target.iter().rev().cloned().collect();
    let mut here: Path = Vec::new();
    let mut steps = 0;
    while let Some(component) = pending.pop() {
        steps += 1;
        if steps > 500 {
            return None;
        }
        match &component[..] {
            b"" | b"." => continue,
            b".." => {
                here.pop()?;
                continue;
            }
            _ => {}
        }
        here.push(component);
        let node = lower.get(&here)?;
        if pending.iter().all(Vec::is_empty) {
            return (node.what != What::Directory).then(|| node.clone());
        }
        if let What::Symlink(target) = &node.what {
            here.pop();
            if target.starts_with(b"/") {
                here.clear();
            }
            pending.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        } else if node.what != What::Directory {
            return None;
        }
    }
    None
}

fn node(entry: &Entry, data: &[u8], file: u64) -> Node {
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> =
        entry.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
    let mut mode = entry.mode;
    let mut device = |letter: char, major: u32, minor: u32| {
        let value = format!("{letter} {:04o} {major}:{minor}", entry.mode);
        xattrs.insert(crate::merge::DEVICE_XATTR.to_vec(), value.into_bytes());
        mode = 0;
        What::File(Vec::new())
    };
    let what = match &entry.kind {
        EntryKind::Directory => What::Directory,
        EntryKind::File { .. } => What::File(content(entry, data)),
        EntryKind::Symlink { target } => {
            mode = 0o777;
            What::Symlink(target.clone())
        }
        EntryKind::Fifo => What::Fifo,
        EntryKind::CharDevice { major, minor } => device('c', *major, *minor),
        EntryKind::BlockDevice { major, minor } => device('b', *major, *minor),
        EntryKind::HardLink { .. } | EntryKind::Whiteout | EntryKind::Opaque => unreachable!(),
    };
    let (seconds, nanoseconds) = (entry.mtime.seconds, entry.mtime.nanoseconds);
    Node { what, mode, uid: entry.uid, gid: entry.gid, seconds, nanoseconds, xattrs, file }
}

/// Fails with the first difference. File numbers must agree in what is one file, not in their values.
pub(crate) fn assert_same(expected: &Tree, actual: &Tree, who: &str) {
    let show = |path: &Path| String::from_utf8_lossy(&path.join(&b'/')).into_owned();
    let mut pairs: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, node) in expected {
        let found = actual.get(path).unwrap_or_else(|| panic!("{who} lacks {:?}", show(path)));
        let same = Node { file: found.file, ..node.clone() };
        if same != *found {
            let brief = |node: &Node| Node { what: brief(&node.what), ..node.clone() };
            panic!("{who} differs at {:?}:\nexpected {:?}\n   found {:?}", show(path), brief(&same), brief(found));
        }
        if node.what != What::Directory {
            let partner = *pairs.entry(node.file).or_insert(found.file);
            assert_eq!(partner, found.file, "{who}: names of one file are two at {:?}", show(path));
        }
    }
    let partners: BTreeSet<u64> = pairs.values().copied().collect();
    assert_eq!(partners.len(), pairs.len(), "{who}: names of two files are one");
    for path in actual.keys() {
        assert!(expected.contains_key(path), "{who} has {:?} too", show(path));
    }
}

fn brief(what: &What) -> What {
    match what {
        What::File(bytes) if bytes.len() > 40 => {
            let digest = blake3::hash(bytes).to_hex();
            What::File(format!("{} bytes {}", bytes.len(), &digest[..8]).into_bytes())
        }
        other => other.clone(),
    }
}
