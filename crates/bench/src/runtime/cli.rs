//! Create, start, exit and delete by the command line, with everything warm.

use std::time::Duration;

use anyhow::Result;

use super::{Stage, tolerated};
use crate::command::{must, time};
use crate::engines::Engine;
use crate::engines::containerd::{Containerd, Generation};
use crate::engines::runc::Runc;
use crate::engines::sampan::Sampan;
use crate::figures::turns;
use crate::report::{Figure, Unit};

/// Runs before the clock matters.
const WARM_UP: u32 = 5;
/// What a side still does after its turn, such as clearing up or getting the next sandbox ready, does not disturb the next.
const SETTLE: Duration = Duration::from_millis(50);
/// How many such runs there are for one of what takes seconds.
const RUNS_FACTOR: u32 = 20;

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let work = stage.work.path();
    let mut ours = Sampan::new(&stage.program, work, stage.registry.address());
    ours.start()?;
    must(&mut ours.pull(&stage.image))?;
    let runc = stage.peers.runc.as_ref().map(|program| Runc::new(program, work)).transpose()?;
    let containerd = stage.peers.containerd2.as_ref().map(|programs| {
        let mut engine = Containerd::new(Generation::Two, programs, "overlayfs", work);
        engine.start()?;
        must(&mut engine.pull(&stage.image))?;
        Ok(engine)
    });
    let containerd = containerd.map(|engine| tolerated("ctr", engine)).transpose()?.flatten();

    let mut count = 0;
    let mut once = |side: usize| {
        count += 1;
        let name = format!("cli-{count}");
        let own = |engine: &dyn Engine| engine.run(&stage.image, &name, &["true"]);
        let mut command = match (side, &runc, &containerd) {
            (1, Some(runc), _) => runc.run(&name),
            (2, _, Some(containerd)) => own(containerd),
            (0, ..) => own(&ours),
            _ => anyhow::bail!("it is missing"),
        };
        std::thread::sleep(SETTLE);
        time(&mut command)
    };
    let sides = ["sampan", "runc", "ctr"];
    turns::take(WARM_UP, &sides, &mut once)?;
    let series = turns::take(stage.runs * RUNS_FACTOR, &sides, &mut once)?;
    let times = |side: usize| series.get(side).map_or(&[][..], Vec::as_slice);
    let compare = |side: usize, name: &str, bound| {
        let name = format!("cli/run --rm … true, against {name}");
        Figure::compare(name, Unit::Milliseconds, times(0), (sides[side], times(side)), Some(bound))
    };
    let figures = vec![compare(1, "runc run", 0.3), compare(2, "ctr run", 0.08)];
    ours.stop()?;
    Ok(figures)
}
