//! One sandbox: its agent's life, its events, and what may be asked of it.
//!
//! # Concurrency
//! All methods take `&self` and may run at once. Events are told in order to the one receiver of the latest call of
//! [`ProcessSandbox::events`]; what was not acknowledged is told again to the next receiver.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sampan_agent::link::{Descriptors, Outgoing};
use sampan_wire::agent::{AgentEvent, ContainerExit, ExitStatus, Instant, Reply, Request, RunningContainer};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::cgroup::{Group, GroupUsage, Resources};
use crate::connection::{Connection, ConnectionTask};
use crate::error::SandboxError;
use crate::limits::{EVENTS_QUEUED_MAX, KILL_MAX, REQUEST_DEADLINE};
use crate::sandboxes::{Node, blocking, open_namespace};
use crate::spec::SandboxId;
use crate::watch::watch;

/// What happens in a sandbox without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A container's own process has ended, and its log is complete.
    ContainerExited {
        /// For [`ProcessSandbox::acknowledge`].
        event_id: u64,
        container: String,
        /// The exit code; 128 + n for a process ended by signal n.
        code: i32,
        signal: Option<i32>,
        oom_killed: bool,
        started_at: jiff::Timestamp,
        finished_at: jiff::Timestamp,
    },
    /// The agent is dead, and with it everything in the sandbox. `destroy` is still due.
    AgentLost { reason: String },
}

/// What a sandbox uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxStats {
    /// The pod as a whole, agent included.
    pub pod: GroupUsage,
    /// By container's name.
    pub containers: Vec<(String, GroupUsage)>,
}

fn stats_of(group: &Group) -> io::Result<SandboxStats> {
    let container = |name: String| {
        let usage = group.of_container(&name).usage();
        (name, usage)
    };
    Ok(SandboxStats { pod: group.usage(), containers: group.containers()?.into_iter().map(container).collect() })
}

/// The agent as the kernel knows it.
#[derive(Debug)]
pub(crate) struct Identity {
    pidfd: OwnedFd,
    network_namespace: OwnedFd,
    user_namespace: Option<OwnedFd>,
    /// The host's id of the pod's root.
    root: u32,
}

impl Identity {
    pub(crate) fn network_namespace(&self) -> BorrowedFd<'_> {
        self.network_namespace.as_fd()
    }

    pub(crate) fn is_alive(&self) -> bool {
        poll_once(&self.pidfd).is_ok_and(|dead| !dead)
    }

    /// Whoever has died already is no concern.
    pub(crate) fn kill(&self) {
        sampan_sys::process::signal_by_pidfd(self.pidfd.as_fd(), libc::SIGKILL).ok();
    }

    /// Its identity maps are written.
    pub(crate) fn become_root(&mut self, root: u32) {
        self.root = root;
    }

    pub(crate) fn of(pid: i32, pidfd: OwnedFd, root: u32) -> Result<Self, SandboxError> {
        let open = |kind: &str| open_namespace(pid, kind).map_err(SandboxError::io("open the agent's namespaces"));
        let (network_namespace, user) = (open("net")?, open("user")?);
        let inode = |path: &str| std::fs::metadata(path).map(|stat| std::os::unix::fs::MetadataExt::ino(&stat));
        let ours = inode("/proc/self/ns/user").map_err(SandboxError::io("look at our user namespace"))?;
        let theirs = rustix::fs::fstat(&user).map_err(|error| SandboxError::io("fstat")(error.into()))?.st_ino;
        // Still running: so the pid was the agent's all along.
        let dead = poll_once(&pidfd).map_err(SandboxError::io("look at the agent"))?;
        if dead {
            return Err(SandboxError::AgentGone);
        }
        Ok(Self { pidfd, network_namespace, user_namespace: (ours != theirs).then_some(user), root })
    }
}

fn poll_once(pidfd: &OwnedFd) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

