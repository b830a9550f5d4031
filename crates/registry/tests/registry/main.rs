//! The client against servers: one that does what it is told, however bad, and Debian's docker-registry.
//!
//! Everything is on loopback; pauses of the client are set to a millisecond.

#![allow(clippy::unwrap_used, reason = "in a test nobody else can handle a failure")]

mod archive;
mod auth;
mod blobs;
mod docker_registry;
mod errors;
mod layout;
mod proxy;
mod push;
mod server;
