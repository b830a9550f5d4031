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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sampan_agent::link::Outgoing;
use sampan_sys::socket::{self, Kind};
use sampan_wire::agent::{PodConfiguration, Reply, Request};

use crate::cgroup::{self, Group, Hierarchy, detect};
use crate::connection::{Connection, ConnectionTask};
use crate::error::SandboxError;
use crate::limits::{AGENT_DEATH_MAX, CREATE_DEADLINE, REMOVALS_AT_ONCE, REQUEST_DEADLINE};
use crate::sandbox::{Events, Identity, ProcessSandbox, SandboxParts, wait_until_dead};
use crate::seccomp::FilterCache;
use crate::spec::{Groups, IdMap, Namespaces, SandboxId, SandboxSpec, UserNamespace};
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

/// A sandbox that is nobody's yet. Dropping it leaves it where it is.
#[derive(Debug)]
pub struct ReadySandbox {
    id: SandboxId,
    namespaces: Namespaces,
    groups: Groups,
    pid: i32,
    identity: Identity,
    connection: Connection,
    task: ConnectionTask,
    events: Events,
}

impl ReadySandbox {
    /// Its id, which it keeps.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// What it shares with the host.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces
    }

    /// Its network namespace.
    #[must_use]
    pub fn network_namespace(&self) -> BorrowedFd<'_> {
        self.identity.network_namespace()
    }

    /// Whether its agent still lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.identity.is_alive()
    }
}

/// An agent that does not listen yet, so that nobody would find it by its socket: dropped, also by whoever does not wait for it any
/// more, it is killed.
struct Newborn(Option<Identity>);

