//! Making, adopting and clearing away the sandboxes of a node.
//!
//! # Crash consistency
//! A sandbox' run directory is made before anything else and removed after everything else, and its groups bear its id. The
//! agent is found through its socket, whose credentials are the agent's own (`listen(2)` stamps them). So a sandbox that
//! was half made or half removed when its daemon died is found and finished off by [`ProcessSandboxes::reconcile`], without a
//! record of our own.
//!
//! # Cancellation
//! Dropping the future of `create` may leave a half-made sandbox behind; `destroy` by id through `reconcile` removes it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sampan_agent::link::Outgoing;
use sampan_sys::socket::{self, Kind};
use sampan_wire::agent::{PodConfiguration, Reply, Request};

use crate::cgroup::{Group, Hierarchy, detect};
use crate::connection::Connection;
use crate::error::SandboxError;
use crate::limits::{AGENT_DEATH_MAX, CREATE_DEADLINE, REQUEST_DEADLINE};
use crate::sandbox::{Events, Identity, ProcessSandbox, wait_until_dead};
use crate::seccomp::FilterCache;
use crate::spec::{SandboxId, SandboxSpec, UserNamespace};
use crate::zygote::ZygoteClient;

/// Where the sandboxes of a service live.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Holds `zygote.sock` and `sandboxes/`; readable by root only.
    pub run_dir: PathBuf,
    /// Prefixes the groups, so that several services can share a machine.
    pub instance: String,
}

/// The node's process sandboxes.
#[derive(Debug, Clone)]
pub struct ProcessSandboxes {
    pub(crate) node: Arc<Node>,
}

/// What all sandboxes of a node share.
#[derive(Debug)]
pub(crate) struct Node {
    config: SandboxConfig,
    hierarchies: Arc<[Hierarchy]>,
    zygote: ZygoteClient,
    pub(crate) filters: FilterCache,
}

impl ProcessSandboxes {
    /// Finds the zygote and the cgroups. The zygote has to run already, or to come up within its deadline.
    pub async fn open(config: SandboxConfig) -> Result<Self, SandboxError> {
        let hierarchies = blocking("detect the cgroups", detect).await?;
        if hierarchies.is_empty() {
            return Err(SandboxError::NoCgroups);
        }
        let zygote = ZygoteClient::new(config.run_dir.join("zygote.sock"));
        zygote.ping().await?;
        let node = Arc::new(Node { config, hierarchies, zygote, filters: FilterCache::default() });
        let instance = node.instance_group();
        let directory = node.sandboxes_dir();
        blocking("prepare the run directory and the cgroups", move || {
            make_private_dir(&directory)?;
            instance.ensure()
        })
        .await?;
        Ok(Self { node })
    }

