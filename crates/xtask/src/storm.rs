//! `cargo xtask storm`: builds the service and the storm, and starts it. Without other words as release, as it is shipped.

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// Hands `arguments` to the storm and takes its verdict over; `--debug`, as the first of them, takes the debug build.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let (profile, arguments) = match arguments {
        ["--debug", arguments @ ..] => ("dev", arguments),
        arguments => ("release", arguments),
    };
    // Cargo names itself to what it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--profile", profile, "--package", "sampan"];
    let built = Command::new(&cargo).args(build).status().context("start cargo")?;
    ensure!(built.success(), "what is to be stormed does not build");
    // It looks for the service's program beside its own folder.
    let run = ["run", "--profile", profile, "--quiet", "--package", "sampan-e2e", "--bin", "storm", "--"];
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let folder = if profile == "dev" { "debug" } else { "release" };
    let program = std::path::Path::new(&target).join(folder).join("sampan");
    let status =
        Command::new(&cargo).args(run).args(arguments).env("SAMPAN_BIN", program).status().context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
