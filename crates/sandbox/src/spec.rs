//! What sandboxes, containers and execs are to look like.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::capabilities::Capabilities;
use crate::cgroup::Resources;
use crate::error::SandboxError;
use crate::limits::{ID_MAPS_MAX, MOUNTS_MAX};

/// A sandbox' name: sixteen lowercase hexadecimal characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// A new random id.
    pub fn random() -> std::io::Result<Self> {
        sampan_kit::id::short().map(Self)
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SandboxId {
    type Error = SandboxError;

    fn try_from(text: String) -> Result<Self, SandboxError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(is_hex) {
            return Ok(Self(text));
        }
        Err(SandboxError::Invalid {
            why: format!("{text:?} is not a sandbox id of 16 lowercase hexadecimal characters"),
        })
    }
}

impl std::str::FromStr for SandboxId {
    type Err = SandboxError;

    fn from_str(text: &str) -> Result<Self, SandboxError> {
        Self::try_from(text.to_owned())
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A piece of an identity map: `length` ids from `inside` up are the host's from `outside` up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// Whose users a pod's users are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserNamespace {
    /// The pod's ids 0 to `length - 1` are the host's from `first_id` up.
    Own { first_id: u32, length: u32 },
    /// A user namespace whose maps somebody else has chosen, such as the kubelet. Both have to map 0.
    Mapped { uids: Vec<IdMap>, gids: Vec<IdMap> },
    /// The pod's users are the host's (`hostUsers: true`).
    Host,
}

impl UserNamespace {
    /// Whether the pod has a user namespace of its own.
    #[must_use]
    pub fn is_own(&self) -> bool {
        !matches!(self, Self::Host)
    }

    /// The host's id of the pod's root.
    #[must_use]
    pub fn root(&self) -> u32 {
        match self {
            Self::Own { first_id, .. } => *first_id,
            Self::Mapped { uids, .. } => uids.iter().find(|map| map.inside == 0).map_or(0, |map| map.outside),
            Self::Host => 0,
        }
    }
}

/// A sandbox to be made.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    pub id: SandboxId,
    /// Empty for the host's.
    pub hostname: String,
    pub user_namespace: UserNamespace,
    /// Limits of the pod as a whole.
    pub resources: Resources,
    /// Names with dots; only those of the pod's own namespaces are accepted.
    pub sysctls: Vec<(String, String)>,
    pub share_process_namespace: bool,
    /// No network namespace of its own. Like the next two only with [`UserNamespace::Host`].
    pub host_network: bool,
    /// No pid namespace of its own: the agent works on the host's side, and what runs is ended by its groups.
    pub host_pid: bool,
    pub host_ipc: bool,
    /// Where the pod's group hangs, instead of below the instance's: a path from the root of the hierarchies, or the name
    /// of a systemd slice.
    pub cgroup_parent: Option<String>,
}

/// What of a sandbox is decided when its agent is made; everything else can wait until it is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Namespaces {
    pub own_users: bool,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
}

/// When a sandbox's control groups are made. It may be claimed by any pod in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Groups {
    /// With its agent, below the instance's: for a pod whose groups nobody else keeps.
    #[default]
    AtOnce,
    /// When it is known below whose they belong. Groups made elsewhere would be made, and taken away, for nothing.
    WhenClaimed,
}

impl SandboxSpec {
    /// Below whose group its own hangs, where that is not the instance's.
    pub(crate) fn parent(&self) -> Option<&str> {
        self.cgroup_parent.as_deref().filter(|parent| !parent.is_empty())
    }

    /// The namespaces that it shares with the host, and those of its own.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces {
            own_users: self.user_namespace.is_own(),
            host_network: self.host_network,
            host_pid: self.host_pid,
            host_ipc: self.host_ipc,
        }
    }

    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let invalid = |why: &str| Err(SandboxError::Invalid { why: why.to_owned() });
        let shares = self.host_network || self.host_pid || self.host_ipc;
        if shares && self.user_namespace.is_own() {
            return invalid("a pod with users of its own cannot share other namespaces with the host");
        }
        let UserNamespace::Mapped { uids, gids } = &self.user_namespace else { return Ok(()) };
        for maps in [uids, gids] {
            if maps.is_empty() || maps.len() > ID_MAPS_MAX {
                return invalid("an identity map has from 1 to 340 lines");
            }
            if !maps.iter().any(|map| map.inside == 0 && map.length > 0) {
                return invalid("an identity map has to map 0");
            }
        }
        Ok(())
    }

    /// A sandbox with everything of its own, unlimited.
    #[must_use]
    pub fn new(id: SandboxId, hostname: impl Into<String>, user_namespace: UserNamespace) -> Self {
        Self {
            id,
            hostname: hostname.into(),
            user_namespace,
            resources: Resources::default(),
            sysctls: Vec::new(),
            share_process_namespace: false,
            host_network: false,
            host_pid: false,
            host_ipc: false,
            cgroup_parent: None,
        }
    }
}

/// A user as an image or a pod names it. Whoever knows a number only and wants the primary group of that user in the
/// image says it as a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    Ids {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
    },
    /// `USER[:GROUP]`, names or numbers, resolved by the image's own `/etc/passwd` and `/etc/group`.
    Named(String),
}

/// What becomes of a user's memberships in the image's own `/etc/group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupsPolicy {
    /// They count, beside those that the pod names.
    #[default]
    Merge,
    /// Only those count that the pod names.
    Strict,
}

/// Whether system calls are filtered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// A profile in docker's JSON, as the kubelet keeps them in files.
    Localhost(Vec<u8>),
}

