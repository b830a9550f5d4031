//! Volumes of a pod: `emptyDir` on its disk or in memory, and directories of the host.
//!
//! Every mount handed to a container is a detached tree made here by the privileged side. Volumes of the host are
//! idmapped into the pod's range where their file system can, so that what root inside writes belongs to root outside.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sampan_sys::mount::{self, FsContext, KeptMount, MountChange, MountRoom};

use crate::pod::Owner;
use crate::writable::{Disk, ignore_exists};

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The host path is not what the volume says.
    #[error("volume {volume:?}: host path {path} {reason}")]
    HostPath {
        /// Name of the volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// A container mounts a volume that its pod does not have.
    #[error("there is no volume {volume:?} in this pod; name one of its spec.volumes")]
    Unknown {
        /// The name.
        volume: String,
    },
    /// The kernel refused a step.
    #[error("volume {volume:?}: cannot {step}")]
    Step {
        /// Name of the volume.
        volume: String,
        /// What was tried.
        step: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// What must be true of a host path (`hostPath.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostPathKind {
    /// Anything, checked only by mounting it.
    #[default]
    Unchecked,
    /// A directory, made when missing.
    DirectoryOrCreate,
    /// An existing directory.
    Directory,
    /// A regular file, made when missing.
    FileOrCreate,
    /// An existing regular file.
    File,
    /// A Unix socket.
    Socket,
}

/// Where a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// An empty directory that lives as long as the pod.
    EmptyDir {
        /// In memory rather than on the pod's disk.
        memory: bool,
        /// Upper bound for one in memory.
        size_bytes: Option<u64>,
    },
    /// A path of the host.
    HostPath {
        /// Absolute.
        path: PathBuf,
        /// What it must be.
        kind: HostPathKind,
    },
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its name in the pod.
    pub name: String,
    /// Its content.
    pub source: VolumeSource,
}

/// A place in a container where a volume appears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// A path inside the volume instead of its root.
    pub sub_path: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
}

/// The volumes of one pod, ready to be mounted.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    prepared: HashMap<String, Prepared>,
}

#[derive(Debug)]
enum Prepared {
    Disk(String),
    Memory(KeptMount),
    Host(PathBuf),
}

impl Volumes {
    /// Makes directories and memory file systems, and checks host paths.
    pub(crate) fn prepare(
        configs: &[VolumeConfig],
        disk: &Disk,
        owner: Owner,
        room: Option<&MountRoom>,
    ) -> Result<Self, VolumeError> {
        let mut prepared = HashMap::new();
        for config in configs {
            let fail = |step| {
                let volume = config.name.clone();
                move |source| VolumeError::Step { volume, step, source }
            };
            let ready = match &config.source {
                VolumeSource::EmptyDir { memory: false, .. } => {
                    let directory = format!("volumes/{}", config.name);
                    disk.directory(&directory, owner.root, 0o777).map_err(fail("make its directory"))?;
                    Prepared::Disk(directory)
                }
                VolumeSource::EmptyDir { memory: true, size_bytes } => {
                    let made = memory_volume(*size_bytes, owner).and_then(|mount| KeptMount::new(mount, room));
                    Prepared::Memory(made.map_err(fail("make it in memory"))?)
                }
                VolumeSource::HostPath { path, kind } => {
                    check_host_path(&config.name, path, *kind)?;
                    Prepared::Host(path.clone())
                }
            };
            prepared.insert(config.name.clone(), ready);
        }
        Ok(Self { prepared })
    }

    /// A detached mount of what a container asks for.
    pub(crate) fn detached(
        &self,
        wanted: &VolumeMount,
        disk: &Disk,
        owner: &OwnerNamespace<'_>,
    ) -> Result<OwnedFd, VolumeError> {
        let fail = |step| move |source| VolumeError::Step { volume: wanted.volume.clone(), step, source };
        let unknown = || VolumeError::Unknown { volume: wanted.volume.clone() };
        let sub_path = wanted.sub_path.as_deref().filter(|path| !path.is_empty());
        let tree = match self.prepared.get(&wanted.volume).ok_or_else(unknown)? {
            Prepared::Disk(directory) => below(disk.mount().as_fd(), directory, sub_path, owner.root),
            Prepared::Memory(mount) => below(mount.as_fd(), "", sub_path, owner.root),
            Prepared::Host(path) => host_tree(path, sub_path, owner),
        };
        let tree = tree.map_err(fail("mount it"))?;
        if wanted.read_only {
            let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
            let change = MountChange { set, recursive: true, ..MountChange::default() };
            mount::set_attributes(tree.as_fd(), change).map_err(fail("make it read-only"))?;
        }
        Ok(tree)
    }
}

