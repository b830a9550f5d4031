//! Removes what has served its purpose: finished `--rm` pods. Old events are the API server's own housekeeping.

use std::time::Duration;

use jiff::Timestamp;
use sampan_kit::error_chain::ErrorChain;
use sampan_store::{Object, Store, StoreError};
use serde_json::Value;

/// Annotation of pods that are to go when they have finished.
const REMOVE_ANNOTATION: &str = "/metadata/annotations/sampan.dev~1remove-when-finished";
/// How long a finished `--rm` pod waits for its client to read the exit code.
const FINISHED_KEPT: Duration = Duration::from_secs(30);
/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(10);

/// Cleans up until the store closes.
pub async fn run(store: Store) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        match sweep(&store, Timestamp::now()).await {
            Ok(()) => {}
            Err(StoreError::Closed) => return,
            Err(error) => tracing::warn!(error = %ErrorChain(&error), "the clean-up could not finish; it tries again"),
        }
    }
}

/// One round.
pub async fn sweep(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    for object in store.list("pods", None).await?.0 {
        if is_due(&object.value, now) {
            mark_deleted(store, &object, now).await?;
        }
    }
    Ok(())
}

fn is_due(pod: &Value, now: Timestamp) -> bool {
    let wanted = pod.pointer(REMOVE_ANNOTATION).and_then(Value::as_str) == Some("true");
    let finished = matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    let ends = pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten();
    let last = ends.filter_map(|status| status.pointer("/state/terminated/finishedAt")?.as_str()?.parse().ok()).max();
    let last: Option<Timestamp> = last.or_else(|| pod.pointer("/status/startTime")?.as_str()?.parse().ok());
    wanted && finished && last.is_none_or(|last| last.checked_add(FINISHED_KEPT).is_ok_and(|due| due < now))
}

/// As a graceful deletion through the API would: the node removes the object when the host is clean.
async fn mark_deleted(store: &Store, object: &Object, now: Timestamp) -> Result<(), StoreError> {
    let mut value = object.value.clone();
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return Ok(()) };
    if metadata.contains_key("deletionTimestamp") {
        return Ok(());
    }
    metadata.insert("deletionTimestamp".into(), format!("{now:.0}").into());
    metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
    ignore_races(store.update(&object.key, Some(object.revision), value).await.map(drop))
}

fn ignore_races(result: Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Err(StoreError::Conflict { .. } | StoreError::NotFound(_)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::sweep;
    use sampan_store::{Key, Store};
    use serde_json::json;

    #[tokio::test]
    async fn finished_pods_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        let pod = |phase: &str| {
            json!({
                "metadata": {"annotations": {"sampan.dev/remove-when-finished": "true"}},
                "status": {"phase": phase, "containerStatuses": [
                    {"state": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}}]},
            })
        };
        let key = |name: &str| Key::namespaced("pods", "default", name);
        store.create(key("done"), pod("Succeeded")).await.unwrap();
        store.create(key("busy"), pod("Running")).await.unwrap();
        sweep(&store, "2026-01-01T00:00:20Z".parse().unwrap()).await.unwrap();
        assert!(store.get(&key("done")).await.unwrap().unwrap().value["metadata"].get("deletionTimestamp").is_none());
        sweep(&store, "2026-01-01T02:00:00Z".parse().unwrap()).await.unwrap();
        assert!(store.get(&key("done")).await.unwrap().unwrap().value["metadata"].get("deletionTimestamp").is_some());
        assert!(store.get(&key("busy")).await.unwrap().unwrap().value["metadata"].get("deletionTimestamp").is_none());
    }
}
