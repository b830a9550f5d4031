//! Who is measured. Every engine lives below a folder of its own, so that it knows nothing when the folder is new.

pub(crate) mod containerd;
pub(crate) mod podman;
pub(crate) mod runc;
pub(crate) mod sampan;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

/// The name that containers of ours have in containerd, and their cgroup on the machine.
pub(crate) const NAMESPACE: &str = "sampan-bench";

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
}
