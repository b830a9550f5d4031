//! Volumes of a pod: `emptyDir` on its disk or in memory, directories of the host, and images.
//!
//! Every mount handed to a container is a detached tree made here by the privileged side. Volumes of the host are
//! idmapped into the pod's range where their file system can, so that what root inside writes belongs to root outside.
//! A path inside a volume is opened by `openat2(2)` within the volume's root, and what was opened is what is mounted:
//! whatever links the pod makes there, and whenever, lead nowhere else.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sampan_image::Image;
use sampan_sandbox::IdMap;
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
    /// A mount asks for what cannot be.
    #[error("the mount at {path} {reason}")]
    Mount {
        /// Its place in the container.
        path: String,
        /// What is wrong and what to do.
        reason: &'static str,
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

/// What appears at a place in a container.
#[derive(Debug, Clone)]
pub enum MountOrigin {
    /// A volume of the pod, by name.
    Volume(String),
    /// A path of the host; what is missing is an error unless `create`.
    Host {
        /// Absolute.
        path: PathBuf,
        /// Make a missing directory.
        create: bool,
    },
    /// The root of an image, read-only and without programs.
    Image(Arc<Image>),
}

impl MountOrigin {
    /// How messages name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Volume(name) => name.clone(),
            Self::Host { path, .. } => path.display().to_string(),
            Self::Image(image) => image.reference.clone(),
        }
    }
}

/// Whether mounts made on one side of a volume show on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// The container sees what the host mounts later.
    HostToContainer,
    /// Both ways; only for a privileged container whose users are the host's.
    Bidirectional,
}

/// Whose ids the owners of files in a mount are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ownership {
    /// The pod's, where the file system can be mapped; the host's elsewhere.
    #[default]
    PodWherePossible,
    /// The host's.
    Host,
    /// These maps, which have to be the pod's own.
    Mapped {
        /// Of users.
        uids: Vec<IdMap>,
        /// Of groups.
        gids: Vec<IdMap>,
    },
}

/// A place in a container where something appears.
#[derive(Debug, Clone)]
pub struct VolumeMount {
    /// What.
    pub origin: MountOrigin,
    /// Absolute path in the container.
    pub path: String,
    /// A path inside it instead of its root.
    pub sub_path: Option<String>,
    /// Refuse writes, but for what is mounted below it.
    pub read_only: bool,
    /// Refuse writes there too; with `read_only` and [`Propagation::Private`] only.
    pub recursive_read_only: bool,
    /// Of mounts.
    pub propagation: Propagation,
    /// Of files.
    pub ownership: Ownership,
}

impl VolumeMount {
    /// A plain, writable mount.
    #[must_use]
    pub fn new(origin: MountOrigin, path: impl Into<String>) -> Self {
        Self {
            origin,
            path: path.into(),
            sub_path: None,
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            ownership: Ownership::default(),
        }
    }
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
                    in_hosts_mounts(|| Ok(check_host_path(&config.name, path, *kind)))
                        .map_err(fail("look for it"))??;
                    Prepared::Host(path.clone())
                }
            };
            prepared.insert(config.name.clone(), ready);
        }
        Ok(Self { prepared })
    }

    /// A detached mount of what a container asks for. `image` is the mount of an image that it asks for.
    pub(crate) fn detached(
        &self,
        wanted: &VolumeMount,
        image: Option<BorrowedFd<'_>>,
        disk: &Disk,
        owner: &OwnerNamespace<'_>,
    ) -> Result<OwnedFd, VolumeError> {
        let fail = |step| move |source| VolumeError::Step { volume: wanted.origin.name(), step, source };
        let sub_path = wanted.sub_path.as_deref().filter(|path| !path.is_empty());
        let tree = match (&wanted.origin, image) {
            (MountOrigin::Volume(name), _) => {
                let unknown = || VolumeError::Unknown { volume: name.clone() };
                match self.prepared.get(name).ok_or_else(unknown)? {
                    Prepared::Disk(directory) => below(disk.mount().as_fd(), directory, sub_path, owner.root),
                    Prepared::Memory(mount) => below(mount.as_fd(), "", sub_path, owner.root),
                    Prepared::Host(path) => host_tree(path, sub_path, wanted, owner),
                }
            }
            (MountOrigin::Host { path, create }, _) => {
                if *create {
                    in_hosts_mounts(|| make_missing(path)).map_err(fail("make its host directory"))?;
                }
                host_tree(path, sub_path, wanted, owner)
            }
            (MountOrigin::Image(_), Some(image)) => image_tree(image, sub_path, owner),
            (MountOrigin::Image(_), None) => Err(io::Error::other("its image is not mounted")),
        };
        let tree = tree.map_err(fail("mount it"))?;
        if wanted.read_only {
            let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
            let change = MountChange { set, recursive: wanted.recursive_read_only, ..MountChange::default() };
            mount::set_attributes(tree.as_fd(), change).map_err(fail("make it read-only"))?;
        }
        Ok(tree)
    }
}

