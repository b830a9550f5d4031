//! The parts of pods: made, and taken away again.
//!
//! A [`Hull`] is everything of a pod that need not know whose it will be: a prepared sandbox, its cable and address, its
//! disk. What it takes on the host is in the journal first, and everything bears its id.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use sampan_kit::error_chain::ErrorChain;
use sampan_network::{AttachOptions, Attachment, Network, PodName};
use sampan_sandbox::{Groups, Namespaces, ProcessSandbox, ProcessSandboxes, ReadySandbox};

use crate::journal::{Journal, SandboxRow};
use crate::limits::{DESTROY_DEADLINE, DISK_BYTES_DEFAULT};
use crate::pod::PodConfig;
use crate::runtime::{RuntimeConfig, RuntimeError, sandbox_id, within};
use crate::timeline::Timeline;
use crate::trash::{Deferred, Trash};
use crate::writable;

/// On a new disk, where containers' directories will be; it bears no container's name.
const FIRST_DIRECTORY: &str = "containers/first";

/// What is worked with.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) sandboxes: ProcessSandboxes,
    pub(crate) network: Network,
    pub(crate) journal: Journal,
    pub(crate) config: RuntimeConfig,
    pub(crate) trash: Trash,
    /// Sandboxes that could not be taken away, by their ids.
    pub(crate) left: Mutex<BTreeSet<String>>,
}

/// What has to be known of a pod to make its hull.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    pub(crate) namespaces: Namespaces,
    pub(crate) groups: Groups,
    pub(crate) disk_bytes: u64,
    pub(crate) network: AttachOptions,
}

impl Shape {
    pub(crate) fn of(config: &PodConfig) -> Self {
        let namespaces = Namespaces {
            own_users: !config.shares_users(),
            host_network: config.host_network,
            host_pid: config.host_pid,
            host_ipc: config.host_ipc,
        };
        let network = AttachOptions {
            ports: config.ports.clone(),
            bandwidth: config.bandwidth,
            pod: PodName { namespace: config.namespace.clone(), name: config.name.clone(), uid: config.uid.clone() },
        };
        Self { namespaces, groups: config.groups(), disk_bytes: config.disk_bytes, network }
    }
}

/// A pod before it is anybody's.
#[derive(Debug)]
pub(crate) struct Hull {
    pub(crate) row: SandboxRow,
    pub(crate) sandbox: ReadySandbox,
    /// `None` in the host's network.
    pub(crate) attachment: Option<Attachment>,
    pub(crate) disk: Deferred,
}

impl Workshop {
    /// Makes a hull under its row of the journal. After a failure the caller discards it.
    pub(crate) async fn make_hull(
        &self,
        row: &SandboxRow,
        shape: &Shape,
        timeline: &Timeline,
    ) -> Result<Hull, RuntimeError> {
        let id = sandbox_id(&row.id)?;
        let connect = async {
            let prepare = self.sandboxes.prepare(&id, shape.namespaces, shape.groups);
            let sandbox = timeline.measure("sandbox", within("sandbox", prepare)).await?;
            if shape.namespaces.host_network {
                return Ok((sandbox, None));
            }
            let attach = self.network.attach(&row.id, sandbox.network_namespace(), &shape.network);
            let attachment = timeline.measure("network", within("network", attach)).await?;
            Ok::<_, RuntimeError>((sandbox, Some(attachment)))
        };
        let disk = timeline.measure("disk", self.new_disk(&row.id, shape.disk_bytes));
        // Neither is dropped half-way when the other fails: what goes on in threads and in the zygote would be made after the cleaning up.
        let (connected, disk) = tokio::join!(connect, disk);
        let ((sandbox, attachment), disk) = (connected?, disk?);
        Ok(Hull { row: row.clone(), sandbox, attachment, disk })
    }

    /// Takes away what was not finished, or is not wanted any more.
    pub(crate) async fn discard(&self, id: &str) {
        let gone = self.dismantle(id).await;
        self.note(id, gone);
    }

    /// Tries again to take away what could not be.
    pub(crate) async fn discard_left(&self) {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        for id in left {
            self.discard(&id).await;
        }
    }

    fn note(&self, id: &str, gone: Result<(), RuntimeError>) {
        if let Err(error) = gone {
            tracing::error!(sandbox = %id, error = %ErrorChain(&error), "a sandbox cannot be removed wholly; trying again");
            self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        }
    }

    /// Takes away a sandbox of which only its id is known: first whatever runs in it, its row last.
    pub(crate) async fn dismantle(&self, id: &str) -> Result<(), RuntimeError> {
        self.sandboxes.remove(&sandbox_id(id)?).await?;
        self.network.detach(id).await?;
        self.forget(id)
    }

    /// Ends whatever runs in a sandbox, and withdraws its address and ports: they are free for others.
    pub(crate) async fn end(&self, id: &str, sandbox: &ProcessSandbox) -> Result<(), RuntimeError> {
        sandbox.end(DESTROY_DEADLINE).await?;
        Ok(self.network.detach(id).await?)
    }

    /// Takes away what is left of a sandbox that has ended, its row last.
    pub(crate) async fn clear_away(&self, id: &str, sandbox: &ProcessSandbox) {
        let destroyed = sandbox.destroy(DESTROY_DEADLINE).await.map_err(RuntimeError::from);
        self.note(id, destroyed.and_then(|()| self.forget(id)));
    }

    fn forget(&self, id: &str) -> Result<(), RuntimeError> {
        self.trash.throw(&self.sandbox_folder(id)).map_err(RuntimeError::host("remove the sandbox's folder"))?;
        Ok(self.journal.end(id)?)
    }

    async fn new_disk(&self, id: &str, bytes: u64) -> Result<Deferred, RuntimeError> {
        let bytes = if bytes == 0 { DISK_BYTES_DEFAULT } else { bytes };
        let (folder, image) = (self.sandbox_folder(id), self.disk_image(id));
        let (templates, room) = (self.config.data_dir.join("templates"), self.config.mount_room.clone());
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder).map_err(RuntimeError::host("make the sandbox's folder"))?;
            writable::create_image(&templates, &image, bytes)?;
            let disk = writable::mount_new_image(&image, room.as_deref())?;
            // The first writes read what the file system needs for all others; whoever claims the hull would wait for them.
            let made = disk.directory("etc", 0, 0o755).and_then(|_etc| disk.directory(FIRST_DIRECTORY, 0, 0o700));
            made.map_err(RuntimeError::host("write to the sandbox's disk"))?;
            Ok::<_, RuntimeError>(disk)
        });
        Ok(self.trash.deferred(made.await.map_err(RuntimeError::panicked)??))
    }

    fn sandbox_folder(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("sandboxes").join(id)
    }

    pub(crate) fn disk_image(&self, id: &str) -> PathBuf {
        self.sandbox_folder(id).join("disk.img")
    }
}
