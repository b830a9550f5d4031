//! `run --rm IMAGE true` with the image here and everything warm: the price of an instance, from the command's start to
//! its end.

use anyhow::{Context, Result};

use super::{Opponent, turns};
use crate::bench::Bench;
use crate::command::must;
use crate::command::time;
use crate::engines::Engine;
use crate::engines::podman::Podman;
use crate::engines::runc::Runc;
use crate::peers::announce;
use crate::report::{Figure, Unit};

/// Runs before the clock matters.
const WARM_UP: u32 = 2;

/// Who can be asked for one more run.
enum Side {
    Engine(Box<dyn Engine>),
    Runc(Runc),
}

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let podman = bench.peers.podman.as_ref().map(|program| Podman::new(program, bench.work()));
    let opponents = vec![
        Opponent::new("containerd2-ctr", bench.containerd2("overlayfs"), Some(0.5)),
        Opponent::new("containerd-debian-ctr", bench.containerd1(), None),
        Opponent::new("podman", podman, None),
    ];
    let runc = bench.peers.runc.as_ref().map(|program| Runc::new(program, bench.work())).transpose()?;
    let mut names = vec!["sampan"];
    let mut sides = vec![Side::Engine(ready(bench, Box::new(bench.sampan())).context("prepare sampan")?)];
    let mut figures: Vec<(&str, Option<f64>, Option<usize>)> = Vec::new();
    for opponent in opponents {
        let engine = opponent.engine.and_then(|engine| match ready(bench, engine) {
            Ok(engine) => Some(engine),
            Err(error) => {
                drop(announce(&format!("PEER FAILS: {}: {error:#}", opponent.name)));
                None
            }
        });
        figures.push((opponent.name, opponent.bound, engine.is_some().then_some(sides.len())));
        names.extend(engine.is_some().then_some(opponent.name));
        sides.extend(engine.map(Side::Engine));
    }
    figures.push(("runc", None, runc.is_some().then_some(sides.len())));
    names.extend(runc.is_some().then_some("runc"));
    sides.extend(runc.map(Side::Runc));

    let mut count = 0;
    let mut once = |side: usize| {
        count += 1;
        let name = format!("warm-{count}");
        time(&mut match &sides[side] {
            Side::Engine(engine) => engine.run(&bench.reference, &name, &["true"]),
            Side::Runc(runc) => runc.run(&name),
        })
    };
    turns::take(WARM_UP, &names, &mut once)?;
    let series = turns::take(bench.quick_runs(), &names, &mut once)?;
    let times = |side: Option<usize>| side.and_then(|side| series.get(side)).map_or(&[][..], Vec::as_slice);
    let compare = |(name, bound, side): (&str, Option<f64>, Option<usize>)| {
        Figure::compare(format!("warm-run/{name}"), Unit::Milliseconds, times(Some(0)), (name, times(side)), bound)
    };
    Ok(figures.into_iter().map(compare).collect())
}

/// Started, and the image pulled.
fn ready<'a>(bench: &Bench, mut engine: Box<dyn Engine + 'a>) -> Result<Box<dyn Engine + 'a>> {
    engine.start()?;
    must(&mut engine.pull(&bench.reference))?;
    Ok(engine)
}
