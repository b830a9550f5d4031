//! The client against servers: one that does what it is told, however bad, and Debian's docker-registry.
//!
//! Everything is on loopback; pauses of the client are set to a millisecond.

mod auth;
mod blobs;
mod docker_registry;
mod errors;
mod layout;
mod proxy;
mod server;
