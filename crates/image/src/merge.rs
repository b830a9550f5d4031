//! Lays the trees of an image's layers over one another, lowest first, and gives one EROFS tree.
//!
//! The rules are overlayfs': a name of an upper layer hides the same name below, two directories become one (with the upper
//! one's attributes, unless the upper layer merely implies it), a whiteout hides, an opaque directory hides all below it.
//! Beyond overlayfs, a hard link may name a file of a lower layer: both names then share one inode.
//!
//! Device nodes become empty files that nobody may open, with [`DEVICE_XATTR`] telling what they were: a mount handed to a
//! container must not carry devices (a container with CAP_SYS_ADMIN in its user namespace can take `nodev` back).

use crate::limits::{SMALL_FILE_BYTES_MAX, SYMLINKS_FOLLOWED_MAX};
use crate::tree::{BLOCK_BYTES, Child, Directory, Inode, Kind, LayerTree, Name};
use sampan_oci::layer::display_name;
use std::collections::{BTreeMap, HashMap};

#[cfg(test)]
pub(crate) mod tests;

/// On a neutralised device node: `c` or `b`, permissions in octal, major and minor: `c 0666 1:3`.
pub const DEVICE_XATTR: &[u8] = b"trusted.sampan.device";

/// Attributes that overlayfs, or we ourselves, would obey: never taken from an image.
const REFUSED_XATTRS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"trusted.sampan."];

/// Why layers do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("tar entry {entry} is a hard link to {target}, which neither its layer nor a lower one has")]
    LinkTargetMissing { entry: String, target: String },
    #[error("tar entry {entry} is a hard link to the directory {target} of a lower layer")]
    LinkToDirectory { entry: String, target: String },
    #[error("the image has more layers with data than 65,535 devices are enough for")]
    TooManyDevices,
}

/// One image: the EROFS tree, its devices, and which layer each device's blob belongs to (the first device is number 1).
///
/// A layer with small and with large files has two devices, both its blob: small files on the first, large ones on the second,
/// so that they can be read in different ways (docs/decisions/0022-two-devices.md).
#[derive(Debug)]
pub struct Merged {
    pub tree: sampan_erofs::Tree,
    pub devices: Vec<sampan_erofs::Device>,
    pub device_layers: Vec<usize>,
}

/// Merges `layers`, lowest first. `tags` are the names of their blobs in the device table, in the same order.
pub fn merge(layers: &[&LayerTree], tags: &[String]) -> Result<Merged, MergeError> {
    let mut merging = Merging { layers, nodes: vec![Node::directory(None)] };
    for layer in 0..layers.len() {
        merging.apply(layer)?;
    }
    merging.to_erofs(tags)
}

/// Where a node's attributes come from: layer and inode.
type Origin = (usize, u32);

enum Node {
    Directory { origin: Option<Origin>, children: BTreeMap<Name, usize> },
    Leaf(Origin),
}

impl Node {
    fn directory(origin: Option<Origin>) -> Self {
        Node::Directory { origin, children: BTreeMap::new() }
    }
}

struct Merging<'a> {
    layers: &'a [&'a LayerTree],
    /// Node 0 is the root. Nodes that were hidden stay here, unreached.
    nodes: Vec<Node>,
}

