//! A container's root, mounts and log: blocking work, off the event loop.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sampan_sandbox::{Mount, MountSource};
use sampan_sys::mount::{self, MountChange};

use super::{Parts, Pod, open_log};
use crate::container::ContainerConfig;
use crate::rootfs::{self, Layers};
use crate::runtime::RuntimeError;
use crate::volume::{OwnerNamespace, VolumeMount};
use crate::writable::Disk;

/// Files of the pod that appear in every container which does not mount something there itself.
const POD_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The host's POSIX shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

type Prepared = (OwnedFd, Vec<Mount>, OwnedFd);

impl Pod {
    /// Root, mounts and log of a container.
    pub(super) async fn prepare(
        &self,
        config: &ContainerConfig,
        image: OwnedFd,
        mounts: Vec<(VolumeMount, Option<OwnedFd>)>,
    ) -> Result<Prepared, RuntimeError> {
        let user_namespace = match self.sandbox.user_namespace() {
            Some(descriptor) => Some(descriptor.try_clone_to_owned().map_err(RuntimeError::host("copy a descriptor"))?),
            None => None,
        };
        // A directory of its own for every try: an overlay without syncing refuses one that was mounted before.
        let unique = sampan_kit::id::short().map_err(RuntimeError::host("name the container's directory"))?;
        let own_log = config.log_path.is_none();
        let outdated = config.attempt.checked_sub(2).filter(|_| own_log);
        let work = Preparation {
            parts: Arc::clone(&self.parts),
            user_namespace,
            owner: self.sandbox.root_id(),
            directory: format!("containers/{}-{}-{unique}", config.name, config.attempt),
            mounts,
            image,
            hosts_shared_memory: self.config.host_ipc,
            message: config
                .termination_message
                .clone()
                .map(|place| (message_path(&config.name, config.attempt), place)),
            log: self.container_log(config),
            outdated_log: outdated.map(|attempt| self.log_path(&config.name, attempt)),
        };
        tokio::task::spawn_blocking(move || work.run()).await.map_err(RuntimeError::panicked)?
    }
}

struct Preparation {
    parts: Arc<Parts>,
    user_namespace: Option<OwnedFd>,
    owner: u32,
    directory: String,
    mounts: Vec<(VolumeMount, Option<OwnedFd>)>,
    image: OwnedFd,
    hosts_shared_memory: bool,
    /// The file on the disk for the container's last words, and where it is inside.
    message: Option<(String, String)>,
    log: PathBuf,
    /// Only the run before this one can still be asked for.
    outdated_log: Option<PathBuf>,
}

impl Preparation {
    fn run(mut self) -> Result<Prepared, RuntimeError> {
        self.mounts.sort_by_key(|(mount, _)| mount.path.split('/').filter(|part| !part.is_empty()).count());
        let disk: &Disk = &self.parts.disk;
        let user_namespace = self.user_namespace.as_ref().map(AsFd::as_fd);
        let layers =
            Layers { image: self.image.as_fd(), user_namespace, disk, directory: &self.directory, owner: self.owner };
        let root = rootfs::mount(&layers).map_err(RuntimeError::host("mount the container's root"))?;
        let owner = OwnerNamespace { root: self.owner, user_namespace };
        let mut mounts = self.pod_mounts()?;
        for (wanted, image) in &self.mounts {
            let tree = self.parts.volumes.detached(wanted, image.as_ref().map(AsFd::as_fd), disk, &owner)?;
            mounts.push(detached(tree, &wanted.path));
        }
        if let Some(outdated) = &self.outdated_log {
            remove_log(outdated).map_err(RuntimeError::host("remove the log of an earlier run"))?;
        }
        let log = open_log(&self.log).map_err(RuntimeError::host("open the container's log"))?;
        Ok((root, mounts, log))
    }

    /// What every container of the pod has that does not mount something there itself.
    fn pod_mounts(&self) -> Result<Vec<Mount>, RuntimeError> {
        let wanted = |place: &str| self.mounts.iter().any(|(mount, _)| mount.path == place);
        let mut mounts = Vec::new();
        for file in POD_FILES {
            let place = format!("/etc/{file}");
            if !wanted(&place) {
                let tree = mount::clone_tree(self.parts.disk.mount(), format!("etc/{file}"), false)
                    .map_err(RuntimeError::host("mount the pod's own files"))?;
                mounts.push(detached(tree, &place));
            }
        }
        if let Some((path, place)) = self.message.as_ref().filter(|(_, place)| !wanted(place)) {
            let make = || {
                let disk: &Disk = &self.parts.disk;
                disk.open_file(path, self.owner)?;
                mount::clone_tree(disk.mount(), path, false)
            };
            mounts.push(detached(make().map_err(RuntimeError::host("make the file for its last words"))?, place));
        }
        if self.hosts_shared_memory && !wanted(SHARED_MEMORY) && Path::new(SHARED_MEMORY).is_dir() {
            let copy = || {
                let tree = mount::clone_tree(rustix::fs::CWD, SHARED_MEMORY, false)?;
                mount::set_attributes(tree.as_fd(), MountChange { private: true, ..MountChange::default() })?;
                Ok(tree)
            };
            let tree = copy().map_err(RuntimeError::host("mount the host's shared memory"))?;
            mounts.push(detached(tree, SHARED_MEMORY));
        }
        Ok(mounts)
    }
}

/// Where on the pod's disk a run of a container leaves its last words.
pub(super) fn message_path(container: &str, attempt: u32) -> String {
    format!("messages/{container}-{attempt}")
}

fn detached(tree: OwnedFd, place: &str) -> Mount {
    Mount { source: MountSource::Detached(tree), destination: place.to_owned(), read_only: false }
}

fn remove_log(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
