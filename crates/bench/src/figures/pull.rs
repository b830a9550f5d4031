//! Pulling a large image that nobody knows anything of, until it could be run.

use std::time::Duration;

use anyhow::Result;

use super::{Opponent, turns};
use crate::bench::Bench;
use crate::command::time;
use crate::engines::Engine;
use crate::engines::podman::Podman;
use crate::report::{Figure, Unit};

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let erofs = bench.peers.erofs.then(|| bench.containerd2("erofs")).flatten();
    let podman = bench.peers.podman.as_ref().map(|program| Podman::new(program, bench.work()));
    let opponents = vec![
        Opponent::new("containerd2-overlayfs", bench.containerd2("overlayfs"), Some(0.4)),
        Opponent::new("containerd2-erofs", erofs, Some(0.7)),
        Opponent::new("containerd-debian", bench.containerd1(), Some(1.0)),
        Opponent::new("podman", podman, Some(1.0)),
    ];
    let of = |engine: &mut dyn Engine| pull_once(bench, engine);
    compare(bench, "pull", opponents, of)
}

/// One measured pull between a fresh start and a thorough end.
fn pull_once(bench: &Bench, engine: &mut dyn Engine) -> Result<Duration> {
    engine.start()?;
    bench.cool(engine)?;
    let taken = time(&mut engine.pull(&bench.reference))?;
    engine.stop()?;
    Ok(taken)
}

/// Compares us with all opponents who are here, one slow measurement a turn.
pub(super) fn compare(
    bench: &Bench,
    what: &str,
    mut opponents: Vec<Opponent<'_>>,
    once: impl Fn(&mut dyn Engine) -> Result<Duration>,
) -> Result<Vec<Figure>> {
    let mut ours = bench.sampan();
    let mut sides: Vec<&mut dyn Engine> = vec![&mut ours];
    sides.extend(opponents.iter_mut().filter_map(|opponent| opponent.engine.as_deref_mut()).map(|engine| engine as _));
    let names: Vec<String> = sides.iter().map(|side| side.name().to_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut series = turns::take(bench.runs, &names, |side| once(sides[side]))?.into_iter();
    let our_times = series.next().unwrap_or_default();
    let figures = opponents.iter().map(|opponent| {
        let times = opponent.engine.as_ref().and_then(|_engine| series.next()).unwrap_or_default();
        Figure::compare(what, Unit::Seconds, &our_times, (opponent.name, &times), opponent.bound)
    });
    Ok(figures.map(|figure| Figure { name: format!("{}/{}", figure.name, figure.peer_name), ..figure }).collect())
}