impl VolumeMount {
    /// Refuses by name what cannot be.
    pub(crate) fn check(&self, privileged: bool, pod: &PodUsers) -> Result<(), VolumeError> {
        let refuse = |reason| Err(VolumeError::Mount { path: self.path.clone(), reason });
        if !self.path.starts_with('/') {
            return refuse("is not absolute; write it from the root on");
        }
        if self.recursive_read_only && (!self.read_only || self.propagation != Propagation::Private) {
            return refuse("is recursively read-only, which needs read-only and no mount propagation");
        }
        if self.propagation == Propagation::Bidirectional && !(privileged && *pod == PodUsers::Host) {
            return refuse(
                "has Bidirectional mount propagation, which only a privileged container of a pod with hostUsers may have",
            );
        }
        match (&self.ownership, pod) {
            (Ownership::Mapped { uids, gids }, PodUsers::Mapped { uids: pod_uids, gids: pod_gids })
                if uids != pod_uids || gids != pod_gids =>
            {
                refuse("has id maps that are not its pod's; leave them out, or make them the same")
            }
            (Ownership::Mapped { .. }, PodUsers::Host) => {
                refuse("has id maps, but its pod has no user namespace; leave them out")
            }
            _ => Ok(()),
        }
    }
}

/// Whose users a pod's are, for judging what mounts ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodUsers {
    Host,
    Mapped { uids: Vec<IdMap>, gids: Vec<IdMap> },
}

/// The pod's root as seen by the host, with its user namespace when it has one.
pub(crate) struct OwnerNamespace<'fd> {
    pub(crate) root: u32,
    pub(crate) user_namespace: Option<BorrowedFd<'fd>>,
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
fn below(mount_fd: BorrowedFd<'_>, directory: &str, sub_path: Option<&str>, owner: u32) -> io::Result<OwnedFd> {
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

fn make_missing(path: &Path) -> io::Result<()> {
    // What is there already may be a file, a socket or a device.
    if path.symlink_metadata().is_ok() { Ok(()) } else { std::fs::create_dir_all(path) }
}

/// The root of an image, or a path inside it, as nobody may change it or run its programs.
fn image_tree(image: BorrowedFd<'_>, sub_path: Option<&str>, owner: &OwnerNamespace<'_>) -> io::Result<OwnedFd> {
    let tree = match sub_path {
        None => mount::clone_tree(image, "", false)?,
        Some(path) => {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let place = openat2(image, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
            mount::clone_tree(place.as_fd(), "", false)?
        }
    };
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
    mount::set_attributes(tree.as_fd(), MountChange { set, idmap: owner.user_namespace, ..MountChange::default() })?;
    Ok(tree)
}

/// A copy of the host's tree of mounts at `path`, idmapped where its file systems can be.
fn host_tree(
    path: &Path,
    sub_path: Option<&str>,
    wanted: &VolumeMount,
    owner: &OwnerNamespace<'_>,
) -> io::Result<OwnedFd> {
    let copy = || {
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let place = match sub_path {
            // As the kubelet does it: what is missing is made, root's.
            Some(sub_path) => open_inside(&place, sub_path, 0)?,
            None => place,
        };
        if wanted.propagation == Propagation::Bidirectional {
            require_shared(place.as_fd())?;
        }
        mount::clone_tree(place.as_fd(), "", true)
    };
    let tree = in_hosts_mounts(copy)?;
    let change = match wanted.propagation {
        Propagation::Private => Some(MountChange { private: true, recursive: true, ..MountChange::default() }),
        Propagation::HostToContainer => Some(MountChange { slave: true, recursive: true, ..MountChange::default() }),
        Propagation::Bidirectional => None,
    };
    if let Some(change) = change {
        mount::set_attributes(tree.as_fd(), change)?;
    }
    let Some(user_namespace) = owner.user_namespace.filter(|_| wanted.ownership != Ownership::Host) else {
        return Ok(tree);
    };
    let change = MountChange { idmap: Some(user_namespace), recursive: true, ..MountChange::default() };
    match mount::set_attributes(tree.as_fd(), change) {
        Err(error)
            if error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
                && wanted.ownership == Ownership::PodWherePossible =>
        {
            tracing::info!(path = %path.display(), "the file system cannot be idmapped; its owners stay the host's");
        }
        result => result?,
    }
    Ok(tree)
}

/// Runs `work` among the host's mounts, in which the process is that keeps the daemon.
///
/// The daemon's own follow the host's only where the host shares its root, and never the other way: what was mounted since
/// the daemon's start (a kubelet's tmpfs for secrets) may be missing from them, and what a container mounts would not reach
/// the host.
fn in_hosts_mounts<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let keeper = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let path = format!("/proc/{keeper}/ns/mnt");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    mount::in_mount_namespace(namespace.as_fd(), work)
}

fn require_shared(place: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let id = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&id));
    if line.is_some_and(|line| {
        line.split(' ').skip(6).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"))
    }) {
        return Ok(());
    }
    Err(io::Error::other("it is not on a shared mount of the host; mount --make-rshared makes it one"))
}