/// Waits for a process' end.
pub(crate) async fn wait_until_dead(pidfd: OwnedFd) -> Result<(), SandboxError> {
    let watched = watch(pidfd, Interest::READABLE).map_err(SandboxError::io("watch a process"))?;
    watched.readable().await.map_err(SandboxError::io("watch a process"))?.retain_ready();
    Ok(())
}

/// Waits for an agent's end and says why it came. An agent that cannot be understood any more is killed: its pod could be
/// neither used nor watched.
async fn watch_agent(pidfd: OwnedFd, connection: ConnectionTask) -> String {
    let mut reason = "the sandbox's agent was killed or has failed".to_owned();
    let death = match rustix::io::fcntl_dupfd_cloexec(&pidfd, 3) {
        Ok(pidfd) => wait_until_dead(pidfd),
        Err(error) => return SandboxError::io("watch the agent")(error.into()).to_string(),
    };
    tokio::pin!(death);
    let outcome = tokio::select! {
        outcome = &mut death => outcome,
        ended = connection => {
            if let Ok(Err(error)) = ended {
                reason = format!("the sandbox's agent was killed: {}", sampan_kit::error_chain::ErrorChain(&error));
                // It may have died by itself meanwhile.
                sampan_sys::process::signal_by_pidfd(pidfd.as_fd(), libc::SIGKILL).ok();
            }
            death.await
        }
    };
    outcome.map_or_else(|error| sampan_kit::error_chain::ErrorChain(&error).to_string(), |()| reason)
}

/// Events on their way from the agent to whoever listens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<EventsInner>);

#[derive(Debug, Default)]
struct EventsInner {
    /// Known before any container can exist.
    group: OnceLock<Group>,
    state: Mutex<EventsState>,
}

#[derive(Debug, Default)]
struct EventsState {
    /// Who waits for the end of a container.
    exits: HashMap<String, Vec<oneshot::Sender<()>>>,
    unacknowledged: Vec<SandboxEvent>,
    listener: Option<mpsc::Sender<SandboxEvent>>,
    execs: HashMap<u64, oneshot::Sender<ExitStatus>>,
}

impl Events {
    /// Tells where the pod's groups are; only the first time counts.
    pub(crate) fn place(&self, group: Group) {
        self.0.group.set(group).ok();
    }

