//! podman, without a service, on overlayfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Engine;
use crate::footprint::remove_folder;

/// podman raises these limits of its containers, which needs a privilege that machines in containers lack.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

#[derive(Debug)]
pub(crate) struct Podman {
    program: PathBuf,
    folder: PathBuf,
}

impl Podman {
    pub(crate) fn new(program: &Path, work: &Path) -> Self {
        Self { program: program.to_owned(), folder: work.join("podman") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.folder.join(name));
        }
        // crun of Debian 12 refuses cgroups where version 1 and 2 are mixed; runc does not.
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        command
    }
}

impl Engine for Podman {
    fn name(&self) -> &str {
        "podman"
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn start(&mut self) -> Result<()> {
        self.stop()?;
        Ok(fs::create_dir_all(&self.folder)?)
    }

    fn stop(&mut self) -> Result<()> {
        remove_folder(&self.folder)
    }

    fn pull(&self, reference: &str) -> Command {
        let mut command = self.command();
        command.args(["pull", "--tls-verify=false", reference]);
        command
    }

    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["run", "--rm", "--network", "none"]).args(LIMITS).args(["--name", name, reference]).args(words);
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            drop(crate::peers::announce(&format!("podman is not quite gone: {error:#}")));
        }
    }
}
