//! Who is measured. Every engine lives below a folder of its own, so that it knows nothing when the folder is new.

pub(crate) mod containerd;
pub(crate) mod lazy;
pub(crate) mod podman;
pub(crate) mod runc;
pub(crate) mod sampan;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

/// The name that containers of ours have in containerd, and their cgroup on the machine.
pub(crate) const NAMESPACE: &str = "sampan-bench";

/// What a cold start is made of, as HelloBench has it (Slacker, FAST'16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pull,
    Create,
    /// From the start to what the image prints when it is ready.
    Start,
}

/// Somebody who pulls images and runs them.
///
/// The order is `start`, any number of the others, `stop`; and again. `start` begins with an empty folder and returns
/// when the service answers; `stop` leaves no process, mount or file of it behind and may be called at any time.
pub(crate) trait Engine {
    /// Name and what distinguishes it.
    fn name(&self) -> &str;
    /// The programs that a pull or a run executes, so that their first reading from disk can be kept out of the time.
    fn programs(&self) -> Vec<PathBuf>;
    fn start(&mut self) -> Result<()>;
    fn stop(&mut self) -> Result<()>;
    /// The command that pulls an image from a registry on plain HTTP.
    fn pull(&self, reference: &str) -> Command;
    /// The command that runs an image that is here already, and removes the container afterwards.
    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command;
    /// The commands that run an image that nobody has pulled yet.
    fn pull_and_run(&self, reference: &str, name: &str, words: &[&str]) -> Vec<Command> {
        vec![self.pull(reference), self.run(reference, name, words)]
    }
    /// The commands of a cold start, phase by phase; the last one prints what the image prints.
    fn phases(&self, reference: &str, name: &str, words: &[&str]) -> Vec<(Phase, Command)> {
        vec![(Phase::Pull, self.pull(reference)), (Phase::Start, self.run(reference, name, words))]
    }
    /// What pulling and creating took, of an engine that does all in one command and says so afterwards.
    fn parts(&self, _name: &str) -> Option<(Duration, Duration)> {
        None
    }
    /// What it has fetched so far by its own account, by why; and how often and for how long readers have waited. Nothing of an
    /// engine that does not tell.
    fn account(&self) -> Vec<(String, f64)> {
        Vec::new()
    }
    /// A command that does nothing, of an engine whose `phases` need one more than running an image does: what it costs to
    /// call it is not held against the engine.
    fn nothing(&self) -> Option<Command> {
        None
    }
}
