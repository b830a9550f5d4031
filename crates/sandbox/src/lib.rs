//! The process sandbox: a pod's namespaces, groups and agent, as the node sees them.
//!
//! [`ProcessSandboxes`] makes, adopts and clears away sandboxes; a [`ProcessSandbox`] starts containers and execs in one and
//! tells what becomes of them. Inside a sandbox works the agent of `sampan-agent`; this crate is the privileged half:
//! it makes what a user namespace may not (device nodes, groups, identity maps) and passes it on by descriptor.
//!
//! Invariants:
//! - Everything on the host is found again by the sandbox' id alone: run directory, cgroups, and the agent through its
//!   socket. Nothing depends on this process' memory.
//! - Every wait has a deadline (`limits`); nothing blocks the runtime.
//! - An exit is reported until it is acknowledged, across daemons.

mod capabilities;
pub mod cgroup;
mod connection;
mod devices;
mod error;
mod limits;
mod sandbox;
mod sandboxes;
pub mod seccomp;
mod spec;
mod start;
mod streams;
mod watch;
mod zygote;

pub use capabilities::{Capabilities, UnknownCapability};
pub use cgroup::{GroupUsage, HugePages, Resources};
pub use error::{SandboxError, StartError};
pub use sampan_agent::zygote::serve as serve_zygote;
pub use sandbox::{ProcessSandbox, SandboxEvent, SandboxStats};
pub use sandboxes::{ProcessSandboxes, ReadySandbox, SandboxConfig};
pub use spec::{
    ContainerSpec, Device, ExecSpec, Groups, GroupsPolicy, IdMap, Limit, Mount, MountSource, Namespaces,
    ProcessNamespace, SandboxId, SandboxSpec, Seccomp, User, UserNamespace,
};
pub use start::{Attached, ExecProcess, ExecStatus, Started, Supplies};
pub use streams::{Input, Output, Terminal};
