//! Pods by the runtime on a real kernel: image, disk, network, sandbox and all, with busybox for an image.
//!
//! Has a `main` of its own, as the sandbox room's scenarios have and for the same reasons. Needs root, `busybox-static` and
//! `tar`, and says so loudly. An argument that is not an option selects scenarios by name.

mod host;
mod layout;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, path] = arguments.as_slice()
        && mode == host::ZYGOTE
    {
        return host::be_zygote(path.as_ref());
    }
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios::all().iter().for_each(|(name, _)| eprintln!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = host::missing() {
        eprintln!("\n    NOT TESTED: pods by the runtime. Missing: {missing}\n");
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
