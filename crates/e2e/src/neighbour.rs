//! What a pod keeps of its throughput while the pod beside it uses up whatever it can: processor, processes, memory, disk, inodes,
//! descriptors.
//!
//! The neighbour does the same piece of work again and again for a while: it starts processes, reads and writes its disk. Alone and
//! beside the attacker take turns; the figure is the median of the ratios of neighbouring turns. A machine that does
//! something else meanwhile measures that.

use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::leaks::{self, Traces};
use crate::service::Service;

/// How long each turn works, in seconds.
const TURN_SECONDS: u32 = 4;
/// How each attacker is bounded, as its user would.
const LIMITS: [&str; 6] = ["--cpu", "1", "--memory", "128Mi", "--disk", "128Mi"];

/// What attackers do, for ever: names and scripts.
const TECHNIQUES: [(&str, &str); 6] = [
    ("processor", "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait"),
    ("fork bomb", "bomb() { sleep 1000 & while :; do (bomb) & done; }; bomb 2>/dev/null"),
    ("memory", "while :; do tail /dev/zero >/dev/null 2>&1; done"),
    ("disk", "while :; do dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null; rm /big; done"),
    (
        "inodes",
        "mkdir /f; cd /f; while :; do seq 1 100000 | xargs -n 500 touch 2>/dev/null; cd /; rm -rf /f; mkdir /f; cd /f; done",
    ),
    ("descriptors", "while :; do for i in $(seq 3 1000); do eval \"exec $i</dev/null\" 2>/dev/null; done; done"),
];

/// What the neighbour keeps under each technique: the median ratio, and all of them.
#[derive(Debug, Default)]
pub struct Kept(pub Vec<(&'static str, f64, Vec<f64>)>);

impl Kept {
    /// The least that is kept under any.
    pub fn least(&self) -> f64 {
        self.0.iter().map(|(_, median, _)| *median).fold(f64::INFINITY, f64::min)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, median, all) in &self.0 {
            let all: Vec<String> = all.iter().map(|ratio| format!("{ratio:.2}")).collect();
            writeln!(out, "{name:12} {median:.2} of the throughput alone ({})", all.join(", "))?;
        }
        Ok(())
    }
}

/// Measures every technique, or those whose names contain `only`, in so many rounds.
pub fn run(rounds: usize, only: Option<&str>) -> Result<Kept> {
    let before = Traces::global()?;
    let service = Service::start("neighbour")?;
    let kept = measure_all(&service, rounds, only);
    let left = leaks::check(&service, &before);
    let kept = kept?;
    left?;
    Ok(kept)
}

fn measure_all(service: &Service, rounds: usize, only: Option<&str>) -> Result<Kept> {
    let busybox = service.busybox()?;
    service.sampan(["run", "-d", "--name", "neighbour", "--cpu", "1", &busybox, "sleep", "100000"]).ok()?;
    work(service)?;
    let mut kept = Kept::default();
    for (name, script) in TECHNIQUES.into_iter().filter(|(name, _)| only.is_none_or(|only| name.contains(only))) {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let alone = work(service)?;
            let words = ["run", "-d", "--name", "attacker"].into_iter().chain(LIMITS);
            // The shell that is PID 1 only waits: what attacks may be killed for its memory.
            let script = format!("while :; do sh -c '{}'; done", script.replace('\'', r"'\''"));
            service.sampan(words.chain([busybox.as_str(), "sh", "-c", script.as_str()])).ok()?;
            let attacked = work(service).with_context(|| format!("beside: {name}"));
            service.remove(["attacker"])?;
            service.wait_until_gone("attacker")?;
            ratios.push(attacked? / alone);
        }
        let mut sorted = ratios.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().context("no round was measured")?;
        kept.0.push((name, median, ratios));
    }
    Ok(kept)
}

/// How many pieces of work the neighbour does in a turn.
fn work(service: &Service) -> Result<f64> {
    let script = format!(
        "n=0; end=$(($(date +%s) + {TURN_SECONDS})); while [ $(date +%s) -lt $end ]; do \
         dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; md5sum /file >/dev/null; n=$((n + 1)); done; echo $n"
    );
    let done: f64 = service.inside("neighbour", &script)?.parse().context("a count of pieces")?;
    ensure!(done > 0.0, "the neighbour does nothing");
    Ok(done)
}
