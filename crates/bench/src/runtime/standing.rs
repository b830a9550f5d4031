//! What running pods cost while nothing happens to them: when their figures are asked for, and when nobody asks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::node::Node;
use super::{Stage, meter, tolerated};
use crate::report::Figure;

const AT_ONCE: usize = 8;
/// What pods do when they have just started is over, and pools are full again.
const SETTLE: Duration = Duration::from_secs(5);
/// How long nobody asks for anything.
const IDLE: Duration = Duration::from_secs(20);
/// Calls, so far apart that no answer is a kept one.
const CALLS: u32 = 20;
const APART: Duration = Duration::from_millis(700);

/// Of one side.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Milliseconds of processor time a call.
    containers: f64,
    pods: f64,
    /// Hundredths of a core.
    idle: f64,
}

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let count = stage.selection.standing_pods as usize;
    let ours = stage.ours()?;
    let mine = of(stage, &ours, count)?;
    stage.finish(ours)?;
    let theirs = match stage.peer()? {
        Some(peer) => {
            let cost = tolerated(peer.name(), of(stage, &peer, count))?;
            stage.finish(peer)?;
            cost
        }
        None => None,
    };
    let calls = CALLS as usize;
    let compare = |call: &str, value: fn(Cost) -> f64| {
        let name = format!("standing/{call} of {count}, CPU a call");
        Figure::quantities(name, "ms", (value(mine), calls), ("containerd2", theirs.map(value)), Some(0.05))
    };
    let name = format!("standing/nobody asks, {count} pods, CPU");
    let mut idle = Figure::at_most(name, "%", (mine.idle, 1), Some(0.5));
    idle.peer = theirs.map(|cost| cost.idle);
    Ok(vec![
        compare("ListContainerStats", |cost| cost.containers),
        compare("ListPodSandboxStats", |cost| cost.pods),
        idle,
    ])
}

fn of(stage: &Stage<'_>, node: &Node<'_>, count: usize) -> Result<Cost> {
    let (pods, ..) = node.up_all(count, AT_ONCE)?;
    std::thread::sleep(SETTLE);
    let processes = node.processes()?;
    let begin = Instant::now();
    let before = meter::cpu(&processes);
    std::thread::sleep(IDLE);
    let idle = used_since(&processes, before)?.div_duration_f64(begin.elapsed());
    let client = node.client()?;
    let a_call = |ask: &dyn Fn() -> Result<usize>| -> Result<f64> {
        let before = meter::cpu(&processes);
        let begin = Instant::now();
        for _ in 0..CALLS {
            let found = ask()?;
            ensure!(found == count, "figures of {found} instead of {count}");
            std::thread::sleep(APART);
        }
        // What it would have used anyway.
        let idle = begin.elapsed().mul_f64(idle);
        let used = used_since(&processes, before)?.saturating_sub(idle);
        Ok(used.as_secs_f64() * 1e3 / f64::from(CALLS))
    };
    let containers = a_call(&|| stage.runtime.block_on(client.container_stats()))?;
    let of_pods = a_call(&|| stage.runtime.block_on(client.pod_stats()))?;
    node.down_all(pods, AT_ONCE)?;
    Ok(Cost { containers, pods: of_pods, idle: idle * 100.0 })
}

/// What these have used since they had used so much; of one that has ended nobody knows any more.
fn used_since(processes: &[u32], before: Duration) -> Result<Duration> {
    meter::cpu(processes).checked_sub(before).context("one of the side's processes has ended meanwhile")
}
