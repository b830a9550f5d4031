//! `/dev` of a container: a tmpfs with the few device nodes that everybody may use, and those that this one is given.
//!
//! Made on the privileged side, because a user namespace cannot make device nodes, and owned by the pod's root. It travels
//! to the agent as a detached mount; terminals, shared memory and queues are mounted into it there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat, symlinkat};
use rustix::mount::MountAttrFlags;
use sampan_sys::mount::FsContext;

use crate::limits::{DEVICE_DEPTH_MAX, DEVICES_MAX};
use crate::spec::Device;

/// Name, major and minor number (Linux `Documentation/admin-guide/devices.txt`).
pub(crate) const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// What stands in every container's `/dev` and is its own there.
const OWN_PLACES: [&str; 5] = ["pts", "shm", "mqueue", "ptmx", "console"];

/// A device of the host on its way into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    /// Below `/dev`.
    path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Of `r`, `w` and `m`, at least one.
    pub(crate) permissions: String,
    mode: u32,
    owner: (u32, u32),
}

/// The nodes that a container asks for; a directory stands for all nodes below it.
pub(crate) fn find(devices: &[Device]) -> io::Result<Vec<DeviceNode>> {
    let mut nodes = Vec::new();
    for device in devices {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("device {}: {error}", device.host_path.display()));
        let place = place_below_dev(&device.container_path).map_err(named)?;
        let permissions: String = "rwm".chars().filter(|letter| device.permissions.contains(*letter)).collect();
        if permissions.is_empty() || device.permissions.chars().any(|letter| !"rwm".contains(letter)) {
            let why = format!("{:?} are no permissions: use r, w and m", device.permissions);
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        let before = nodes.len();
        gather(&device.host_path, &place, &permissions, 0, &mut nodes).map_err(named)?;
        if nodes.len() == before {
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, "it is not a device")));
        }
    }
    Ok(nodes)
}

/// Every device of the host, for a privileged container.
pub(crate) fn all_of_host() -> io::Result<Vec<DeviceNode>> {
    let mut nodes = Vec::new();
    gather(Path::new("/dev"), Path::new(""), "rwm", 0, &mut nodes)?;
    Ok(nodes)
}

/// The part of a path below `/dev`, of plain components only.
fn place_below_dev(path: &str) -> io::Result<PathBuf> {
    let refuse = || {
        let why = format!("a device cannot be put at {path:?}: name a place below /dev");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    let below = Path::new(path).strip_prefix("/dev").map_err(|_elsewhere| refuse())?;
    let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let first = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    if !plain || first.is_none_or(|first| OWN_PLACES.contains(&first.as_str())) {
        return Err(refuse());
    }
    Ok(below.to_owned())
}

fn gather(
    host_path: &Path,
    place: &Path,
    permissions: &str,
    depth: usize,
    nodes: &mut Vec<DeviceNode>,
) -> io::Result<()> {
    // The path that was asked for may be a link; what is found below a directory is taken as it is.
    let stat = if depth == 0 { std::fs::metadata(host_path)? } else { std::fs::symlink_metadata(host_path)? };
    let kind = stat.file_type();
    if kind.is_dir() && depth < DEVICE_DEPTH_MAX {
        for entry in std::fs::read_dir(host_path)? {
            let entry = entry?;
            let place = place.join(entry.file_name());
            if place.components().count() > 1 || !OWN_PLACES.iter().any(|own| place == Path::new(own)) {
                match gather(&entry.path(), &place, permissions, depth + 1, nodes) {
                    // udev's links to the disks of other pods come and go all the time.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    gathered => gathered?,
                }
            }
        }
    }
    if (kind.is_char_device() || kind.is_block_device()) && nodes.len() < DEVICES_MAX {
        nodes.push(DeviceNode {
            path: place.to_owned(),
            block: kind.is_block_device(),
            major: rustix::fs::major(stat.rdev()),
            minor: rustix::fs::minor(stat.rdev()),
            permissions: permissions.to_owned(),
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
        });
    }
    Ok(())
}

/// Makes a container's `/dev`, owned by the host's id `root`. What it is given besides belongs to whom it does on the host,
/// or to the pod's root where the pod's users are not the host's.
pub(crate) fn make(root: u32, further: &[DeviceNode]) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set_string("mode", "0755")?;
    context.set_string("size", "64m")?;
    context.set_string("uid", root.to_string())?;
    context.set_string("gid", root.to_string())?;
    let mount = context.mount(MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(&mount, name, FileType::CharacterDevice, mode, makedev(major, minor))?;
        chmodat(&mount, name, mode, AtFlags::empty())?;
        own(mount.as_fd(), Path::new(name), (root, root))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(&mount, name, Mode::from_raw_mode(0o755))?;
        own(mount.as_fd(), Path::new(name), (root, root))?;
    }
    for node in further {
        add(mount.as_fd(), node, if root == 0 { node.owner } else { (root, root) })?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, &mount, name) {
            Err(rustix::io::Errno::EXIST) => {}
            made => {
                made?;
                own(mount.as_fd(), Path::new(name), (root, root))?;
            }
        }
    }
    Ok(mount)
}

fn own(mount: BorrowedFd<'_>, path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(chownat(mount, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn add(mount: BorrowedFd<'_>, node: &DeviceNode, owner: (u32, u32)) -> io::Result<()> {
    let mut so_far = PathBuf::new();
    for part in node.path.parent().into_iter().flat_map(Path::components) {
        so_far.push(part);
        match mkdirat(mount, &so_far, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let mode = Mode::from_raw_mode(node.mode);
    match mknodat(mount, &node.path, kind, mode, makedev(node.major, node.minor)) {
        // One of those that every container has.
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        made => made?,
    }
    chmodat(mount, &node.path, mode, AtFlags::empty())?;
    own(mount, &node.path, owner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{gather, place_below_dev};

    #[test]
    fn what_goes_while_it_is_looked_at_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, done) = (folder.path().join("by-uuid"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::create_dir(&inner).unwrap();
                    std::os::unix::fs::symlink("/dev/null", inner.join("link")).unwrap();
                    std::fs::remove_dir_all(&inner).unwrap();
                }
            });
            let looked = (0..2000).try_for_each(|_| gather(folder.path(), Path::new(""), "rwm", 0, &mut Vec::new()));
            done.store(true, Ordering::Relaxed);
            looked.unwrap();
        });
        assert!(gather(&folder.path().join("nothing"), Path::new("x"), "rwm", 0, &mut Vec::new()).is_err());
    }

    #[test]
    fn devices_stay_below_dev() {
        assert!(place_below_dev("/dev/fuse").is_ok_and(|place| place == *"fuse"));
        assert!(place_below_dev("/dev/snd/timer").is_ok());
        for elsewhere in ["/etc/passwd", "/dev", "/dev/../etc/x", "dev/fuse", "/dev/pts/9", "/dev/console"] {
            assert!(place_below_dev(elsewhere).is_err(), "{elsewhere}");
        }
    }
}
