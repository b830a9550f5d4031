//! One live pod: its sandbox, disk, volumes and address, and how a container is started in it.

mod prepare;
mod stream;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sampan_image::ImageStore;
use sampan_network::{Attachment, Bandwidth, DnsSettings, HostAlias, PortMapping};
use sampan_sandbox::{
    ContainerSpec, Groups, IdMap, ProcessNamespace, ProcessSandbox, Resources, Seccomp, Started, Supplies,
    UserNamespace,
};

use crate::container::ContainerConfig;
use crate::journal::SandboxRow;
use crate::limits::ID_RANGE_LENGTH;
use crate::runtime::RuntimeError;
use crate::timeline::Timeline;
use crate::trash::Deferred;
use crate::volume::{MountOrigin, PodUsers, VolumeConfig, Volumes};
use crate::writable::DiskFigures;
pub use stream::ExecOutput;

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
    /// Share the host's user namespace; implied by the next three.
    pub host_users: bool,
    /// Share the host's network: no address, no ports of its own.
    pub host_network: bool,
    /// Share the host's process namespace.
    pub host_pid: bool,
    /// Share the host's System V and POSIX IPC.
    pub host_ipc: bool,
    /// Which of the host's ids the pod's users are, where somebody else has chosen them; a free range when absent.
    pub uid_mappings: Option<Vec<IdMap>>,
    /// The same of groups; those of users when absent.
    pub gid_mappings: Option<Vec<IdMap>>,
    /// Where the pod's control group hangs: a path from the hierarchies' roots, or a systemd slice's name.
    pub cgroup_parent: Option<String>,
    /// Where containers' relative log paths begin; the runtime's own folder when absent.
    pub log_directory: Option<PathBuf>,
    /// Containers see each other's processes.
    pub share_process_namespace: bool,
    /// The pod's cap.
    pub resources: Resources,
    /// Size of the writable layer.
    pub disk_bytes: u64,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// How fast its network may be.
    pub bandwidth: Bandwidth,
    /// Name resolution.
    pub dns: DnsSettings,
    /// Further lines of `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// Kernel settings of the pod's own namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Volumes.
    pub volumes: Vec<VolumeConfig>,
}

impl PodConfig {
    /// Whether the pod's users are the host's: asked for, or because it shares what a user namespace of its own could not.
    #[must_use]
    pub fn shares_users(&self) -> bool {
        self.host_users || self.host_network || self.host_pid || self.host_ipc
    }

    /// Whether the journal has to find a range of ids for it.
    pub(crate) fn needs_range(&self) -> bool {
        !self.shares_users() && self.uid_mappings.is_none()
    }

    /// When its groups are made. Who names a parent does so for every pod: a kubelet makes one for each just before.
    pub(crate) fn groups(&self) -> Groups {
        let has_parent = self.cgroup_parent.as_ref().is_some_and(|parent| !parent.is_empty());
        if has_parent { Groups::WhenClaimed } else { Groups::AtOnce }
    }

    /// Its users, given the range that the journal has found.
    pub(crate) fn user_namespace(&self, first_id: u32) -> UserNamespace {
        match &self.uid_mappings {
            _ if self.shares_users() => UserNamespace::Host,
            Some(uids) => UserNamespace::Mapped {
                uids: uids.clone(),
                gids: self.gid_mappings.clone().unwrap_or_else(|| uids.clone()),
            },
            None => UserNamespace::Own { first_id, length: ID_RANGE_LENGTH },
        }
    }
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
    /// `None` in the host's network.
    pub(crate) attachment: Option<Attachment>,
    pub(crate) parts: Arc<Parts>,
    pub(crate) config: PodConfig,
    /// Folder of the pod's logs.
    pub(crate) log_folder: PathBuf,
}

/// What is worked on by blocking calls.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) disk: Deferred,
    pub(crate) volumes: Volumes,
}

/// A container that is complete but for its process. Dropping it takes it away again, but for its empty groups.
#[derive(Debug)]
pub struct CreatedContainer {
    spec: ContainerSpec,
    supplies: Supplies,
}

impl CreatedContainer {
    /// Its name in the pod.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }
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

