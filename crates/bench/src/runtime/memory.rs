//! Memory of an idle pod with one container: what the machine has less, and how much of that are our own processes.

use std::time::Duration;

use anyhow::Result;

use super::node::Node;
use super::{Stage, meter, tolerated};
use crate::report::Figure;

const AT_ONCE: usize = 8;
/// What pods do when they have just started is over, and pools are full again.
const SETTLE: Duration = Duration::from_secs(3);

/// Of one pod, in MiB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    all: f64,
    /// Proportional set size of the side's own processes, without what runs in containers.
    own: f64,
}

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let count = stage.selection.idle_pods as usize;
    let ours = stage.ours()?;
    let mine = of(&ours, count)?;
    stage.finish(ours)?;
    let theirs = match stage.peer()? {
        Some(peer) => {
            let memory = tolerated(peer.name(), of(&peer, count))?;
            stage.finish(peer)?;
            memory
        }
        None => None,
    };
    let peer = |value: fn(Memory) -> f64| ("containerd2", theirs.map(value));
    let mut own = Figure::at_most("memory/own processes of it", "MiB", (mine.own, count), Some(0.1));
    own.peer = theirs.map(|memory| memory.own);
    let rest = |memory: Memory| memory.all - memory.own;
    Ok(vec![
        Figure::quantities(
            format!("memory/an idle pod of {count}"),
            "MiB",
            (mine.all, count),
            peer(|memory| memory.all),
            Some(0.2),
        ),
        own,
        Figure::quantities(
            "memory/kernel and container of it",
            "MiB",
            (rest(mine), count),
            peer(|memory| memory.all - memory.own),
            None,
        ),
    ])
}

fn of(node: &Node<'_>, count: usize) -> Result<Memory> {
    // What the service grows by once belongs to no pod.
    let (first, ..) = node.up_all(AT_ONCE, AT_ONCE)?;
    std::thread::sleep(SETTLE);
    let (available, own) = (meter::available_kib()?, meter::pss_kib(&node.processes()?));
    let (pods, ..) = node.up_all(count, AT_ONCE)?;
    std::thread::sleep(SETTLE);
    let all = available - meter::available_kib()?;
    let own = meter::pss_kib(&node.processes()?) - own;
    node.down_all(pods.into_iter().chain(first).collect(), AT_ONCE)?;
    let each = |kib: f64| kib / 1024.0 / count as f64;
    // Pods give no memory back: then somebody else has, and nothing was measured.
    Ok(Memory { all: if all > 0.0 { each(all) } else { f64::NAN }, own: each(own) })
}
