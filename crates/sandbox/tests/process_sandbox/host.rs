//! A node for the scenarios: run directory, zygote, root file systems, and the search for what is left behind.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sampan_sandbox::{
    ContainerSpec, ProcessSandbox, ProcessSandboxes, SandboxConfig, SandboxEvent, SandboxId, SandboxSpec, UserNamespace,
};
use tokio::sync::mpsc;

pub(crate) use crate::program::PATIENCE;
use crate::program::{BUSYBOX, spawn_zygote};

pub(crate) struct Host {
    pub(crate) run_dir: tempfile::TempDir,
    pub(crate) sandboxes: ProcessSandboxes,
    pub(crate) instance: String,
    zygote: Child,
    next_range: AtomicU32,
    /// Ids of all sandboxes that were asked for.
    ids: std::sync::Mutex<Vec<SandboxId>>,
}

impl Host {
    pub(crate) async fn start() -> Result<Self> {
        let run_dir = tempfile::Builder::new().prefix("sampan-sandbox-").tempdir()?;
        let zygote = spawn_zygote(run_dir.path())?;
        let instance = format!("sampan-test-{}", std::process::id());
        let config = SandboxConfig { run_dir: run_dir.path().to_owned(), instance: instance.clone() };
        let sandboxes = ProcessSandboxes::open(config).await?;
        Ok(Self { run_dir, sandboxes, instance, zygote, next_range: AtomicU32::new(0), ids: Default::default() })
    }

    /// The same node as a daemon sees it that has just been started.
    pub(crate) async fn next_daemon(&self) -> Result<ProcessSandboxes> {
        let config = SandboxConfig { run_dir: self.run_dir.path().to_owned(), instance: self.instance.clone() };
        Ok(ProcessSandboxes::open(config).await?)
    }

    /// Where the agent of a sandbox listens.
    pub(crate) fn agent_socket(&self, id: &SandboxId) -> PathBuf {
        self.run_dir.path().join("sandboxes").join(id.to_string()).join("agent.sock")
    }

    /// The score that the zygote has from its service; false where nobody here may lower it.
    pub(crate) fn spare_zygote(&self, score: &str) -> Result<bool> {
        match std::fs::write(format!("/proc/{}/oom_score_adj", self.zygote.id()), score) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
            written => Ok(written.map(|()| true)?),
        }
    }

    pub(crate) fn restart_zygote(&mut self) -> Result<()> {
        self.zygote.kill()?;
        self.zygote.wait()?;
        std::fs::remove_file(self.run_dir.path().join("zygote.sock"))?;
        self.zygote = spawn_zygote(self.run_dir.path())?;
        Ok(())
    }

    pub(crate) fn spec(&self) -> Result<SandboxSpec> {
        let range = self.next_range.fetch_add(1, Ordering::Relaxed);
        let id = SandboxId::random()?;
        self.ids.lock().expect("no scenario panics").push(id.clone());
        let users = UserNamespace::Own { first_id: 2_000_000_000 + range * 65_536, length: 65_536 };
        Ok(SandboxSpec::new(id, "testpod", users))
    }

    pub(crate) async fn pod(&self) -> Result<Pod> {
        self.pod_of(self.spec()?).await
    }

    pub(crate) async fn pod_of(&self, spec: SandboxSpec) -> Result<Pod> {
        let sandbox = self.sandboxes.create(spec).await.map_err(chain)?;
        Ok(Pod::new(sandbox))
    }

    /// Ends the node and looks for what it has left.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.sandboxes.close().await.map_err(chain)?;
        self.zygote.kill()?;
        self.zygote.wait()?;
        let sandboxes = self.run_dir.path().join("sandboxes");
        ensure!(!sandboxes.exists(), "left behind: {}", sandboxes.display());
        for mount in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            ensure!(!mount.contains(&*self.run_dir.path().to_string_lossy()), "left behind: mount {mount}");
            let Some((before, "cgroup" | "cgroup2")) =
                mount.split_once(" - ").map(|(before, after)| (before, after.split(' ').next().unwrap_or_default()))
            else {
                continue;
            };
            let group = Path::new(before.split(' ').nth(4).unwrap_or_default()).join(&self.instance);
            ensure!(!group.exists(), "left behind: cgroup {}", group.display());
        }
        for entry in std::fs::read_dir("/proc")? {
            // A zombie is its parent's to reap: the machine's init, where the scenario has killed the zygote.
            let stat = std::fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
            let ours = |id: &SandboxId| stat.contains(&format!("(pod-{})", &id.as_str()[..8]));
            let ids = self.ids.lock().expect("no scenario panics");
            ensure!(!ids.iter().any(ours) || stat.contains(") Z "), "left behind: process {stat}");
        }
        Ok(())
    }
}

pub(crate) fn chain<E: std::error::Error + 'static>(error: E) -> anyhow::Error {
    anyhow::anyhow!("{}", sampan_kit::error_chain::ErrorChain(&error))
}

/// A sandbox under test and what it tells.
pub(crate) struct Pod {
    pub(crate) sandbox: Arc<ProcessSandbox>,
    pub(crate) events: mpsc::Receiver<SandboxEvent>,
    pub(crate) logs: tempfile::TempDir,
}

/// How a container ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) event_id: u64,
    pub(crate) container: String,
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) oom_killed: bool,
}

impl Pod {
    pub(crate) fn new(sandbox: Arc<ProcessSandbox>) -> Self {
        let events = sandbox.events();
        Self { sandbox, events, logs: tempfile::tempdir().expect("a directory for logs") }
    }

    pub(crate) fn log_path(&self, container: &str) -> PathBuf {
        self.logs.path().join(format!("{container}.log"))
    }

