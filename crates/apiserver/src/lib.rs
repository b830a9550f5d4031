//! The Kubernetes API, driven by its published schemas.

mod admission;
pub mod body;
mod error;
mod link;

pub use admission::{Admission, AdmissionRequest, AdmitAll, Operation};
pub use body::Body;
pub use error::{ApiError, Fault};
pub use link::{AttachOptions, ExecOptions, LogOptions, LogStream, NodeLink, NodeLinkError, PodRef};
pub use sampan_store::{Change, Key, Object, Store, StoreError, Watch, WatchEvent};
pub use sampan_streaming::{RemoteExit, RemoteStreams, TerminalSize};
