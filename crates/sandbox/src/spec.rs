//! What sandboxes, containers and execs are to look like.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::capabilities::Capabilities;
use crate::cgroup::Resources;
use crate::error::SandboxError;
use crate::limits::MOUNTS_MAX;

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

/// Whose users a pod's users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespace {
    /// The pod's ids 0 to `length - 1` are the host's from `first_id` up.
    Own { first_id: u32, length: u32 },
    /// The pod's users are the host's (`hostUsers: true`).
    Host,
}

impl UserNamespace {
    /// The host's id of the pod's root.
    #[must_use]
    pub fn root(self) -> u32 {
        match self {
            Self::Own { first_id, .. } => first_id,
            Self::Host => 0,
        }
    }
}

/// A sandbox to be made.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    pub id: SandboxId,
    pub hostname: String,
    pub user_namespace: UserNamespace,
    /// Limits of the pod as a whole.
    pub resources: Resources,
    /// Names with dots; only those of the pod's own namespaces are accepted.
    pub sysctls: Vec<(String, String)>,
    pub share_process_namespace: bool,
}

/// A user as an image or a pod names it.
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

/// Whether system calls are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    RuntimeDefault,
    Unconfined,
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
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Append-only; the agent writes CRI log lines to it.
    pub log: OwnedFd,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    /// Nothing masked, nothing read-only, every device allowed. Capabilities and seccomp are named on their own.
    pub privileged: bool,
    pub seccomp: Seccomp,
    pub resources: Resources,
    pub rlimits: Vec<Limit>,
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
        Ok(())
    }
}

/// A container's name becomes a directory's: a DNS label, as Kubernetes has it.
fn check_name(name: &str) -> Result<(), SandboxError> {
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
