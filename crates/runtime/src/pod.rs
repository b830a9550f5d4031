//! One live pod: its sandbox, disk, volumes and address, and how a container is started in it.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sampan_image::ImageStore;
use sampan_network::{Attachment, DnsSettings, HostAlias, PortMapping};
use sampan_sandbox::{ContainerSpec, Mount, MountSource, ProcessSandbox, Resources, Seccomp, Started};
use sampan_sys::mount;

use crate::container::ContainerConfig;
use crate::journal::SandboxRow;
use crate::rootfs::{self, Layers};
use crate::runtime::RuntimeError;
use crate::timeline::Timeline;
use crate::volume::{OwnerNamespace, VolumeConfig, VolumeMount, Volumes};
use crate::writable::Disk;

/// Files of the pod that appear in every container which does not mount something there itself.
const POD_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// A pod, as the runtime needs to know it.
#[derive(Debug, Clone, Default)]
pub struct PodConfig {
    /// The Kubernetes UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Share the host's user namespace.
    pub host_users: bool,
    /// Containers see each other's processes.
    pub share_process_namespace: bool,
    /// The pod's cap.
    pub resources: Resources,
    /// Size of the writable layer.
    pub disk_bytes: u64,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Name resolution.
    pub dns: DnsSettings,
    /// Further lines of `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// Kernel settings of the pod's own namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Volumes.
    pub volumes: Vec<VolumeConfig>,
}

/// Who owns what the pod's root owns, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The host id of the pod's root.
    pub root: u32,
}

/// A live pod.
#[derive(Debug)]
pub struct Pod {
    pub(crate) row: SandboxRow,
    pub(crate) sandbox: Arc<ProcessSandbox>,
    pub(crate) attachment: Attachment,
    pub(crate) parts: Arc<Parts>,
    pub(crate) config: PodConfig,
    /// Folder of the pod's logs.
    pub(crate) log_folder: PathBuf,
}

/// What is worked on by blocking calls.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) disk: Disk,
    pub(crate) volumes: Volumes,
}

impl Pod {
    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// What the pod was made from.
    #[must_use]
    pub fn config(&self) -> &PodConfig {
        &self.config
    }

    /// The sandbox, for execs, signals, events and statistics.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<ProcessSandbox> {
        &self.sandbox
    }

    /// The pod's addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.attachment.addresses()
    }

    /// The containers whose process runs, and since when; asked of the agent.
    pub async fn running_containers(&self) -> Result<Vec<(String, Timestamp)>, RuntimeError> {
        Ok(self.sandbox.running().await?)
    }

    /// Used and total bytes of the writable layer.
    pub fn disk_usage(&self) -> std::io::Result<(u64, u64)> {
        self.parts.disk.usage()
    }

    /// The writable layer has no block or inode left.
    pub fn disk_is_full(&self) -> std::io::Result<bool> {
        self.parts.disk.is_full()
    }

    /// Where the agent writes the output of one run of a container.
    #[must_use]
    pub fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.log_folder, container, attempt)
    }

    /// Starts a container: root, mounts, log, then the agent.
    pub async fn start_container(
        &self,
        config: &ContainerConfig,
        images: &ImageStore,
        timeline: &Timeline,
    ) -> Result<Started, RuntimeError> {
        let command = config.command_line()?;
        let user = config.effective_user()?;
        let image = images.mount(&config.image)?;
        let (root, mounts, log) = timeline.measure("rootfs", self.prepare(config, image)).await?;
        let spec = ContainerSpec {
            name: config.name.clone(),
            root,
            mounts,
            command,
            env: config.environment(&self.config.hostname),
            working_dir: config.effective_working_dir(),
            user,
            supplemental_groups: config.supplemental_groups.clone(),
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log,
            capabilities: config.capabilities.resolve(config.privileged)?,
            no_new_privileges: config.no_new_privileges,
            read_only_root: config.read_only_root,
            privileged: config.privileged,
            seccomp: if config.privileged || config.seccomp_unconfined {
                Seccomp::Unconfined
            } else {
                Seccomp::RuntimeDefault
            },
            resources: config.resources,
            rlimits: Vec::new(),
        };
        Ok(timeline.measure("start", self.sandbox.start_container(spec)).await?)
    }

    /// Root, mounts and log of a container; blocking work, off the event loop.
    async fn prepare(
        &self,
        config: &ContainerConfig,
        image: OwnedFd,
    ) -> Result<(OwnedFd, Vec<Mount>, OwnedFd), RuntimeError> {
        let user_namespace = match self.sandbox.user_namespace() {
            Some(descriptor) => Some(descriptor.try_clone_to_owned().map_err(RuntimeError::host("copy a descriptor"))?),
            None => None,
        };
        // A directory of its own for every try: an overlay without syncing refuses one that was mounted before.
        let unique = sampan_kit::id::short().map_err(RuntimeError::host("name the container's directory"))?;
        let work = Preparation {
            parts: Arc::clone(&self.parts),
            user_namespace,
            owner: self.row.first_id,
            directory: format!("containers/{}-{}-{unique}", config.name, config.attempt),
            mounts: config.mounts.clone(),
            image,
            log: self.log_path(&config.name, config.attempt),
            outdated_log: config.attempt.checked_sub(2).map(|attempt| self.log_path(&config.name, attempt)),
        };
        tokio::task::spawn_blocking(move || work.run()).await.map_err(RuntimeError::panicked)?
    }
}

