//! One client of the Container Runtime Interface for both sides: the generated one over one HTTP/2 connection to a Unix socket.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sampan_cri::proto::v1::image_service_client::ImageServiceClient;
use sampan_cri::proto::v1::runtime_service_client::RuntimeServiceClient;
use sampan_cri::proto::v1::{
    ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStateValue, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxContainerResources,
    LinuxPodSandboxConfig, ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata, PodSandboxState,
    PodSandboxStateValue, PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::interrupt;

/// The largest answer: lists of thousands.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What a measured container may use.
const MEMORY_BYTES: i64 = 64 << 20;
const COMMAND_SECONDS: i64 = 30;

/// One connection; clones share it.
#[derive(Debug, Clone)]
struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.send_request(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(body.map_err(std::io::Error::other)))) })
    }
}

/// A running pod with its one container.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) id: String,
    pub(super) container: String,
}

/// A connected client, and what its pods are made of.
#[derive(Debug, Clone)]
pub(super) struct Client {
    runtime: RuntimeServiceClient<Connection>,
    images: ImageServiceClient<Connection>,
    image: String,
    logs: PathBuf,
}

/// No two pods of a run have the same name.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Client {
    pub(super) async fn connect(socket: &Path, image: &str, logs: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connect to the service")?;
        let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (connection, origin) = (Connection(sender), http::Uri::from_static("http://localhost"));
        let runtime = RuntimeServiceClient::with_origin(connection.clone(), origin.clone());
        Ok(Self {
            runtime: runtime.max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::with_origin(connection, origin),
            image: image.to_owned(),
            logs: logs.to_owned(),
        })
    }

    fn image_spec(&self) -> ImageSpec {
        ImageSpec { image: self.image.clone(), ..ImageSpec::default() }
    }

    pub(super) async fn pull(&self) -> Result<()> {
        let request = PullImageRequest { image: Some(self.image_spec()), ..PullImageRequest::default() };
        self.images.clone().pull_image(request).await.context("pull the image")?;
        Ok(())
    }

    /// Whether the image is known already.
    pub(super) async fn has_image(&self) -> Result<bool> {
        let request = ImageStatusRequest { image: Some(self.image_spec()), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image.is_some())
    }

    /// Makes a pod with a network and starts its container; gives the time that took.
    pub(super) async fn up(&self) -> Result<(Pod, Duration)> {
        let name = format!("bench-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let logs = self.logs.join(&name);
        std::fs::create_dir_all(&logs)?;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "bench".into(),
                attempt: 0,
            }),
            hostname: name,
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", crate::engines::NAMESPACE),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(self.image_spec()),
            command: vec!["sleep".into(), "1000000".into()],
            log_path: "main.log".into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    memory_limit_in_bytes: MEMORY_BYTES,
                    cpu_shares: 102,
                    oom_score_adj: 1000,
                    ..LinuxContainerResources::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let mut runtime = self.runtime.clone();
        let begin = Instant::now();
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let id = runtime.run_pod_sandbox(request).await.context("make a pod")?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await.context("make a container")?.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.context("start a container")?;
        Ok((Pod { id, container }, begin.elapsed()))
    }

    /// Stops and removes a pod as a kubelet does, without grace; gives the time that took.
    pub(super) async fn down(&self, pod: &Pod) -> Result<Duration> {
        let mut runtime = self.runtime.clone();
        let begin = Instant::now();
        let request = StopContainerRequest { container_id: pod.container.clone(), timeout: 0 };
        runtime.stop_container(request).await.context("stop a container")?;
        self.remove(&pod.id).await?;
        Ok(begin.elapsed())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let mut runtime = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        runtime.stop_pod_sandbox(request).await.context("stop a pod")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        runtime.remove_pod_sandbox(request).await.context("remove a pod")?;
        Ok(())
    }

    /// Makes so many pods, so many of them at once; each one's time, and that of all.
    pub(super) async fn up_all(&self, count: usize, at_once: usize) -> Result<(Vec<Pod>, Vec<Duration>, Duration)> {
        let begin = Instant::now();
        let one = |_| {
            let client = self.clone();
            async move {
                interrupt::check()?;
                tokio::spawn(async move { client.up().await }).await?
            }
        };
        let made: Vec<(Pod, Duration)> =
            stream::iter(0..count).map(one).buffer_unordered(at_once).try_collect().await?;
        let whole = begin.elapsed();
        let (pods, times) = made.into_iter().unzip();
        Ok((pods, times, whole))
    }

    /// Takes them away again.
    pub(super) async fn down_all(&self, pods: Vec<Pod>, at_once: usize) -> Result<(Vec<Duration>, Duration)> {
        let begin = Instant::now();
        let one = |pod| {
            let client = self.clone();
            async move {
                interrupt::check()?;
                tokio::spawn(async move { client.down(&pod).await }).await?
            }
        };
        let times = stream::iter(pods).map(one).buffer_unordered(at_once).try_collect().await?;
        Ok((times, begin.elapsed()))
    }

    /// Takes away whatever there is, also what failed half way.
    pub(super) async fn clear(&self) -> Result<()> {
        let list = self.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
        let one = |pod: sampan_cri::proto::v1::PodSandbox| async move { self.remove(&pod.id).await };
        stream::iter(list).map(one).buffer_unordered(8).try_collect().await
    }

    /// How many pods are ready and how many containers run.
    pub(super) async fn running(&self) -> Result<(usize, usize)> {
        let mut runtime = self.runtime.clone();
        let state = PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() };
        let filter = PodSandboxFilter { state: Some(state), ..PodSandboxFilter::default() };
        let pods = runtime.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
        let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(state), ..ContainerFilter::default() };
        let containers = runtime.list_containers(ListContainersRequest { filter: Some(filter) }).await?;
        Ok((pods.into_inner().items.len(), containers.into_inner().containers.len()))
    }

    /// Runs a command in a container to its end.
    pub(super) async fn exec(&self, pod: &Pod, words: &[&str]) -> Result<Duration> {
        let cmd = words.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: pod.container.clone(), cmd, timeout: COMMAND_SECONDS };
        let begin = Instant::now();
        let code = self.runtime.clone().exec_sync(request).await?.into_inner().exit_code;
        ensure!(code == 0, "{words:?} ends with {code}");
        Ok(begin.elapsed())
    }

    /// Asks for all containers' figures; how many there are.
    pub(super) async fn container_stats(&self) -> Result<usize> {
        let answer = self.runtime.clone().list_container_stats(ListContainerStatsRequest::default()).await?;
        Ok(answer.into_inner().stats.len())
    }

    /// Asks for all pods' figures; how many there are.
    pub(super) async fn pod_stats(&self) -> Result<usize> {
        let answer = self.runtime.clone().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?;
        Ok(answer.into_inner().stats.len())
    }
}
