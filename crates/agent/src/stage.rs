//! The bare roots on which zygote and agents stand.
//!
//! The zygote's is a tmpfs with `/proc`, `/sys` and `/skeleton`; an agent's is the skeleton, mounted read-only, with a proc
//! and a sysfs of its own namespaces. The kernel lets a user namespace mount these two only where a whole one is visible
//! already (`mount_too_revealing` in `fs/namespace.c`): that is what the zygote's are for, and the agent's are for its
//! containers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{fchdir, pivot_root};
use sampan_sys::mount::{FsContext, MountChange, attach, clone_tree, open_directory, set_attributes};
use sampan_sys::process::{NEW_MOUNT, leave_namespaces};
use sampan_wire::agent::Refusal;

use crate::fault::AtStage;
use crate::limits::SHARED_MEMORY_BYTES;

/// Where a container's root is attached in the agent's own tree, on its way to become the root.
pub(crate) const CONTAINER_ROOT: &str = "/root";

/// Where the pod's shared memory is attached in the agent's own tree: one for all of its containers.
pub(crate) const SHARED_MEMORY: &str = "/shm";

/// Mount attributes of everything that is data only.
pub(crate) fn inert() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Moves the zygote into a mount namespace of its own that holds nothing of the host.
pub(crate) fn build_for_zygote() -> io::Result<()> {
    leave_namespaces(NEW_MOUNT)?;
    let old_root = open_directory(CWD, "/")?;
    set_attributes(old_root.as_fd(), MountChange { private: true, recursive: true, ..MountChange::default() })?;

    let context = FsContext::open("tmpfs")?;
    context.set_string("mode", "0755")?;
    context.set_string("size", "64k")?;
    let stage = context.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    let directories = ["proc", "sys", "skeleton", "skeleton/proc", "skeleton/sys", "skeleton/root", "skeleton/shm"];
    for directory in directories {
        mkdirat(&stage, directory, Mode::from_raw_mode(0o755))?;
    }
    // Any directory does as the point where the new root hangs for a moment; /proc is always there.
    attach(stage.as_fd(), CWD, "/proc")?;
    mount_fresh("proc", stage.as_fd())?;
    mount_fresh("sysfs", stage.as_fd())?;
    enter(&stage)
}

/// Moves the agent onto the skeleton, with proc and sysfs of its own namespaces.
pub(crate) fn enter_skeleton() -> Result<(), Refusal> {
    let skeleton = clone_tree(CWD, "/skeleton", false).at("copy the skeleton")?;
    let read_only = MountChange { set: MountAttrFlags::MOUNT_ATTR_RDONLY | inert(), ..MountChange::default() };
    set_attributes(skeleton.as_fd(), read_only).at("make the skeleton read-only")?;
    attach(skeleton.as_fd(), CWD, "/skeleton").at("attach the skeleton")?;
    mount_fresh("proc", skeleton.as_fd()).at("mount proc")?;
    mount_fresh("sysfs", skeleton.as_fd()).at("mount sysfs")?;
    enter(&skeleton).at("enter the skeleton")
}

/// Makes the pod's shared memory, owned by the pod's root: call it as that.
pub(crate) fn mount_shared_memory() -> io::Result<()> {
    let context = FsContext::open("tmpfs")?;
    context.set_string("mode", "1777")?;
    context.set_string("size", SHARED_MEMORY_BYTES.to_string())?;
    attach(context.mount(inert())?.as_fd(), CWD, SHARED_MEMORY)
}

fn mount_fresh(filesystem: &str, root: BorrowedFd<'_>) -> io::Result<()> {
    let mount = FsContext::open(filesystem)?.mount(inert())?;
    attach(mount.as_fd(), root, if filesystem == "proc" { "proc" } else { "sys" })
}

/// Makes an attached mount the root and lets go of the old one.
pub(crate) fn enter(root: &OwnedFd) -> io::Result<()> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    // The old root now lies on top of the new one, and "." is the old one.
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}