/// The pod's root as seen by the host, with its user namespace when it has one.
pub(crate) struct OwnerNamespace<'fd> {
    pub(crate) root: u32,
    pub(crate) user_namespace: Option<std::os::fd::BorrowedFd<'fd>>,
}

fn memory_volume(size_bytes: Option<u64>, owner: Owner) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set_string("mode", "0777")?;
    context.set_string("uid", owner.root.to_string())?;
    context.set_string("gid", owner.root.to_string())?;
    if let Some(bytes) = size_bytes {
        context.set_string("size", bytes.to_string())?;
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID)
}

fn check_host_path(volume: &str, path: &Path, kind: HostPathKind) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt;
    let refuse = |reason| Err(VolumeError::HostPath { volume: volume.to_owned(), path: path.to_owned(), reason });
    let step = |step| move |source| VolumeError::Step { volume: volume.to_owned(), step, source };
    if !path.is_absolute() {
        return refuse("is not absolute; write it from the root on");
    }
    let found = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(step("look at its host path")(error)),
    };
    match (kind, found) {
        (HostPathKind::DirectoryOrCreate, None) => {
            std::fs::create_dir_all(path).map_err(step("make its host directory"))
        }
        (HostPathKind::FileOrCreate, None) => {
            let made = std::fs::OpenOptions::new().create(true).append(true).open(path);
            made.map(drop).map_err(step("make its host file"))
        }
        (_, None) => refuse("does not exist; create it first"),
        (HostPathKind::Directory | HostPathKind::DirectoryOrCreate, Some(kind)) if !kind.is_dir() => {
            refuse("is not a directory; choose another path or type")
        }
        (HostPathKind::File | HostPathKind::FileOrCreate, Some(kind)) if !kind.is_file() => {
            refuse("is not a regular file; choose another path or type")
        }
        (HostPathKind::Socket, Some(kind)) if !kind.is_socket() => {
            refuse("is not a socket; choose another path or type")
        }
        _ => Ok(()),
    }
}

/// A tree below a directory of one of our own mounts; `sub_path` cannot leave it, whatever links the pod made there.
fn below(
    mount_fd: std::os::fd::BorrowedFd<'_>,
    directory: &str,
    sub_path: Option<&str>,
    owner: u32,
) -> io::Result<OwnedFd> {
    let Some(sub_path) = sub_path else { return mount::clone_tree(mount_fd, directory, false) };
    let base = if directory.is_empty() { "." } else { directory };
    let root = mount::open_directory(mount_fd, base)?;
    let place = open_inside(&root, sub_path, owner)?;
    mount::clone_tree(place.as_fd(), "", false)
}

/// Opens `path` inside `root` without leaving it, making missing directories as `owner`'s.
fn open_inside(root: &OwnedFd, path: &str, owner: u32) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    let mut parent = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(Errno::INVAL.into());
        }
        let made = rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755));
        let is_new = made.is_ok();
        ignore_exists(made)?;
        if is_new {
            let (uid, gid) = (rustix::fs::Uid::from_raw(owner), rustix::fs::Gid::from_raw(owner));
            rustix::fs::chownat(&parent, part, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        }
        parent = openat2(&parent, part, flags | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::BENEATH)?;
    }
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// A copy of the host's tree of mounts at `path`, private and idmapped where its file systems can be.
fn host_tree(path: &Path, sub_path: Option<&str>, owner: &OwnerNamespace<'_>) -> io::Result<OwnedFd> {
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let place = match sub_path {
        // As the kubelet does it: what is missing is made, root's.
        Some(sub_path) => open_inside(&place, sub_path, 0)?,
        None => place,
    };
    let tree = mount::clone_tree(place.as_fd(), "", true)?;
    mount::set_attributes(tree.as_fd(), MountChange { private: true, recursive: true, ..MountChange::default() })?;
    if let Some(user_namespace) = owner.user_namespace {
        let change = MountChange { idmap: Some(user_namespace), recursive: true, ..MountChange::default() };
        match mount::set_attributes(tree.as_fd(), change) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                tracing::info!(path = %path.display(), "the file system cannot be idmapped; its owners stay the host's");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tree)
}
