//! The new mount API: contexts, detached mounts, idmaps and moves.
//!
//! Sampan never touches the host's mount table: a filesystem is made by a context (`fsopen(2)`, `fsconfig(2)`), becomes
//! a *detached* mount that lives as long as its descriptor (`fsmount(2)`, `open_tree(2)`), and is moved into place only
//! inside a sandbox (`move_mount(2)`). What is not held or moved is gone by itself: there is nothing to leak.
#![allow(unsafe_code, reason = "mount_setattr(2) and unshare(2) have no safe wrapper in rustix")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// The most bytes of kernel messages read back from a context after a failure.
const CONTEXT_MESSAGE_BYTES_MAX: usize = 4096;

/// A filesystem being configured (`fsopen(2)`). Errors carry the kernel's own message where it gave one.
#[derive(Debug)]
pub struct FsContext {
    context: OwnedFd,
    filesystem: String,
}

impl FsContext {
    /// Opens a context for the filesystem type of that name; `ENODEV` where the kernel has no such type.
    pub fn open(filesystem: &str) -> io::Result<Self> {
        let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
        Ok(Self { context, filesystem: filesystem.to_owned() })
    }

    /// Sets a parameter with a value.
    pub fn set_string(&self, key: &str, value: impl AsRef<Path>) -> io::Result<()> {
        fsconfig_set_string(&self.context, key, value.as_ref()).map_err(|error| self.explain(key, error.into()))
    }

    /// Sets a parameter without a value.
    pub fn set_flag(&self, key: &str) -> io::Result<()> {
        fsconfig_set_flag(&self.context, key).map_err(|error| self.explain(key, error.into()))
    }

    /// Sets a parameter to an open file or directory.
    pub fn set_fd(&self, key: &str, value: BorrowedFd<'_>) -> io::Result<()> {
        fsconfig_set_fd(&self.context, key, value).map_err(|error| self.explain(key, error.into()))
    }

    /// Makes the superblock and returns it as a detached mount with these attributes.
    pub fn mount(self, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        fsconfig_create(&self.context).map_err(|error| self.explain("create", error.into()))?;
        Ok(fsmount(&self.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    }

    /// Joins the kernel's messages about this context to the error number (`fs/fs_context.c`, `fscontext_read`).
    fn explain(&self, step: &str, error: io::Error) -> io::Error {
        let mut messages = Vec::new();
        let mut line = [0_u8; 512];
        while messages.len() < CONTEXT_MESSAGE_BYTES_MAX {
            match rustix::io::read(&self.context, &mut line) {
                Ok(read) if read > 0 => messages.extend_from_slice(line.get(..read).unwrap_or_default()),
                _ => break,
            }
        }
        let said = String::from_utf8_lossy(&messages).trim().replace('\n', "; ");
        let kind = error.kind();
        if said.is_empty() {
            return io::Error::new(kind, ExplainedError { what: format!("{} {step}", self.filesystem), source: error });
        }
        io::Error::new(kind, ExplainedError { what: format!("{} {step}: {said}", self.filesystem), source: error })
    }
}

/// A kernel error with the step and the kernel's message; keeps the error number reachable by [`os_error`].
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct ExplainedError {
    what: String,
    source: io::Error,
}

/// The kernel's error number of an error from this module, whether explained or bare.
#[must_use]
pub fn os_error(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let explained = error.get_ref()?.downcast_ref::<ExplainedError>()?;
        explained.source.raw_os_error()
    })
}

/// A detached copy of the mount (or of the whole tree of mounts) at `path` below `dir` (`open_tree(2)`).
///
/// `path` may be empty: then `dir` itself is copied.
pub fn clone_tree(dir: BorrowedFd<'_>, path: impl AsRef<Path>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_ref().as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(dir, path.as_ref(), flags)?)
}

/// Moves a detached mount to `path` below `dir`; symbolic links in the last component are not followed. An empty `path`
/// means `dir` itself.
pub fn attach(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: impl AsRef<Path>) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.as_ref().as_os_str().is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(mount, "", dir, path.as_ref(), flags)?)
}

/// What [`set_attributes`] changes of a mount.
#[derive(Debug, Clone, Copy)]
pub struct MountChange<'fd> {
    /// Attributes to set (`MOUNT_ATTR_*`).
    pub set: MountAttrFlags,
    /// Attributes to clear.
    pub clear: MountAttrFlags,
    /// Make the mount private, so that nothing propagates in or out.
    pub private: bool,
    /// Let what is mounted at the other places of a shared mount show here too, but not the other way.
    pub slave: bool,
    /// Map owners through this user namespace. Only a mount that is still detached can be mapped.
    pub idmap: Option<BorrowedFd<'fd>>,
    /// The whole tree below, not just the mount itself.
    pub recursive: bool,
}

impl Default for MountChange<'_> {
    fn default() -> Self {
        let none = MountAttrFlags::empty();
        Self { set: none, clear: none, private: false, slave: false, idmap: None, recursive: false }
    }
}

