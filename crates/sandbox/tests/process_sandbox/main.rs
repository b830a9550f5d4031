//! The process sandbox on a real kernel: real namespaces, real cgroups, busybox for a userland. See `program`.

mod host;
#[path = "../shared/program.rs"]
mod program;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let names: Vec<&str> = scenarios::all().iter().map(|(name, _)| *name).collect();
    program::main("the process sandbox", &names, async |filter| scenarios::run(filter.as_deref()).await)
}