impl Newborn {
    /// It has answered.
    fn found(mut self) -> Result<Identity, SandboxError> {
        self.0.take().ok_or(SandboxError::AgentGone)
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(identity) = &self.0 {
            identity.kill();
        }
    }
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
        spec.check()?;
        let groups = if spec.parent().is_some() { Groups::WhenClaimed } else { Groups::AtOnce };
        let ready = self.prepare(&spec.id, spec.namespaces(), groups).await?;
        self.claim(ready, spec).await
    }

    /// The first half of [`Self::create`]: everything that need not know whose sandbox it will be. Nothing foreign reaches
    /// what this makes before it is claimed; whoever wants it no more removes it by its id.
    pub async fn prepare(
        &self,
        id: &SandboxId,
        namespaces: Namespaces,
        groups: Groups,
    ) -> Result<ReadySandbox, SandboxError> {
        self.or_remove(id, self.make_ready(id, namespaces, groups)).await
    }

    /// The second half: the sandbox becomes that of a pod. It must have been prepared under the same id and namespaces.
    pub async fn claim(&self, ready: ReadySandbox, spec: SandboxSpec) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let id = spec.id.clone();
        self.or_remove(&id, self.make_pods(ready, &spec)).await
    }

    /// Within the deadline; what fails leaves nothing behind.
    async fn or_remove<T>(
        &self,
        id: &SandboxId,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        let expired = |_| SandboxError::Deadline { seconds: CREATE_DEADLINE.as_secs() };
        let made = tokio::time::timeout(CREATE_DEADLINE, work).await.map_err(expired);
        match made.and_then(|made| made) {
            Ok(made) => Ok(made),
            Err(error) => {
                if let Err(left) = self.node.remove_leftover(id).await {
                    let left = sampan_kit::error_chain::ErrorChain(&left).to_string();
                    tracing::warn!(sandbox = %id, error = %left, "a sandbox that failed leaves something behind");
                }
                Err(error)
            }
        }
    }

    async fn make_ready(
        &self,
        id: &SandboxId,
        namespaces: Namespaces,
        groups: Groups,
    ) -> Result<ReadySandbox, SandboxError> {
        let node = &self.node;
        let (directory, group, socket_path) = (node.sandbox_dir(id), node.own_group(id), node.agent_socket(id));
        let (listener, cgroup) = blocking("prepare the sandbox", move || {
            make_private_dir(&directory)?;
            let cgroup = match groups {
                Groups::AtOnce => {
                    group.create_pod()?;
                    // On v2 the agent is born in its group.
                    group.of_agent().open_unified()?
                }
                Groups::WhenClaimed => None,
            };
            Ok((socket::listen(&socket_path, Kind::Stream)?, cgroup))
        })
        .await?;
        let agent = node.zygote.create(id, namespaces, listener, cgroup).await?;
        let newborn = Newborn(Some(Identity::of(agent.pid, agent.pidfd, 0)?));
        let (connection, task, events) = self.greet(id).await?;
        let identity = newborn.found()?;
        Ok(ReadySandbox { id: id.clone(), namespaces, groups, pid: agent.pid, identity, connection, task, events })
    }

    /// Waits until a fresh agent answers: from then on it is found by its socket, whoever looks for it.
    async fn greet(&self, id: &SandboxId) -> Result<(Connection, ConnectionTask, Events), SandboxError> {
        let socket = socket::connect(&self.node.agent_socket(id), Kind::Stream)
            .map_err(SandboxError::io("connect to the agent"))?;
        let events = Events::default();
        let (connection, task) = Connection::start(socket, events.receiver()).map_err(SandboxError::io("connect"))?;
        match connection.ask(Request::Hello, Outgoing::default(), REQUEST_DEADLINE).await?.0 {
            Reply::Hello(_) => Ok((connection, task, events)),
            _ => Err(SandboxError::UnexpectedAnswer),
        }
    }

    async fn make_pods(&self, ready: ReadySandbox, spec: &SandboxSpec) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let node = &self.node;
        let ReadySandbox { id, namespaces, groups, pid, mut identity, connection, task, events } = ready;
        if id != spec.id || namespaces != spec.namespaces() {
            return Err(SandboxError::Invalid { why: format!("sandbox {id} was made for another kind of pod") });
        }
        let (own_group, directory) = (node.own_group(&id), node.sandbox_dir(&id));
        let parent = spec.parent().map(cgroup::parent_path).transpose();
        let parent = parent.map_err(SandboxError::io("read the cgroup parent"))?;
        let (hierarchies, instance) = (Arc::clone(&node.hierarchies), node.config.instance.clone());
        let (resources, user_namespace) = (spec.resources.clone(), spec.user_namespace.clone());
        let name = format!("{instance}-{id}");
        let (group, entrances) = blocking("give the sandbox its groups and users", move || {
            write_identity_maps(pid, &user_namespace)?;
            let born_there = groups == Groups::AtOnce && parent.is_none();
            let group = match parent {
                Some(parent) => placed_below(&hierarchies, &parent.join(name), &directory)?,
                None => {
                    if groups == Groups::WhenClaimed {
                        own_group.create_pod()?;
                    }
                    own_group
                }
            };
            group.limit(&resources)?;
            let agent_group = group.of_agent();
            let is_inside = born_there && !agent_group.has_version_1();
            let entrances = if is_inside { Vec::new() } else { agent_group.open_entrances()? };
            Ok((group, entrances))
        })
        .await?;
        events.place(group.clone());
        let mut outgoing = Outgoing::default();
        let configuration = PodConfiguration {
            cgroups: entrances.into_iter().map(|entrance| outgoing.add(entrance)).collect(),
            hostname: if spec.hostname.is_empty() { host_name() } else { spec.hostname.clone() },
            sysctls: spec.sysctls.clone(),
            drop_to_mapped_root: namespaces.own_users,
            share_process_namespace: spec.share_process_namespace,
            host_process_namespace: namespaces.host_pid,
        };
        let request = Request::Configure(configuration);
        match connection.ask(request, outgoing, CREATE_DEADLINE).await?.0 {
            Reply::Done => {}
            Reply::Refused(refusal) => return Err(refusal.into()),
            _ => return Err(SandboxError::UnexpectedAnswer),
        }
        identity.become_root(spec.user_namespace.root());
        let sandbox = ProcessSandbox::assemble(SandboxParts {
            id: id.clone(),
            node: Arc::clone(node),
            group,
            identity,
            connection,
            connection_task: task,
            events,
            found: Vec::new(),
        })?;
        if groups == Groups::AtOnce && spec.parent().is_some() {
            let unused = node.own_group(&id);
            blocking("remove the groups that the sandbox was prepared in", move || unused.remove()).await?;
        }
        Ok(sandbox)
    }

    /// Takes over a sandbox that an earlier daemon made. What it has to tell comes with [`ProcessSandbox::events`].
    pub async fn adopt(&self, id: &SandboxId) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let node = &self.node;
        let Some((socket, pid, pidfd)) = node.find_agent(id).map_err(SandboxError::io("find the agent"))? else {
            return Err(SandboxError::NotFound { id: id.to_string() });
        };
        let group = node.group(id).map_err(SandboxError::io("find the sandbox's groups"))?;
        let events = Events::default();
        events.place(group.clone());
        let (connection, task) = Connection::start(socket, events.receiver()).map_err(SandboxError::io("connect"))?;
        let hello = connection.ask(Request::Hello, Outgoing::default(), REQUEST_DEADLINE).await?.0;
        let Reply::Hello(state) = hello else { return Err(SandboxError::UnexpectedAnswer) };
        if !state.configured {
            return Err(SandboxError::Unfinished { id: id.to_string() });
        }
        // It answered after its pidfd was opened, so that the pidfd is its own and not a successor's.
        let root = mapped_root(pid).map_err(SandboxError::io("read the agent's identity map"))?;
        let identity = Identity::of(pid, pidfd, root)?;
        events.restore(state.exits);
        ProcessSandbox::assemble(SandboxParts {
            id: id.clone(),
            node: Arc::clone(node),
            group,
            identity,
            connection,
            connection_task: task,
            events,
            found: state.running,
        })
    }

    /// Ids of the sandboxes of which anything exists.
    pub async fn list(&self) -> Result<HashSet<SandboxId>, SandboxError> {
        let node = Arc::clone(&self.node);
        blocking("list the sandboxes", move || node.list()).await
    }

    /// Kills and removes every sandbox of this instance that is not to be kept; says what it removed.
    pub async fn reconcile(&self, keep: &HashSet<SandboxId>) -> Result<Vec<String>, SandboxError> {
        let all = self.list().await?;
        let removal = |id: &SandboxId| {
            let (node, id) = (Arc::clone(&self.node), id.clone());
            async move { node.remove_leftover(&id).await }
        };
        let removals: Vec<_> = all.difference(keep).map(removal).collect();
        let removals = futures_util::stream::iter(removals).buffer_unordered(REMOVALS_AT_ONCE);
        let removed: Vec<Vec<String>> = removals.try_collect().await?;
        Ok(removed.concat())
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

    /// Where a sandbox's group is while nobody says otherwise.
    fn own_group(&self, id: &SandboxId) -> Group {
        self.instance_group().child(id.as_str())
    }

    /// Where a sandbox's group is.
    pub(crate) fn group(&self, id: &SandboxId) -> io::Result<Group> {
        Ok(match Placement::read(&self.sandbox_dir(id))? {
            Some(placement) => Group::at(&self.hierarchies, placement.path),
            None => self.own_group(id),
        })
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
        let (own_group, directory, id) = (self.own_group(id), self.sandbox_dir(id), id.clone());
        let hierarchies = Arc::clone(&self.hierarchies);
        blocking("remove the sandbox's groups and run directory", move || {
            let mut removed = Vec::new();
            let placement = Placement::read(&directory)?;
            let placed = placement.as_ref().map(|placement| Group::at(&hierarchies, placement.path.clone()));
            for group in placed.into_iter().chain([own_group]) {
                if group.exists() {
                    group.remove()?;
                    removed.push(format!("cgroups of sandbox {id}"));
                }
            }
            for parent in placement.into_iter().flat_map(|placement| placement.made).rev() {
                // Others may live there meanwhile.
                std::fs::remove_dir(parent).ok();
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

/// Where a sandbox's groups are that do not hang below the instance's, kept in its run directory.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Placement {
    path: PathBuf,
    /// Groups above it that did not exist before, the highest first.
    made: Vec<PathBuf>,
}

/// Its file, and where that is written.
const PLACEMENT: &str = "cgroup.json";
const PLACEMENT_DRAFT: &str = "cgroup.json.new";

impl Placement {
    fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(directory.join(PLACEMENT)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces it as a whole: half of it would keep the sandbox from being removed, and the service from starting.
    fn write(&self, directory: &Path) -> io::Result<()> {
        let draft = directory.join(PLACEMENT_DRAFT);
        std::fs::write(&draft, serde_json::to_vec(self)?)?;
        std::fs::rename(draft, directory.join(PLACEMENT))
    }
}

/// Makes a sandbox's groups below somebody else's. Where they will be is written down first.
fn placed_below(hierarchies: &Arc<[Hierarchy]>, path: &Path, directory: &Path) -> io::Result<Group> {
    let group = Group::at(hierarchies, path);
    Placement { path: path.to_owned(), made: Vec::new() }.write(directory)?;
    let made = group.ensure_parents()?;
    if !made.is_empty() {
        Placement { path: path.to_owned(), made }.write(directory)?;
    }
    group.create_pod()?;
    Ok(group)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Writes `/proc/PID/uid_map` and `gid_map` (user_namespaces(7)) of an agent that waits for it.
fn write_identity_maps(pid: i32, namespace: &UserNamespace) -> io::Result<()> {
    let (uids, gids) = match namespace {
        UserNamespace::Host => return Ok(()),
        UserNamespace::Own { first_id, length } => {
            let map = vec![IdMap { inside: 0, outside: *first_id, length: *length }];
            (map.clone(), map)
        }
        UserNamespace::Mapped { uids, gids } => (uids.clone(), gids.clone()),
    };
    for (file, maps) in [("gid_map", gids), ("uid_map", uids)] {
        let line = |map: &IdMap| format!("{} {} {}\n", map.inside, map.outside, map.length);
        let text: String = maps.iter().map(line).collect();
        std::fs::write(format!("/proc/{pid}/{file}"), &text)
            .map_err(|error| io::Error::new(error.kind(), format!("write {file} {:?}: {error}", text.trim())))?;
    }
    Ok(())
}

/// The host's id of a process' root, from its map; 0 where it shares ours.
fn mapped_root(pid: i32) -> io::Result<u32> {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let maps_root = |line: &&str| line.split_whitespace().next() == Some("0");
    let root = map.lines().find(maps_root).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    root.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the identity map has no root"))
}

/// Opens one of a process' namespaces.
pub(crate) fn open_namespace(pid: i32, kind: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(format!("/proc/{pid}/ns/{kind}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
