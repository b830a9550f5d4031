//! The container runtime interface's messages and clients, made from its published file by `build.rs`.

/// `runtime.v1`.
#[allow(
    missing_docs,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    unreachable_pub,
    reason = "generated code is judged by its generator"
)]
pub(super) mod v1 {
    tonic::include_proto!("runtime.v1");
}
