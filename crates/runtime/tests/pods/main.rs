//! Pods by the runtime on a real kernel: image, disk, network, sandbox and all, with busybox for an image. See `program`; needs
//! `tar` besides.

mod host;
#[path = "../shared/layout.rs"]
mod layout;
#[path = "../../../sandbox/tests/shared/program.rs"]
mod program;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let names: Vec<&str> = scenarios::all().iter().map(|(name, _)| *name).collect();
    program::main("pods by the runtime", &names, async |filter| scenarios::run(filter.as_deref()).await)
}
