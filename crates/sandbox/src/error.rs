//! What goes wrong with sandboxes.

use std::io;

use sampan_agent::link::LinkError;
use sampan_wire::agent::Refusal;

/// Why a sandbox could not be made, found, asked or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{what} fails")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the zygote at {path} cannot be reached: the service's own zygote process has to run")]
    ZygoteUnreachable {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the zygote cannot make a sandbox: {stage}")]
    Zygote {
        stage: String,
        #[source]
        source: io::Error,
    },
    #[error("the sandbox's agent is gone")]
    AgentGone,
    #[error("the sandbox's agent breaks the protocol")]
    Protocol(#[from] LinkError),
    #[error("the sandbox's agent gives an answer of the wrong kind")]
    UnexpectedAnswer,
    #[error("the sandbox's agent does not answer within {seconds} s")]
    Deadline { seconds: u64 },
    #[error("sandbox {id} does not exist")]
    NotFound { id: String },
    #[error("sandbox {id} was never finished and cannot be adopted")]
    Unfinished { id: String },
    #[error("container {container} does not run")]
    NoSuchContainer { container: String },
    #[error("no such file or directory in the container: {path}")]
    NoSuchPath { path: String },
    #[error("the specification is not valid: {why}")]
    Invalid { why: String },
    #[error("the sandbox refuses: {why}")]
    Refused { why: String },
    #[error("{stage} fails in the sandbox")]
    Agent {
        stage: String,
        #[source]
        source: io::Error,
    },
    #[error("this machine offers no usable cgroup hierarchy: mount cgroup v2, or v1 with cpu, memory and pids")]
    NoCgroups,
}

/// Why a program does not start. The first four are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("command not found: {command}")]
    CommandNotFound { command: String },
    #[error("permission denied: {command} may not be executed")]
    PermissionDenied { command: String },
    #[error("the working directory {directory} cannot be entered")]
    BadWorkingDir { directory: String },
    #[error("unknown user {user}: it is not in the image's /etc/passwd or /etc/group")]
    UnknownUser { user: String },
    #[error("{stage} fails")]
    Other {
        stage: String,
        #[source]
        source: io::Error,
    },
    #[error("the sandbox fails")]
    Sandbox(#[from] SandboxError),
}

impl StartError {
    /// The exit code that stands for this failure, as shells and docker have it.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::PermissionDenied { .. } => 126,
            Self::BadWorkingDir { .. } | Self::UnknownUser { .. } | Self::Other { .. } | Self::Sandbox(_) => 128,
        }
    }
}

impl SandboxError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<Refusal> for SandboxError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchContainer { container } => Self::NoSuchContainer { container },
            Refusal::NoSuchPath { path } => Self::NoSuchPath { path },
            Refusal::NameTaken { container } => {
                Self::Refused { why: format!("a container named {container} runs already") }
            }
            Refusal::NotNow { why } => Self::Refused { why },
            Refusal::Failed { stage, errno } => Self::Agent { stage, source: io::Error::from_raw_os_error(errno) },
            Refusal::CommandNotFound { command } => Self::Refused { why: format!("command not found: {command}") },
            Refusal::PermissionDenied { command } => Self::Refused { why: format!("permission denied: {command}") },
            Refusal::BadWorkingDirectory { directory } => {
                Self::Refused { why: format!("the working directory {directory} cannot be entered") }
            }
            Refusal::UnknownUser { user } => Self::Refused { why: format!("unknown user {user}") },
        }
    }
}

impl From<Refusal> for StartError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::CommandNotFound { command } => Self::CommandNotFound { command },
            Refusal::PermissionDenied { command } => Self::PermissionDenied { command },
            Refusal::BadWorkingDirectory { directory } => Self::BadWorkingDir { directory },
            Refusal::UnknownUser { user } => Self::UnknownUser { user },
            Refusal::Failed { stage, errno } => Self::Other { stage, source: io::Error::from_raw_os_error(errno) },
            other => Self::Sandbox(other.into()),
        }
    }
}
