//! The Kubernetes API, driven by its published schemas.

mod admission;
pub mod body;
mod catalog;
mod columns;
mod core;
mod decode;
mod defaults;
mod error;
mod events;
mod handle;
mod housekeeping;
mod http;
pub mod limits;
mod link;
mod metrics;
mod names;
mod patch;
mod pod;
mod protobuf;
mod resources;
mod schema;
mod selector;
mod server;
mod validate;

pub use admission::{Admission, AdmissionRequest, AdmitAll, Operation};
pub use body::Body;
pub use catalog::CatalogError;
pub use core::{DeleteOptions, Preconditions};
pub use error::{ApiError, Fault};
pub use events::EventRecord;
pub use handle::ApiHandle;
pub use link::{AttachOptions, ExecOptions, LogOptions, LogStream, NodeLink, NodeLinkError, PodRef};
pub use patch::Patch;
pub use server::{ApiServer, Running, ServerConfig, StartError, TlsConfig};
pub use sampan_store::{Change, Key, Object, Store, StoreError, Watch, WatchEvent};
pub use sampan_streaming::{RemoteExit, RemoteStreams, TerminalSize};