    /// Makes a sandbox: namespaces, groups, identity maps, agent. Its network namespace is empty, its containers none.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let expired = |_| SandboxError::Deadline { seconds: CREATE_DEADLINE.as_secs() };
        let made = tokio::time::timeout(CREATE_DEADLINE, self.make(&spec)).await.map_err(expired);
        match made.and_then(|made| made) {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                if let Err(left) = self.node.remove_leftover(&spec.id).await {
                    let left = sampan_kit::error_chain::ErrorChain(&left).to_string();
                    tracing::warn!(sandbox = %spec.id, error = %left, "a sandbox that failed leaves something behind");
                }
                Err(error)
            }
        }
    }

    async fn make(&self, spec: &SandboxSpec) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let node = &self.node;
        let (directory, group) = (node.sandbox_dir(&spec.id), node.group(&spec.id));
        let resources = spec.resources;
        let (agent_group, socket_path) = (group.child("agent"), node.agent_socket(&spec.id));
        let (listener, cgroup, entrances) = blocking("prepare the sandbox", move || {
            make_private_dir(&directory)?;
            group.create()?;
            group.limit(&resources)?;
            agent_group.create()?;
            // On v2 the agent is born in its group.
            let cgroup = agent_group.open_unified()?;
            let entrances = if cgroup.is_some() { Vec::new() } else { agent_group.open_entrances()? };
            Ok((socket::listen(&socket_path, Kind::Stream)?, cgroup, entrances))
        })
        .await?;
        let own = matches!(spec.user_namespace, UserNamespace::Own { .. });
        let agent = node.zygote.create(&spec.id, own, listener, cgroup).await?;
        write_identity_maps(agent.pid, spec.user_namespace)?;

        let socket = socket::connect(&node.agent_socket(&spec.id), Kind::Stream)
            .map_err(SandboxError::io("connect to the agent"))?;
        let events = Events::new(node.group(&spec.id));
        let (connection, task) = Connection::start(socket, events.receiver()).map_err(SandboxError::io("connect"))?;
        let mut outgoing = Outgoing::default();
        let configuration = PodConfiguration {
            cgroups: entrances.into_iter().map(|entrance| outgoing.add(entrance)).collect(),
            hostname: spec.hostname.clone(),
            sysctls: spec.sysctls.clone(),
            drop_to_mapped_root: own,
            share_process_namespace: spec.share_process_namespace,
        };
        let request = Request::Configure(configuration);
        match connection.ask(request, outgoing, CREATE_DEADLINE).await?.0 {
            Reply::Done => {}
            Reply::Refused(refusal) => return Err(refusal.into()),
            _ => return Err(SandboxError::UnexpectedAnswer),
        }
        let identity = Identity::of(agent.pid, agent.pidfd, spec.user_namespace.root())?;
        ProcessSandbox::assemble(spec.id.clone(), Arc::clone(node), identity, connection, task, events)
    }

    /// Takes over a sandbox that an earlier daemon made. What it has to tell comes with [`ProcessSandbox::events`].
    pub async fn adopt(&self, id: &SandboxId) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let node = &self.node;
        let Some((socket, pid, pidfd)) = node.find_agent(id).map_err(SandboxError::io("find the agent"))? else {
            return Err(SandboxError::NotFound { id: id.to_string() });
        };
        let events = Events::new(node.group(id));
        let (connection, task) = Connection::start(socket, events.receiver()).map_err(SandboxError::io("connect"))?;
        let hello = connection.ask(Request::Hello, Outgoing::default(), REQUEST_DEADLINE).await?.0;
        let Reply::Hello(state) = hello else { return Err(SandboxError::UnexpectedAnswer) };
        if !state.configured {
            return Err(SandboxError::Unfinished { id: id.to_string() });
        }
        // It answered after its pidfd was opened, so that the pidfd is its own and not a successor's.
        let root = mapped_root(pid).map_err(SandboxError::io("read the agent's identity map"))?;
        let identity = Identity::of(pid, pidfd, root)?;
        events.restore(state);
        ProcessSandbox::assemble(id.clone(), Arc::clone(node), identity, connection, task, events)
    }

    /// Ids of the sandboxes of which anything exists.
    pub async fn list(&self) -> Result<HashSet<SandboxId>, SandboxError> {
        let node = Arc::clone(&self.node);
        blocking("list the sandboxes", move || node.list()).await
    }

    /// Kills and removes every sandbox of this instance that is not to be kept; says what it removed.
    pub async fn reconcile(&self, keep: &HashSet<SandboxId>) -> Result<Vec<String>, SandboxError> {
        let mut removed = Vec::new();
        for id in self.list().await?.difference(keep) {
            removed.extend(self.node.remove_leftover(id).await?);
        }
        Ok(removed)
    }

    /// Kills and removes one sandbox of which only its id is known; nothing there is no error.
    pub async fn remove(&self, id: &SandboxId) -> Result<Vec<String>, SandboxError> {
        self.node.remove_leftover(id).await
    }

    /// Removes what the instance as a whole has made, once it has no sandbox any more.
    pub async fn close(&self) -> Result<(), SandboxError> {
        let (instance, directory) = (self.node.instance_group(), self.node.sandboxes_dir());
        blocking("remove the instance's groups", move || {
            if !instance.children()?.is_empty() {
                return Ok(());
            }
            instance.remove()?;
            match std::fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other,
            }
        })
        .await
    }
}