struct Preparation {
    parts: Arc<Parts>,
    user_namespace: Option<OwnedFd>,
    owner: u32,
    directory: String,
    mounts: Vec<VolumeMount>,
    image: OwnedFd,
    log: PathBuf,
    /// Only the run before this one can still be asked for.
    outdated_log: Option<PathBuf>,
}

impl Preparation {
    fn run(self) -> Result<(OwnedFd, Vec<Mount>, OwnedFd), RuntimeError> {
        let disk = &self.parts.disk;
        let user_namespace = self.user_namespace.as_ref().map(AsFd::as_fd);
        let layers =
            Layers { image: self.image.as_fd(), user_namespace, disk, directory: &self.directory, owner: self.owner };
        let root = rootfs::mount(&layers).map_err(RuntimeError::host("mount the container's root"))?;
        let owner = OwnerNamespace { root: self.owner, user_namespace };
        let mut mounts = Vec::new();
        for file in POD_FILES {
            let destination = format!("/etc/{file}");
            if self.mounts.iter().any(|mount| mount.path == destination) {
                continue;
            }
            let tree = mount::clone_tree(disk.mount(), format!("etc/{file}"), false)
                .map_err(RuntimeError::host("mount the pod's own files"))?;
            mounts.push(Mount { source: MountSource::Detached(tree), destination, read_only: false });
        }
        let mut wanted: Vec<&VolumeMount> = self.mounts.iter().collect();
        wanted.sort_by_key(|mount| mount.path.split('/').filter(|part| !part.is_empty()).count());
        for mount in wanted {
            let tree = self.parts.volumes.detached(mount, disk, &owner)?;
            let destination = mount.path.clone();
            mounts.push(Mount { source: MountSource::Detached(tree), destination, read_only: mount.read_only });
        }
        if let Some(outdated) = &self.outdated_log {
            remove_log(outdated).map_err(RuntimeError::host("remove the log of an earlier run"))?;
        }
        let log = open_log(&self.log).map_err(RuntimeError::host("open the container's log"))?;
        Ok((root, mounts, log))
    }
}

/// Where one run of a container logs, below the pod's folder of logs.
#[must_use]
pub fn log_path(folder: &Path, container: &str, attempt: u32) -> PathBuf {
    folder.join(container).join(format!("{attempt}.log"))
}

fn remove_log(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open_log(path: &Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)?.into())
}