/// Whose processes a container sees, and by whose end its own end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProcessNamespace {
    /// Its own.
    #[default]
    Own,
    /// Those of all containers of its pod that share as well.
    Pod,
    /// The host's; the pod's agent has to be there too ([`SandboxSpec::host_pid`]).
    Node,
    /// Those of another, running container of its pod.
    Target(String),
}

/// A device of the host that a container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// A device node, or a directory of them.
    pub host_path: std::path::PathBuf,
    /// Absolute, below `/dev`.
    pub container_path: String,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// A resource limit: `name` as in `ulimit` or OCI (`nofile`, `RLIMIT_NOFILE`); `None` is infinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Where a mount's content comes from.
#[derive(Debug)]
pub enum MountSource {
    /// A detached mount of a directory or of a file.
    Detached(OwnedFd),
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
    },
}

/// A mount inside a container.
#[derive(Debug)]
pub struct Mount {
    pub source: MountSource,
    /// Absolute; resolved inside the container's root, created when missing.
    pub destination: String,
    /// Of the mount itself; what is mounted below it stays as it came.
    pub read_only: bool,
}

/// A container to be started.
#[derive(Debug)]
pub struct ContainerSpec {
    pub name: String,
    /// Detached, complete and writable.
    pub root: OwnedFd,
    pub mounts: Vec<Mount>,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub user: User,
    pub supplemental_groups: Vec<u32>,
    pub groups_policy: GroupsPolicy,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Append-only; the agent writes CRI log lines to it.
    pub log: OwnedFd,
    pub capabilities: Capabilities,
    /// Of those above, the ones that a program keeps that is not root's.
    pub ambient_capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    /// Nothing masked, nothing read-only, every device allowed, and there where the pod's users are the host's.
    /// Capabilities and seccomp are named on their own.
    pub privileged: bool,
    pub seccomp: Seccomp,
    pub resources: Resources,
    pub rlimits: Vec<Limit>,
    pub process_namespace: ProcessNamespace,
    pub devices: Vec<Device>,
    /// Instead of the default ones, also of a privileged container.
    pub masked_paths: Option<Vec<String>>,
    pub read_only_paths: Option<Vec<String>>,
    /// Lowering it below the service's own needs CAP_SYS_RESOURCE on the host, and is best effort.
    pub oom_score_adjustment: Option<i32>,
    /// A profile that the host's kernel has loaded.
    pub apparmor_profile: Option<String>,
}

impl ContainerSpec {
    /// A container with the default restrictions that runs nothing yet.
    #[must_use]
    pub fn new(name: impl Into<String>, root: OwnedFd, log: OwnedFd) -> Self {
        Self {
            name: name.into(),
            root,
            mounts: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            working_dir: "/".into(),
            user: User::Ids { uid: 0, gid: 0, groups: Vec::new() },
            supplemental_groups: Vec::new(),
            groups_policy: GroupsPolicy::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            log,
            capabilities: Capabilities::runtime_default(),
            ambient_capabilities: Capabilities::NONE,
            no_new_privileges: false,
            read_only_root: false,
            privileged: false,
            seccomp: Seccomp::default(),
            resources: Resources::default(),
            rlimits: Vec::new(),
            process_namespace: ProcessNamespace::default(),
            devices: Vec::new(),
            masked_paths: None,
            read_only_paths: None,
            oom_score_adjustment: None,
            apparmor_profile: None,
        }
    }
}

/// A command to be run beside a container's own.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// The container's when absent.
    pub working_dir: Option<String>,
    /// The container's when absent.
    pub user: Option<User>,
    pub tty: bool,
    pub stdin: bool,
    /// Columns and rows of a terminal at its beginning.
    pub terminal_size: Option<(u16, u16)>,
}

impl ContainerSpec {
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        check_name(&self.name)?;
        if self.mounts.len() > MOUNTS_MAX {
            let why = format!("container {} has {} mounts, more than {MOUNTS_MAX}", self.name, self.mounts.len());
            return Err(SandboxError::Invalid { why });
        }
        if !self.capabilities.contains(self.ambient_capabilities) {
            let why = format!("container {} has ambient capabilities that it does not have", self.name);
            return Err(SandboxError::Invalid { why });
        }
        if let Some(profile) = &self.apparmor_profile {
            check_apparmor(profile)?;
        }
        Ok(())
    }
}

/// A profile can only be taken on where the kernel has AppArmor at all; whether it is loaded, the kernel says at the start.
fn check_apparmor(profile: &str) -> Result<(), SandboxError> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_graphic();
    if enabled.trim() != "Y" {
        let why = format!("AppArmor profile {profile:?} is asked for, but this kernel runs without AppArmor");
        return Err(SandboxError::Invalid { why });
    }
    if profile.is_empty() || profile.len() > 1024 || !profile.bytes().all(plain) {
        return Err(SandboxError::Invalid { why: format!("{profile:?} is not the name of an AppArmor profile") });
    }
    Ok(())
}

/// A container's name becomes a directory's: a DNS label, as Kubernetes has it.
pub(crate) fn check_name(name: &str) -> Result<(), SandboxError> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.is_empty() && name.len() <= 63 && name.bytes().all(fine) {
        return Ok(());
    }
    Err(SandboxError::Invalid { why: format!("{name:?} is not a container name: use at most 63 of a-z, 0-9 and -") })
}

/// Linux' numbers of resource limits (`asm-generic/resource.h`).
pub(crate) fn limit_number(name: &str) -> Result<u32, SandboxError> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
    let place = NAMES.iter().position(|known| *known == short).and_then(|place| u32::try_from(place).ok());
    place.ok_or_else(|| SandboxError::Invalid { why: format!("unknown resource limit {name}") })
}
