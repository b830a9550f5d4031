//! `/dev` of a container: a tmpfs with the few device nodes that everybody may use.
//!
//! Made on the privileged side, because a user namespace cannot make device nodes, and owned by the pod's root. It travels
//! to the agent as a detached mount; terminals, shared memory and queues are mounted into it there.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat, symlinkat};
use rustix::mount::MountAttrFlags;
use sampan_sys::mount::FsContext;

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

/// Makes a container's `/dev`, owned by the host's id `root`.
pub(crate) fn make(root: u32) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set_string("mode", "0755")?;
    context.set_string("size", "64m")?;
    context.set_string("uid", root.to_string())?;
    context.set_string("gid", root.to_string())?;
    let mount = context.mount(MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    let own = |name: &str| {
        let (uid, gid) = (Some(Uid::from_raw(root)), Some(Gid::from_raw(root)));
        chownat(&mount, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    };
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(&mount, name, FileType::CharacterDevice, mode, makedev(major, minor))?;
        chmodat(&mount, name, mode, AtFlags::empty())?;
        own(name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        mkdirat(&mount, name, Mode::from_raw_mode(0o755))?;
        own(name)?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &mount, name)?;
        own(name)?;
    }
    Ok(mount)
}
