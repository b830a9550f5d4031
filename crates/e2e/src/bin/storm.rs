//! Kills the service again and again, under readers of arriving images or while pods come and go, and says whether anybody noticed;
//! or has one pod try to starve another. `cargo xtask storm` builds what it needs and runs it.
#![allow(clippy::print_stdout, reason = "the outcome is its result")]

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use sampan_e2e::neighbour;
use sampan_e2e::storm::runtime::{self, CrowdOptions, run_crowd};
use sampan_e2e::storm::{Options, run};

/// The longest that 99 of 100 readers may wait from a kill on.
const WAIT_99_MAX: Duration = Duration::from_secs(1);
/// The least that a neighbour keeps of its throughput.
const KEPT_MIN: f64 = 0.9;

/// Kills the daemon while eight readers compare every byte of images that are arriving, or as its command says.
#[derive(Parser)]
#[command(name = "cargo xtask storm", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    kind: Option<Kind>,
    #[command(flatten)]
    images: Images,
}

#[derive(Subcommand)]
enum Kind {
    /// Kills the daemon while clients of every interface make pods and take them away; nothing may be left.
    Runtime(Runtime),
    /// Kills the daemon with hundreds of containers running; nothing may be lost.
    Crowd(Crowd),
    /// Measures what a pod keeps of its throughput beside one that uses up what it can.
    Neighbour(Neighbour),
}

#[derive(Args)]
struct Images {
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

#[derive(Args)]
struct Runtime {
    /// What chance begins with; a failure says it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills that break a request which changes something.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Pods that are there from the beginning to the end.
    #[arg(long, default_value_t = 12)]
    witnesses: usize,
    /// Clients of each of the two interfaces, besides one of the command line.
    #[arg(long, default_value_t = 3)]
    clients: usize,
}

#[derive(Args)]
struct Crowd {
    /// Pods with a container each.
    #[arg(long, default_value_t = 300)]
    pods: usize,
    /// Kills whose times are told, before the one over which a third of the containers end.
    #[arg(long, default_value_t = 5)]
    kills: usize,
}

#[derive(Args)]
struct Neighbour {
    /// Turns alone and beside the attacker, for each technique.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only techniques whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let Arguments { kind, images } = Arguments::parse();
    match kind {
        None => {
            let Images { seed, kills, doubles, supervisor_kills } = images;
            let outcome = run(Options { seed, kills, doubles, supervisor_kills })?;
            println!("seed {seed}: {outcome}");
            ensure!(outcome.wait_99() <= WAIT_99_MAX, "readers wait longer than {WAIT_99_MAX:?}");
        }
        Some(Kind::Runtime(Runtime { seed, kills, witnesses, clients })) => {
            let outcome = runtime::run(runtime::Options { seed, kills, witnesses, clients })?;
            println!("seed {seed}: {outcome}; nothing is left behind");
        }
        Some(Kind::Crowd(Crowd { pods, kills })) => {
            let outcome = run_crowd(CrowdOptions { pods, kills })?;
            println!("{outcome}; nothing is left behind");
        }
        Some(Kind::Neighbour(Neighbour { rounds, only })) => {
            let kept = neighbour::run(rounds, only.as_deref())?;
            print!("{kept}");
            ensure!(kept.least() >= KEPT_MIN, "a neighbour keeps less than {KEPT_MIN} of its throughput");
        }
    }
    Ok(())
}
