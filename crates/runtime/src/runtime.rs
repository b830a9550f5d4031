//! The runtime itself: makes pods, takes them away, and finds them again after the daemon died.
//!
//! # Crash consistency
//! Journal first, host second, in both directions: a row stands before the first side effect and goes after the last
//! one is undone. A row in state `creating` or `removing` is cleaned up at the next start; `ready` ones are offered for
//! adoption. Names tell the rest: whatever carries the id of no row is nobody's.
//!
//! # Cancellation
//! [`Runtime::create`] and [`Runtime::remove`] must be run to their end; callers spawn them. A dropped `create` leaves
//! what the next start removes.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sampan_network::{Attachment, Network, NetworkError, PortHolder, Protocol};
use sampan_sandbox::{
    ProcessSandbox, ProcessSandboxes, SandboxError, SandboxId, SandboxSpec, StartError, UserNamespace,
};
use sampan_sys::mount::MountRoom;

use crate::container::ContainerConfigError;
use crate::journal::{Journal, JournalError, SandboxRow, SandboxState};
use crate::limits::{CREATE_DEADLINE, DESTROY_DEADLINE, DISK_BYTES_DEFAULT, ID_RANGE_LENGTH};
use crate::pod::{Owner, Parts, Pod, PodConfig};
use crate::timeline::Timeline;
use crate::volume::{VolumeError, Volumes};
use crate::writable::{self, Disk, DiskError};

/// Why a pod or container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The sandbox could not be made.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The container's process did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The image cannot be mounted.
    #[error(transparent)]
    Image(#[from] sampan_image::ImageError),
    /// The container is described in a way that cannot be started.
    #[error(transparent)]
    Container(#[from] ContainerConfigError),
    /// A step on the host failed.
    #[error("cannot {step}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The pod asks for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// Another instance has published the port.
    #[error(
        "port {port}/{protocol} on {address} is taken by instance {holder}; publish another port or remove that instance"
    )]
    PortTaken {
        /// On this host address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Namespace and name of the pod that has it.
        holder: String,
    },
    /// It did not come in time.
    #[error("the {part} was not ready within {seconds} s")]
    Deadline {
        /// What was waited for.
        part: &'static str,
        /// For how long.
        seconds: u64,
    },
}

impl RuntimeError {
    pub(crate) fn host(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { step, source }
    }

    pub(crate) fn panicked(error: tokio::task::JoinError) -> Self {
        Self::Host { step: "finish a blocking step", source: io::Error::other(error) }
    }
}

/// Where the runtime keeps what it makes.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Persistent state: journal, templates, disks, logs.
    pub data_dir: PathBuf,
    /// Where mounts are attached, on kernels that clone only attached ones.
    pub mount_room: Option<Arc<MountRoom>>,
}

/// A sandbox found after a restart.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Complete ones, to be adopted or removed by their pod's UID.
    pub ready: Vec<SandboxRow>,
    /// What was cleaned up, a line each.
    pub removed: Vec<String>,
}

/// Makes and unmakes pods.
#[derive(Debug)]
pub struct Runtime {
    sandboxes: ProcessSandboxes,
    network: Network,
    journal: Journal,
    config: RuntimeConfig,
}

impl Runtime {
    /// Opens the journal; call [`Self::recover`] before anything else.
    pub fn open(config: RuntimeConfig, sandboxes: ProcessSandboxes, network: Network) -> Result<Self, RuntimeError> {
        for folder in ["sandboxes", "templates", "pods"] {
            std::fs::create_dir_all(config.data_dir.join(folder))
                .map_err(RuntimeError::host("make the data folder"))?;
        }
        let journal = Journal::open(&config.data_dir.join("journal.db"))?;
        Ok(Self { sandboxes, network, journal, config })
    }

    /// The network, for statistics.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Folder of a pod's logs; it outlives the sandbox and goes with the Pod object.
    #[must_use]
    pub fn log_folder(&self, pod_uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(pod_uid)
    }

