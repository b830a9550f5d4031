//! What a caller of the interface is told when something fails.
//!
//! The kubelet decides by codes: `NotFound` is no failure of a removal, `DeadlineExceeded` of a command is a failed probe,
//! everything else is tried again.

use sampan_image::ImageError;
use sampan_kit::error_chain::ErrorChain;
use sampan_registry::{FailureClass, FetchError};
use sampan_runtime::RuntimeError;
use sampan_sandbox::{SandboxError, StartError};
use tonic::{Code, Status};

use crate::table::TableError;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing has this id.
    #[error("{what} {id:?} does not exist; it may have been removed")]
    NotFound { what: &'static str, id: String },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not as things are now.
    #[error("{0}")]
    NotNow(String),
    /// It took longer than the caller or a limit allows.
    #[error("{0}")]
    Deadline(String),
    /// A limit of this service.
    #[error("{0}")]
    Exhausted(String),
    /// A name or configuration is taken by something else.
    #[error("{0}")]
    Taken(String),
    /// What this runtime does not do.
    #[error("{0}")]
    Unimplemented(&'static str),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{what} fails")]
    Host {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A part of this service broke.
    #[error("the call broke off inside the service; its log says why")]
    Broken,
}

impl CallError {
    pub(crate) fn pod(id: &str) -> Self {
        Self::NotFound { what: "pod sandbox", id: id.to_owned() }
    }

    pub(crate) fn container(id: &str) -> Self {
        Self::NotFound { what: "container", id: id.to_owned() }
    }

    pub(crate) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Sandbox(SandboxError::NotFound { .. } | SandboxError::NoSuchContainer { .. }) => Code::NotFound,
            Self::Invalid(_) | Self::Image(ImageError::Reference { .. }) => Code::InvalidArgument,
            Self::Runtime(RuntimeError::Container(_)) | Self::Sandbox(SandboxError::Invalid { .. }) => {
                Code::InvalidArgument
            }
            Self::NotNow(_) | Self::Image(ImageError::InUse { .. }) => Code::FailedPrecondition,
            Self::Deadline(_) | Self::Runtime(RuntimeError::Deadline { .. } | RuntimeError::ExecTimeout { .. }) => {
                Code::DeadlineExceeded
            }
            Self::Sandbox(SandboxError::Deadline { .. }) => Code::DeadlineExceeded,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Taken(_) => Code::AlreadyExists,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Image(ImageError::NotPresent { .. } | ImageError::Unknown { .. }) => Code::NotFound,
            Self::Image(ImageError::Fetch(error)) => fetch_code(error),
            _ => Code::Unknown,
        }
    }
}

fn fetch_code(error: &FetchError) -> Code {
    match error.class() {
        FailureClass::Transient => Code::Unavailable,
        FailureClass::Cancelled => Code::Cancelled,
        FailureClass::Permanent => Code::Unknown,
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Self::new(error.code(), ErrorChain(&error).to_string())
    }
}
