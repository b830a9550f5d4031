//! Compiles the container runtime interface's `api.proto` into messages and clients: what the tests speak is made from the published
//! file, not from the code under test.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../cri/proto/api.proto");
    let descriptors = protox::compile(["api.proto"], ["../cri/proto"])?;
    tonic_prost_build::configure().build_client(true).build_server(false).compile_fds(descriptors)?;
    Ok(())
}
