//! Making, stopping and removing pods.

use std::sync::Arc;

use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::timeline::Timeline;
use tonic::Status;

use super::{Engine, PodEntry, locked, new_id, now};
use crate::error::CallError;
use crate::limits::PODS_MAX;
use crate::proto::v1::{ContainerEventType, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest};
use crate::records::PodRecord;
use crate::service::is_handler;
use crate::translate;

/// What a caller calls a pod. No two pods are called the same.
pub(super) fn name_of(metadata: Option<&PodSandboxMetadata>) -> String {
    let Some(PodSandboxMetadata { name, uid, namespace, attempt }) = metadata else { return String::new() };
    format!("{namespace}/{name}/{uid}/{attempt}")
}

impl Engine {
    /// Makes a pod; gives its id. The same request again, during or after, gives the same pod.
    pub(crate) async fn run_pod(self: &Arc<Self>, request: RunPodSandboxRequest) -> Result<String, Status> {
        let config = request.config.ok_or_else(|| CallError::Invalid("config: is missing".to_owned()))?;
        let metadata = config.metadata.clone().filter(|metadata| !metadata.name.is_empty());
        let metadata = metadata.ok_or_else(|| CallError::Invalid("config.metadata.name: is empty".to_owned()))?;
        if !is_handler(&request.runtime_handler) {
            let why = format!("runtime handler {:?} is not known; leave it empty", request.runtime_handler);
            return Err(CallError::Invalid(why).into());
        }
        let name = name_of(Some(&metadata));
        let engine = Arc::clone(self);
        let handler = request.runtime_handler;
        self.once(format!("run {name}"), async move { engine.make_pod(name, config, handler).await }).await
    }

    async fn make_pod(
        self: Arc<Self>,
        name: String,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, CallError> {
        let (named, count) = {
            let pods = locked(&self.pods);
            (pods.by_name.get(&name).cloned(), pods.by_id.len())
        };
        if let Some(pod) = named {
            if pod.live().is_some() && pod.read(|record| record.config.as_ref() == Some(&config)) {
                return Ok(pod.id.clone());
            }
            return Err(CallError::Taken(format!(
                "pod sandbox {} has this name already: {name}; remove it first",
                pod.id
            )));
        }
        if count >= PODS_MAX {
            return Err(CallError::Exhausted(format!("there are {PODS_MAX} pod sandboxes; remove finished ones")));
        }
        let id = new_id()?;
        let made = translate::pod_config(&id, &config)?;
        let live = Arc::new(self.runtime.create(made, &Timeline::default()).await?);
        let record = PodRecord {
            id: id.clone(),
            config: Some(config),
            runtime_handler,
            created_at: now(),
            ready: true,
            addresses: live.addresses().iter().map(ToString::to_string).collect(),
        };
        if let Err(error) = self.table.put_pod(&record) {
            if let Err(left) = self.runtime.remove(&live).await {
                tracing::error!(pod = id, error = %ErrorChain(&left), "a pod that is not to be cannot be taken away");
            }
            return Err(error.into());
        }
        let pod = PodEntry::new(record, Some(Arc::clone(&live)));
        self.add_pod(&pod);
        let events = live.sandbox().events();
        self.follow(Arc::clone(&pod), &live, events);
        self.tell(&id, ContainerEventType::ContainerCreatedEvent, &pod);
        self.tell(&id, ContainerEventType::ContainerStartedEvent, &pod);
        Ok(id)
    }

    /// Ends whatever runs in a pod and takes its sandbox away. One that is not known, or has ended, is no failure.
    pub(crate) async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(pod) = self.pod(id) else { return Ok(()) };
        let engine = Arc::clone(self);
        let key = format!("stop {}", pod.id);
        self.once(key, async move { engine.end_pod(&pod, "the pod was stopped").await }).await.map(drop)
    }

    /// Removes a pod with its containers, stopping it first.
    pub(crate) async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(pod) = self.pod(id) else { return Ok(()) };
        self.stop_pod(&pod.id).await?;
        let engine = Arc::clone(self);
        let key = format!("remove {}", pod.id);
        self.once(key, async move { engine.forget_pod(&pod) }).await.map(drop)
    }

    fn forget_pod(&self, pod: &Arc<PodEntry>) -> Result<String, CallError> {
        let containers = self.containers_of(pod);
        self.table.remove_pod(&pod.id)?;
        for container in &containers {
            self.drop_container(container);
            self.tell(&container.id, ContainerEventType::ContainerDeletedEvent, pod);
        }
        self.drop_pod(pod);
        self.tell(&pod.id, ContainerEventType::ContainerDeletedEvent, pod);
        self.runtime.forget(&translate::pod_uid(&pod.id))?;
        Ok(String::new())
    }
}
