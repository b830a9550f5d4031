//! Kills the service again and again while images arrive, and says whether any reader noticed; `cargo xtask storm` builds what
//! it needs and runs it.
#![allow(clippy::print_stdout, reason = "the outcome is its result")]

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use sampan_e2e::storm::{Options, run};

/// The longest that 99 of 100 readers may wait from a kill on.
const WAIT_99_MAX: Duration = Duration::from_secs(1);

/// Kills the daemon while eight readers compare every byte of images that are arriving.
#[derive(Parser)]
#[command(name = "cargo xtask storm")]
struct Arguments {
    /// What chance begins with; a failure says it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills with a request in the daemon's hands; half of them hit completion.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Second kills within a second.
    #[arg(long, default_value_t = 20)]
    doubles: usize,
    /// Kills of the supervisor while an image is incomplete.
    #[arg(long, default_value_t = 10)]
    supervisor_kills: usize,
}

fn main() -> Result<()> {
    let Arguments { seed, kills, doubles, supervisor_kills } = Arguments::parse();
    let outcome = run(Options { seed, kills, doubles, supervisor_kills })?;
    println!("seed {seed}: {outcome}");
    ensure!(outcome.wait_99() <= WAIT_99_MAX, "readers wait longer than {WAIT_99_MAX:?}");
    Ok(())
}
