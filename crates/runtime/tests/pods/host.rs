//! A node for the scenarios: folders, zygote, network, image, and the search for what is left behind.

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sampan_image::{Image, ImageStore, ImageStoreConfig, ProgressSender, PullPolicy};
use sampan_network::{Network, NetworkConfig};
use sampan_registry::RegistryConfig;
use sampan_runtime::container::ContainerConfig;
use sampan_runtime::pod::{Pod, PodConfig};
use sampan_runtime::timeline::Timeline;
use sampan_runtime::{Runtime, RuntimeConfig};
use sampan_sandbox::{ExecSpec, ProcessSandboxes, SandboxConfig, SandboxEvent};
use tokio::sync::mpsc;

use crate::layout;
pub(crate) use crate::program::PATIENCE;
use crate::program::spawn_zygote;

pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) images: ImageStore,
    pub(crate) image: Arc<Image>,
    instance: String,
    zygote: Child,
}

impl Host {
    pub(crate) async fn start(pool_size: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sampan-runtime-").tempdir()?;
        let run_dir = folder.path().join("run");
        std::fs::create_dir(&run_dir)?;
        let zygote = spawn_zygote(&run_dir)?;
        let reference = layout::write(folder.path())?;
        let data_dir = folder.path().join("data");
        let images = ImageStore::open(ImageStoreConfig::new(&data_dir, RegistryConfig::default())).await?;
        let image = images.pull(&reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.map_err(chain)?;
        let instance = format!("rt{}", std::process::id());
        let runtime = Self::daemon(&folder, &instance, pool_size).await?;
        Ok(Self { folder, runtime, images, image, instance, zygote })
    }

    async fn daemon(folder: &tempfile::TempDir, instance: &str, pool_size: usize) -> Result<Arc<Runtime>> {
        let (run_dir, data_dir) = (folder.path().join("run"), folder.path().join("data"));
        let config = SandboxConfig { run_dir, instance: instance.to_owned() };
        let sandboxes = ProcessSandboxes::open(config).await?;
        let mut network = NetworkConfig::new(instance, data_dir.join("network"));
        network.lease_dir = folder.path().join("run/network");
        let network = Network::open(network).await?;
        let config = RuntimeConfig { data_dir, mount_room: None, pool_size };
        let runtime = Runtime::open(config, sandboxes, network).map_err(chain)?;
        runtime.recover().await.map_err(chain)?;
        Ok(Arc::new(runtime))
    }

    /// The same node as a daemon sees it that has just been started; the one before is as if killed.
    pub(crate) async fn restart(&mut self, pool_size: usize) -> Result<()> {
        self.runtime = Self::daemon(&self.folder, &self.instance, pool_size).await?;
        Ok(())
    }

    pub(crate) fn config(&self, name: &str) -> PodConfig {
        PodConfig {
            uid: format!("uid-{name}"),
            namespace: "test".into(),
            name: name.into(),
            hostname: name.into(),
            ..PodConfig::default()
        }
    }

    pub(crate) async fn pod(&self, config: PodConfig) -> Result<Guest<'_>> {
        self.timed_pod(config, &Timeline::default()).await
    }

