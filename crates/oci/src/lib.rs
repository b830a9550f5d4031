//! References, manifests, configurations and layer streams of OCI and Docker images; no I/O

pub mod config;
pub mod digest;
pub mod gzip;
pub mod inflate;
mod json;
pub mod layer;
pub mod limits;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod quote;
pub mod reference;
