//! containerd, of Debian's version or today's, with one of its snapshotters, driven by its own `ctr`.
//!
//! Its CRI half is switched off: it is not measured, and would take addresses and memory. igzip stays on its PATH.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Engine, NAMESPACE, Phase};
use crate::footprint::{end, kill_containers, remove_folder};
use crate::peers;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// Plug-ins that nobody needs here, of both versions; an unknown name does no harm.
const DISABLED: [&str; 11] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.aufs",
];

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    Debian,
    Two,
}

#[derive(Debug)]
pub(crate) struct Containerd {
    name: String,
    programs: PathBuf,
    generation: Generation,
    snapshotter: &'static str,
    folder: PathBuf,
    /// A snapshotter of its own: the lines of the configuration that name it.
    proxy: String,
    service: Option<Child>,
}

impl Containerd {
    pub(crate) fn new(generation: Generation, programs: &Path, snapshotter: &'static str, work: &Path) -> Self {
        let name = match generation {
            Generation::Debian => format!("containerd-debian-{snapshotter}"),
            Generation::Two => format!("containerd2-{snapshotter}"),
        };
        let folder = work.join(&name);
        let proxy = String::new();
        Self { name, programs: programs.to_owned(), generation, snapshotter, folder, proxy, service: None }
    }

    /// containerd 2 with a snapshotter in a process of its own, which listens at `socket` and keeps its things in `root`.
    pub(crate) fn with_proxy(
        name: &str,
        programs: &Path,
        snapshotter: &'static str,
        (socket, root): (&Path, &Path),
        work: &Path,
    ) -> Self {
        let proxy = format!(
            "[proxy_plugins.{snapshotter}]\ntype = \"snapshot\"\naddress = \"{}\"\n\
             [proxy_plugins.{snapshotter}.exports]\nroot = \"{}\"\nenable_remote_snapshot_annotations = \"true\"\n",
            socket.display(),
            root.display()
        );
        let folder = work.join(format!("{name}-containerd"));
        let (programs, name) = (programs.to_owned(), name.to_owned());
        Self { name, programs, generation: Generation::Two, snapshotter, folder, proxy, service: None }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn config(&self) -> String {
        let folder = self.folder.display();
        let disabled = DISABLED.map(|plugin| format!("{plugin:?}")).join(", ");
        let head = format!(
            "root = \"{folder}/root\"\nstate = \"{folder}/state\"\ndisabled_plugins = [{disabled}]\n\
             [grpc]\naddress = \"{folder}/socket\"\n[ttrpc]\naddress = \"{folder}/socket.ttrpc\"\n"
        );
        if self.generation == Generation::Debian {
            return format!("version = 2\n{head}");
        }
        let unpack = |snapshotter: &str, differ: &str| {
            format!(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/{}\"\n\
                 snapshotter = \"{snapshotter}\"\n{differ}",
                sampan_e2e::fixtures::image::native_architecture()
            )
        };
        format!(
            "version = 3\n{head}{}{}{}",
            self.proxy,
            unpack("overlayfs", ""),
            unpack("erofs", "differ = \"erofs\"\n")
        )
    }

    fn path(&self) -> OsString {
        match self.generation {
            Generation::Debian => "/usr/sbin:/usr/bin:/sbin:/bin".into(),
            Generation::Two => peers::search_path(),
        }
    }

    /// A call of its own client.
    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new(self.programs.join("ctr"));
        command
            .arg("--address")
            .arg(self.folder.join("socket"))
            .args(["--namespace", NAMESPACE])
            .env("PATH", self.path());
        command
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !self.ctr().args(["images", "list"]).output()?.status.success() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            if let Some(status) = self.service.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("{} ended at once ({status}): {}", self.name, log());
            }
            ensure!(begin.elapsed() < START_DEADLINE, "{} does not answer: {}", self.name, log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Engine for Containerd {
    fn name(&self) -> &str {
        &self.name
    }

    fn programs(&self) -> Vec<PathBuf> {
        let own = ["containerd", "ctr", "containerd-shim-runc-v2"].map(|name| self.programs.join(name));
        let path = self.path();
        let shared = std::env::split_paths(&path)
            .flat_map(|folder| ["runc", "igzip", "mkfs.erofs"].map(|name| folder.join(name)));
        own.into_iter().chain(shared).filter(|path| path.is_file()).collect()
    }

    fn start(&mut self) -> Result<()> {
        self.stop()?;
        fs::create_dir_all(&self.folder)?;
        fs::write(self.folder.join("config.toml"), self.config())?;
        let log = File::create(self.folder.join("log"))?;
        let mut command = Command::new(self.programs.join("containerd"));
        command.arg("--config").arg(self.folder.join("config.toml")).env("PATH", self.path());
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.service = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        self.wait_until_it_answers()
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            end(&mut service)?;
        }
        kill_containers()?;
        remove_folder(&self.folder)
    }

    fn pull(&self, reference: &str) -> Command {
        let mut command = self.ctr();
        command.args(["images", "pull", "--plain-http", "--snapshotter", self.snapshotter, reference]);
        command
    }

    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command {
        let mut command = self.ctr();
        command.args(["run", "--rm", "--snapshotter", self.snapshotter, reference, name]).args(words);
        command
    }

    fn phases(&self, reference: &str, name: &str, words: &[&str]) -> Vec<(Phase, Command)> {
        let mut create = self.ctr();
        create.args(["containers", "create", "--snapshotter", self.snapshotter, reference, name]).args(words);
        let mut start = self.ctr();
        start.args(["tasks", "start", name]);
        vec![(Phase::Pull, self.pull(reference)), (Phase::Create, create), (Phase::Start, start)]
    }

    fn nothing(&self) -> Option<Command> {
        let mut command = self.ctr();
        command.args(["containers", "list", "--quiet"]);
        Some(command)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            drop(peers::announce(&format!("{} is not quite gone: {error:#}", self.name)));
        }
    }
}
