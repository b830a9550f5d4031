//! Remote command streams for exec and attach, and forwarded ports, as Kubernetes clients speak them.
//!
//! One side is [`RemoteStreams`]: what the node offers. The other is an HTTP connection that the client upgrades to
//! WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`) or to SPDY/3.1. [`Handshake`] agrees on one and serves it. For
//! ports, [`ForwardHandshake`] does the same between a client and a [`PortConnector`].
//!
//! Invariants: a client that goes away ends the session and drops the node's streams; the final status is sent after the
//! last byte of output; no message from a client makes this panic or allocate more than its own bounded size.

mod forward;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
pub mod limits;
mod session;
mod spdy;
mod streams;
mod websocket;

pub use forward::{ByteStream, ForwardHandshake, PortConnector};
pub use handshake::{Handshake, HandshakeError, wants_upgrade};
pub use streams::{RemoteExit, RemoteStreams, TerminalSize};
