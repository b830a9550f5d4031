//! Sampan itself: the release binary as a service of its own instance.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Engine;
use crate::footprint::{end, must, remove_folder};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// The name that cgroups, interfaces and rules of the measured service begin with.
const INSTANCE: &str = "spbench";
/// Addresses that no other service of the machine is likely to use.
const ADDRESSES: &str = "10.213.0.0/16";

#[derive(Debug)]
pub(crate) struct Sampan {
    program: PathBuf,
    folder: PathBuf,
    registry: String,
    service: Option<Child>,
}

impl Sampan {
    pub(crate) fn new(program: &Path, work: &Path, registry: &str) -> Self {
        Self { program: program.to_owned(), folder: work.join("sampan"), registry: registry.to_owned(), service: None }
    }

    /// A command of the client.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(self.folder.join("run/sampan.sock"));
        command
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !self.client().arg("ps").output()?.status.success() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            if let Some(status) = self.service.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("sampan serve ended at once ({status}): {}", log());
            }
            ensure!(begin.elapsed() < START_DEADLINE, "sampan serve does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn remove_instances(&self) -> Result<()> {
        let names = self.client().args(["ps", "--all", "--quiet"]).output()?;
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        if names.split_whitespace().next().is_some() {
            must(self.client().args(["rm", "--force"]).args(names.split_whitespace()))?;
        }
        Ok(())
    }
}

impl Engine for Sampan {
    fn name(&self) -> &str {
        "sampan"
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn start(&mut self) -> Result<()> {
        self.stop()?;
        fs::create_dir_all(&self.folder)?;
        let log = File::create(self.folder.join("log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.folder.join("data"))
            .arg("--run-dir")
            .arg(self.folder.join("run"));
        command.args(["--instance", INSTANCE, "--listen", "none", "--pod-cidr4", ADDRESSES]);
        command.args(["--insecure-registry", &self.registry]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.service = Some(command.spawn().context("start sampan serve")?);
        self.wait_until_it_answers()
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            let removed = self.remove_instances();
            end(&mut service)?;
            removed.context("remove what was run")?;
        }
        remove_folder(&self.folder)
    }

    fn pull(&self, reference: &str) -> Command {
        let mut command = self.client();
        command.args(["pull", reference]);
        command
    }

    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command {
        let mut command = self.client();
        command.args(["run", "--rm", "--name", name, reference]).args(words);
        command
    }

    fn pull_and_run(&self, reference: &str, name: &str, words: &[&str]) -> Vec<Command> {
        vec![self.run(reference, name, words)]
    }
}

impl Drop for Sampan {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            drop(crate::peers::announce(&format!("sampan is not quite gone: {error:#}")));
        }
    }
}