    /// Answered, or dropped with the sandbox, when the container of this name has ended.
    pub(crate) fn expect_exit(&self, container: &str) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.locked(|state| {
            let waiting = state.exits.entry(container.to_owned()).or_default();
            waiting.retain(|sender| !sender.is_closed());
            waiting.push(sender);
        });
        receiver
    }

    /// What a connection feeds.
    pub(crate) fn receiver(&self) -> impl FnMut(AgentEvent) + Send + 'static {
        let events = self.clone();
        move |event| match event {
            AgentEvent::ContainerExited(exit) => events.container_exited(exit),
            AgentEvent::ExecExited { exec_id, status } => {
                if let Some(waiting) = events.locked(|state| state.execs.remove(&exec_id)) {
                    // Nobody may wait for it any more.
                    waiting.send(status).ok();
                }
            }
        }
    }

    /// What happened while no daemon was there.
    pub(crate) fn restore(&self, exits: Vec<ContainerExit>) {
        for exit in exits {
            self.container_exited(exit);
        }
    }

    pub(crate) fn expect_exec(&self, exec_id: u64) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.locked(|state| state.execs.insert(exec_id, sender));
        receiver
    }

    pub(crate) fn forget_exec(&self, exec_id: u64) {
        self.locked(|state| state.execs.remove(&exec_id));
    }

    fn container_exited(&self, exit: ContainerExit) {
        let (code, signal) = match exit.status {
            ExitStatus::Code(code) => (code, None),
            ExitStatus::Signal(signal) => (128_i32.saturating_add(signal), Some(signal)),
        };
        let known = |event: &SandboxEvent| matches!(event, SandboxEvent::ContainerExited { event_id, .. } if *event_id == exit.event_id);
        if self.locked(|state| state.unacknowledged.iter().any(known)) {
            // It happened between connecting and asking for the agent's state, which told it again.
            return;
        }
        let group = self.0.group.get().map(|group| group.of_container(&exit.container));
        let kills = group.map_or(0, |group| group.out_of_memory_kills());
        let waiting = self.locked(|state| state.exits.remove(&exit.container));
        self.tell(SandboxEvent::ContainerExited {
            event_id: exit.event_id,
            container: exit.container,
            code,
            signal,
            oom_killed: kills > 0 && code != 0,
            started_at: timestamp(exit.started_at),
            finished_at: timestamp(exit.finished_at),
        });
        for sender in waiting.into_iter().flatten() {
            // Whoever waited may have given up.
            sender.send(()).ok();
        }
    }

    fn tell(&self, event: SandboxEvent) {
        self.locked(|state| {
            let full = |listener: &mpsc::Sender<SandboxEvent>| listener.try_send(event.clone()).is_err();
            if state.listener.as_ref().is_some_and(full) {
                // Whoever listens has gone, or is hopelessly behind: the next one is told everything.
                state.listener = None;
            }
            if matches!(event, SandboxEvent::AgentLost { .. }) {
                // Nobody who waits for an exec gets an answer any more.
                state.execs.clear();
                state.exits.clear();
            }
            state.unacknowledged.push(event);
        });
    }

    fn listen(&self) -> mpsc::Receiver<SandboxEvent> {
        self.locked(|state| {
            let capacity = EVENTS_QUEUED_MAX.saturating_add(state.unacknowledged.len());
            let (sender, receiver) = mpsc::channel(capacity);
            for event in &state.unacknowledged {
                // There is room for all of them.
                drop(sender.try_send(event.clone()));
            }
            state.listener = Some(sender);
            receiver
        })
    }

    fn acknowledge(&self, acknowledged: u64) {
        let is_it = |event: &SandboxEvent| matches!(event, SandboxEvent::ContainerExited { event_id, .. } if *event_id == acknowledged);
        self.locked(|state| state.unacknowledged.retain(|event| !is_it(event)));
    }

    fn locked<T>(&self, work: impl FnOnce(&mut EventsState) -> T) -> T {
        work(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) fn timestamp(instant: Instant) -> jiff::Timestamp {
    let nanoseconds = i32::try_from(instant.nanoseconds).unwrap_or_default();
    jiff::Timestamp::new(instant.seconds, nanoseconds).unwrap_or_default()
}

/// One sandbox. Dropping it leaves the sandbox running.
#[derive(Debug)]
pub struct ProcessSandbox {
    id: SandboxId,
    pub(crate) node: Arc<Node>,
    group: Group,
    identity: Identity,
    connection: Connection,
    pub(crate) events: Events,
    pub(crate) next_exec_id: AtomicU64,
    destroying: Arc<AtomicBool>,
    /// What ran when it was adopted.
    found: Vec<(String, jiff::Timestamp)>,
    tasks: [AbortHandle; 2],
}

impl Drop for ProcessSandbox {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What a sandbox is put together from.
pub(crate) struct SandboxParts {
    pub(crate) id: SandboxId,
    pub(crate) node: Arc<Node>,
    pub(crate) group: Group,
    pub(crate) identity: Identity,
    pub(crate) connection: Connection,
    pub(crate) connection_task: ConnectionTask,
    pub(crate) events: Events,
    /// What an adopted one's agent said to run.
    pub(crate) found: Vec<RunningContainer>,
}

fn since(container: RunningContainer) -> (String, jiff::Timestamp) {
    (container.name, timestamp(container.started_at))
}

impl ProcessSandbox {
    pub(crate) fn assemble(parts: SandboxParts) -> Result<Arc<Self>, SandboxError> {
        let SandboxParts { id, node, group, identity, connection, connection_task, events, found } = parts;
        let destroying = Arc::new(AtomicBool::new(false));
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&identity.pidfd, 3);
        let pidfd = duplicate.map_err(|error| SandboxError::io("duplicate a pidfd")(error.into()))?;
        let (watched, told) = (Arc::clone(&destroying), events.clone());
        let connection_end = connection_task.abort_handle();
        let watcher = tokio::spawn(async move {
            let reason = watch_agent(pidfd, connection_task).await;
            if !watched.load(Ordering::SeqCst) {
                told.tell(SandboxEvent::AgentLost { reason });
            }
        });
        let tasks = [connection_end, watcher.abort_handle()];
        let next_exec_id = AtomicU64::new(1);
        let found = found.into_iter().map(since).collect();
        Ok(Arc::new(Self { id, node, group, identity, connection, events, next_exec_id, destroying, found, tasks }))
    }

    /// The sandbox' id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The pod's own user namespace, for mapping mounts; `None` where it shares the host's.
    #[must_use]
    pub fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.identity.user_namespace.as_ref().map(AsFd::as_fd)
    }

    /// The pod's network namespace.
    #[must_use]
    pub fn network_namespace(&self) -> BorrowedFd<'_> {
        self.identity.network_namespace.as_fd()
    }

    /// The host's id of the pod's root.
    #[must_use]
    pub fn root_id(&self) -> u32 {
        self.identity.root
    }

    /// What happens from now on, after everything that nobody has acknowledged yet. The latest receiver gets it all.
    #[must_use]
    pub fn events(&self) -> mpsc::Receiver<SandboxEvent> {
        self.events.listen()
    }

    /// Forgets an exit, here and in the agent, once it is stored elsewhere.
    pub async fn acknowledge(&self, event_id: u64) -> Result<(), SandboxError> {
        self.events.acknowledge(event_id);
        self.command(Request::Acknowledge { event_id }, Outgoing::default()).await
    }

    /// The containers that ran when this was adopted, each with the moment it began. What has ended since is told as an event, even
    /// to a receiver that asks later.
    #[must_use]
    pub fn found(&self) -> &[(String, jiff::Timestamp)] {
        &self.found
    }

    /// The containers that run now, each with the moment it began.
    pub async fn running(&self) -> Result<Vec<(String, jiff::Timestamp)>, SandboxError> {
        match self.ask(Request::Hello, Outgoing::default(), REQUEST_DEADLINE).await? {
            (Reply::Hello(state), _) => Ok(state.running.into_iter().map(since).collect()),
            _ => Err(SandboxError::UnexpectedAnswer),
        }
    }

    /// Sends a signal to a container's own process. As PID 1 it gets only those that it handles, SIGKILL and SIGSTOP.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), SandboxError> {
        self.command(Request::Signal { container: container.to_owned(), signal }, Outgoing::default()).await
    }

    /// Asks a container to end by a signal, and kills it when it has not ended after `grace`. One that does not run is
    /// stopped already. Nothing else waits for this.
    pub async fn stop(&self, container: &str, signal: i32, grace: Duration) -> Result<(), SandboxError> {
        let mut ended = self.events.expect_exit(container);
        if !grace.is_zero() {
            match self.signal(container, signal).await {
                Err(SandboxError::NoSuchContainer { .. }) => return Ok(()),
                result => result?,
            }
            if tokio::time::timeout(grace, &mut ended).await.is_ok() {
                return Ok(());
            }
        }
        match self.signal(container, libc::SIGKILL).await {
            Err(SandboxError::NoSuchContainer { .. }) => return Ok(()),
            result => result?,
        }
        let expired = |_| SandboxError::Deadline { seconds: KILL_MAX.as_secs() };
        // Dropped unanswered: then the sandbox as a whole has gone.
        tokio::time::timeout(KILL_MAX, ended).await.map(drop).map_err(expired)
    }

    /// Signals an exec and the processes that it has started in its own group.
    pub async fn signal_exec(&self, exec_id: u64, signal: i32) -> Result<(), SandboxError> {
        self.command(Request::SignalExec { exec_id, signal }, Outgoing::default()).await
    }

    /// Changes limits in place, of one container or of the pod as a whole; what is absent stays as it is.
    pub async fn update_resources(&self, container: Option<&str>, resources: &Resources) -> Result<(), SandboxError> {
        let pod = self.group();
        let group = container.map_or_else(|| pod.clone(), |name| pod.of_container(name));
        let (resources, name) = (resources.clone(), container.unwrap_or_default().to_owned());
        if !group.exists() {
            return Err(SandboxError::NoSuchContainer { container: name });
        }
        blocking("change the limits", move || group.limit(&resources)).await
    }

    /// Kills everything in the sandbox but the agent.
    pub async fn kill_all(&self) -> Result<(), SandboxError> {
        self.command(Request::KillAll, Outgoing::default()).await
    }

    /// Lets the agent go on logging into another file.
    pub async fn reopen_log(&self, container: &str, log: OwnedFd) -> Result<(), SandboxError> {
        let mut outgoing = Outgoing::default();
        let request = Request::ReopenLog { container: container.to_owned(), log: outgoing.add(log) };
        self.command(request, outgoing).await
    }

    /// What the pod and each container with a group use.
    pub async fn stats(&self) -> Result<SandboxStats, SandboxError> {
        let group = self.group();
        blocking("read the cgroups", move || stats_of(&group)).await
    }

    /// The same for who has a thread to block shortly.
    pub fn stats_now(&self) -> Result<SandboxStats, SandboxError> {
        stats_of(&self.group()).map_err(SandboxError::io("read the cgroups"))
    }

    /// A file of the pod's control group, or of a container's, by its name on v1 and on v2 of the hierarchy that has the
    /// controller; whether that is v2 comes with it. Blocks shortly.
    #[must_use]
    pub fn group_file(
        &self,
        container: Option<&str>,
        controller: &str,
        version1: &str,
        version2: &str,
    ) -> Option<(bool, String)> {
        let pod = self.group();
        let group = match container {
            Some(name) => pod.of_container(name),
            None => pod,
        };
        group.text(controller, version1, version2)
    }

    /// Kills everything and waits for its end. What is left of it is for [`Self::destroy`].
    pub async fn end(&self, deadline: Duration) -> Result<(), SandboxError> {
        self.destroying.store(true, Ordering::SeqCst);
        if !self.identity.is_alive() {
            return Ok(());
        }
        let work = async {
            match sampan_sys::process::signal_by_pidfd(self.identity.pidfd.as_fd(), libc::SIGKILL) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(SandboxError::io("kill the agent")(error));
                }
                _ => {}
            }
            let duplicate = rustix::io::fcntl_dupfd_cloexec(&self.identity.pidfd, 3);
            wait_until_dead(duplicate.map_err(|error| SandboxError::io("duplicate a pidfd")(error.into()))?).await
        };
        let expired = |_| SandboxError::Deadline { seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, work).await.map_err(expired)?
    }

    /// Kills everything and removes every trace. May be repeated after a failure.
    pub async fn destroy(&self, deadline: Duration) -> Result<(), SandboxError> {
        self.end(deadline).await?;
        let expired = |_| SandboxError::Deadline { seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, self.node.remove_traces(&self.id)).await.map_err(expired)?.map(drop)
    }

    pub(crate) fn group(&self) -> Group {
        self.group.clone()
    }

    pub(crate) async fn ask(
        &self,
        request: Request,
        outgoing: Outgoing,
        deadline: Duration,
    ) -> Result<(Reply, Descriptors), SandboxError> {
        self.connection.ask(request, outgoing, deadline).await
    }

    /// A request whose only good answer is that it is done.
    pub(crate) async fn command(&self, request: Request, outgoing: Outgoing) -> Result<(), SandboxError> {
        match self.ask(request, outgoing, REQUEST_DEADLINE).await?.0 {
            Reply::Done => Ok(()),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(SandboxError::UnexpectedAnswer),
        }
    }
}
