//! A slim kubelet: follows the pods bound to this node and makes them so.
//!
//! One worker task per pod owns everything about it (`worker`); what to do next is decided by a pure state machine
//! ([`lifecycle`]). The API server reaches running pods through [`Node`], which implements its `NodeLink`.

pub mod environment;
pub mod events;
pub mod lifecycle;
pub mod limits;
pub mod probe;
pub mod projection;
pub mod spec;
pub mod status;

mod check;
mod endpoints;
mod link;
mod logs;
mod machine;
mod node;
mod worker;

pub use node::{Node, NodeConfig, NodeError};
