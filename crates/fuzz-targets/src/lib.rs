//! What is fuzzed: one function for each parser of foreign bytes.
//!
//! A target takes any bytes, feeds them to a parser, checks what must hold of whatever the parser accepted, and says
//! whether it accepted them. A panic is a finding; so is a target that takes long or much memory. The programs of the
//! `fuzz/` folder give these functions to libFuzzer; `cargo xtask fuzz-smoke` runs them without it ([`smoke`]).
//!
//! Invariant: a target is a pure function of its bytes, so that an input that fails once fails always.

mod archives;
mod documents;
mod images;
pub mod mutation;
mod published;
pub mod seeds;
mod service;
pub mod smoke;
mod streams;

pub use archives::docker_archive;
pub use documents::{auth_file, cni, image_config, manifest, placement, quantity, reference, resolv_conf};
pub use images::{erofs_image, layer_index, layer_tar};
pub use published::{layer_toc, publication, start_pack, start_trace};
pub use service::{agent_files, api_body, api_patch, api_selector, remote_stream, seccomp_profile};
pub use streams::{fuse_request, gzip, handshake, inflate_span, wire_frames};

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As the function, the program in `fuzz/fuzz_targets` and the folder in `fuzz/corpus` are called.
    pub name: &'static str,
    /// True when the parser accepted the bytes.
    pub run: fn(&[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [Target; 27] = [
    Target { name: "agent_files", run: agent_files },
    Target { name: "api_body", run: api_body },
    Target { name: "api_patch", run: api_patch },
    Target { name: "api_selector", run: api_selector },
    Target { name: "auth_file", run: auth_file },
    Target { name: "cni", run: cni },
    Target { name: "docker_archive", run: docker_archive },
    Target { name: "erofs_image", run: erofs_image },
    Target { name: "fuse_request", run: fuse_request },
    Target { name: "gzip", run: gzip },
    Target { name: "handshake", run: handshake },
    Target { name: "image_config", run: image_config },
    Target { name: "inflate_span", run: inflate_span },
    Target { name: "layer_index", run: layer_index },
    Target { name: "layer_tar", run: layer_tar },
    Target { name: "layer_toc", run: layer_toc },
    Target { name: "manifest", run: manifest },
    Target { name: "placement", run: placement },
    Target { name: "publication", run: publication },
    Target { name: "quantity", run: quantity },
    Target { name: "reference", run: reference },
    Target { name: "remote_stream", run: remote_stream },
    Target { name: "resolv_conf", run: resolv_conf },
    Target { name: "seccomp_profile", run: seccomp_profile },
    Target { name: "start_pack", run: start_pack },
    Target { name: "start_trace", run: start_trace },
    Target { name: "wire_frames", run: wire_frames },
];