impl Merging<'_> {
    fn apply(&mut self, layer: usize) -> Result<(), MergeError> {
        let tree = self.layers[layer];
        let links = self.lower_links(tree)?;
        let mut leaves: HashMap<u32, usize> = HashMap::new();
        let mut pending = vec![(0u32, 0usize)];
        while let Some((inode, node)) = pending.pop() {
            let Kind::Directory(upper) = &tree.inodes[inode as usize].kind else { continue };
            let mut children = self.open_directory(node, upper, (layer, inode));
            for (name, child) in &upper.entries {
                let child = match child {
                    Child::Whiteout => {
                        children.remove(name);
                        continue;
                    }
                    Child::LowerLink(path) => links[path],
                    Child::Inode(child) => match &tree.inodes[*child as usize].kind {
                        Kind::Directory(_) => {
                            let lower = children.get(name).copied();
                            let lower = lower.filter(|node| matches!(self.nodes[*node], Node::Directory { .. }));
                            let node = lower.unwrap_or_else(|| self.push(Node::directory(Some((layer, *child)))));
                            pending.push((*child, node));
                            node
                        }
                        _ => *leaves.entry(*child).or_insert_with(|| self.push(Node::Leaf((layer, *child)))),
                    },
                };
                children.insert(name.clone(), child);
            }
            if let Node::Directory { children: place, .. } = &mut self.nodes[node] {
                *place = children;
            }
        }
        Ok(())
    }

    /// Takes a directory's children out for change, after what the upper layer says of the directory itself.
    fn open_directory(&mut self, node: usize, upper: &Directory, from: Origin) -> BTreeMap<Name, usize> {
        let Node::Directory { origin, children } = &mut self.nodes[node] else { return BTreeMap::new() };
        if !upper.implied || origin.is_none() {
            *origin = Some(from);
        }
        if upper.opaque {
            children.clear();
        }
        std::mem::take(children)
    }

    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The nodes of the files that hard links of `tree` name in the layers below it.
    fn lower_links<'t>(&self, tree: &'t LayerTree) -> Result<HashMap<&'t Name, usize>, MergeError> {
        let mut links = HashMap::new();
        for inode in &tree.inodes {
            let Kind::Directory(directory) = &inode.kind else { continue };
            for (name, child) in &directory.entries {
                let Child::LowerLink(path) = child else { continue };
                let missing =
                    || MergeError::LinkTargetMissing { entry: display_name(name), target: display_name(path) };
                let node = self.resolve(path).ok_or_else(missing)?;
                if matches!(self.nodes[node], Node::Directory { .. }) {
                    return Err(MergeError::LinkToDirectory { entry: display_name(name), target: display_name(path) });
                }
                links.insert(path, node);
            }
        }
        Ok(links)
    }

    /// The node at `path`, following symbolic links on the way but not at its end.
    fn resolve(&self, path: &[u8]) -> Option<usize> {
        let mut pending: Vec<&[u8]> = path.rsplit(|byte| *byte == b'/').collect();
        let mut entered: Vec<usize> = Vec::new();
        let mut symlinks = 0;
        while let Some(component) = pending.pop() {
            match component {
                b"" | b"." => continue,
                b".." => {
                    entered.pop()?;
                    continue;
                }
                _ => {}
            }
            let Node::Directory { children, .. } = &self.nodes[entered.last().copied().unwrap_or(0)] else {
                return None;
            };
            let node = *children.get(component)?;
            let is_last = pending.iter().all(|component| component.is_empty());
            match &self.nodes[node] {
                _ if is_last => return Some(node),
                Node::Directory { .. } => entered.push(node),
                Node::Leaf((layer, inode)) => {
                    let Kind::Symlink { target } = &self.layers[*layer].inodes[*inode as usize].kind else {
                        return None;
                    };
                    symlinks += 1;
                    if symlinks > SYMLINKS_FOLLOWED_MAX {
                        return None;
                    }
                    if target.first() == Some(&b'/') {
                        entered.clear();
                    }
                    pending.extend(target.rsplit(|byte| *byte == b'/'));
                }
            }
        }
        None
    }

    fn to_erofs(&self, tags: &[String]) -> Result<Merged, MergeError> {
        let mut devices = Devices::new(self.layers);
        let root = sampan_erofs::Inode::new(0o755, sampan_erofs::Kind::Directory(Vec::new()));
        let mut tree = sampan_erofs::Tree::new(root);
        let mut numbers: HashMap<usize, sampan_erofs::InodeId> = HashMap::from([(0, tree.root)]);
        let mut pending = vec![0usize];
        while let Some(node) = pending.pop() {
            let Node::Directory { origin, children } = &self.nodes[node] else { continue };
            let mut entries = Vec::with_capacity(children.len());
            for (name, child) in children {
                let inode = match numbers.get(child) {
                    Some(inode) => *inode,
                    None => {
                        let inode = match &self.nodes[*child] {
                            Node::Directory { .. } => {
                                pending.push(*child);
                                sampan_erofs::Inode::new(0o755, sampan_erofs::Kind::Directory(Vec::new()))
                            }
                            Node::Leaf(origin) => self.leaf(*origin, &mut devices)?,
                        };
                        let id = tree.push(inode);
                        numbers.insert(*child, id);
                        id
                    }
                };
                entries.push(sampan_erofs::DirEntry { name: name.to_vec(), inode });
            }
            let kind = sampan_erofs::Kind::Directory(entries);
            let inode = match origin {
                Some((layer, inode)) => with_kind(&self.layers[*layer].inodes[*inode as usize], kind),
                None => sampan_erofs::Inode::new(0o755, kind),
            };
            if let Some(place) = numbers.get(&node).and_then(|id| tree.inode_mut(*id)) {
                *place = inode;
            }
        }
        let (devices, device_layers) = devices.finish(tags);
        Ok(Merged { tree, devices, device_layers })
    }

    fn leaf(&self, (layer, number): Origin, devices: &mut Devices) -> Result<sampan_erofs::Inode, MergeError> {
        let tree = self.layers[layer];
        let inode = &tree.inodes[number as usize];
        Ok(match &inode.kind {
            Kind::Directory(_) => with_kind(inode, sampan_erofs::Kind::Directory(Vec::new())),
            Kind::Fifo => with_kind(inode, sampan_erofs::Kind::Fifo),
            Kind::Symlink { target } => {
                let link = with_kind(inode, sampan_erofs::Kind::Symlink(target.to_vec()));
                // Linux shows every symbolic link so, whatever the archive says.
                sampan_erofs::Inode { mode: 0o777, ..link }
            }
            Kind::CharDevice { major, minor } => neutralised(inode, 'c', *major, *minor),
            Kind::BlockDevice { major, minor } => neutralised(inode, 'b', *major, *minor),
            Kind::File { size, content } => {
                let extents = match content {
                    None => Vec::new(),
                    Some(content) => devices.extents(layer, tree, *content as usize)?,
                };
                with_kind(inode, sampan_erofs::Kind::File { size: *size, extents })
            }
        })
    }
}

