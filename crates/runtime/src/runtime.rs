//! The runtime itself: makes pods, takes them away, and finds them again after the daemon died.
//!
//! # Crash consistency
//! Journal first, host second, in both directions: a row stands before the first side effect and goes after the last
//! one is undone. A row in state `creating` or `removing` is cleaned up at the next start; `ready` ones are offered for
//! adoption. Names tell the rest: whatever carries the id of no row is nobody's.
//!
//! # One path
//! A pod is made in two halves: its hull (namespaces, groups, agent, address, disk; `workshop`), which need not know whose
//! it will be, and what turns that into this pod. The first half may have been done beforehand (`pool`).
//!
//! # Cancellation
//! [`Runtime::create`] and [`Runtime::remove`] must be run to their end; callers spawn them. A dropped `create` leaves
//! what the next start removes.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use sampan_network::{Attachment, Network, NetworkError, PortHolder, Protocol};
use sampan_sandbox::{ProcessSandbox, ProcessSandboxes, SandboxError, SandboxId, SandboxSpec, StartError};
use sampan_sys::mount::MountRoom;
use tokio::sync::OnceCell;

use crate::container::ContainerConfigError;
use crate::journal::{CRI_UID_PREFIX, Journal, JournalError, SandboxRow, SandboxState};
use crate::limits::{CLEAR_AWAY_DELAY, CREATE_DEADLINE, POOL_CLOSE_PATIENCE, POOL_DELAY_AFTER_RESTART};
use crate::pod::{Owner, Parts, Pod, PodConfig};
use crate::pool::{Kind, Pool};
use crate::timeline::Timeline;
use crate::trash::{Deferred, Trash};
use crate::volume::{VolumeError, Volumes};
use crate::workshop::{Hull, Workshop};
use crate::writable::{self, Carriers, DiskError};

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
    /// A port of the pod cannot be reached.
    #[error("cannot connect to port {port} inside the pod")]
    Port {
        /// The port.
        port: u16,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A command took longer than it was given.
    #[error("the command had not ended after {seconds} s and was killed")]
    ExecTimeout {
        /// What it was given.
        seconds: f64,
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
    /// How many sandboxes of each kind are kept ready for pods to come; 0 for none.
    pub pool_size: usize,
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
    workshop: Arc<Workshop>,
    pool: Pool,
    recovered: OnceCell<Recovered>,
    /// As the first pod that was adopted found them.
    carriers: Arc<OnceLock<Carriers>>,
}

impl Runtime {
    /// Opens the journal; call [`Self::recover`] before anything else.
    pub fn open(config: RuntimeConfig, sandboxes: ProcessSandboxes, network: Network) -> Result<Self, RuntimeError> {
        for folder in ["sandboxes", "templates", "pods"] {
            std::fs::create_dir_all(config.data_dir.join(folder))
                .map_err(RuntimeError::host("make the data folder"))?;
        }
        let journal = Journal::open(&config.data_dir.join("journal.db"))?;
        // Plugins want to know whose a network will be.
        let pool = Pool::new(if network.is_made_by_plugins() { 0 } else { config.pool_size });
        let trash = Trash::open(config.data_dir.join("trash")).map_err(RuntimeError::host("make the data folder"))?;
        let workshop = Arc::new(Workshop { sandboxes, network, journal, config, trash, left: Mutex::default() });
        Ok(Self { workshop, pool, recovered: OnceCell::new(), carriers: Arc::default() })
    }

    /// The network, for statistics.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.workshop.network
    }

    /// How many sandboxes are ready for pods to come.
    #[must_use]
    pub fn ready_sandboxes(&self) -> usize {
        self.pool.ready()
    }

    /// Folder of a pod's logs; it outlives the sandbox and goes with the Pod object.
    #[must_use]
    pub fn log_folder(&self, pod_uid: &str) -> PathBuf {
        self.workshop.config.data_dir.join("pods").join(pod_uid)
    }

    /// Finishes or undoes what a killed daemon left half done, and removes what belongs to nobody. From then on sandboxes are
    /// kept ready. It is done once; who asks again gets the same answer.
    pub async fn recover(&self) -> Result<&Recovered, RuntimeError> {
        self.recovered.get_or_try_init(|| self.recover_now()).await
    }

    async fn recover_now(&self) -> Result<Recovered, RuntimeError> {
        let Workshop { sandboxes, network, journal, config, trash, left: _ } = &*self.workshop;
        let (ready, rest): (Vec<_>, Vec<_>) =
            journal.sandboxes()?.into_iter().partition(|row| row.this_boot && row.state == SandboxState::Ready);
        // Whoever wants a pod's name or port back waits for what was half done; for what was nobody's nobody waits.
        let (outdated, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|row| row.this_boot && row.is_nobodys());
        let kept = || ready.iter().chain(&outdated);
        let keep: HashSet<SandboxId> = kept().map(|row| sandbox_id(&row.id)).collect::<Result<_, _>>()?;
        let keep_names: HashSet<String> = kept().map(|row| row.id.clone()).collect();
        let mut removed = sandboxes.reconcile(&keep).await?;
        removed.extend(network.reconcile(&keep_names).await?);
        for folder in other_folders(&config.data_dir.join("sandboxes"), &keep_names)? {
            trash.throw(&folder).map_err(RuntimeError::host("remove a leftover folder"))?;
            removed.push(format!("folder {}", folder.display()));
        }
        for row in rest {
            journal.end(&row.id)?;
        }
        let delay = if ready.is_empty() { Duration::ZERO } else { POOL_DELAY_AFTER_RESTART };
        self.pool.open(&self.workshop, outdated, delay);
        Ok(Recovered { ready, removed })
    }

    /// The complete sandbox that the journal knows of a pod.
    pub fn live_row(&self, pod_uid: &str) -> Result<Option<SandboxRow>, RuntimeError> {
        let is_live = |row: &SandboxRow| row.this_boot && row.state == SandboxState::Ready && row.pod_uid == pod_uid;
        Ok(self.workshop.journal.sandboxes()?.into_iter().find(is_live))
    }

    /// Removes the log folders of pods that no longer exist.
    ///
    /// Those of the container runtime interface stay: it knows itself when they go.
    pub fn forget_pods_except(&self, uids: &HashSet<String>) -> Result<Vec<String>, RuntimeError> {
        let folder = self.workshop.config.data_dir.join("pods");
        let names = std::fs::read_dir(&folder).map_err(RuntimeError::host("list a data folder"))?;
        let names = names.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        let keep = names.filter(|name| uids.contains(name) || name.starts_with(CRI_UID_PREFIX)).collect();
        remove_other_folders(&folder, &keep)
    }

    /// Makes a pod; on failure nothing of it is left.
    pub async fn create(&self, config: PodConfig, timeline: &Timeline) -> Result<Pod, RuntimeError> {
        let _busy = self.pool.busy();
        let ready = match Kind::of(&config) {
            Some(kind) => self.pool.take(kind, config.groups(), &self.workshop).await,
            None => None,
        };
        let hull = match ready {
            Some(hull) => hull,
            None => self.new_hull(&config, timeline).await?,
        };
        let row = hull.row.clone();
        match self.become_pod(hull, config, timeline).await {
            Ok(pod) => Ok(pod),
            Err(error) => {
                self.workshop.discard(&row.id).await;
                Err(error)
            }
        }
    }

    async fn new_hull(&self, config: &PodConfig, timeline: &Timeline) -> Result<Hull, RuntimeError> {
        let name = format!("{}/{}", config.namespace, config.name);
        let id = sampan_kit::id::short().map_err(RuntimeError::host("draw a random id"))?;
        let row = self.workshop.journal.begin(&id, &config.uid, &name, config.needs_range())?;
        match self.workshop.make_hull(&row, &crate::workshop::Shape::of(config), timeline).await {
            Ok(hull) => Ok(hull),
            Err(error) => {
                self.workshop.discard(&row.id).await;
                Err(self.name_port_holder(error))
            }
        }
    }

    /// The second half: the hull becomes this pod.
    async fn become_pod(&self, hull: Hull, config: PodConfig, timeline: &Timeline) -> Result<Pod, RuntimeError> {
        let Hull { row, sandbox, attachment, disk } = hull;
        let namespaces = sandbox.namespaces();
        let spec = SandboxSpec {
            id: sandbox_id(&row.id)?,
            hostname: config.effective_hostname(),
            user_namespace: config.user_namespace(row.first_id),
            resources: config.resources.clone(),
            sysctls: config.sysctls.clone(),
            share_process_namespace: config.share_process_namespace,
            host_network: namespaces.host_network,
            host_pid: namespaces.host_pid,
            host_ipc: namespaces.host_ipc,
            cgroup_parent: config.cgroup_parent.clone(),
        };
        let owner = Owner { root: spec.user_namespace.root() };
        let claim = timeline.measure("claim", within("sandbox", self.workshop.sandboxes.claim(sandbox, spec)));
        let files = self.pod_files(&config, attachment.as_ref());
        let furnish = timeline.measure("files", self.furnish(&config, disk, owner, files));
        // As when a hull is made: neither is dropped half-way.
        let (claimed, furnished) = tokio::join!(claim, furnish);
        let (sandbox, parts) = (claimed?, furnished?);
        let name = format!("{}/{}", config.namespace, config.name);
        self.workshop.journal.complete(&row.id, &config.uid, &name)?;
        Ok(self.pod(row, config, sandbox, attachment, parts))
    }

    /// Writes the pod's own files and prepares its volumes.
    async fn furnish(
        &self,
        config: &PodConfig,
        disk: Deferred,
        owner: Owner,
        files: Vec<(&'static str, String)>,
    ) -> Result<Arc<Parts>, RuntimeError> {
        let (volume_configs, room) = (config.volumes.clone(), self.workshop.config.mount_room.clone());
        let parts = tokio::task::spawn_blocking(move || {
            if !files.is_empty() {
                let step = "write the pod's own files";
                disk.directory("etc", owner.root, 0o755).map_err(RuntimeError::host(step))?;
                for (path, content) in files {
                    disk.write_file(path, owner.root, &content).map_err(RuntimeError::host(step))?;
                }
            }
            let volumes = Volumes::prepare(&volume_configs, &disk, owner, room.as_deref())?;
            Ok::<_, RuntimeError>(Parts { disk, volumes })
        });
        Ok(Arc::new(parts.await.map_err(RuntimeError::panicked)??))
    }

    /// `hosts`, `hostname` and `resolv.conf`, which every container of the pod shares. In the host's network the first is the
    /// host's own.
    fn pod_files(&self, config: &PodConfig, attachment: Option<&Attachment>) -> Vec<(&'static str, String)> {
        let hostname = config.effective_hostname();
        let network = &self.workshop.network;
        let hosts = match attachment {
            Some(attachment) => network.hosts_file(&hostname, &attachment.addresses(), &config.host_aliases),
            None => {
                let mut hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                for alias in &config.host_aliases {
                    hosts.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
                }
                hosts
            }
        };
        vec![
            ("etc/hosts", hosts),
            ("etc/resolv.conf", network.resolv_conf(&config.dns)),
            ("etc/hostname", format!("{hostname}\n")),
        ]
    }

    fn pod(
        &self,
        row: SandboxRow,
        config: PodConfig,
        sandbox: Arc<ProcessSandbox>,
        attachment: Option<Attachment>,
        parts: Arc<Parts>,
    ) -> Pod {
        let log_folder = self.log_folder(&config.uid);
        Pod { row, sandbox, attachment, parts, config, log_folder }
    }

    /// Users know instances by their pod's name, not by the sandbox's id.
    fn name_port_holder(&self, error: RuntimeError) -> RuntimeError {
        let RuntimeError::Network(NetworkError::PortTaken { address, port, protocol, holder: PortHolder::Sandbox(id) }) =
            &error
        else {
            return error;
        };
        let holder = self.workshop.journal.sandboxes().ok().and_then(|rows| rows.into_iter().find(|row| row.id == *id));
        let Some(holder) = holder.map(|row| row.pod_name) else { return error };
        RuntimeError::PortTaken { address: *address, port: *port, protocol: *protocol, holder }
    }

    /// Tries again to take away what could not be, and puts back what others took away of the network: rules after a flush,
    /// held ports.
    pub async fn mend(&self) -> Result<(), RuntimeError> {
        self.workshop.discard_left().await;
        Ok(self.workshop.network.mend().await?)
    }

    /// At the end of the service: takes away what it made for all pods, when none is left, and what was kept ready.
    pub async fn close(&self) -> Result<(), RuntimeError> {
        self.pool.close(&self.workshop).await;
        // What has not gone by then is left to the next start.
        tokio::time::timeout(POOL_CLOSE_PATIENCE, self.pool.until_idle()).await.ok();
        let workshop = Arc::clone(&self.workshop);
        tokio::task::spawn_blocking(move || workshop.trash.close()).await.map_err(RuntimeError::panicked)?;
        self.workshop.network.close().await?;
        Ok(self.workshop.sandboxes.close().await?)
    }

    /// Takes up a pod whose agent outlived the daemon.
    pub async fn adopt(&self, row: SandboxRow, config: PodConfig) -> Result<Pod, RuntimeError> {
        let id = sandbox_id(&row.id)?;
        let workshop = &self.workshop;
        let sandbox = within("agent", workshop.sandboxes.adopt(&id)).await?;
        let attachment = workshop.network.attachment(&row.id).await?;
        if attachment.is_none() && !config.host_network {
            return Err(RuntimeError::Refused("its address is no longer known".to_owned()));
        }
        if !config.host_network
            && let Err(error) = workshop.network.check(&row.id, sandbox.network_namespace()).await
        {
            tracing::warn!(sandbox = %row.id, %error, "its network is not as it was left");
        }
        let (image, room) = (workshop.disk_image(&row.id), workshop.config.mount_room.clone());
        let carriers = Arc::clone(&self.carriers);
        let disk = tokio::task::spawn_blocking(move || {
            // Where looking fails, each looks for itself and says why.
            let known = carriers.get_or_init(|| Carriers::look().unwrap_or_default());
            writable::mount_image(&image, known, room.as_deref())
        });
        let disk = workshop.trash.deferred(disk.await.map_err(RuntimeError::panicked)??);
        let parts = self.furnish(&config, disk, Owner { root: sandbox.root_id() }, Vec::new()).await?;
        Ok(self.pod(row, config, sandbox, attachment, parts))
    }

    /// Takes a pod away with all its processes; its logs stay. Once this returns nothing of it runs, and its addresses and
    /// ports are free; its groups, its disk and its row go a moment later, for which nobody has to wait.
    pub async fn remove(&self, pod: &Pod) -> Result<(), RuntimeError> {
        let busy = self.pool.busy();
        let id = pod.row.id.clone();
        self.workshop.journal.set_state(&id, SandboxState::Removing)?;
        self.workshop.end(&id, &pod.sandbox).await?;
        if pod.config.host_pid {
            // No agent's end takes processes with it that are in the host's namespace; their groups' does.
            self.workshop.clear_away(&id, &pod.sandbox).await;
            return Ok(());
        }
        let (workshop, sandbox, parts) = (Arc::clone(&self.workshop), Arc::clone(&pod.sandbox), Arc::clone(&pod.parts));
        tokio::spawn(async move {
            let _held = (busy, parts);
            tokio::time::sleep(CLEAR_AWAY_DELAY).await;
            workshop.clear_away(&id, &sandbox).await;
        });
        Ok(())
    }

    /// Takes away a sandbox of which only the journal knows.
    pub async fn remove_row(&self, row: &SandboxRow) -> Result<(), RuntimeError> {
        self.workshop.journal.set_state(&row.id, SandboxState::Removing)?;
        self.workshop.dismantle(&row.id).await
    }

    /// Removes a pod's logs.
    pub fn forget(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        remove_folder(&self.log_folder(pod_uid)).map_err(RuntimeError::host("remove the pod's logs"))
    }
}

pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, RuntimeError> {
    Ok(text.parse::<SandboxId>()?)
}

/// Waits for a part of a pod, but not forever.
pub(crate) async fn within<T, E>(
    part: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, RuntimeError>
where
    RuntimeError: From<E>,
{
    match tokio::time::timeout(CREATE_DEADLINE, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(RuntimeError::Deadline { part, seconds: CREATE_DEADLINE.as_secs() }),
    }
}

pub(crate) fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_other_folders(parent: &Path, keep: &HashSet<String>) -> Result<Vec<String>, RuntimeError> {
    let mut removed = Vec::new();
    for folder in other_folders(parent, keep)? {
        remove_folder(&folder).map_err(RuntimeError::host("remove a leftover folder"))?;
        removed.push(format!("folder {}", folder.display()));
    }
    Ok(removed)
}

fn other_folders(parent: &Path, keep: &HashSet<String>) -> Result<Vec<PathBuf>, RuntimeError> {
    let entries = std::fs::read_dir(parent).map_err(RuntimeError::host("list a data folder"))?;
    let paths = entries.map(|entry| entry.map(|entry| (entry.file_name(), entry.path())));
    let paths: Vec<_> = paths.collect::<io::Result<_>>().map_err(RuntimeError::host("list a data folder"))?;
    Ok(paths.into_iter().filter(|(name, _)| !keep.contains(&*name.to_string_lossy())).map(|(_, path)| path).collect())
}
