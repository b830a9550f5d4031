//! Why incomplete blobs cannot be served.

use std::io;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FuseError {
    #[error("FUSE cannot be mounted")]
    Mount(#[source] io::Error),
    #[error("this kernel speaks another FUSE than we do")]
    Version,
    #[error("this kernel cannot ask for FUSE requests again; images start before they are complete from Linux 6.9 on")]
    NoResend,
    #[error("the supervisor cannot keep the FUSE connection")]
    Keep(#[source] io::Error),
    #[error("the kernel does not ask again for what an earlier service left unanswered")]
    Resend(#[source] io::Error),
    #[error("the folder of the images cannot be found")]
    Root(#[source] io::Error),
    #[error("a thread that serves incomplete images cannot be started")]
    Thread(#[source] io::Error),
    #[error("{number} is the number of no file")]
    Number { number: u64 },
    #[error("the incomplete layer {number:016x} cannot be opened over FUSE")]
    Open { number: u64, source: io::Error },
    #[error("cannot {action} loop device of an incomplete layer")]
    Device { action: &'static str, source: io::Error },
}

impl FuseError {
    /// A step with a loop device that failed: `action` with its article.
    pub(in crate::lazy) fn device(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Device { action, source }
    }
}
