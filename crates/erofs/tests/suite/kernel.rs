//! The kernel as a judge: it mounts the image, and everything it shows must be what was written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use sampan_erofs::{Extent, Inode, InodeId, Kind, Xattr};

use crate::check::Files;
use crate::sample::Sample;

/// Files up to this size are compared as a whole, larger ones around the ends of their extents.
const WHOLE_FILE_BYTES: u64 = 4 << 20;

/// A detached mount; it goes away with the descriptor.
pub(crate) struct Mounted(OwnedFd);

impl Mounted {
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Mounts the image, or says loudly why it cannot be done here.
pub(crate) fn mount(files: &Files) -> Option<Mounted> {
    static MISSING: Once = Once::new();
    let supported = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\terofs\n"));
    if !rustix::process::geteuid().is_root() || !supported {
        MISSING.call_once(|| eprintln!("NOT CHECKED: mounting needs root and a kernel with EROFS"));
        return None;
    }
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_flag(&context, "ro").unwrap();
    fsconfig_set_string(&context, "source", files.image.as_path()).unwrap();
    for device in &files.devices {
        fsconfig_set_string(&context, "device", device.as_path()).unwrap();
    }
    fsconfig_create(&context).expect("the kernel mounts the image");
    Some(Mounted(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()))
}

pub(crate) fn check(sample: &Sample, files: &Files) {
    if let Some(mounted) = mount(files) {
        let mut comparison = Comparison { sample, inodes: HashMap::new(), links: HashMap::new() };
        comparison.compare(sample.root(), &mounted.path().join("."));
        comparison.compare_links();
    }
}

struct Comparison<'s> {
    sample: &'s Sample,
    /// The kernel's number of each inode.
    inodes: HashMap<InodeId, u64>,
    /// Names found of each inode, and what the kernel says.
    links: HashMap<InodeId, (u64, u64)>,
}

impl Comparison<'_> {
    fn compare(&mut self, id: InodeId, path: &Path) {
        let inode = self.sample.tree.inode(id).unwrap();
        let metadata = fs::symlink_metadata(path).unwrap();
        let number = *self.inodes.entry(id).or_insert(metadata.ino());
        assert_eq!(number, metadata.ino(), "{path:?} is not the same inode as its other names");
        assert_eq!(metadata.mode(), u32::from(inode.st_mode()), "mode of {path:?}");
        assert_eq!((metadata.uid(), metadata.gid()), (inode.uid, inode.gid), "owner of {path:?}");
        let time = (metadata.mtime(), metadata.mtime_nsec());
        assert_eq!(time, (inode.mtime.seconds, i64::from(inode.mtime.nanoseconds)), "time of {path:?}");
        self.links.entry(id).or_insert((0, metadata.nlink())).0 += 1;
        compare_xattrs(inode, path);
        match &inode.kind {
            Kind::Directory(entries) => {
                let mut listed: Vec<Vec<u8>> = Vec::new();
                for entry in fs::read_dir(path).unwrap() {
                    listed.push(entry.unwrap().file_name().as_bytes().to_vec());
                }
                listed.sort_unstable();
                let mut names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
                names.sort_unstable();
                assert_eq!(listed, names, "names in {path:?}");
                for entry in entries {
                    self.compare(entry.inode, &path.join(OsStr::from_bytes(&entry.name)));
                }
                let subdirectories = entries.iter().filter(|entry| self.is_directory(entry.inode)).count() as u64;
                self.links.entry(id).and_modify(|(names, _)| *names = subdirectories + 2);
            }
            Kind::File { size, extents } => {
                assert_eq!(metadata.size(), *size, "size of {path:?}");
                self.compare_content(*size, extents, path);
            }
            Kind::Symlink(target) => {
                assert_eq!(metadata.size(), target.len() as u64);
                assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "target of {path:?}");
            }
            Kind::Fifo | Kind::Socket => {}
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                assert_eq!(metadata.rdev(), rustix::fs::makedev(*major, *minor), "device of {path:?}");
            }
        }
    }

    fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.sample.tree.inode(id).unwrap().kind, Kind::Directory(_))
    }

    fn compare_content(&self, size: u64, extents: &[Extent], path: &Path) {
        let file = fs::File::open(path).unwrap();
        let compare = |offset: u64, length: u64| {
            let expected = self.sample.content(size, extents, offset, length);
            let mut got = vec![0xAA; expected.len()];
            file.read_exact_at(&mut got, offset).unwrap();
            assert!(got == expected, "{path:?} differs within {length} bytes from {offset}");
        };
        if size <= WHOLE_FILE_BYTES {
            compare(0, size);
            return;
        }
        let ends = extents.iter().flat_map(|extent| [extent.file_offset, extent.file_offset + extent.length]);
        for end in ends.chain([0, size / 2, size]) {
            compare(end.saturating_sub(8192), 16384);
        }
    }

    fn compare_links(&self) {
        for (id, (names, shown)) in &self.links {
            assert_eq!(names, shown, "link count of {id:?}");
        }
        let distinct: std::collections::HashSet<_> = self.inodes.values().collect();
        assert_eq!(distinct.len(), self.inodes.len(), "two inodes have become one");
    }
}

fn compare_xattrs(inode: &Inode, path: &Path) {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut listed: Vec<&[u8]> = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    listed.sort_unstable();
    let mut expected: Vec<&[u8]> = inode.xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected, "attributes of {path:?}");
    for Xattr { name, value } in &inode.xattrs {
        let mut got = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name.as_slice(), got.as_mut_slice()).unwrap();
        assert_eq!(&got[..length], value, "{} of {path:?}", String::from_utf8_lossy(name));
    }
}
