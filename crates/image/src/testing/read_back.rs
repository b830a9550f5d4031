//! Trees as our own reader and as the kernel show them.

use super::model::{Node, Path as ModelPath, Tree, What};
use sampan_erofs::{InodeId, Kind};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// An EROFS tree with blobs, device 1 first, as the model's tree.
pub(crate) fn erofs(tree: &sampan_erofs::Tree, blobs: &[Vec<u8>]) -> Tree {
    let mut found = Tree::new();
    let mut pending: Vec<(ModelPath, InodeId)> = vec![(Vec::new(), tree.root)];
    while let Some((path, id)) = pending.pop() {
        let inode = tree.inode(id).unwrap();
        let what = match &inode.kind {
            Kind::Directory(entries) => {
                for entry in entries {
                    let mut below = path.clone();
                    below.push(entry.name.clone());
                    pending.push((below, entry.inode));
                }
                What::Directory
            }
            Kind::File { size, extents } => {
                let mut bytes = vec![0; *size as usize];
                for extent in extents {
                    let blob = &blobs[usize::from(extent.device) - 1];
                    let end = (extent.file_offset + extent.length).min(*size);
                    let length = (end - extent.file_offset) as usize;
                    bytes[extent.file_offset as usize..end as usize]
                        .copy_from_slice(&blob[extent.device_offset as usize..][..length]);
                }
                What::File(bytes)
            }
            Kind::Symlink(target) => What::Symlink(target.clone()),
            Kind::Fifo => What::Fifo,
            other => panic!("{other:?} in an image"),
        };
        let node = Node {
            what,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            seconds: inode.mtime.seconds,
            nanoseconds: inode.mtime.nanoseconds,
            xattrs: inode.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect(),
            file: u64::from(id.0),
        };
        found.insert(path, node);
    }
    found
}

/// A directory of this machine, mounted or not, as the model's tree.
pub(crate) fn directory(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut pending: Vec<ModelPath> = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let here = root.join(OsStr::from_bytes(&path.join(&b'/')));
        let metadata = if path.is_empty() { fs::metadata(&here) } else { fs::symlink_metadata(&here) };
        let metadata = match metadata {
            // Overlay lists the whiteouts of directories that one layer has alone, though nothing is there.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata.unwrap_or_else(|error| panic!("{}: {error}", here.display())),
        };
        if metadata.is_dir() {
            for entry in fs::read_dir(&here).unwrap() {
                let mut below = path.clone();
                below.push(entry.unwrap().file_name().as_bytes().to_vec());
                pending.push(below);
            }
        }
        found.insert(path, node(&here, &metadata));
    }
    found
}

fn node(path: &Path, metadata: &Metadata) -> Node {
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        What::Directory
    } else if kind.is_file() {
        What::File(fs::read(path).unwrap())
    } else if kind.is_symlink() {
        What::Symlink(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else {
        assert!(kind.is_fifo(), "{} is of an odd kind", path.display());
        What::Fifo
    };
    Node {
        what,
        mode: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec() as u32,
        xattrs: xattrs(path, kind.is_dir()),
        file: metadata.ino(),
    }
}

/// `is_root` paths lead through a magic link, which must be followed.
fn xattrs(path: &Path, is_directory: bool) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 65536];
    // A mount's root is reached through a magic link in /proc, so directories are asked with links followed.
    let list = if is_directory { rustix::fs::listxattr } else { rustix::fs::llistxattr };
    let length = match list(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 65536];
        let length = if is_directory {
            rustix::fs::getxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap()
        } else {
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap()
        };
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    xattrs
}
