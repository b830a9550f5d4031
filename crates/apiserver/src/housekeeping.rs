//! What the server does unasked: the first namespaces, the end of deleted ones, the end of old events.

use sampan_store::Object;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::{Core, DeleteOptions};
use crate::error::ApiError;
use crate::handle::ApiHandle;
use crate::limits::EVENT_SWEEP_INTERVAL;

/// Makes the namespaces that are always there.
pub(crate) async fn first_namespaces(api: &ApiHandle) -> Result<(), ApiError> {
    for name in ["default", "kube-system"] {
        match api.create("namespaces", None, json!({"metadata": {"name": name}})).await {
            Err(error) if error.reason != "AlreadyExists" => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Starts the tasks; they end with the server.
pub(crate) fn start(api: &ApiHandle, stopping: &CancellationToken, tasks: &TaskTracker) {
    let (core, stop) = (api.clone().core, stopping.clone());
    tasks.spawn(async move { stop.run_until_cancelled(finish_namespaces(&core)).await });
    let (core, stop) = (api.clone().core, stopping.clone());
    tasks.spawn(async move { stop.run_until_cancelled(sweep_events(&core)).await });
}

async fn sweep_events(core: &Core) {
    loop {
        tokio::time::sleep(EVENT_SWEEP_INTERVAL).await;
        if let Err(error) = core.sweep_events().await {
            tracing::warn!(%error, "cannot remove old events");
        }
    }
}

/// Empties and removes namespaces that were deleted; looks again after every change while there are any.
async fn finish_namespaces(core: &Core) {
    loop {
        let (namespaces, revision) = core.store.snapshot("namespaces", None);
        let mut waiting = false;
        for namespace in namespaces.iter().filter(|one| one.value["metadata"].get("deletionTimestamp").is_some()) {
            match empty(core, namespace).await {
                Ok(empty) => waiting |= !empty,
                Err(error) => {
                    waiting = true;
                    tracing::warn!(%error, namespace = namespace.key.name, "cannot empty a deleted namespace yet");
                }
            }
        }
        let next = if waiting {
            core.store.changed(revision).await.map(drop)
        } else {
            match core.store.watch("namespaces", None, revision) {
                Ok(mut watch) => watch.next().await.map(drop),
                // Compacted meanwhile: look again at once.
                Err(_) => core.store.changed(0).await.map(drop),
            }
        };
        if next.is_err_and(|error| matches!(error, sampan_store::StoreError::Closed)) {
            return;
        }
    }
}

/// Deletes what is in a namespace, then the namespace. Returns whether it is gone.
async fn empty(core: &Core, namespace: &Object) -> Result<bool, ApiError> {
    let name = namespace.key.name.as_str();
    let mut left = 0;
    for resource in core.catalog.resources.iter().filter(|resource| resource.namespaced) {
        let (objects, _) = core.store.list(&resource.store_name(), Some(name)).await?;
        for object in &objects {
            if object.value["metadata"].get("deletionTimestamp").is_none() {
                match core.remove(resource, Some(name), &object.key.name, &DeleteOptions::default()).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        left += core.store.list(&resource.store_name(), Some(name)).await?.0.len();
    }
    if left == 0 {
        core.finish_namespace(namespace).await?;
    }
    Ok(left == 0)
}
