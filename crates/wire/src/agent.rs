//! What the daemon and a pod's agent say to each other.
//!
//! The daemon sends [`FromDaemon`] requests, each with an id that its one reply repeats; the agent replies in any order and
//! reports what happens by itself as [`AgentEvent`]s. A new connection begins with [`Request::Hello`], whose reply tells
//! the agent's whole state; whatever the connection before it had not finished is forgotten, exits excepted.

use serde::{Deserialize, Serialize};

use crate::Slot;

/// Everything the daemon sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromDaemon {
    /// Chosen by the daemon, repeated in the reply.
    pub request_id: u64,
    pub request: Request,
}

/// Everything the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    Reply { request_id: u64, reply: Reply },
    Event(AgentEvent),
}

/// A request to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request on a connection.
    Hello,
    /// Once: the identity maps are written, become the pod. Before this nothing foreign reaches the agent.
    Configure(PodConfiguration),
    StartContainer(Box<ContainerStart>),
    Exec(Box<ExecStart>),
    /// Take part in a container's standard streams.
    Attach {
        container: String,
        stdin: Option<Slot>,
        stdout: Option<Slot>,
        stderr: Option<Slot>,
    },
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    /// Signal a container's init process.
    Signal {
        container: String,
        signal: i32,
    },
    /// Kill the init process of every container.
    KillAll,
    /// Signal an exec's process and all of its session's first group.
    SignalExec {
        exec_id: u64,
        signal: i32,
    },
    /// Write a tar archive of `path` into the pipe; replied to once the path has been opened.
    CopyOut {
        container: String,
        path: String,
        archive: Slot,
    },
    /// Extract a tar archive from the pipe below `directory`; replied to when it is done.
    CopyIn {
        container: String,
        directory: String,
        archive: Slot,
    },
    /// Go on logging into another file.
    ReopenLog {
        container: String,
        log: Slot,
    },
    /// The daemon has stored this exit: forget it.
    Acknowledge {
        event_id: u64,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Hello(AgentState),
    Done,
    /// A container's program runs; the pidfd of its init came along.
    Started {
        pidfd: Slot,
        started_at: Instant,
    },
    /// An exec's program runs; with a terminal, its master came along.
    ExecStarted {
        terminal: Option<Slot>,
    },
    Refused(Refusal),
}

/// Seconds and nanoseconds since 1970 on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instant {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    CommandNotFound {
        command: String,
    },
    PermissionDenied {
        command: String,
    },
    BadWorkingDirectory {
        directory: String,
    },
    UnknownUser {
        user: String,
    },
    NoSuchContainer {
        container: String,
    },
    NoSuchPath {
        path: String,
    },
    /// A container of that name runs already.
    NameTaken {
        container: String,
    },
    /// The request makes no sense in the agent's present state.
    NotNow {
        why: String,
    },
    /// A step failed with a kernel error.
    Failed {
        stage: String,
        errno: i32,
    },
}

/// What an agent tells whoever connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    /// Whether [`Request::Configure`] has been done.
    pub configured: bool,
    /// The containers whose init runs.
    pub running: Vec<RunningContainer>,
    /// The exits that nobody has acknowledged yet.
    pub exits: Vec<ContainerExit>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningContainer {
    pub name: String,
    pub started_at: Instant,
    pub tty: bool,
    pub stdin: bool,
}

/// What happens without being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentEvent {
    ContainerExited(ContainerExit),
    ExecExited { exec_id: u64, status: ExitStatus },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// Rises over the agent's life; what [`Request::Acknowledge`] names.
    pub event_id: u64,
    pub container: String,
    pub status: ExitStatus,
    pub started_at: Instant,
    pub finished_at: Instant,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
}

/// What makes an agent a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodConfiguration {
    pub hostname: String,
    /// The entrances of the agent's own groups: writing `0` moves it in.
    pub cgroups: Vec<Slot>,
    /// Names with dots, as in `sysctl.conf`; refused unless on the allow-list.
    pub sysctls: Vec<(String, String)>,
    /// Become root of the pod's own user namespace for good.
    pub drop_to_mapped_root: bool,
    pub share_process_namespace: bool,
    /// The agent has no pid namespace of its own: it must never signal what it has not made.
    pub host_process_namespace: bool,
}

/// A user as a container asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    Ids {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
    },
    /// `USER`, `USER:GROUP`, by name or number, resolved in the container's own `/etc/passwd` and `/etc/group`.
    Named(String),
}

/// What a process of a container looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    pub working_directory: String,
    pub user: User,
    pub supplemental_groups: Vec<u32>,
    /// Memberships that only the container's own `/etc/group` knows do not count.
    pub strict_groups: bool,
    /// Bit n is capability n.
    pub capabilities: u64,
    /// Of those, the ones that stay with a user who is not root.
    pub ambient_capabilities: u64,
    pub no_new_privileges: bool,
    /// A compiled filter, eight bytes an instruction; empty means unconfined.
    pub seccomp: Vec<u8>,
    pub limits: Vec<ResourceLimit>,
    pub oom_score_adjustment: i32,
    /// A loaded AppArmor profile, taken on with the program.
    pub apparmor_profile: Option<String>,
}

/// A limit of `setrlimit(2)`, by its Linux number; `None` is infinity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    pub resource: u32,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStart {
    pub name: String,
    /// The root file system, a detached mount.
    pub root: Slot,
    /// `/dev` with its device nodes, a detached mount.
    pub devices: Slot,
    pub mounts: Vec<MountStart>,
    /// The entrances of the container's groups: writing `0` moves the writer in.
    pub cgroups: Vec<Slot>,
    /// What is mounted below `/sys/fs/cgroup`: the controllers of each v1 hierarchy, or nothing for v2 alone.
    pub cgroup_hierarchies: Vec<String>,
    pub log: Slot,
    pub process: ProcessSpec,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub read_only_root: bool,
    /// Kernel file systems are writable, and no paths are masked or read-only but those named below.
    pub privileged: bool,
    pub process_namespace: ProcessNamespace,
    /// Instead of the default ones.
    pub masked_paths: Option<Vec<String>>,
    pub read_only_paths: Option<Vec<String>>,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessNamespace {
    Own,
    /// Those that the agent sees: the pod's, or the host's.
    Agents,
    /// Those of another running container.
    Target(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStart {
    pub source: MountSource,
    /// Absolute, resolved inside the container's root.
    pub destination: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A detached mount of a directory or of a file.
    Detached(Slot),
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// Chosen by the daemon, repeated in [`AgentEvent::ExecExited`].
    pub exec_id: u64,
    pub container: String,
    pub command: Vec<String>,
    /// Added to, and overriding, the container's environment; `NAME=value`.
    pub environment: Vec<String>,
    pub working_directory: Option<String>,
    pub user: Option<User>,
    pub cgroups: Vec<Slot>,
    pub streams: ExecStreams,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecStreams {
    Terminal {
        columns: u16,
        rows: u16,
    },
    /// What is absent is `/dev/null`.
    Pipes {
        stdin: Option<Slot>,
        stdout: Option<Slot>,
        stderr: Option<Slot>,
    },
}

/// What a freshly made child tells its agent before it becomes the program it is to run.
///
/// Silence until the end of the connection means success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildReport {
    /// The master of the terminal that the child has made.
    Terminal(Slot),
    /// A transfer's path is open; what follows goes through the archive's pipe.
    Opened,
    Failed(Refusal),
}
