//! A stock kubelet above each side: from a static pod's manifest until its container is Ready by a probe that is tried every second.
//!
//! Kubelets would take each other's control groups away. One runs at a time: in every turn a side gets a kubelet of its own and some
//! pods, one after the other, of which the first does not count.
//!
//! A kubelet looks at its containers once a second, and most of what is measured is waiting for that. Pods are spread evenly over this
//! second: straight after one another each would come some time after the look that saw the end of the one before, the same every time.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sampan_e2e::kubelet::{Kubelet, static_pod};

use super::Stage;
use super::node::Node;
use crate::figures::turns;
use crate::footprint::remove_folder;
use crate::interrupt;
use crate::report::{Figure, Unit, median};

const PEER: &str = "containerd2";
const PODS_A_TURN: usize = 4;
/// Between two looks of a kubelet at its containers.
const LOOK: Duration = Duration::from_secs(1);
/// Multiples of the golden section fall evenly between whole numbers, however many there are.
const SPREAD: f64 = 0.618_033_988_75;
/// Serves the image's own `/etc`, where the page is.
const SCRIPT: &str = "exec httpd -f -p 8080 -h /etc";
const PAGE: &str = "/group";

pub(super) fn measure(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let mut series = [Vec::new(), Vec::new()];
    // Without a kubelet both stay empty, and nothing was shown.
    if let Some(program) = &stage.peers.kubelet {
        let [mine, theirs] = &mut series;
        let (ours, peer) = (stage.ours()?, stage.peer()?);
        let once = |node: &Node<'_>, times: &mut Vec<Duration>| turn(stage, program, node, times);
        turns::take(stage.runs, &["sampan", PEER], |side| match (side, &peer) {
            (0, _) => once(&ours, mine),
            (_, Some(peer)) => once(peer, theirs),
            _ => bail!("it is missing"),
        })?;
        stage.finish(ours)?;
        peer.map(|peer| stage.finish(peer)).transpose()?;
    }
    let [mine, theirs] = &series;
    let name = "kubelet/static pod, Ready by a one-second probe";
    Ok(vec![Figure::compare(name, Unit::Milliseconds, mine, (PEER, theirs), Some(1.0))])
}

/// Some pods by a new kubelet; the median of their times.
fn turn(stage: &Stage<'_>, program: &Path, node: &Node<'_>, times: &mut Vec<Duration>) -> Result<Duration> {
    let folder = stage.work.path().join("kubelet");
    let kubelet = Kubelet::start(program, &folder, &node.socket(), node.network()?)?;
    let measured = pods(stage, &kubelet, node, times.len()).with_context(|| kubelet.log());
    kubelet.stop()?;
    // A kubelet keeps what has ended for a while.
    let cleared = node.clear();
    remove_folder(&folder)?;
    let measured = measured?;
    cleared?;
    let middle = median(&measured).context("there was no pod")?;
    times.extend(measured);
    Ok(middle)
}

/// The times of some pods, after so many `before`.
fn pods(stage: &Stage<'_>, kubelet: &Kubelet, node: &Node<'_>, before: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..=PODS_A_TURN {
        interrupt::check()?;
        let name = format!("web{number}");
        let manifest = static_pod(&name, &stage.image, SCRIPT, PAGE);
        std::thread::sleep(LOOK.mul_f64(((before + number) as f64 * SPREAD).fract()));
        let begin = Instant::now();
        kubelet.add(&name, &manifest)?;
        kubelet.until_ready(&name, 0)?;
        times.push(begin.elapsed());
        kubelet.remove(&name)?;
        kubelet.until("the pod is gone", || Ok(node.running()? == (0, 0)))?;
    }
    times.remove(0);
    Ok(times)
}
