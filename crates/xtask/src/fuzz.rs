//! `cargo xtask fuzz-smoke`: the fuzz targets without libFuzzer and without a nightly compiler.
//!
//! Built as tests are, with overflow checks: arithmetic that goes wrong panics instead of going on.

use std::process::{Command, ExitCode};

use anyhow::Context;

/// Hands `arguments` to the program that runs the targets and takes its verdict over.
pub(crate) fn smoke(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    // Cargo names itself to what it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = ["run", "--quiet", "--package", "sampan-fuzz-targets", "--bin", "fuzz-smoke", "--"];
    let status = Command::new(&cargo).args(run).args(arguments).status().context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
