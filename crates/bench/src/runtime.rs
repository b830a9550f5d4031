//! `cargo xtask bench runtime`: what pods and containers cost, beside containerd 2 with runc and CNI plug-ins.
//!
//! - [`sides`]: who is measured; [`node`]: a running one; [`client`]: the one client of the Container Runtime Interface that drives
//!   both. [`pause`]: the first process of containerd's pods. [`meter`]: memory and processor time.
//! - Groups, each with its bounds: [`cli`], [`pods`] (one at a time, many at once, until very many run), [`exec`], [`memory`], [`standing`]
//!   (figures of pods, and what a service with pods costs that nobody asks), [`restart`], [`kubelet`].
//!
//! Every group starts its sides anew and ends them; then nothing that bears their names may be left on the machine, which is a
//! figure like the others.

mod cli;
mod client;
mod exec;
mod kubelet;
mod memory;
mod meter;
mod node;
mod pause;
mod pods;
mod restart;
mod sides;
mod standing;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;
use sampan_e2e::fixtures::{Registry, busybox};
use sampan_e2e::leaks::Traces;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::footprint::Footprint;
use crate::interrupt;
use crate::peers::{RuntimePeers, announce};
use crate::report::{Figure, print_table};
use node::Node;

/// How long what was removed may take to be gone from the kernel's lists.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure of it all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only these groups; comma-separated.
    #[arg(long, value_name = "GROUPS", value_delimiter = ',', value_parser = group_names())]
    only: Vec<String>,
    /// `sustained` goes on until so many pods run.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(50..=4000))]
    pods: u32,
    /// `memory` is measured over so many pods.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=1000))]
    idle_pods: u32,
    /// `standing` is measured with so many pods.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    standing_pods: u32,
    /// `restart` is measured with so many pods.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1000))]
    killed_pods: u32,
}

/// A group of figures, and how it is measured.
type Group = (&'static str, fn(&Stage) -> Result<Vec<Figure>>);

const GROUPS: [Group; 9] = [
    ("cli", cli::measure),
    ("one", pods::one),
    ("fifty", pods::fifty),
    ("sustained", pods::sustained),
    ("exec", exec::measure),
    ("memory", memory::measure),
    ("standing", standing::measure),
    ("restart", restart::measure),
    ("kubelet", kubelet::measure),
];

fn group_names() -> PossibleValuesParser {
    GROUPS.map(|(name, _)| name).into()
}

/// A prepared machine. Dropped, it is as it was.
struct Stage<'a> {
    selection: &'a Selection,
    peers: RuntimePeers,
    /// Rounds of what takes seconds.
    runs: u32,
    program: PathBuf,
    /// The container's image, and that of containerd's first process.
    image: String,
    pause: String,
    registry: Registry,
    /// What sides have left behind, line by line.
    left: RefCell<Vec<String>>,
    before: Traces,
    runtime: Runtime,
    work: TempDir,
    _footprint: Footprint,
}

/// Measures what is chosen.
pub(crate) fn run(
    selection: &Selection,
    folder: &Path,
    program: &Path,
    runs: u32,
) -> Result<(Vec<Figure>, Vec<String>)> {
    let (peers, missing) = RuntimePeers::find_or_install()?;
    let stage = Stage::open(selection, folder, program, peers, runs)?;
    let mut figures = Vec::new();
    for (name, measure) in GROUPS {
        if !selection.only.is_empty() && !selection.only.iter().any(|only| only == name) {
            continue;
        }
        interrupt::check()?;
        announce(&format!("measuring {name}"))?;
        let mut measured = measure(&stage).with_context(|| format!("measure {name}"))?;
        let left = stage.left.take();
        for trace in &left {
            announce(&format!("LEFT BEHIND by {name}: {trace}"))?;
        }
        measured.push(Figure::at_most(format!("{name}/left behind"), "things", (left.len() as f64, 1), Some(0.0)));
        print_table(&mut std::io::stdout().lock(), &measured)?;
        figures.extend(measured);
    }
    Ok((figures, missing))
}

impl<'a> Stage<'a> {
    fn open(selection: &'a Selection, folder: &Path, program: &Path, peers: RuntimePeers, runs: u32) -> Result<Self> {
        let footprint = Footprint::look();
        let registry = Registry::start()?;
        let image = registry.push(&busybox::image()?, "busybox:bench")?;
        let pause = registry.push(&pause::image()?, "pause:bench")?;
        let work = tempfile::Builder::new().prefix("sampan-bench-").tempdir_in(folder)?;
        // A build that goes on beside us must not change what is measured.
        let measured = work.path().join("program");
        fs::copy(program, &measured).with_context(|| format!("copy {}", program.display()))?;
        Ok(Self {
            selection,
            peers,
            runs,
            program: measured,
            image,
            pause,
            registry,
            left: RefCell::default(),
            before: Traces::global()?,
            runtime: Runtime::new()?,
            work,
            _footprint: footprint,
        })
    }

    /// Ours, started.
    fn ours(&self) -> Result<Node<'_>> {
        let kind = sides::Sampan { program: self.program.clone(), registry: self.registry.address().to_owned() };
        Node::start(Box::new(kind), self.work.path(), &self.image, &self.runtime).context("start sampan")
    }

    /// The peer, started, where there is one.
    fn peer(&self) -> Result<Option<Node<'_>>> {
        let peers = &self.peers;
        let (Some(programs), Some(runc), Some(plugins)) = (&peers.containerd2, &peers.runc, &peers.plugins) else {
            return Ok(None);
        };
        let kind = sides::Containerd {
            programs: programs.clone(),
            runc: runc.clone(),
            plugins: plugins.clone(),
            image: self.image.clone(),
            pause: self.pause.clone(),
            network: None,
        };
        tolerated("containerd2", Node::start(Box::new(kind), self.work.path(), &self.image, &self.runtime))
    }

    /// Ends a side; what it has left behind is kept for the group's figures.
    fn finish(&self, node: Node<'_>) -> Result<()> {
        let ours = node.name() == "sampan";
        let left = node.stop(|folder| if ours { self.left(folder) } else { Ok(Vec::new()) })?;
        self.left.borrow_mut().extend(left);
        Ok(())
    }

    /// What is here now, was not at the beginning, and bears a name of ours. Files go with their folder.
    fn left(&self, folder: &Path) -> Result<Vec<String>> {
        let marks = [sides::INSTANCE.to_owned(), folder.display().to_string()];
        let begin = Instant::now();
        loop {
            let now = Traces::global()?;
            let ours = |trace: &&String| !trace.starts_with("file: ") && marks.iter().any(|mark| trace.contains(mark));
            let left: Vec<String> = now.0.difference(&self.before.0).filter(ours).cloned().collect();
            if left.is_empty() || begin.elapsed() > PATIENCE {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What a peer achieved. When it fails, that is announced, and its figures have no opponent.
fn tolerated<T>(name: &str, outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if interrupt::is_cause_of(&error) => Err(error),
        Err(error) => {
            announce(&format!("PEER FAILS: {name}: {error:#}"))?;
            Ok(None)
        }
    }
}