    /// A container that runs a shell script on a fresh root.
    pub(crate) fn shell(&self, name: &str, script: &str) -> Result<ContainerSpec> {
        self.container(name, &["/bin/sh", "-c", script])
    }

    pub(crate) fn container(&self, name: &str, command: &[&str]) -> Result<ContainerSpec> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(name))?;
        Ok(ContainerSpec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PATH".into(), "/bin".into()), ("GREETING".into(), "hello".into())],
            ..ContainerSpec::new(name, make_root(self.sandbox.root_id())?, OwnedFd::from(log))
        })
    }

    pub(crate) async fn start(&self, spec: ContainerSpec) -> Result<sampan_sandbox::Started> {
        self.sandbox.start_container(spec).await.map_err(chain)
    }

    pub(crate) async fn exit(&mut self) -> Result<Exit> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.context("no event")?;
        match event.context("the events have ended")? {
            SandboxEvent::ContainerExited { event_id, container, code, signal, oom_killed, .. } => {
                Ok(Exit { event_id, container, code, signal, oom_killed })
            }
            SandboxEvent::AgentLost { reason } => bail!("the agent is lost: {reason}"),
        }
    }

    /// Runs a script to its end: exit code and what it said, without the log's time stamps.
    pub(crate) async fn run(&mut self, script: &str) -> Result<(i32, String)> {
        let spec = self.shell("main", script)?;
        self.run_spec(spec).await
    }

    pub(crate) async fn run_spec(&mut self, spec: ContainerSpec) -> Result<(i32, String)> {
        let name = spec.name.clone();
        std::fs::write(self.log_path(&name), "")?;
        self.start(spec).await?;
        let exit = self.exit().await?;
        self.sandbox.acknowledge(exit.event_id).await.map_err(chain)?;
        Ok((exit.code, self.said(&name)?))
    }

    pub(crate) async fn running(&self) -> Result<Vec<String>> {
        Ok(self.sandbox.running().await.map_err(chain)?.into_iter().map(|(name, _)| name).collect())
    }

    /// What a container's log holds, put back together.
    pub(crate) fn said(&self, name: &str) -> Result<String> {
        let mut said = String::new();
        for line in std::fs::read_to_string(self.log_path(name))?.lines() {
            let mut fields = line.splitn(4, ' ').skip(2);
            let tag = fields.next().context("a line without a tag")?;
            said.push_str(fields.next().unwrap_or_default());
            if tag == "F" {
                said.push('\n');
            }
        }
        Ok(said)
    }

    /// Waits until something is so.
    pub(crate) async fn wait_until(&self, so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let began = std::time::Instant::now();
        while !so(self)? {
            ensure!(began.elapsed() < PATIENCE, "it never happened");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(crate) async fn wait_until_said(&self, container: &str, text: &str) -> Result<()> {
        let said = |pod: &Self| Ok(pod.said(container)?.contains(text));
        self.wait_until(said).await.with_context(|| format!("{container} does not say {text}"))
    }

    /// Runs an exec to its end; anything but exit code 0 is an error.
    pub(crate) async fn exec_to_end(&self, container: &str, spec: sampan_sandbox::ExecSpec) -> Result<String> {
        let mut process = self.sandbox.exec(container, spec).await.map_err(chain)?;
        let mut said = String::new();
        let mut stdout = process.stdout.take().context("no stdout")?;
        let reading = tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut said);
        tokio::time::timeout(PATIENCE, reading).await??;
        let status = tokio::time::timeout(PATIENCE, process.exit).await?;
        let fine = sampan_sandbox::ExecStatus::Ended { code: 0, signal: None };
        ensure!(status == fine, "{status:?} after {said:?}");
        Ok(said)
    }

    /// Kills what still runs and waits for that many exits.
    pub(crate) async fn kill_and_wait(&mut self, exits: usize) -> Result<()> {
        self.sandbox.kill_all().await.map_err(chain)?;
        for _ in 0..exits {
            self.exit().await?;
        }
        Ok(())
    }

    pub(crate) async fn destroy(self) -> Result<()> {
        self.sandbox.destroy(PATIENCE).await.map_err(chain)
    }
}

/// A detached tmpfs with busybox in it, owned by the host's id `root`.
pub(crate) fn make_root(root: u32) -> Result<OwnedFd> {
    let context = sampan_sys::mount::FsContext::open("tmpfs")?;
    context.set_string("mode", "0755")?;
    context.set_string("uid", root.to_string())?;
    context.set_string("gid", root.to_string())?;
    let mount = context.mount(rustix::mount::MountAttrFlags::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let own = |file: &Path| std::os::unix::fs::lchown(file, Some(root), Some(root));
    for directory in ["bin", "etc", "tmp", "home"] {
        std::fs::create_dir(path.join(directory))?;
        own(&path.join(directory))?;
    }
    std::fs::copy(BUSYBOX, path.join("bin/busybox"))?;
    own(&path.join("bin/busybox"))?;
    for applet in [
        "sh", "cat", "echo", "id", "sleep", "ps", "ls", "kill", "mount", "umount", "stty", "head", "tail", "dd",
        "test", "grep", "chmod", "chown", "ln", "mkdir", "mknod", "touch", "sed", "wc", "true", "unshare", "tty",
        "env", "stat", "readlink", "setpriv", "su", "tr", "yes", "find", "printf", "seq", "awk", "date", "cmp", "cut",
        "hostname",
    ] {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(applet))?;
    }
    std::fs::write(path.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/home:/bin/sh\n")?;
    std::fs::write(path.join("etc/group"), "root:x:0:\nwww:x:34:\nlogs:x:40:web\n")?;
    own(&path.join("etc/passwd"))?;
    own(&path.join("etc/group"))?;
    Ok(mount)
}
