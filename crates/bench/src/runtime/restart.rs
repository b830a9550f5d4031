//! The daemon is killed under running containers: how long until all of them are listed again.

use std::time::Duration;

use anyhow::Result;

use super::node::Node;
use super::{Stage, tolerated};
use crate::interrupt;
use crate::report::{Figure, Unit};

const AT_ONCE: usize = 8;

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let count = stage.selection.killed_pods as usize;
    let mut ours = stage.ours()?;
    let mine = of(&mut ours, count, stage.runs)?;
    stage.finish(ours)?;
    let theirs = match stage.peer()? {
        Some(mut peer) => {
            let times = tolerated(peer.name(), of(&mut peer, count, stage.runs))?;
            stage.finish(peer)?;
            times.unwrap_or_default()
        }
        None => Vec::new(),
    };
    let name = format!("restart/kill -9 until {count} run again");
    Ok(vec![Figure::compare(name, Unit::Milliseconds, &mine, ("containerd2", &theirs), Some(0.1))])
}

fn of(node: &mut Node<'_>, count: usize, runs: u32) -> Result<Vec<Duration>> {
    let (pods, ..) = node.up_all(count, AT_ONCE)?;
    let mut times = Vec::new();
    for _ in 0..runs {
        interrupt::check()?;
        times.push(node.kill_and_wait(count)?);
    }
    node.down_all(pods, AT_ONCE)?;
    Ok(times)
}
