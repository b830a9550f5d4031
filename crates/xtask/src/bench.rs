//! `cargo xtask bench`: builds what is measured and what measures, both in release, and starts it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// Becomes the benchmark with `arguments`; returns only when that cannot be.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    // Cargo names itself to what it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = ["--package", "sampan", "--package", "sampan-bench"];
    let built = Command::new(&cargo).args(["build", "--release"]).args(packages).status().context("start cargo")?;
    ensure!(built.success(), "what is to be measured does not build");
    let run = ["run", "--release", "--quiet", "--package", "sampan-bench", "--bin", "sampan-bench", "--"];
    // In our place, so that a signal reaches whoever has something to take away.
    Err(Command::new(&cargo).args(run).args(arguments).exec()).context("start cargo")
}