    /// Finishes or undoes what a killed daemon left half done, and removes what belongs to nobody.
    pub async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let (ready, rest): (Vec<_>, Vec<_>) =
            self.journal.sandboxes()?.into_iter().partition(|row| row.this_boot && row.state == SandboxState::Ready);
        let keep: HashSet<SandboxId> = ready.iter().map(|row| sandbox_id(&row.id)).collect::<Result<_, _>>()?;
        let keep_names: HashSet<String> = ready.iter().map(|row| row.id.clone()).collect();
        let mut removed = self.sandboxes.reconcile(&keep).await?;
        removed.extend(self.network.reconcile(&keep_names).await?);
        removed.extend(remove_other_folders(&self.config.data_dir.join("sandboxes"), &keep_names)?);
        for row in rest {
            self.journal.end(&row.id)?;
        }
        Ok(Recovered { ready, removed })
    }

    /// The complete sandbox that the journal knows of a pod.
    pub fn live_row(&self, pod_uid: &str) -> Result<Option<SandboxRow>, RuntimeError> {
        let is_live = |row: &SandboxRow| row.this_boot && row.state == SandboxState::Ready && row.pod_uid == pod_uid;
        Ok(self.journal.sandboxes()?.into_iter().find(is_live))
    }

    /// Removes the log folders of pods that no longer exist.
    pub fn forget_pods_except(&self, uids: &HashSet<String>) -> Result<Vec<String>, RuntimeError> {
        remove_other_folders(&self.config.data_dir.join("pods"), uids)
    }

    /// Makes a pod; on failure nothing of it is left.
    pub async fn create(&self, config: PodConfig, timeline: &Timeline) -> Result<Pod, RuntimeError> {
        let id = sampan_kit::id::short().map_err(RuntimeError::host("draw a random id"))?;
        let name = format!("{}/{}", config.namespace, config.name);
        let row = self.journal.begin(&id, &config.uid, &name, !config.host_users)?;
        match self.assemble(&row, config, timeline).await {
            Ok(pod) => {
                self.journal.set_state(&id, SandboxState::Ready)?;
                Ok(pod)
            }
            Err(error) => {
                if let Err(cleanup) = self.dismantle(&row.id, None).await {
                    tracing::error!(sandbox = %row.id, error = %sampan_kit::error_chain::ErrorChain(&cleanup),
                        "a half-made sandbox cannot be cleaned up; the next start of the service tries again");
                }
                Err(error)
            }
        }
    }

    async fn assemble(&self, row: &SandboxRow, config: PodConfig, timeline: &Timeline) -> Result<Pod, RuntimeError> {
        let spec = SandboxSpec {
            id: sandbox_id(&row.id)?,
            hostname: config.hostname.clone(),
            user_namespace: if config.host_users {
                UserNamespace::Host
            } else {
                UserNamespace::Own { first_id: row.first_id, length: ID_RANGE_LENGTH }
            },
            resources: config.resources,
            sysctls: config.sysctls.clone(),
            share_process_namespace: config.share_process_namespace,
        };
        let connect = async {
            let sandbox = timeline.measure("sandbox", within("sandbox", self.sandboxes.create(spec))).await?;
            let attach = self.network.attach(&row.id, sandbox.network_namespace(), &config.ports);
            let attachment = timeline.measure("network", within("network", attach)).await;
            let attachment = attachment.map_err(|error| self.name_port_holder(error))?;
            Ok::<_, RuntimeError>((sandbox, attachment))
        };
        let disk = timeline.measure("disk", self.new_disk(&row.id, config.disk_bytes));
        let ((sandbox, attachment), disk) = tokio::try_join!(connect, disk)?;
        self.write_pod_files(row, &config, &attachment, &disk)?;
        self.complete(row.clone(), config, sandbox, attachment, disk).await
    }

    /// Users know instances by their pod's name, not by the sandbox's id.
    fn name_port_holder(&self, error: RuntimeError) -> RuntimeError {
        let RuntimeError::Network(NetworkError::PortTaken { address, port, protocol, holder: PortHolder::Sandbox(id) }) =
            &error
        else {
            return error;
        };
        let holder = self.journal.sandboxes().ok().and_then(|rows| rows.into_iter().find(|row| row.id == *id));
        let Some(holder) = holder.map(|row| row.pod_name) else { return error };
        RuntimeError::PortTaken { address: *address, port: *port, protocol: *protocol, holder }
    }

    /// Puts back what others took away of the network: rules after a flush, held ports.
    pub async fn mend(&self) -> Result<(), RuntimeError> {
        Ok(self.network.mend().await?)
    }

    /// At the end of the service: takes away what it made for all pods, when none is left.
    pub async fn close(&self) -> Result<(), RuntimeError> {
        self.network.close().await?;
        Ok(self.sandboxes.close().await?)
    }

    /// Takes up a pod whose agent outlived the daemon.
    pub async fn adopt(&self, row: SandboxRow, config: PodConfig) -> Result<Pod, RuntimeError> {
        let id = sandbox_id(&row.id)?;
        let sandbox = within("agent", self.sandboxes.adopt(&id)).await?;
        let attachment = self.network.attachment(&row.id).await?;
        let attachment =
            attachment.ok_or_else(|| RuntimeError::Refused("its address is no longer known".to_owned()))?;
        let (image, room) = (self.disk_image(&row.id), self.config.mount_room.clone());
        let disk = tokio::task::spawn_blocking(move || writable::mount_image(&image, room.as_deref()));
        let disk = disk.await.map_err(RuntimeError::panicked)??;
        self.complete(row, config, sandbox, attachment, disk).await
    }

    async fn complete(
        &self,
        row: SandboxRow,
        config: PodConfig,
        sandbox: Arc<ProcessSandbox>,
        attachment: Attachment,
        disk: Disk,
    ) -> Result<Pod, RuntimeError> {
        let owner = Owner { root: row.first_id };
        let (volume_configs, room) = (config.volumes.clone(), self.config.mount_room.clone());
        let parts = tokio::task::spawn_blocking(move || {
            let volumes = Volumes::prepare(&volume_configs, &disk, owner, room.as_deref())?;
            Ok::<_, RuntimeError>(Parts { disk, volumes })
        });
        let parts = Arc::new(parts.await.map_err(RuntimeError::panicked)??);
        let log_folder = self.log_folder(&config.uid);
        Ok(Pod { row, sandbox, attachment, parts, config, log_folder })
    }

    /// `hosts`, `hostname` and `resolv.conf`, which every container of the pod shares.
    fn write_pod_files(
        &self,
        row: &SandboxRow,
        config: &PodConfig,
        attachment: &Attachment,
        disk: &Disk,
    ) -> Result<(), RuntimeError> {
        let files = [
            ("etc/hosts", self.network.hosts_file(&config.hostname, &attachment.addresses(), &config.host_aliases)),
            ("etc/resolv.conf", self.network.resolv_conf(&config.dns)),
            ("etc/hostname", format!("{}\n", config.hostname)),
        ];
        disk.directory("etc", row.first_id, 0o755).map_err(RuntimeError::host("write the pod's own files"))?;
        for (path, content) in files {
            disk.write_file(path, row.first_id, &content).map_err(RuntimeError::host("write the pod's own files"))?;
        }
        Ok(())
    }

    /// Takes a pod away with all its processes; its logs stay.
    pub async fn remove(&self, pod: &Pod) -> Result<(), RuntimeError> {
        self.journal.set_state(&pod.row.id, SandboxState::Removing)?;
        self.dismantle(&pod.row.id, Some(&pod.sandbox)).await
    }

    /// Takes away a sandbox of which only the journal knows.
    pub async fn remove_row(&self, row: &SandboxRow) -> Result<(), RuntimeError> {
        self.journal.set_state(&row.id, SandboxState::Removing)?;
        self.dismantle(&row.id, None).await
    }

    /// Removes a pod's logs.
    pub fn forget(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        remove_folder(&self.log_folder(pod_uid)).map_err(RuntimeError::host("remove the pod's logs"))
    }

    async fn dismantle(&self, id: &str, sandbox: Option<&ProcessSandbox>) -> Result<(), RuntimeError> {
        match sandbox {
            Some(sandbox) => sandbox.destroy(DESTROY_DEADLINE).await?,
            None => drop(self.sandboxes.remove(&sandbox_id(id)?).await?),
        }
        self.network.detach(id).await?;
        let folder = self.sandbox_folder(id);
        let removed = tokio::task::spawn_blocking(move || remove_folder(&folder)).await;
        removed.map_err(RuntimeError::panicked)?.map_err(RuntimeError::host("remove the sandbox's folder"))?;
        Ok(self.journal.end(id)?)
    }

    async fn new_disk(&self, id: &str, bytes: u64) -> Result<Disk, RuntimeError> {
        let bytes = if bytes == 0 { DISK_BYTES_DEFAULT } else { bytes };
        let (folder, image) = (self.sandbox_folder(id), self.disk_image(id));
        let (templates, room) = (self.config.data_dir.join("templates"), self.config.mount_room.clone());
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder).map_err(RuntimeError::host("make the sandbox's folder"))?;
            writable::create_image(&templates, &image, bytes)?;
            Ok::<_, RuntimeError>(writable::mount_image(&image, room.as_deref())?)
        });
        made.await.map_err(RuntimeError::panicked)?
    }

    fn sandbox_folder(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("sandboxes").join(id)
    }

    fn disk_image(&self, id: &str) -> PathBuf {
        self.sandbox_folder(id).join("disk.img")
    }
}

fn sandbox_id(text: &str) -> Result<SandboxId, RuntimeError> {
    Ok(text.parse::<SandboxId>()?)
}

/// Waits for a part of a pod, but not forever.
async fn within<T, E>(part: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, RuntimeError>
where
    RuntimeError: From<E>,
{
    match tokio::time::timeout(CREATE_DEADLINE, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(RuntimeError::Deadline { part, seconds: CREATE_DEADLINE.as_secs() }),
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_other_folders(parent: &Path, keep: &HashSet<String>) -> Result<Vec<String>, RuntimeError> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(RuntimeError::host("list a data folder"))? {
        let entry = entry.map_err(RuntimeError::host("list a data folder"))?;
        if !keep.contains(&*entry.file_name().to_string_lossy()) {
            remove_folder(&entry.path()).map_err(RuntimeError::host("remove a leftover folder"))?;
            removed.push(format!("folder {}", entry.path().display()));
        }
    }
    Ok(removed)
}
