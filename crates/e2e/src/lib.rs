//! End-to-end tests against the real thing: real kernel, real registry, real images.
//!
//! The tests live in `tests/`; this library makes what they run on. The `fixtures` program makes the same for
//! `quickstart.sh` and for the benchmarks.

pub mod claims;
pub mod fixtures;
pub mod harness;
pub mod kubelet;
pub mod leaks;
pub mod link;
pub mod neighbour;
pub mod service;
pub mod storm;
