//! The lazy loaders below containerd 2: stargz, SOCI and Nydus, each a snapshotter in a process of its own.
//!
//! A start is containerd's with its plug-in named; only the pull is `ctr-remote`'s, which passes on which layers belong to
//! which image. The caches of all of them lie in a folder that is new at every start.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::containerd::Containerd;
use super::{Engine, NAMESPACE, Phase};
use crate::footprint::{end, kill_containers, remove_folder};
use crate::peers;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// Whose snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loader {
    Stargz,
    Soci,
    Nydus,
}

impl Loader {
    /// The name of its plug-in.
    fn snapshotter(self) -> &'static str {
        match self {
            Self::Stargz => "stargz",
            Self::Soci => "soci",
            Self::Nydus => "nydus",
        }
    }

    /// Everything that it executes, the service first.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Stargz => &["containerd-stargz-grpc", "ctr-remote"],
            Self::Soci => &["soci-snapshotter-grpc", "soci", "ctr-remote"],
            Self::Nydus => &["containerd-nydus-grpc", "nydusd", "nydus-image", "nydusify", "ctr-remote"],
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lazy {
    name: String,
    loader: Loader,
    programs: Vec<PathBuf>,
    containerd: Containerd,
    folder: PathBuf,
    service: Option<Child>,
}

impl Lazy {
    /// One with the programs of this machine; an error names the first that is missing.
    pub(crate) fn new(name: &str, loader: Loader, containerd: &Path, work: &Path) -> Result<Self> {
        let find =
            |program: &&str| peers::find(program, |_path| true).with_context(|| format!("there is no {program}"));
        let programs: Vec<PathBuf> = loader.programs().iter().map(find).collect::<Result<_>>()?;
        let folder = work.join(format!("{name}-snapshotter"));
        let place = (folder.join("socket"), folder.join("root"));
        let containerd = Containerd::with_proxy(name, containerd, loader.snapshotter(), (&place.0, &place.1), work);
        Ok(Self { name: name.to_owned(), loader, programs, containerd, folder, service: None })
    }

    fn program(&self, name: &str) -> Result<&Path> {
        let found = self.programs.iter().find(|path| path.file_name().is_some_and(|file| file == name));
        found.map(PathBuf::as_path).with_context(|| format!("there is no {name}"))
    }

    /// Writes what the service is configured by, and gives its arguments.
    fn configure(&self) -> Result<Vec<String>> {
        let folder = self.folder.display().to_string();
        let configuration = format!("{folder}/config.toml");
        let text = match self.loader {
            Loader::Stargz => "no_prometheus = true\n".to_owned(),
            Loader::Soci => format!(
                "no_prometheus = true\nskip_check_snapshotter_supported = true\n[content_store]\ntype = \"soci\"\n\
                 containerd_address = \"{}\"\n[pull_modes]\n[pull_modes.soci_v2]\nenable = true\n",
                self.containerd.socket().display()
            ),
            Loader::Nydus => {
                fs::write(self.folder.join("nydusd.json"), nydusd_config().to_string())?;
                nydus_config(&folder, self.program("nydusd")?, self.program("nydus-image")?)
            }
        };
        fs::write(&configuration, text)?;
        Ok(match self.loader {
            Loader::Nydus => vec!["--config".to_owned(), configuration, "--log-to-stdout".to_owned()],
            Loader::Stargz | Loader::Soci => vec![
                format!("--address={folder}/socket"),
                format!("--root={folder}/root"),
                format!("--config={configuration}"),
            ],
        })
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !self.folder.join("socket").exists() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            if let Some(status) = self.service.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("the snapshotter of {} ended at once ({status}): {}", self.name, log());
            }
            ensure!(begin.elapsed() < START_DEADLINE, "the snapshotter of {} does not answer: {}", self.name, log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Engine for Lazy {
    fn name(&self) -> &str {
        &self.name
    }

    fn programs(&self) -> Vec<PathBuf> {
        let mut programs = self.containerd.programs();
        programs.extend(self.programs.iter().cloned());
        // nydusd may be a script that starts the program beside it.
        programs.extend(peers::find("nydusd.real", |_path| self.loader == Loader::Nydus));
        programs
    }

    fn start(&mut self) -> Result<()> {
        self.stop()?;
        fs::create_dir_all(self.folder.join("root"))?;
        let arguments = self.configure()?;
        let log = File::create(self.folder.join("log"))?;
        let program = self.programs.first().context("a loader without programs")?;
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", peers::search_path()).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.service = Some(command.spawn().with_context(|| format!("start {}", program.display()))?);
        self.wait_for_socket()?;
        self.containerd.start()
    }

    fn stop(&mut self) -> Result<()> {
        // Containers first: a snapshotter that goes before them leaves them on dead mounts.
        kill_containers()?;
        let stopped = self.containerd.stop();
        if let Some(mut service) = self.service.take() {
            end(&mut service)?;
        }
        remove_folder(&self.folder)?;
        stopped
    }

    fn pull(&self, reference: &str) -> Command {
        let program = self.program("ctr-remote").unwrap_or(Path::new("ctr-remote"));
        let mut command = Command::new(program);
        command.arg("--address").arg(self.containerd.socket()).args(["--namespace", NAMESPACE]);
        command.args(["images", "rpull", "--plain-http"]).env("PATH", peers::search_path());
        if self.loader != Loader::Stargz {
            command.args(["--use-containerd-labels", "--snapshotter", self.loader.snapshotter()]);
        }
        command.arg(reference);
        command
    }

    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command {
        self.containerd.run(reference, name, words)
    }

    fn phases(&self, reference: &str, name: &str, words: &[&str]) -> Vec<(Phase, Command)> {
        let mut phases = self.containerd.phases(reference, name, words);
        if let Some((_, pull)) = phases.first_mut() {
            *pull = self.pull(reference);
        }
        phases
    }

    fn nothing(&self) -> Option<Command> {
        self.containerd.nothing()
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            drop(peers::announce(&format!("{} is not quite gone: {error:#}", self.name)));
        }
    }
}

fn nydus_config(folder: &str, nydusd: &Path, nydus_image: &Path) -> String {
    format!(
        "version = 1\nroot = \"{folder}/root\"\naddress = \"{folder}/socket\"\ndaemon_mode = \"dedicated\"\n\
         cleanup_on_close = false\n[system]\nenable = false\naddress = \"{folder}/system\"\n[daemon]\n\
         nydusd_config = \"{folder}/nydusd.json\"\nnydusd_path = \"{}\"\nnydusimage_path = \"{}\"\n\
         fs_driver = \"fusedev\"\nrecover_policy = \"restart\"\nthreads_number = 4\n[cgroup]\nenable = false\n[log]\n\
         log_to_stdout = true\nlevel = \"info\"\n[metrics]\naddress = \"\"\n[snapshot]\nenable_nydus_overlayfs = false\n\
         sync_remove = true\n[cache_manager]\ndisable = false\n",
        nydusd.display(),
        nydus_image.display()
    )
}

/// nydusd with its blob cache and a mebibyte read at once, as its own examples have it.
fn nydusd_config() -> serde_json::Value {
    serde_json::json!({
        "device": {
            "backend": {
                "type": "registry",
                "config": {"scheme": "http", "skip_verify": true, "timeout": 5, "connect_timeout": 5, "retry_limit": 2},
            },
            "cache": {"type": "blobcache"},
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "amplify_io": 1 << 20,
        "fs_prefetch": {"enable": false, "threads_count": 8, "merging_size": 1 << 20, "prefetch_all": false},
    })
}
