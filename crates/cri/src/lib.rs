//! The Kubernetes Container Runtime Interface, v1.
//!
//! ```text
//! kubelet, crictl ── gRPC over a Unix socket ──▶ service ──▶ engine ──┬──▶ runtime (sandboxes, network, disks)
//!        └── SPDY or WebSocket on loopback ────▶ streams ──▶──┘       ├──▶ images
//!                                                                     └──▶ table (what survives a restart)
//! ```
//!
//! `service` knows messages, `translate` what they mean to the runtime (pure), `engine` what exists and what is being
//! done to it. The messages are made from the published interface ([`proto`]).
//!
//! Invariants:
//! - A call may be repeated at any time, during or after; a name is never taken by something that does not exist.
//! - Status, lists, figures, commands and logs never wait for a stop, a start or a pull.
//! - What a caller was told exists is found again after a restart of the daemon, running or ended.
//! - The pods of this interface and those of the API server do not see each other, though they share addresses and images.

mod engine;
mod error;
mod filter;
mod images;
pub mod limits;
pub mod proto;
mod records;
mod server;
mod service;
mod streams;
mod table;
mod tickets;
mod translate;

pub use server::{CgroupDriver, CriConfig, CriError, CriServer};
