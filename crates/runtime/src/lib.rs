//! Pods and containers from images, sandboxes, networks and volumes.
//!
//! This room knows how to make one pod and its containers and how to take them away again, and nothing of Kubernetes
//! policy: restarts, probes and status live in `node`. Its state on the host is named by the sandbox's id and written
//! into the [`journal`] before it is made, so that a killed daemon finds everything again ([`Runtime::recover`]).

pub mod container;
pub mod host_check;
pub mod journal;
pub mod ledger;
pub mod limits;
pub mod pod;
pub mod remote;
pub mod timeline;
pub mod volume;

mod pool;
mod rootfs;
mod runtime;
mod trash;
mod workshop;
mod writable;

pub use runtime::{Recovered, Runtime, RuntimeConfig, RuntimeError};
pub use writable::DiskFigures;
