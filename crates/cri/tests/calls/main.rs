//! The interface as its clients use it: a real server on a Unix socket, real sandboxes, a client made from the same file.
//!
//! Has a `main` of its own, because the program is its own zygote, which must have one thread. Needs root, `busybox-static` and
//! `tar`, and says so loudly. An argument that is not an option selects scenarios by name.

mod client;
mod layout;
mod node;
mod scenarios;
mod spdy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, path] = arguments.as_slice()
        && mode == node::ZYGOTE
    {
        return node::be_zygote(path.as_ref());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios::all().iter().for_each(|(name, _)| eprintln!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = node::missing() {
        eprintln!("\n    NOT TESTED: the container runtime interface. Missing: {missing}\n");
        return if std::env::var_os("SAMPAN_TESTS_MAY_SKIP").is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let filter = arguments.into_iter().find(|argument| !argument.starts_with('-'));
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(scenarios::run(filter.as_deref())),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