    pub(crate) async fn timed_pod(&self, config: PodConfig, timeline: &Timeline) -> Result<Guest<'_>> {
        let pod = self.runtime.create(config, timeline).await.map_err(chain)?;
        let events = pod.sandbox().events();
        Ok(Guest { host: self, pod, events })
    }

    /// The processes of all agents, which are the zygote's children; what is only waiting to be reaped is none.
    pub(crate) fn agents(&self) -> Result<Vec<String>> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.zygote.id()))?;
        let lives = |pid: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ")
        };
        Ok(children.split_whitespace().filter(lives).map(str::to_owned).collect())
    }

    /// Ends the node and looks for what it has left.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.runtime.close().await.map_err(chain)?;
        drop(self.image);
        self.images.close().await;
        self.zygote.kill()?;
        self.zygote.wait()?;
        let trash = self.folder.path().join("data/trash");
        ensure!(std::fs::read_dir(&trash)?.next().is_none(), "left behind: folders in {}", trash.display());
        let sandboxes = self.folder.path().join("data/sandboxes");
        ensure!(std::fs::read_dir(&sandboxes)?.next().is_none(), "left behind: folders in {}", sandboxes.display());
        ensure!(!self.folder.path().join("run/sandboxes").exists(), "left behind: run directories");
        let interfaces = std::fs::read_to_string("/proc/net/dev")?;
        ensure!(!interfaces.contains(&self.instance), "left behind: an interface of {}", self.instance);
        for mount in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            ensure!(!mount.contains(&*self.folder.path().to_string_lossy()), "left behind: mount {mount}");
            let Some((before, after)) = mount.split_once(" - ") else { continue };
            if after.starts_with("cgroup") {
                let group = Path::new(before.split(' ').nth(4).unwrap_or_default()).join(&self.instance);
                ensure!(!group.exists(), "left behind: cgroup {}", group.display());
            }
        }
        let began = Instant::now();
        while let Some(device) = loop_device_below(self.folder.path())? {
            ensure!(began.elapsed() < PATIENCE, "left behind: {device}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

fn loop_device_below(folder: &Path) -> Result<Option<String>> {
    for entry in std::fs::read_dir("/sys/block")? {
        let backing = entry?.path().join("loop/backing_file");
        let file = std::fs::read_to_string(backing).unwrap_or_default();
        if file.contains(&*folder.to_string_lossy()) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

pub(crate) fn chain<E: std::error::Error + 'static>(error: E) -> anyhow::Error {
    anyhow::anyhow!("{}", sampan_kit::error_chain::ErrorChain(&error))
}

/// A pod under test.
pub(crate) struct Guest<'host> {
    host: &'host Host,
    pub(crate) pod: Pod,
    events: mpsc::Receiver<SandboxEvent>,
}

impl Guest<'_> {
    /// A container that runs a script.
    pub(crate) fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        ContainerConfig { command, ..ContainerConfig::new(name, Arc::clone(&self.host.image)) }
    }

    pub(crate) async fn start(&self, config: &ContainerConfig) -> Result<()> {
        let started = self.pod.run_container(config, &self.host.images, &Timeline::default()).await;
        started.map(drop).map_err(chain)
    }

    /// Runs a container to its end: exit code and what it said.
    pub(crate) async fn run(&mut self, config: &ContainerConfig) -> Result<(i32, String)> {
        self.start(config).await?;
        let code = self.exit().await?;
        Ok((code, said(&self.pod.container_log(config))?))
    }

    pub(crate) async fn exit(&mut self) -> Result<i32> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.context("no event")?;
        match event.context("the events have ended")? {
            SandboxEvent::ContainerExited { event_id, code, .. } => {
                self.pod.sandbox().acknowledge(event_id).await.map_err(chain)?;
                Ok(code)
            }
            SandboxEvent::AgentLost { reason } => bail!("the agent is lost: {reason}"),
        }
    }

    /// Runs a command in a container, whatever its exit code.
    pub(crate) async fn exec(&self, container: &str, script: &str) -> Result<String> {
        let output = self.pod.exec_sync(container, command(script), Some(PATIENCE)).await.map_err(chain)?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    pub(crate) async fn wait_until_said(&self, config: &ContainerConfig, text: &str) -> Result<()> {
        let began = Instant::now();
        while !said(&self.pod.container_log(config))?.contains(text) {
            ensure!(began.elapsed() < PATIENCE, "{} does not say {text}", config.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(crate) async fn remove(self) -> Result<()> {
        self.host.runtime.remove(&self.pod).await.map_err(chain)
    }
}

pub(crate) fn command(script: &str) -> ExecSpec {
    ExecSpec { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() }
}

/// What a log holds, without its time stamps.
pub(crate) fn said(log: &Path) -> Result<String> {
    let text = std::fs::read_to_string(log)?;
    let said = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    Ok(said.map(|line| format!("{line}\n")).collect())
}