    /// The pod's addresses, IPv4 first; none in the host's network.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.attachment.as_ref().map(Attachment::addresses).unwrap_or_default()
    }

    /// The containers whose process ran when the pod was adopted, and since when. Ends since then are events.
    #[must_use]
    pub fn found_containers(&self) -> &[(String, Timestamp)] {
        self.sandbox.found()
    }

    /// The containers whose process runs, and since when; asked of the agent.
    pub async fn running_containers(&self) -> Result<Vec<(String, Timestamp)>, RuntimeError> {
        Ok(self.sandbox.running().await?)
    }

    /// Used and total bytes of the writable layer.
    pub fn disk_usage(&self) -> std::io::Result<(u64, u64)> {
        self.parts.disk.usage()
    }

    /// The same, with inodes.
    pub fn disk_figures(&self) -> std::io::Result<DiskFigures> {
        self.parts.disk.figures()
    }

    /// The writable layer has no block or inode left.
    pub fn disk_is_full(&self) -> std::io::Result<bool> {
        self.parts.disk.is_full()
    }

    /// What a run of a container has left in its file of last words, up to `bytes_max`; empty when it has none. Reads a
    /// file of the pod's own disk: fast, and whatever the container did to its own mounts.
    pub fn termination_message(&self, container: &str, attempt: u32, bytes_max: usize) -> std::io::Result<Vec<u8>> {
        self.parts.disk.read_file(&prepare::message_path(container, attempt), bytes_max)
    }

    /// Where the agent writes the output of one run of a container that does not say where.
    #[must_use]
    pub fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.log_folder, container, attempt)
    }

    /// Where a container logs: where it says, else where runs of it do.
    #[must_use]
    pub fn container_log(&self, config: &ContainerConfig) -> PathBuf {
        let folder = self.config.log_directory.as_ref().unwrap_or(&self.log_folder);
        match &config.log_path {
            Some(path) => folder.join(path),
            None => self.log_path(&config.name, config.attempt),
        }
    }

    /// Makes everything of a container but its process: checks it, mounts its root and volumes, opens its log, and beside that
    /// makes its groups and devices. Of what it mounts nobody else sees anything, and it goes with what is returned.
    pub async fn create_container(
        &self,
        config: &ContainerConfig,
        images: &ImageStore,
        timeline: &Timeline,
    ) -> Result<CreatedContainer, RuntimeError> {
        let process_namespace = self.process_namespace(config)?;
        let users = match self.config.user_namespace(self.row.first_id) {
            UserNamespace::Host => PodUsers::Host,
            UserNamespace::Mapped { uids, gids } => PodUsers::Mapped { uids, gids },
            UserNamespace::Own { first_id, length } => {
                let map = vec![IdMap { inside: 0, outside: first_id, length }];
                PodUsers::Mapped { uids: map.clone(), gids: map }
            }
        };
        config.mounts.iter().try_for_each(|mount| mount.check(config.privileged, &users))?;
        let (command, user) = (config.command_line()?, config.effective_user()?);
        let image = images.mount(&config.image)?;
        let mut mounts = Vec::with_capacity(config.mounts.len());
        for mount in &config.mounts {
            let image = match &mount.origin {
                MountOrigin::Image(image) => Some(images.mount(image)?),
                _ => None,
            };
            mounts.push((mount.clone(), image));
        }
        let supply = self.sandbox.supply(&config.name, &config.resources, config.privileged, &config.devices);
        let made = async { tokio::join!(self.prepare(config, image, mounts), supply) };
        let (prepared, supplies) = timeline.measure("rootfs", made).await;
        let ((root, mounts, log), supplies) = (prepared?, supplies?);
        let spec = ContainerSpec {
            mounts,
            command,
            env: config.environment(&self.hostname()),
            working_dir: config.effective_working_dir(),
            user,
            supplemental_groups: config.supplemental_groups.clone(),
            groups_policy: config.groups_policy,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            capabilities: config.capabilities.resolve(config.privileged)?,
            ambient_capabilities: config.capabilities.resolve_ambient()?,
            no_new_privileges: config.no_new_privileges,
            read_only_root: config.read_only_root,
            privileged: config.privileged,
            seccomp: if config.privileged { Seccomp::Unconfined } else { config.seccomp.clone() },
            resources: config.resources.clone(),
            rlimits: config.rlimits.clone(),
            process_namespace,
            devices: config.devices.clone(),
            masked_paths: config.masked_paths.clone(),
            read_only_paths: config.read_only_paths.clone(),
            oom_score_adjustment: config.oom_score_adj,
            apparmor_profile: config.effective_apparmor(),
            ..ContainerSpec::new(&config.name, root, log)
        };
        Ok(CreatedContainer { spec, supplies })
    }

    /// Starts what [`Self::create_container`] made; returns once its program runs.
    pub async fn start_container(
        &self,
        container: CreatedContainer,
        timeline: &Timeline,
    ) -> Result<Started, RuntimeError> {
        Ok(timeline.measure("start", self.sandbox.start_supplied(container.spec, container.supplies)).await?)
    }

    /// Creates and starts a container.
    pub async fn run_container(
        &self,
        config: &ContainerConfig,
        images: &ImageStore,
        timeline: &Timeline,
    ) -> Result<Started, RuntimeError> {
        let container = self.create_container(config, images, timeline).await?;
        self.start_container(container, timeline).await
    }

    /// Asks a container to end by a signal ([`ContainerConfig::effective_stop_signal`]) and kills it after `grace`. Waits for
    /// its end; one that does not run is stopped already. Nothing else waits for this.
    pub async fn stop_container(&self, name: &str, signal: i32, grace: Duration) -> Result<(), RuntimeError> {
        Ok(self.sandbox.stop(name, signal, grace).await?)
    }

    /// Changes limits in place, of one container or of the pod as a whole; what is absent stays as it is.
    pub async fn update_resources(&self, container: Option<&str>, resources: &Resources) -> Result<(), RuntimeError> {
        Ok(self.sandbox.update_resources(container, resources).await?)
    }

    /// Goes on logging into another file, or into one that was moved away and is made anew.
    pub async fn reopen_log(&self, container: &str, path: &Path) -> Result<(), RuntimeError> {
        let path = path.to_owned();
        let log = tokio::task::spawn_blocking(move || open_log(&path)).await.map_err(RuntimeError::panicked)?;
        let log = log.map_err(RuntimeError::host("open the container's log"))?;
        Ok(self.sandbox.reopen_log(container, log).await?)
    }

    /// The pod's host name: its own, or the host's.
    #[must_use]
    pub fn hostname(&self) -> String {
        self.config.effective_hostname()
    }

    fn process_namespace(&self, config: &ContainerConfig) -> Result<ProcessNamespace, RuntimeError> {
        let refuse = |why: String| Err(RuntimeError::Refused(format!("container {:?}: {why}", config.name)));
        match &config.process_namespace {
            ProcessNamespace::Own if self.config.share_process_namespace => Ok(ProcessNamespace::Pod),
            ProcessNamespace::Own if self.config.host_pid => Ok(ProcessNamespace::Node),
            ProcessNamespace::Node if !self.config.host_pid => {
                refuse("it asks for the host's process namespace, but its pod was not made with hostPID".into())
            }
            ProcessNamespace::Pod if self.config.host_pid => {
                refuse("it asks for its pod's process namespace, but its pod has the host's".into())
            }
            ProcessNamespace::Target(target) if *target == config.name => {
                refuse("it asks for its own process namespace as another's".into())
            }
            other => Ok(other.clone()),
        }
    }
}

impl PodConfig {
    /// The pod's host name: its own, or the host's.
    pub(crate) fn effective_hostname(&self) -> String {
        if self.hostname.is_empty() {
            return rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        self.hostname.clone()
    }
}

/// Where one run of a container logs, below the pod's folder of logs.
#[must_use]
pub fn log_path(folder: &Path, container: &str, attempt: u32) -> PathBuf {
    folder.join(container).join(format!("{attempt}.log"))
}

/// A log is root's alone, wherever it is. A link in its place is not followed.
fn open_log(path: &Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o640).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    Ok(options.open(path)?.into())
}
