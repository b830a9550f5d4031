//! Remote command streams for exec and attach, as Kubernetes clients speak them.
//!
//! One side is [`RemoteStreams`]: what the node offers. The other is an HTTP connection that the client upgrades to
//! WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`) or to SPDY/3.1.

mod streams;

pub use streams::{RemoteExit, RemoteStreams, TerminalSize};
