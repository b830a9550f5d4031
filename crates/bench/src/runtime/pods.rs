//! Pods with a network and one container: one at a time, fifty at once, and until very many run.

use std::time::Duration;

use anyhow::Result;

use super::Stage;
use super::meter::available_kib;
use super::node::Node;
use crate::figures::turns;
use crate::peers::announce;
use crate::report::{Figure, Unit, quantile};

/// How many single pods there are for one round of what takes seconds.
const SINGLE_FACTOR: u32 = 12;
const AT_ONCE: usize = 50;
/// Pods of one round of those that are made at once.
const PODS_A_ROUND: usize = 100;
/// What a pod with a container is allowed to take when memory decides how many there can be.
const KIB_A_POD: f64 = 8192.0;

const PEER: &str = "containerd2";

/// What was measured of one side.
#[derive(Debug, Default)]
struct Series {
    up: Vec<Duration>,
    down: Vec<Duration>,
    /// For each round, the time of all pods over their number.
    each: Vec<Duration>,
}

pub(super) fn one(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let (ours, peer) = (stage.ours()?, stage.peer()?);
    let mut series = [Series::default(), Series::default()];
    let once = |node: &Node<'_>, series: &mut Series| -> Result<Duration> {
        let (pods, up, each) = node.up_all(1, 1)?;
        series.up.extend(up);
        series.down.extend(node.down_all(pods, 1)?.0);
        Ok(each)
    };
    let [mine, theirs] = &mut series;
    turns::take(stage.runs * SINGLE_FACTOR, &["sampan", PEER], |side| match (side, &peer) {
        (0, _) => once(&ours, mine),
        (_, Some(peer)) => once(peer, theirs),
        _ => anyhow::bail!("it is missing"),
    })?;
    stage.finish(ours)?;
    peer.map(|peer| stage.finish(peer)).transpose()?;
    let [mine, theirs] = &series;
    Ok(latencies("one", mine, theirs))
}

pub(super) fn fifty(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let (ours, peer) = (stage.ours()?, stage.peer()?);
    let mut series = [Series::default(), Series::default()];
    let [mine, theirs] = &mut series;
    turns::take(stage.runs, &["sampan", PEER], |side| match (side, &peer) {
        (0, _) => round(&ours, PODS_A_ROUND, mine),
        (_, Some(peer)) => round(peer, PODS_A_ROUND, theirs),
        _ => anyhow::bail!("it is missing"),
    })?;
    stage.finish(ours)?;
    peer.map(|peer| stage.finish(peer)).transpose()?;
    let [mine, theirs] = &series;
    let mut figures = latencies("fifty", mine, theirs);
    let name = "fifty/one of all, up (12 times as many a second)";
    figures.push(Figure::compare(name, Unit::Milliseconds, &mine.each, (PEER, &theirs.each), Some(1.0 / 12.0)));
    Ok(figures)
}

/// So many pods up and down, many at once; the time of all that were made over their number.
fn round(node: &Node<'_>, count: usize, series: &mut Series) -> Result<Duration> {
    let (pods, up, whole) = node.up_all(count, AT_ONCE)?;
    series.up.extend(up);
    series.down.extend(node.down_all(pods, AT_ONCE)?.0);
    let each = whole.div_f64(count as f64);
    series.each.push(each);
    Ok(each)
}

fn latencies(group: &str, ours: &Series, peer: &Series) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (what, mine, theirs) in [("up", &ours.up, &peer.up), ("down", &ours.down, &peer.down)] {
        let name = format!("{group}/{what}, p50");
        figures.push(Figure::compare(name, Unit::Milliseconds, mine, (PEER, theirs), Some(0.1)));
        let spread =
            |times: &[Duration]| Some(quantile(times, 0.99)?.as_secs_f64() / quantile(times, 0.5)?.as_secs_f64());
        let name = format!("{group}/{what}, p99 over p50");
        let mut figure = Figure::at_most(name, "×", (spread(mine).unwrap_or(f64::NAN), mine.len()), Some(3.0));
        figure.peer = spread(theirs);
        figures.push(figure);
    }
    figures
}

pub(super) fn sustained(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let ours = stage.ours()?;
    let room = (available_kib()? / KIB_A_POD) as usize;
    let wanted = stage.selection.pods as usize;
    let count = wanted.min(room);
    if count < wanted {
        announce(&format!("memory is enough for {count} pods, not {wanted}"))?;
    }
    let mut series = Series::default();
    let each = round(&ours, count, &mut series)?;
    stage.finish(ours)?;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let spread = |times: &[Duration], part| quantile(times, part).map_or(f64::NAN, milliseconds);
    let name = format!("sustained/one of {count}, up (100 a second)");
    Ok(vec![
        Figure::at_most(name, "ms", (milliseconds(each), count), Some(10.0)),
        Figure::at_most("sustained/up, p50", "ms", (spread(&series.up, 0.5), count), None),
        Figure::at_most("sustained/up, p99", "ms", (spread(&series.up, 0.99), count), None),
        Figure::at_most("sustained/down, p50", "ms", (spread(&series.down, 0.5), count), None),
    ])
}
