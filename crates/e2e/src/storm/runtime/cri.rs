//! A client of the container runtime interface that does what a kubelet does: the same again until it is answered.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tonic::Code;

use super::flights::Flights;
use super::proto::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig, ListContainersRequest, ListPodSandboxRequest, Mount,
    PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest,
};
use super::script::{SHARED, Script};
use super::wires::Request::{Change, Look};
use super::wires::{CriWire, Told};
use crate::harness::wait::DEADLINE;
use crate::service::Service;

const PAUSE: Duration = Duration::from_millis(10);

/// One client.
#[derive(Debug)]
pub(super) struct Cri {
    wire: CriWire,
    image: String,
    logs: PathBuf,
}

impl Cri {
    pub(super) fn new(service: &Service, flights: &Flights) -> Result<Self> {
        Ok(Self {
            wire: CriWire::new(service.run_dir().join("cri.sock"), flights.clone()),
            image: service.busybox()?,
            logs: service.work().join("cri-logs"),
        })
    }

    /// A pod of that name; names are used again and again.
    pub(super) fn config(&self, name: &str) -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "storm".into(), attempt: 0 };
        PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.logs.join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..PodSandboxConfig::default()
        }
    }

    pub(super) async fn run_pod(&mut self, config: &PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let told = self.wire.ask(Change("RunPodSandbox"), |mut client| {
            let request = request.clone();
            async move { client.run_pod_sandbox(request).await }
        });
        Ok(told.await?.answer.context("RunPodSandbox")?.pod_sandbox_id)
    }

    pub(super) async fn create(
        &mut self,
        pod: &str,
        config: &PodSandboxConfig,
        script: &Script,
        shared: Option<&Path>,
    ) -> Result<String> {
        let mounts = shared.map(|folder| Mount {
            host_path: folder.to_string_lossy().into_owned(),
            container_path: SHARED.to_owned(),
            ..Mount::default()
        });
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..ImageSpec::default() }),
            command: script.command().map(str::to_owned).to_vec(),
            log_path: "main.log".into(),
            mounts: mounts.into_iter().collect(),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let told = self.wire.ask(Change("CreateContainer"), |mut client| {
            let request = request.clone();
            async move { client.create_container(request).await }
        });
        Ok(told.await?.answer.context("CreateContainer")?.container_id)
    }

    /// Starts it. Who asks a second time may hear that it has ended since.
    pub(super) async fn start(&mut self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        let told = self.wire.ask(Change("StartContainer"), |mut client| {
            let request = request.clone();
            async move { client.start_container(request).await }
        });
        match told.await? {
            Told { answer: Ok(_), .. } => Ok(()),
            Told { answer: Err(status), repeated: true } if status.code() == Code::FailedPrecondition => Ok(()),
            Told { answer: Err(status), .. } => Err(status).context("StartContainer"),
        }
    }

    pub(super) async fn status(&mut self, container: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let told = self.wire.ask(Look("ContainerStatus"), |mut client| {
            let request = request.clone();
            async move { client.container_status(request).await }
        });
        told.await?.answer.context("ContainerStatus")?.status.context("an answer without a status")
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self, container: &str) -> Result<ContainerStatus> {
        let began = Instant::now();
        loop {
            let status = self.status(container).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(began.elapsed() < DEADLINE, "a container does not end: {status:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) async fn stop(&mut self, container: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        let told = self.wire.ask(Change("StopContainer"), |mut client| {
            let request = request.clone();
            async move { client.stop_container(request).await }
        });
        told.await?.answer.context("StopContainer").map(drop)
    }

    pub(super) async fn stop_pod(&mut self, pod: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let told = self.wire.ask(Change("StopPodSandbox"), |mut client| {
            let request = request.clone();
            async move { client.stop_pod_sandbox(request).await }
        });
        told.await?.answer.context("StopPodSandbox").map(drop)
    }

    pub(super) async fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let told = self.wire.ask(Change("RemovePodSandbox"), |mut client| {
            let request = request.clone();
            async move { client.remove_pod_sandbox(request).await }
        });
        told.await?.answer.context("RemovePodSandbox").map(drop)
    }

    /// The ids of all pods, and how many containers there are.
    pub(super) async fn everything(&mut self) -> Result<(Vec<String>, usize)> {
        let pods = self.wire.ask(Look("ListPodSandbox"), |mut client| async move {
            client.list_pod_sandbox(ListPodSandboxRequest::default()).await
        });
        let pods = pods.await?.answer.context("ListPodSandbox")?.items;
        let containers = self.wire.ask(Look("ListContainers"), |mut client| async move {
            client.list_containers(ListContainersRequest::default()).await
        });
        let containers = containers.await?.answer.context("ListContainers")?.containers;
        Ok((pods.into_iter().map(|pod| pod.id).collect(), containers.len()))
    }

    /// Waits until a daemon answers.
    pub(super) async fn answers(&mut self) -> Result<()> {
        let told =
            self.wire.ask(Look("Version"), |mut client| async move { client.version(VersionRequest::default()).await });
        told.await?.answer.context("Version").map(drop)
    }

    /// Insists that nothing is left, once whatever is left was removed.
    pub(super) async fn clear(&mut self) -> Result<()> {
        for pod in self.everything().await?.0 {
            self.remove_pod(&pod).await?;
        }
        match self.everything().await? {
            (pods, 0) if pods.is_empty() => Ok(()),
            left => bail!("pods, and how many containers, that stay: {left:?}"),
        }
    }
}
