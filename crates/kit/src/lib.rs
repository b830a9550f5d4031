//! What every room needs and no published crate gives just so.
//!
//! Kubernetes quantities, ids, back-off and error chains. Nothing here knows about pods, images or the kernel.

pub mod backoff;
pub mod error_chain;
pub mod id;
pub mod quantity;
