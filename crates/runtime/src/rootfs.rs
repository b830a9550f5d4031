//! A container's root: the image's read-only mount below, an upper directory of the pod's disk above.
//!
//! The image's mount is cloned and idmapped, so every pod sees the image's owners in its own range of ids and not a
//! byte is copied; the upper directory is owned by the pod's mapped root. The overlay is `volatile`: its upper
//! directory is never mounted a second time (a restarted container gets a fresh one), so nothing needs to be synced.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::mount::MountAttrFlags;
use sampan_sys::mount::{self, FsContext};

use crate::writable::Disk;

/// What a root is made of.
pub(crate) struct Layers<'fd> {
    /// The image's detached mount.
    pub(crate) image: BorrowedFd<'fd>,
    /// The pod's user namespace, unless it shares the host's.
    pub(crate) user_namespace: Option<BorrowedFd<'fd>>,
    /// The pod's disk.
    pub(crate) disk: &'fd Disk,
    /// The container's directory on it, such as `containers/main-0-1f2e3d4c5b6a7988`, never used before.
    pub(crate) directory: &'fd str,
    /// The host id of the pod's root.
    pub(crate) owner: u32,
}

/// Mounts the root, detached.
pub(crate) fn mount(layers: &Layers<'_>) -> io::Result<OwnedFd> {
    let lower = mount::clone_tree(layers.image, "", false)?;
    let root = statx(&lower, "", AtFlags::EMPTY_PATH, StatxFlags::MODE)?;
    if let Some(user_namespace) = layers.user_namespace {
        mount::idmap(lower.as_fd(), user_namespace)?;
    }
    let mode = u32::from(root.stx_mode) & 0o7777;
    let upper = layers.disk.directory(&format!("{}/upper", layers.directory), layers.owner, mode)?;
    let work = layers.disk.directory(&format!("{}/work", layers.directory), layers.owner, 0o700)?;
    match layers.disk.attached() {
        None => overlay_by_descriptors(lower.as_fd(), upper.as_fd(), work.as_fd()),
        Some(disk) => overlay_in_scratch(lower.as_fd(), &disk.join(layers.directory)),
    }
}

/// Linux 6.13 and later take layers as descriptors, 6.15 and later detached ones.
fn overlay_by_descriptors(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, work: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let context = FsContext::open("overlay")?;
    context.set_fd("lowerdir+", lower)?;
    context.set_fd("upperdir", upper)?;
    context.set_fd("workdir", work)?;
    finish(context)
}

/// Older kernels take paths, and only of what is attached in the caller's mount namespace. The disk already is, in the
/// daemon's private one; the image's idmapped clone is attached in a scratch copy of that, for the moment of the mount.
fn overlay_in_scratch(lower: BorrowedFd<'_>, directory: &Path) -> io::Result<OwnedFd> {
    /// Exists everywhere, and nothing in the scratch namespace needs what it hides.
    const PLACE: &str = "/proc";
    mount::in_scratch_namespace(|| {
        mount::attach(lower, rustix::fs::CWD, PLACE)?;
        let context = FsContext::open("overlay")?;
        context.set_string("lowerdir", PLACE)?;
        context.set_string("upperdir", directory.join("upper"))?;
        context.set_string("workdir", directory.join("work"))?;
        finish(context)
    })
}

fn finish(context: FsContext) -> io::Result<OwnedFd> {
    context.set_flag("volatile")?;
    let overlay = context.mount(MountAttrFlags::MOUNT_ATTR_NODEV)?;
    let flags = rustix::fs::fstatvfs(&overlay)?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(io::Error::other("the overlay came up read-only; its work directory is not writable"));
    }
    Ok(overlay)
}
