//! How pods and containers are described.

use std::collections::HashMap;
use std::sync::Arc;

use super::{ContainerEntry, Engine, PodEntry};
use crate::proto::v1::{
    Container, ContainerFilter, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxFilter, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};
use crate::records::{Phase, PodRecord};
use crate::translate::signal_name;

fn pod_state(record: &PodRecord) -> PodSandboxState {
    if record.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

fn container_state(phase: Phase) -> ContainerState {
    match phase {
        Phase::Created => ContainerState::ContainerCreated,
        Phase::Running => ContainerState::ContainerRunning,
        Phase::Exited => ContainerState::ContainerExited,
    }
}

impl Engine {
    pub(crate) fn list_pods(&self, filter: &PodSandboxFilter) -> Vec<PodSandbox> {
        let (all, none) = (self.all_pods(), HashMap::new());
        let described = |pod: &Arc<PodEntry>| {
            pod.read(|record| {
                let (config, state) = (record.config.as_ref(), pod_state(record));
                let labels = config.map_or(&none, |config| &config.labels);
                filter.takes(&record.id, state, labels).then(|| PodSandbox {
                    id: record.id.clone(),
                    metadata: config.and_then(|config| config.metadata.clone()),
                    state: state.into(),
                    created_at: record.created_at,
                    labels: labels.clone(),
                    annotations: config.map_or(&none, |config| &config.annotations).clone(),
                    runtime_handler: record.runtime_handler.clone(),
                })
            })
        };
        all.iter().filter_map(described).collect()
    }

    pub(crate) fn pod_status(&self, pod: &PodEntry) -> PodSandboxStatus {
        let record = pod.record();
        let state = pod_state(&record);
        let config = record.config.unwrap_or_default();
        let security = config.linux.and_then(|linux| linux.security_context).unwrap_or_default();
        let mut addresses = record.addresses.into_iter();
        PodSandboxStatus {
            id: record.id,
            metadata: config.metadata,
            state: state.into(),
            created_at: record.created_at,
            network: Some(PodSandboxNetworkStatus {
                ip: addresses.next().unwrap_or_default(),
                additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
            }),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace { options: Some(security.namespace_options.unwrap_or_default()) }),
            }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }

    /// What else may help a person, as JSON.
    pub(crate) fn pod_info(&self, pod: &PodEntry) -> HashMap<String, String> {
        let live = pod.live();
        let sandbox = live.as_ref().map(|live| live.id().to_owned());
        let addresses = pod.record().addresses;
        let info = serde_json::json!({ "sandboxId": sandbox, "addresses": addresses });
        [("info".to_owned(), info.to_string())].into()
    }

    pub(crate) fn list_containers(&self, filter: &ContainerFilter) -> Vec<Container> {
        let (all, none) = (self.all_containers(), HashMap::new());
        let described = |container: &Arc<ContainerEntry>| {
            container.read(|record| {
                let (config, state) = (record.config.as_ref(), container_state(record.phase()));
                let labels = config.map_or(&none, |config| &config.labels);
                filter.takes(&record.id, &record.pod_id, state, labels).then(|| Container {
                    id: record.id.clone(),
                    pod_sandbox_id: record.pod_id.clone(),
                    metadata: config.and_then(|config| config.metadata.clone()),
                    image: config.and_then(|config| config.image.clone()),
                    image_ref: record.image_ref.clone(),
                    state: state.into(),
                    created_at: record.created_at,
                    labels: labels.clone(),
                    annotations: config.map_or(&none, |config| &config.annotations).clone(),
                    image_id: record.image_id.clone(),
                })
            })
        };
        all.iter().filter_map(described).collect()
    }

    pub(crate) fn container_status(&self, container: &ContainerEntry) -> ContainerStatus {
        let record = container.record();
        let state = container_state(record.phase());
        let config = record.config.unwrap_or_default();
        let log_directory = container.pod.config().log_directory;
        let log_path = match (config.log_path.as_str(), log_directory.as_str()) {
            ("", _) | (_, "") => String::new(),
            (path, directory) => std::path::Path::new(directory).join(path).to_string_lossy().into_owned(),
        };
        let user_specified = config.image.as_ref().map(|image| image.user_specified_image.clone()).unwrap_or_default();
        let name = match config.image.as_ref() {
            Some(image) if !user_specified.is_empty() => ImageSpec { image: user_specified, ..image.clone() },
            image => image.cloned().unwrap_or_default(),
        };
        ContainerStatus {
            id: record.id,
            state: state.into(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            exit_code: record.exit_code,
            image: Some(name),
            image_ref: record.image_ref,
            reason: record.reason,
            message: record.message,
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path,
            resources: Some(ContainerResources { linux: record.resources, windows: None }),
            image_id: record.image_id,
            user: record.user.map(|user| ContainerUser { linux: Some(user) }),
            stop_signal: signal_name(self.stop_signal(container)).into(),
        }
    }

    /// What else may help a person, as JSON. `crictl` looks for the process here.
    pub(crate) fn container_info(&self, container: &ContainerEntry) -> HashMap<String, String> {
        let pod = container.pod.live();
        let info = serde_json::json!({
            "sandboxID": container.pod.id,
            "name": container.run_name(),
            "sandbox": pod.as_ref().map(|pod| pod.id().to_owned()),
        });
        [("info".to_owned(), info.to_string())].into()
    }
}
