//! A side: a service with the Container Runtime Interface, in a folder of its own, with the image pulled.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use super::client::{Client, Pod};
use super::meter;
use crate::command::must;
use crate::footprint::{end, kill_containers, remove_folder};
use crate::peers::announce;

const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// What distinguishes the sides: how each is started, and what of it is killed.
pub(super) trait Kind {
    fn name(&self) -> &'static str;
    /// Its programs, whose processes are its own.
    fn programs(&self) -> Vec<PathBuf>;
    fn socket(&self, folder: &Path) -> PathBuf;
    /// Writes its configuration into the empty folder.
    fn prepare(&mut self, folder: &Path) -> Result<()>;
    /// The command that is the service, as often as it is started.
    fn service(&self, folder: &Path) -> Result<Command>;
    /// To be called once the service runs, as the process `pid`.
    fn started(&mut self, _pid: u32) -> Result<()> {
        Ok(())
    }
    /// The network namespace that its pods are reached from, if it is not the host's.
    fn network(&self) -> Option<&File> {
        None
    }
    /// A command that brings the image, of a side that does not pull it itself.
    fn bring(&self, _folder: &Path) -> Vec<Command> {
        Vec::new()
    }
    /// Whether this process, with its command line, is the daemon, and whether it comes back by itself.
    fn is_daemon(&self, line: &str) -> bool;
    fn comes_back(&self) -> bool;
}

/// A running side. Dropped, it is gone.
pub(super) struct Node<'a> {
    kind: Box<dyn Kind>,
    folder: PathBuf,
    image: String,
    runtime: &'a Runtime,
    service: Option<Child>,
    client: Option<Client>,
}

impl<'a> Node<'a> {
    pub(super) fn start(kind: Box<dyn Kind>, work: &Path, image: &str, runtime: &'a Runtime) -> Result<Self> {
        let folder = work.join(format!("cri-{}", kind.name()));
        let mut node = Self { kind, folder, image: image.to_owned(), runtime, service: None, client: None };
        fs::create_dir_all(&node.folder)?;
        let folder = node.folder.clone();
        node.kind.prepare(&folder)?;
        node.launch()?;
        for mut command in node.kind.bring(&node.folder) {
            must(&mut command)?;
        }
        let client = node.client()?.clone();
        runtime.block_on(async {
            if !client.has_image().await? {
                client.pull().await?;
            }
            // What the first pod alone has to make is not what a pod costs.
            let (pod, _) = client.up().await?;
            client.down(&pod).await
        })?;
        Ok(node)
    }

    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.kind.socket(&self.folder)
    }

    /// The network namespace that its pods are reached from, if it is not the host's.
    pub(super) fn network(&self) -> Result<Option<File>> {
        Ok(self.kind.network().map(File::try_clone).transpose()?)
    }

    pub(super) fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the side does not run")
    }

    fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = self.kind.service(&self.folder)?;
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let service = command.spawn().with_context(|| format!("start {}", self.kind.name()))?;
        let pid = service.id();
        self.service = Some(service);
        self.client = Some(self.answering()?);
        self.kind.started(pid)
    }

    /// A new connection, as soon as somebody answers on it.
    fn answering(&mut self) -> Result<Client> {
        let begin = Instant::now();
        loop {
            let socket = self.kind.socket(&self.folder);
            let attempt = async {
                let client = Client::connect(&socket, &self.image, &self.folder.join("logs")).await?;
                client.running().await.map(|_| client)
            };
            let error = match self.runtime.block_on(attempt) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            if let Some(status) = self.service.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("{} ended at once ({status}): {}", self.kind.name(), log());
            }
            ensure!(begin.elapsed() < DEADLINE, "{} does not answer: {error:#}: {}", self.kind.name(), log());
            std::thread::sleep(PAUSE);
        }
    }

    /// Its own processes, those of its pods included, but not what runs in containers.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        meter::processes(&self.kind.programs(), &self.folder)
    }

    pub(super) fn up_all(&self, count: usize, at_once: usize) -> Result<(Vec<Pod>, Vec<Duration>, Duration)> {
        self.runtime.block_on(self.client()?.up_all(count, at_once))
    }

    pub(super) fn down_all(&self, pods: Vec<Pod>, at_once: usize) -> Result<(Vec<Duration>, Duration)> {
        self.runtime.block_on(self.client()?.down_all(pods, at_once))
    }

    /// How many pods are ready and how many containers run.
    pub(super) fn running(&self) -> Result<(usize, usize)> {
        self.runtime.block_on(self.client()?.running())
    }

    /// Takes away whatever pods there are.
    pub(super) fn clear(&self) -> Result<()> {
        self.runtime.block_on(self.client()?.clear())
    }

    /// Kills the daemon and gives the time until `count` pods and containers are listed as running again.
    pub(super) fn kill_and_wait(&mut self, count: usize) -> Result<Duration> {
        let line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let said = |pid: &u32| String::from_utf8_lossy(&line(pid)).replace('\0', " ");
        let daemon = self.processes()?.into_iter().find(|pid| self.kind.is_daemon(&said(pid)));
        let daemon = daemon.context("there is no daemon to kill")?;
        let pid = i32::try_from(daemon).ok().and_then(Pid::from_raw).context("a process has an id")?;
        let begin = Instant::now();
        kill_process(pid, Signal::KILL)?;
        if self.kind.comes_back() {
            // An answer of the dead one does not count.
            while Path::new(&format!("/proc/{daemon}/exe")).exists() {
                std::thread::sleep(PAUSE);
            }
            self.client = Some(self.answering()?);
        } else {
            if let Some(mut service) = self.service.take() {
                service.wait()?;
            }
            self.launch()?;
        }
        loop {
            let running = self.running()?;
            if running == (count, count) {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < DEADLINE, "{}: of {count} pods {running:?} run again", self.kind.name());
            std::thread::sleep(PAUSE);
        }
    }

    /// Removes every pod and ends the service; its folder stays.
    fn end(&mut self) -> Result<()> {
        let cleared = match self.client.take() {
            Some(client) => self.runtime.block_on(client.clear()),
            None => Ok(()),
        };
        if let Some(mut service) = self.service.take() {
            end(&mut service)?;
        }
        cleared
    }

    /// Ends everything of it. What the service itself has left behind is named, and then taken away.
    pub(super) fn stop(mut self, left: impl FnOnce(&Path) -> Result<Vec<String>>) -> Result<Vec<String>> {
        self.end()?;
        let left = left(&self.folder)?;
        self.remove()?;
        Ok(left)
    }

    fn remove(&mut self) -> Result<()> {
        kill_containers()?;
        remove_folder(&self.folder)
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end().and_then(|()| self.remove()) {
            drop(announce(&format!("{} is not quite gone: {error:#}", self.kind.name())));
        }
    }
}
