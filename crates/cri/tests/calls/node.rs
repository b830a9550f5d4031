//! A node for the scenarios: folders, zygote, network, image, the server; and the search for what is left behind.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_cri::proto::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
};
use sampan_cri::{CgroupDriver, CriConfig, CriServer};
use sampan_image::{ImageStore, ImageStoreConfig};
use sampan_network::{Network, NetworkConfig};
use sampan_registry::RegistryConfig;
use sampan_runtime::{Runtime, RuntimeConfig};
use sampan_sandbox::{ProcessSandboxes, SandboxConfig};

use crate::client::{Client, connect};
use crate::layout;
pub(crate) use crate::program::PATIENCE;
use crate::program::spawn_zygote;

pub(crate) struct Node {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) client: Client,
    /// How the image is called.
    pub(crate) image: String,
    instance: String,
    runtime: Arc<Runtime>,
    images: ImageStore,
    server: Option<CriServer>,
    zygote: Child,
}

impl Node {
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sampan-cri-").tempdir()?;
        let run_dir = folder.path().join("run");
        std::fs::create_dir(&run_dir)?;
        let zygote = spawn_zygote(&run_dir)?;
        let image = layout::write(folder.path())?;
        let instance = format!("cri{}", std::process::id());
        let images = ImageStore::open(ImageStoreConfig::new(folder.path().join("data"), RegistryConfig::default()));
        let images = images.await?;
        let (runtime, server) = daemon(folder.path(), &instance, &images).await?;
        let mut client = connect(&socket(folder.path())).await?;
        let spec = ImageSpec { image: image.clone(), ..ImageSpec::default() };
        client.images.pull_image(PullImageRequest { image: Some(spec), ..PullImageRequest::default() }).await?;
        Ok(Self { folder, client, image, instance, runtime, images, server: Some(server), zygote })
    }

    /// Another daemon takes this one's place; `meanwhile` happens when there is none. An orderly end leaves no more than a kill
    /// does: everything is written down when it happens.
    pub(crate) async fn restart(&mut self, meanwhile: impl AsyncFnOnce()) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        meanwhile().await;
        let (runtime, server) = daemon(self.folder.path(), &self.instance, &self.images).await?;
        (self.runtime, self.server) = (runtime, Some(server));
        self.client = connect(&socket(self.folder.path())).await?;
        Ok(())
    }

    pub(crate) fn pod_config(&self, name: &str) -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "test".into(), attempt: 0 };
        PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.folder.path().join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig::default()),
            labels: [("app".to_owned(), name.to_owned())].into(),
            ..PodSandboxConfig::default()
        }
    }

    pub(crate) fn container_config(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..ImageSpec::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            ..ContainerConfig::default()
        }
    }

    pub(crate) async fn run_pod(&mut self, config: &PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        Ok(self.client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(
        &mut self,
        pod: &str,
        config: ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.client.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.client.runtime.start_container(request).await.map(drop)
    }

    /// A pod with one running container.
    pub(crate) async fn running(&mut self, name: &str, script: &str) -> Result<(String, String)> {
        let config = self.pod_config(name);
        let pod = self.run_pod(&config).await?;
        let container = self.create(&pod, self.container_config("main", script), &config).await?;
        self.start_container(&container).await?;
        Ok((pod, container))
    }

    pub(crate) async fn exec(&mut self, container: &str, script: &str) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 10 };
        Ok(self.client.runtime.exec_sync(request).await?.into_inner())
    }

    pub(crate) async fn status(&mut self, container: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let status = self.client.runtime.container_status(request).await?.into_inner().status;
        status.context("a status without a status")
    }

    /// Waits until a container is as wanted.
    pub(crate) async fn wait(
        &mut self,
        container: &str,
        wanted: impl Fn(&ContainerStatus) -> bool,
    ) -> Result<ContainerStatus> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(container).await?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(tokio::time::Instant::now() < deadline, "in vain: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn remove(&mut self, pod: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.client.runtime.remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// Ends the node and looks for what it has left.
    pub(crate) async fn finish(mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        self.runtime.close().await?;
        drop(self.runtime);
        self.images.close().await;
        self.zygote.kill()?;
        self.zygote.wait()?;
        let folder = self.folder.path();
        ensure!(!socket(folder).exists(), "left behind: the socket");
        for left in ["data/sandboxes", "data/pods"] {
            let left = folder.join(left);
            ensure!(std::fs::read_dir(&left)?.next().is_none(), "left behind: folders in {}", left.display());
        }
        ensure!(!folder.join("run/sandboxes").exists(), "left behind: run directories");
        let interfaces = std::fs::read_to_string("/proc/net/dev")?;
        ensure!(!interfaces.contains(&self.instance), "left behind: an interface of {}", self.instance);
        for mount in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            ensure!(!mount.contains(&*folder.to_string_lossy()), "left behind: mount {mount}");
        }
        Ok(())
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("run/cri.sock")
}

async fn daemon(folder: &Path, instance: &str, images: &ImageStore) -> Result<(Arc<Runtime>, CriServer)> {
    let (run_dir, data_dir) = (folder.join("run"), folder.join("data"));
    let config = SandboxConfig { run_dir, instance: instance.to_owned() };
    let sandboxes = ProcessSandboxes::open(config).await?;
    let mut network = NetworkConfig::new(instance, data_dir.join("network"));
    network.lease_dir = folder.join("run/network");
    let network = Network::open(network).await?;
    let config = RuntimeConfig { data_dir: data_dir.clone(), mount_room: None, pool_size: 0 };
    let runtime = Arc::new(Runtime::open(config, sandboxes, network)?);
    let recovered = runtime.recover().await?;
    let config =
        CriConfig { socket: socket(folder), data_dir, driver: CgroupDriver::Cgroupfs, pinned_images: Vec::new() };
    let server = CriServer::start(config, Arc::clone(&runtime), recovered, images.clone()).await?;
    Ok((runtime, server))
}
