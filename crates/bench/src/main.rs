//! Side-by-side benchmarks: Sampan and its peers, measured in one run on one machine, in turns.
//!
//! `cargo xtask bench` builds and starts this program. The map:
//! - [`engines`]: who is measured. Every engine lives in a folder of its own and is stopped and cleaned afterwards.
//! - [`peers`]: where the peers' programs come from, and what is missing.
//! - [`figures`]: what is measured, with the promised bounds; [`mod@report`]: medians, ratios, the table and the JSON.
//! - [`mod@bench`]: the image, the registry and the machine's caches, which all figures share.
//! - [`image`]: the suite of cold starts behind links, which has its own images, peers and bounds.
//! - [`mod@runtime`]: the suite of pods and containers, driven through the Container Runtime Interface.
//! - [`interrupt`]: how a run that is interrupted leaves nothing behind.
//!
//! Invariants: nothing is compared with a number of another run or machine; who comes first changes from round to round;
//! a peer that is missing is named, and what would have been promised against it does not hold.

mod bench;
mod command;
mod engines;
mod figures;
mod footprint;
mod image;
mod interrupt;
mod peers;
mod report;
mod runtime;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::bench::Bench;
use crate::report::{Figure, print_table, write_json};

/// Measures Sampan beside containerd, podman and runc, and says whether what SPECIFICATION.md promises holds.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    suite: Option<Suite>,
    /// Measure only the group of this name; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = group_names())]
    only: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// What every suite is asked.
#[derive(Debug, clap::Args)]
struct Common {
    /// Write one object per figure to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of the slow figures; quick ones get six times as many.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Where engines keep their data during the run; it should be on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
    /// The program to measure (default: the one built beside this).
    #[arg(long, value_name = "FILE")]
    sampan: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Suite {
    /// Cold starts of real images behind real links, beside the lazy loaders.
    Image {
        #[command(flatten)]
        selection: image::Selection,
        #[command(flatten)]
        common: Common,
    },
    /// Pods and containers: starting, ending, commands, memory, processor time, a killed daemon.
    Runtime {
        #[command(flatten)]
        selection: runtime::Selection,
        #[command(flatten)]
        common: Common,
    },
}

fn group_names() -> clap::builder::PossibleValuesParser {
    figures::GROUPS.map(|group| group.name).into()
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(rustix::process::geteuid().is_root(), "mounting and starting services needs root: run it as root");
    interrupt::watch()?;
    let outcome = match &arguments.suite {
        Some(Suite::Image { selection, common }) => sampan_program(common)
            .and_then(|sampan| image::run(selection, &common.work_dir, sampan, common.runs))
            .and_then(|(figures, missing)| report(&figures, &missing, common)),
        Some(Suite::Runtime { selection, common }) => sampan_program(common)
            .and_then(|sampan| runtime::run(selection, &common.work_dir, &sampan, common.runs))
            .and_then(|(figures, missing)| report(&figures, &missing, common)),
        None => measure_groups(&arguments).and_then(|(figures, missing)| report(&figures, &missing, &arguments.common)),
    };
    match outcome {
        // Everything has been taken away on the way here.
        Err(error) if interrupt::is_cause_of(&error) => Ok(ExitCode::from(interrupt::EXIT_CODE)),
        outcome => outcome,
    }
}

fn sampan_program(common: &Common) -> Result<PathBuf> {
    let sampan = match &common.sampan {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("sampan"),
    };
    ensure!(sampan.is_file(), "{} does not exist: cargo build --release -p sampan", sampan.display());
    Ok(sampan)
}

fn measure_groups(arguments: &Arguments) -> Result<(Vec<Figure>, Vec<String>)> {
    let common = &arguments.common;
    let sampan = sampan_program(common)?;
    let (peers, missing) = peers::find_or_install()?;
    say_missing(&missing)?;
    let bench = Bench::start(&common.work_dir, sampan, peers, common.runs)?;
    let chosen = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let mut figures: Vec<Figure> = Vec::new();
    for group in figures::GROUPS.iter().filter(|group| chosen(group.name)) {
        interrupt::check()?;
        peers::announce(&format!("measuring {}", group.name))?;
        let measured = (group.measure)(&bench).with_context(|| format!("measure {}", group.name))?;
        print_table(&mut std::io::stdout().lock(), &measured)?;
        figures.extend(measured);
    }
    Ok((figures, missing))
}

/// Prints and keeps what was measured. A promise that does not hold, or was not shown, makes the run a failure.
fn report(figures: &[Figure], missing: &[String], common: &Common) -> Result<ExitCode> {
    let promised: Vec<Figure> = figures.iter().filter(|figure| !figure.name.starts_with("median: ")).cloned().collect();
    print_table(&mut std::io::stdout().lock(), &promised)?;
    say_missing(missing)?;
    if let Some(path) = &common.json {
        write_json(path, figures)?;
    }
    let kept = promised.iter().all(|figure| figure.bound.is_none() || figure.holds == Some(true));
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say_missing(missing: &[String]) -> Result<()> {
    let mut out = std::io::stderr().lock();
    for line in missing {
        writeln!(out, "MISSING PEER: {line}")?;
    }
    Ok(())
}
