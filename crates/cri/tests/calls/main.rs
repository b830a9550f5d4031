//! The interface as its clients use it: a real server on a Unix socket, real sandboxes, a client made from the same file. See
//! `program`; needs `tar` besides.

mod client;
#[path = "../../../runtime/tests/shared/layout.rs"]
mod layout;
mod node;
#[path = "../../../sandbox/tests/shared/program.rs"]
mod program;
mod scenarios;
mod spdy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let names: Vec<&str> = scenarios::all().iter().map(|(name, _)| *name).collect();
    program::main("the container runtime interface", &names, async |filter| scenarios::run(filter.as_deref()).await)
}
