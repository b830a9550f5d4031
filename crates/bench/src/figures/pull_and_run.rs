//! From nothing to Python having printed what numpy has computed.

use anyhow::Result;

use super::Opponent;
use super::pull::compare;
use crate::bench::Bench;
use crate::command::time_until_line;
use crate::engines::Engine;
use crate::report::Figure;

const WORDS: [&str; 3] = ["python3", "-c", "import numpy; print(numpy.dot([1, 2], [3, 4]))"];
/// What the words print.
const LINE: &str = "11";

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let erofs = bench.peers.erofs.then(|| bench.containerd2("erofs")).flatten();
    let opponents = vec![
        Opponent::new("containerd2-overlayfs", bench.containerd2("overlayfs"), Some(0.4)),
        Opponent::new("containerd2-erofs", erofs, None),
    ];
    compare(bench, "pull-and-run", opponents, |engine: &mut dyn Engine| {
        engine.start()?;
        bench.cool(engine)?;
        let mut commands = engine.pull_and_run(&bench.reference, "numpy", &WORDS);
        let taken = time_until_line(&mut commands, LINE)?;
        engine.stop()?;
        Ok(taken)
    })
}
