//! A command in a running container, from the request to its exit code: by the command lines, and by the interface.

use std::time::Duration;

use anyhow::{Result, bail};

use super::node::Node;
use super::{Stage, tolerated};
use crate::command::{must, time};
use crate::engines::Engine;
use crate::engines::containerd::{Containerd, Generation};
use crate::engines::sampan::Sampan;
use crate::figures::turns;
use crate::report::{Figure, Unit};

/// How many commands there are for one round of what takes seconds.
const RUNS_FACTOR: u32 = 20;
const WARM_UP: u32 = 3;
const CONTAINER: &str = "long";
const SLEEP: [&str; 2] = ["sleep", "1000000"];

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let by_cli = by_command_line(stage)?;
    let (ours, peer) = (stage.ours()?, stage.peer()?);
    let mine = pod_of(&ours)?;
    let theirs = match &peer {
        Some(peer) => tolerated(peer.name(), pod_of(peer))?,
        None => None,
    };
    let once = |node: &Node<'_>, pod: &super::client::Pod| -> Result<Duration> {
        stage.runtime.block_on(node.client()?.exec(pod, &["true"]))
    };
    let take = |rounds| {
        turns::take(rounds, &["sampan", "containerd2"], |side| match (side, &peer, &theirs) {
            (0, ..) => once(&ours, &mine),
            (_, Some(peer), Some(pod)) => once(peer, pod),
            _ => bail!("it is missing"),
        })
    };
    take(WARM_UP)?;
    let series = take(stage.runs * RUNS_FACTOR)?;
    stage.finish(ours)?;
    peer.map(|peer| stage.finish(peer)).transpose()?;
    let times = |side: usize| series.get(side).map_or(&[][..], Vec::as_slice);
    let name = "exec/true, ExecSync";
    let by_interface = Figure::compare(name, Unit::Milliseconds, times(0), ("containerd2", times(1)), None);
    Ok(vec![by_cli, by_interface])
}

fn pod_of(node: &Node<'_>) -> Result<super::client::Pod> {
    let (pods, ..) = node.up_all(1, 1)?;
    pods.into_iter().next().ok_or_else(|| anyhow::anyhow!("there is no pod"))
}

fn by_command_line(stage: &Stage<'_>) -> Result<Figure> {
    let work = stage.work.path();
    let mut ours = Sampan::new(&stage.program, work, stage.registry.address());
    ours.start()?;
    must(&mut ours.pull(&stage.image))?;
    must(ours.client().args(["run", "--detach", "--name", CONTAINER, &stage.image]).args(SLEEP))?;
    let containerd = stage.peers.containerd2.as_ref().map(|programs| {
        let mut engine = Containerd::new(Generation::Two, programs, "overlayfs", work);
        engine.start()?;
        must(&mut engine.pull(&stage.image))?;
        must(engine.ctr().args(["run", "--detach", &stage.image, CONTAINER]).args(SLEEP))?;
        Ok(engine)
    });
    let containerd = containerd.map(|engine| tolerated("ctr", engine)).transpose()?.flatten();
    let mut count = 0;
    let mut once = |side: usize| {
        count += 1;
        match (side, &containerd) {
            (0, _) => time(ours.client().args(["exec", CONTAINER, "true"])),
            (_, Some(engine)) => {
                let id = format!("exec-{count}");
                time(engine.ctr().args(["tasks", "exec", "--exec-id", &id, CONTAINER, "true"]))
            }
            _ => bail!("it is missing"),
        }
    };
    let sides = ["sampan", "ctr"];
    turns::take(WARM_UP, &sides, &mut once)?;
    let series = turns::take(stage.runs * RUNS_FACTOR, &sides, &mut once)?;
    let times = |side: usize| series.get(side).map_or(&[][..], Vec::as_slice);
    let name = "exec/true, against ctr task exec";
    let figure = Figure::compare(name, Unit::Milliseconds, times(0), ("ctr", times(1)), Some(0.1));
    ours.stop()?;
    if let Some(engine) = &containerd {
        // runc remembers it where the next run would find it.
        must(engine.ctr().args(["tasks", "rm", "--force", CONTAINER]))?;
    }
    Ok(figure)
}
