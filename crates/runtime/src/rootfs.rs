//! A container's root: the image's read-only mount below, an upper directory of the pod's disk above.
//!
//! The image's mount is cloned and idmapped, so every pod sees the image's owners in its own range of ids and not a
//! byte is copied; the upper directory is owned by the pod's mapped root. The overlay is `volatile`: its upper
//! directory is never mounted a second time (a restarted container gets a fresh one), so nothing needs to be synced.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// The container's directory on it, such as `containers/main-0`.
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
    match overlay_by_descriptors(lower.as_fd(), upper.as_fd(), work.as_fd()) {
        Err(error) if mount::os_error(&error) == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            overlay_in_scratch(lower.as_fd(), layers)
        }
        mounted => mounted,
    }
}

/// Linux 6.13 and later take layers as descriptors, and from 6.15 on detached ones.
fn overlay_by_descriptors(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, work: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let context = FsContext::open("overlay")?;
    context.set_fd("lowerdir+", lower)?;
    context.set_fd("upperdir", upper)?;
    context.set_fd("workdir", work)?;
    finish(context)
}

/// Older kernels want layers that are attached in the caller's mount namespace.
fn overlay_in_scratch(lower: BorrowedFd<'_>, layers: &Layers<'_>) -> io::Result<OwnedFd> {
    mount::in_scratch_namespace(|| {
        let scratch = FsContext::open("tmpfs")?.mount(MountAttrFlags::empty())?;
        let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
        mount::attach(scratch.as_fd(), root.as_fd(), "proc")?;
        let mode = rustix::fs::Mode::from_raw_mode(0o700);
        rustix::fs::mkdirat(&scratch, "lower", mode)?;
        rustix::fs::mkdirat(&scratch, "disk", mode)?;
        let disk = mount::clone_tree(layers.disk.mount(), "", false)?;
        mount::attach(lower, scratch.as_fd(), "lower")?;
        mount::attach(disk.as_fd(), scratch.as_fd(), "disk")?;
        let context = FsContext::open("overlay")?;
        context.set_string("lowerdir", "/proc/lower")?;
        context.set_string("upperdir", format!("/proc/disk/{}/upper", layers.directory))?;
        context.set_string("workdir", format!("/proc/disk/{}/work", layers.directory))?;
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
