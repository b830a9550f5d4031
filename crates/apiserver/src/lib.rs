//! The Kubernetes API, driven by its published schemas.
//!
//! What is served, and how, is data: `data/resources.json` names the kinds with their columns, the published OpenAPI
//! specification gives types and merge strategies, `data/rules.json` the defaults and ranges that Kubernetes keeps in code.
//! A new kind is a new row; only what is peculiar to pods, namespaces and nodes is code.
//!
//! ```text
//! kubectl, CLI ─▶ server (socket, TLS) ─▶ http (routes, formats, watches, streams) ─┐
//!                                                                                   ├─▶ core: decode → default → validate
//! node, controllers ─▶ ApiHandle ───────────────────────────────────────────────────┘         → admit → commit ─▶ store
//!                                                       http::streams ─▶ NodeLink (logs, exec, attach, proxy)
//! ```
//!
//! Invariants:
//! - Clients and [`ApiHandle`] change objects in one way; nothing of theirs reaches the store that the schemas do not allow.
//!   (Node and scheduler write statuses and bindings straight into the store, by compare-and-swap, and answer for them.)
//! - Every admitted change is settled exactly once, also when its client hangs up.
//! - A client gets either what it asked for or a Kubernetes `Status` with a reason and one line; no panic, no HTML.
//! - Everything is bounded: bodies, nesting, connections, watches, streams, deadlines ([`limits`]). A slow watcher is told 410.
//! - Without a certificate or the token nobody gets more than a health check; the socket is root's.

mod admission;
pub mod body;
mod catalog;
mod columns;
mod core;
mod decode;
mod defaults;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzz;
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
pub use sampan_store::{Change, Key, Object, Store, StoreError, Watch, WatchEvent};
pub use sampan_streaming::{RemoteExit, RemoteStreams, TerminalSize};
pub use server::{ApiServer, Listening, Running, ServerConfig, StartError, TlsConfig};