/// Changes a mount's attributes (`mount_setattr(2)`). `path` empty means `mount` itself.
pub fn set_attributes(mount: BorrowedFd<'_>, change: MountChange<'_>) -> io::Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: u64::from(change.set.bits()),
        attr_clr: u64::from(change.clear.bits()),
        propagation: match (change.private, change.slave) {
            (true, _) => libc::MS_PRIVATE,
            (false, true) => libc::MS_SLAVE,
            (false, false) => 0,
        },
        userns_fd: 0,
    };
    if let Some(user_namespace) = change.idmap {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    }
    let recursive = if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string literal and `attributes` is a live `struct mount_attr` of the size passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw mut attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Maps a detached mount's owners through `user_namespace`.
pub fn idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(mount, MountChange { idmap: Some(user_namespace), ..MountChange::default() })
}

/// Opens a directory of a mount without attaching the mount anywhere.
pub fn open_directory(mount: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    Ok(openat(mount, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Runs `work` on a thread of its own, in a private copy of this mount namespace that ends with the thread.
///
/// Kernels before 6.15 refuse overlay layers that are not attached anywhere; there the layers are attached inside
/// such a scratch namespace for the moment of the mount.
pub fn in_scratch_namespace<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("scratch-mount".into()).spawn_scoped(scope, || {
            // SAFETY: unshare(2) touches no memory; CLONE_NEWNS unshares the filesystem context of this thread alone.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
            if unshared != 0 {
                return Err(io::Error::last_os_error());
            }
            let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
            set_attributes(root.as_fd(), MountChange { private: true, recursive: true, ..MountChange::default() })?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the scratch mount thread panicked")))
    })
}

/// Runs `work` on a thread of its own in another mount namespace, given by its descriptor (setns(2)).
pub fn in_mount_namespace<T, F>(namespace: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("in-namespace".into()).spawn_scoped(scope, || {
            // SAFETY: unshare(2) touches no memory; CLONE_FS gives this thread a root and a directory of its own.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
            rustix::thread::move_into_link_name_space(namespace, kind)?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in another mount namespace panicked")))
    })
}

/// Leaves the host's mount namespace for a private copy that still sees what the host mounts later.
///
/// # Errors
/// `EINVAL` once the process has several threads: call it first thing.
pub fn enter_private_namespace() -> io::Result<()> {
    // SAFETY: unshare(2) touches no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    use rustix::mount::{MountPropagationFlags, mount_change};
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// Whether the kernel clones mounts that are attached nowhere (Linux 6.15 and later).
pub fn clones_detached() -> io::Result<bool> {
    let probe = FsContext::open("tmpfs")?.mount(MountAttrFlags::empty())?;
    match clone_tree(probe.as_fd(), "", false) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A place inside this process' private mount namespace where mounts are attached, for kernels that clone only what is
/// attached somewhere. Nothing of it shows in the host's mount table, and it ends with the process.
#[derive(Debug)]
pub struct MountRoom {
    directory: std::path::PathBuf,
    next: std::sync::atomic::AtomicU64,
}

impl MountRoom {
    /// Covers `directory`, which must exist, with a tmpfs of our own.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let cover = FsContext::open("tmpfs")?.mount(MountAttrFlags::empty())?;
        attach(cover.as_fd(), rustix::fs::CWD, directory)?;
        Ok(Self { directory: directory.to_owned(), next: std::sync::atomic::AtomicU64::new(0) })
    }

    /// Attaches a detached mount; it stays until the answer is dropped.
    fn keep(&self, mount: &OwnedFd) -> io::Result<std::path::PathBuf> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.directory.join(number.to_string());
        rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(0o700))?;
        attach(mount.as_fd(), rustix::fs::CWD, &path)?;
        Ok(path)
    }
}

/// A mount that can be cloned on every kernel: detached where that is enough, else attached in a [`MountRoom`].
#[derive(Debug)]
pub struct KeptMount {
    mount: OwnedFd,
    attached: Option<std::path::PathBuf>,
}

impl KeptMount {
    /// Keeps a detached mount, in the room where there is one.
    pub fn new(mount: OwnedFd, room: Option<&MountRoom>) -> io::Result<Self> {
        let attached = room.map(|room| room.keep(&mount)).transpose()?;
        Ok(Self { mount, attached })
    }

    /// Where it is attached, for kernels that take overlay layers by path only.
    #[must_use]
    pub fn attached(&self) -> Option<&Path> {
        self.attached.as_deref()
    }
}

impl AsFd for KeptMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl Drop for KeptMount {
    fn drop(&mut self) {
        let Some(path) = &self.attached else { return };
        let detached = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        if let Err(error) = detached.and_then(|()| rustix::fs::rmdir(path)) {
            tracing::warn!(path = %path.display(), %error, "a mount stays attached until the service ends");
        }
    }
}
