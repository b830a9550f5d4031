//! Changes to what exists: limits and logs.

use super::{Engine, locked};
use crate::error::CallError;
use crate::proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest};
use crate::records::Phase;
use crate::translate;

impl Engine {
    /// Changes a container's limits in place; one that does not run yet starts with them.
    pub(crate) async fn update_container(&self, request: UpdateContainerResourcesRequest) -> Result<(), CallError> {
        let container = self.container(&request.container_id)?;
        let Some(update) = request.linux else { return Ok(()) };
        let limits = translate::resources(&update)?;
        match container.phase() {
            Phase::Created => {}
            Phase::Running => container.running()?.update_resources(Some(container.run_name()), &limits).await?,
            Phase::Exited => return Err(CallError::NotNow(format!("container {} has exited", container.id))),
        }
        self.change(&container, |record| {
            let now: LinuxContainerResources = record.resources.take().unwrap_or_default();
            record.resources = Some(translate::merged(&now, &update));
        })
    }

    /// Changes a pod's cap, where the pod has one of its own (see [`translate::apply_sandbox_resources`]).
    pub(crate) async fn update_pod(&self, request: UpdatePodSandboxResourcesRequest) -> Result<(), CallError> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        let live = pod.ready()?;
        let mut config = pod.config();
        let linux = config.linux.get_or_insert_default();
        let merge = |now: &mut Option<LinuxContainerResources>, update: Option<LinuxContainerResources>| {
            if let Some(update) = update {
                *now = Some(translate::merged(&now.take().unwrap_or_default(), &update));
            }
        };
        merge(&mut linux.overhead, request.overhead);
        merge(&mut linux.resources, request.resources);
        let limits = translate::apply_sandbox_resources(&config)?;
        live.update_resources(None, &limits).await?;
        let mut record = locked(&pod.record);
        let updated = crate::records::PodRecord { config: Some(config), ..record.clone() };
        self.table.put_pod(&updated)?;
        *record = updated;
        Ok(())
    }

    /// Lets a container go on logging into a new file at its path, after somebody has moved the old one away.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), CallError> {
        let container = self.container(id)?;
        let live = container.running()?;
        let path = self.container_status(&container).log_path;
        if path.is_empty() {
            return Ok(());
        }
        Ok(live.reopen_log(container.run_name(), path.as_ref()).await?)
    }
}