fn with_kind(inode: &Inode, kind: sampan_erofs::Kind) -> sampan_erofs::Inode {
    let kept = inode.xattrs.iter().filter(|(name, value)| {
        !REFUSED_XATTRS.iter().any(|prefix| name.starts_with(prefix))
            && sampan_erofs::xattr_name_is_storable(name)
            && value.len() <= sampan_erofs::limits::XATTR_VALUE_BYTES_MAX
    });
    sampan_erofs::Inode {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: sampan_erofs::Timestamp { seconds: inode.seconds, nanoseconds: inode.nanoseconds },
        xattrs: kept.map(|(name, value)| sampan_erofs::Xattr { name: name.to_vec(), value: value.to_vec() }).collect(),
        kind,
    }
}

fn neutralised(inode: &Inode, letter: char, major: u32, minor: u32) -> sampan_erofs::Inode {
    let mut file = with_kind(inode, sampan_erofs::Kind::File { size: 0, extents: Vec::new() });
    let value = format!("{letter} {:04o} {major}:{minor}", inode.mode);
    file.xattrs.push(sampan_erofs::Xattr { name: DEVICE_XATTR.to_vec(), value: value.into_bytes() });
    file.mode = 0;
    file
}

/// The blobs that visible files need, numbered in the order in which they were met.
struct Devices {
    layouts: Vec<Option<(Vec<u64>, u64)>>,
    numbers: HashMap<usize, Numbers>,
    order: Vec<usize>,
}

/// The devices of one layer.
#[derive(Clone, Copy)]
struct Numbers {
    small: u16,
    large: u16,
}

impl Devices {
    fn new(layers: &[&LayerTree]) -> Self {
        Self { layouts: vec![None; layers.len()], numbers: HashMap::new(), order: Vec::new() }
    }

    fn extents(
        &mut self,
        layer: usize,
        tree: &LayerTree,
        content: usize,
    ) -> Result<Vec<sampan_erofs::Extent>, MergeError> {
        let numbers = match self.numbers.get(&layer) {
            Some(numbers) => *numbers,
            None => {
                let is_small = |content: &crate::tree::Content| content.size <= SMALL_FILE_BYTES_MAX;
                let has_both = tree.contents.iter().any(is_small) && !tree.contents.iter().all(is_small);
                let small = self.number(layer)?;
                let numbers = Numbers { small, large: if has_both { self.number(layer)? } else { small } };
                self.numbers.insert(layer, numbers);
                numbers
            }
        };
        let (offsets, _) = self.layouts[layer].get_or_insert_with(|| tree.blob_layout());
        let content_offset = offsets[content];
        let content = &tree.contents[content];
        let device = if content.size <= SMALL_FILE_BYTES_MAX { numbers.small } else { numbers.large };
        let runs = content.runs(content_offset).into_iter();
        Ok(runs
            .map(|run| sampan_erofs::Extent {
                file_offset: run.file_offset,
                device,
                device_offset: run.blob_offset,
                length: run.length.min(content.size - run.file_offset),
            })
            .collect())
    }

    fn number(&mut self, layer: usize) -> Result<u16, MergeError> {
        self.order.push(layer);
        u16::try_from(self.order.len()).ok().ok_or(MergeError::TooManyDevices)
    }

    fn finish(self, tags: &[String]) -> (Vec<sampan_erofs::Device>, Vec<usize>) {
        let device = |layer: &usize| {
            let blob_bytes = self.layouts[*layer].as_ref().map_or(0, |(_, bytes)| *bytes);
            let tag = tags.get(*layer).map(|tag| tag.as_bytes()).unwrap_or_default();
            let tag = tag.get(..sampan_erofs::limits::TAG_BYTES_MAX).unwrap_or(tag).to_vec();
            sampan_erofs::Device { blocks: u32::try_from(blob_bytes / BLOCK_BYTES).unwrap_or(u32::MAX), tag }
        };
        (self.order.iter().map(device).collect(), self.order)
    }
}
