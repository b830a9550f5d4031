//! `RuntimeService`.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{HANDLER, Messages, Service, in_pieces};
use crate::error::CallError;
use crate::proto::v1::runtime_service_server::RuntimeService;
use crate::proto::v1::*;
use crate::tickets::Ticket;

/// What `Version` says this service speaks.
const API_VERSION: &str = "v1";
/// The version of the kubelet's own protocol, which every runtime repeats.
const KUBELET_VERSION: &str = "0.1.0";

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn condition(kind: &str) -> RuntimeCondition {
    RuntimeCondition { r#type: kind.to_owned(), status: true, ..RuntimeCondition::default() }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _request: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer(VersionResponse {
            version: KUBELET_VERSION.to_owned(),
            runtime_name: "sampan".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let pod_sandbox_id = self.engine.run_pod(request.into_inner()).await?;
        answer(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        self.engine.stop_pod(&request.into_inner().pod_sandbox_id).await?;
        answer(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        self.engine.remove_pod(&request.into_inner().pod_sandbox_id).await?;
        answer(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.engine.pod(&request.pod_sandbox_id)?;
        let containers = self.engine.containers_of(&pod);
        answer(PodSandboxStatusResponse {
            status: Some(self.engine.pod_status(&pod)),
            info: if request.verbose { self.engine.pod_info(&pod) } else { HashMap::new() },
            containers_statuses: containers.iter().map(|one| self.engine.container_status(one)).collect(),
            timestamp: crate::engine::now(),
        })
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        answer(ListPodSandboxResponse { items: self.engine.list_pods(&filter) })
    }

    type StreamPodSandboxesStream = Messages<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pods = self.engine.list_pods(&request.into_inner().filter.unwrap_or_default());
        answer(in_pieces(pods, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let container_id = self.engine.create_container(request.into_inner()).await?;
        answer(CreateContainerResponse { container_id })
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        self.engine.start_container(&request.into_inner().container_id).await?;
        answer(StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        self.engine.stop_container(&request.container_id, request.timeout).await?;
        answer(StopContainerResponse {})
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        self.engine.remove_container(&request.into_inner().container_id).await?;
        answer(RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        answer(ListContainersResponse { containers: self.engine.list_containers(&filter) })
    }

    type StreamContainersStream = Messages<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.engine.list_containers(&request.into_inner().filter.unwrap_or_default());
        answer(in_pieces(containers, |containers| StreamContainersResponse { containers }))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.engine.container(&request.container_id)?;
        answer(ContainerStatusResponse {
            status: Some(self.engine.container_status(&container)),
            info: if request.verbose { self.engine.container_info(&container) } else { HashMap::new() },
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        self.engine.update_container(request.into_inner()).await?;
        answer(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.engine.reopen_log(&request.into_inner().container_id).await?;
        answer(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        answer(self.engine.exec_sync(request.into_inner()).await?)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        self.engine.container(&request.container_id)?;
        if request.cmd.is_empty() || !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument("cmd and at least one of stdin, stdout and stderr are needed"));
        }
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr exclude each other: a terminal has one output"));
        }
        answer(ExecResponse { url: self.engine.streams.url(Ticket::Exec(request))? })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        self.engine.container(&request.container_id)?;
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument("at least one of stdin, stdout and stderr is needed"));
        }
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr exclude each other: a terminal has one output"));
        }
        answer(AttachResponse { url: self.engine.streams.url(Ticket::Attach(request))? })
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        self.engine.pod(&request.pod_sandbox_id)?;
        answer(PortForwardResponse { url: self.engine.streams.url(Ticket::PortForward(request))? })
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let container = self.engine.container(&request.into_inner().container_id)?;
        answer(ContainerStatsResponse { stats: Some(self.engine.container_stats(&container).await?) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        answer(ListContainerStatsResponse { stats: self.engine.list_container_stats(&filter).await })
    }

    type StreamContainerStatsStream = Messages<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.engine.list_container_stats(&request.into_inner().filter.unwrap_or_default()).await;
        answer(in_pieces(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let pod = self.engine.pod(&request.into_inner().pod_sandbox_id)?;
        answer(PodSandboxStatsResponse { stats: Some(self.engine.pod_stats(&pod, None).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        answer(ListPodSandboxStatsResponse { stats: self.engine.list_pod_stats(&filter).await })
    }

    type StreamPodSandboxStatsStream = Messages<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.engine.list_pod_stats(&request.into_inner().filter.unwrap_or_default()).await;
        answer(in_pieces(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    /// The range of pods' addresses is the service's own option; a kubelet that names one is heard and not obeyed.
    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(cidr) = config.map(|network| network.pod_cidr).filter(|cidr| !cidr.is_empty()) {
            tracing::info!(
                cidr,
                "the kubelet names a range for pods; this service's is chosen by --pod-cidr4 and --pod-cidr6"
            );
        }
        answer(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let features = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        let handlers = ["", HANDLER].map(|name| RuntimeHandler { name: name.to_owned(), features: Some(features) });
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let config = serde_json::json!({
                "dataDir": self.engine.data_dir,
                "pods": self.engine.all_pods().len(),
                "containers": self.engine.all_containers().len(),
            });
            info.insert("config".to_owned(), config.to_string());
        }
        answer(StatusResponse {
            status: Some(RuntimeStatus { conditions: vec![condition("RuntimeReady"), condition("NetworkReady")] }),
            info,
            runtime_handlers: handlers.into(),
            features: Some(RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: false }),
        })
    }

    async fn checkpoint_container(
        &self,
        _request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(CallError::Unimplemented("containers cannot be checkpointed by this runtime").into())
    }

    type GetContainerEventsStream = Messages<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let followed = futures_util::stream::unfold(Some(self.engine.subscribe()), |events| async move {
            let mut events = events?;
            match events.recv().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(RecvError::Closed) => None,
                // Cut off: whoever follows lists everything when it comes again, and misses nothing.
                Err(RecvError::Lagged(missed)) => {
                    let why = format!("{missed} events were missed; list everything and follow again");
                    Some((Err(Status::data_loss(why)), None))
                }
            }
        });
        answer(followed.boxed())
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(ListMetricDescriptorsResponse { descriptors: crate::engine::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(ListPodSandboxMetricsResponse { pod_metrics: self.engine.pod_metrics().await })
    }

    type StreamPodSandboxMetricsStream = Messages<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.engine.pod_metrics().await;
        answer(in_pieces(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn runtime_config(&self, _request: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: self.driver.into() };
        answer(RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        self.engine.update_pod(request.into_inner()).await?;
        answer(UpdatePodSandboxResourcesResponse {})
    }
}