impl Node {
    fn instance_group(&self) -> Group {
        Group::at(&self.hierarchies, &self.config.instance)
    }

    pub(crate) fn group(&self, id: &SandboxId) -> Group {
        self.instance_group().child(id.as_str())
    }

    fn sandboxes_dir(&self) -> PathBuf {
        self.config.run_dir.join("sandboxes")
    }

    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes_dir().join(id.as_str())
    }

    fn agent_socket(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_dir(id).join("agent.sock")
    }

    fn list(&self) -> io::Result<HashSet<SandboxId>> {
        let mut ids: HashSet<SandboxId> =
            self.instance_group().children()?.into_iter().filter_map(|name| name.parse().ok()).collect();
        for entry in std::fs::read_dir(self.sandboxes_dir())? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        Ok(ids)
    }

    /// The agent behind a sandbox' socket: connection, pid and pidfd; `None` when nobody listens.
    fn find_agent(&self, id: &SandboxId) -> io::Result<Option<(OwnedFd, i32, OwnedFd)>> {
        let socket = match socket::connect(&self.agent_socket(id), Kind::Stream) {
            Ok(socket) => socket,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (raw, _) = socket::peer(socket.as_fd())?;
        let Some(pid) = Pid::from_raw(raw) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some((socket, raw, pidfd))),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a sandbox of which only the id is known; says what was there.
    pub(crate) async fn remove_leftover(&self, id: &SandboxId) -> Result<Vec<String>, SandboxError> {
        let mut removed = Vec::new();
        if let Some((socket, pid, pidfd)) = self.find_agent(id).map_err(SandboxError::io("find the agent"))?
            && is_an_agent(pid)
        {
            sampan_sys::process::signal_by_pidfd(pidfd.as_fd(), libc::SIGKILL)
                .map_err(SandboxError::io("kill the agent"))?;
            drop(socket);
            let expired = |_| SandboxError::Deadline { seconds: AGENT_DEATH_MAX.as_secs() };
            tokio::time::timeout(AGENT_DEATH_MAX, wait_until_dead(pidfd)).await.map_err(expired)??;
            removed.push(format!("agent {pid} of sandbox {id}"));
        }
        removed.extend(self.remove_traces(id).await?);
        Ok(removed)
    }

    /// Removes what is left of a sandbox whose agent is dead.
    pub(crate) async fn remove_traces(&self, id: &SandboxId) -> Result<Vec<String>, SandboxError> {
        let (group, directory, id) = (self.group(id), self.sandbox_dir(id), id.clone());
        blocking("remove the sandbox's groups and run directory", move || {
            let mut removed = Vec::new();
            if group.exists() {
                group.remove()?;
                removed.push(format!("cgroups of sandbox {id}"));
            }
            match std::fs::remove_dir_all(&directory) {
                Ok(()) => removed.push(format!("run directory of sandbox {id}")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            Ok(removed)
        })
        .await
    }
}

/// Guards against killing the one who made the socket when its agent never came to listen on it.
fn is_an_agent(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("pod-"))
}

/// Runs short file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, SandboxError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(io::Error::other).and_then(|result| result).map_err(SandboxError::io(what))
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes `/proc/PID/uid_map` and `gid_map` (user_namespaces(7)) of an agent that waits for it.
fn write_identity_maps(pid: i32, namespace: UserNamespace) -> Result<(), SandboxError> {
    let UserNamespace::Own { first_id, length } = namespace else { return Ok(()) };
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), format!("0 {first_id} {length}\n"))
            .map_err(SandboxError::io(format!("map ids 0 to {} to {first_id} ({file})", length.saturating_sub(1))))?;
    }
    Ok(())
}

/// The host's id of a process' root, from its map; 0 where it shares ours.
fn mapped_root(pid: i32) -> io::Result<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let first = map.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the identity map is empty"))
}

/// Opens one of a process' namespaces.
pub(crate) fn open_namespace(pid: i32, kind: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(format!("/proc/{pid}/ns/{kind}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
