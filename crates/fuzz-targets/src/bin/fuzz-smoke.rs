//! `cargo xtask fuzz-smoke` starts this program: see `sampan_fuzz_targets::smoke`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

const USAGE: &str = "usage: cargo xtask fuzz-smoke [--seconds N] [TARGET]";

fn main() -> anyhow::Result<ExitCode> {
    let (mut seconds, mut only) = (10, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => {
                let value = words.next().context(USAGE)?;
                seconds = value.parse().with_context(|| format!("--seconds {value} is no number of seconds"))?;
            }
            "--help" | "-h" => bail!(USAGE),
            target => only = Some(target.to_owned()),
        }
    }
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").canonicalize().context("fuzz/ is missing")?;
    sampan_fuzz_targets::smoke::run(&mut std::io::stdout().lock(), &fuzz, only.as_deref(), Duration::from_secs(seconds))
}
