//! Writing the pod's status: once where a start is fast, and before anything that the agent may forget for it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod as PodObject, PodStatus};
use sampan_runtime::pod::Pod;
use sampan_runtime::timeline::{Phase, Timeline};
use sampan_store::{Object, StoreError};
use serde_json::{Value, json};

use super::{Held, Worker};
use crate::lifecycle::{State, after};
use crate::limits::{STATUS_WRITE_DELAY, WRITE_ATTEMPTS_MAX, WRITE_RETRY};
use crate::status::{self, Surroundings};

/// Annotation with the phases of the start.
const TIMELINE_ANNOTATION: &str = "sampan.dev/timeline";

/// What has been written, and what waits for a write.
#[derive(Debug, Default)]
pub(super) struct Report {
    written: Option<Value>,
    /// The revision that `written` got.
    revision: u64,
    changed_at: Option<Timestamp>,
    /// Ends of containers that the agent may forget once they stand in the store.
    acknowledgements: Vec<(Arc<Pod>, u64)>,
}

impl Report {
    pub(super) fn acknowledge_after_write(&mut self, pod: Arc<Pod>, event: u64) {
        self.acknowledgements.push((pod, event));
    }

    /// What a client wrote over the node's own account of the pod is written over in turn.
    pub(super) fn compare(&mut self, stored: &Object) {
        if stored.revision > self.revision && self.written.as_ref() != stored.value.get("status") {
            self.written = None;
        }
    }

    pub(super) fn forget_acknowledgements(&mut self) {
        self.acknowledgements.clear();
    }
}

/// The phases that admission noted, to be continued by the node.
pub(super) fn stored_timeline(pod: &PodObject) -> Timeline {
    let timeline = Timeline::default();
    let annotations = pod.metadata.annotations.as_ref();
    let stored = annotations.and_then(|annotations| annotations.get(TIMELINE_ANNOTATION));
    for phase in stored.and_then(|text| serde_json::from_str::<Vec<Phase>>(text).ok()).unwrap_or_default() {
        timeline.push(&phase.phase, phase.start, phase.ms);
    }
    timeline
}

/// The sandbox's id and the pod's addresses as the stored status tells them: a finished pod keeps what it had.
pub(super) fn stored_sandbox(status: &PodStatus) -> (Option<String>, Vec<String>) {
    let first = status.container_statuses.iter().flatten().find_map(|container| container.container_id.as_deref());
    let id = first.and_then(|id| id.strip_prefix("sampan://")?.split('/').next().map(str::to_owned));
    (id, status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect())
}

impl Worker {
    /// Writes the status if it changed. An unsettled one waits a moment for what comes next; then says until when.
    pub(super) async fn report(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.object_gone {
            return None;
        }
        let status = status::build(&self.object, &self.lifecycle, &self.surroundings(), now);
        let status = match serde_json::to_value(&status) {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(pod = %self.key, %error, "a status cannot be written as JSON");
                return None;
            }
        };
        if self.report.written.as_ref() != Some(&status) {
            let due = *self.report.changed_at.get_or_insert(now) + STATUS_WRITE_DELAY;
            if !self.is_settled() && now < due {
                return Some(due);
            }
            self.report.changed_at = None;
            if !self.write(&status).await {
                return (!self.object_gone).then(|| after(now, WRITE_RETRY));
            }
            self.report.written = Some(status);
            self.acknowledge();
        } else {
            self.acknowledge();
        }
        self.flush_events();
        None
    }

    fn acknowledge(&mut self) {
        for (pod, event) in self.report.acknowledgements.drain(..) {
            tokio::spawn(async move {
                if let Err(error) = pod.sandbox().acknowledge(event).await {
                    tracing::debug!(sandbox = pod.id(), %error, "the agent could not be told to forget an exit");
                }
            });
        }
    }

    fn flush_events(&mut self) {
        for event in self.pending_events.drain(..) {
            self.recorder.record(event);
        }
    }

    /// Nothing is about to change by itself.
    fn is_settled(&self) -> bool {
        let starting = self.lifecycle.slots.iter().any(|slot| slot.state == State::Starting);
        let making = matches!(self.held, Held::Making);
        let ending = self.lifecycle.stop.is_some();
        let due = !ending && self.lifecycle.slots.iter().any(|slot| slot.state == State::Fresh && !slot.ever_started);
        !(starting || making || due && matches!(self.held, Held::Ready(_) | Held::Absent))
    }

    fn surroundings(&self) -> Surroundings {
        let (sandbox, pod_ips) = self.known_sandbox.clone();
        Surroundings {
            sandbox,
            pod_ips,
            host_ip: self.services.host_ip.clone(),
            start_time: Some(self.start_time),
            image_ids: self.image_ids.clone(),
            resources: self.resources.clone(),
            sandbox_refusal: self.refusal.clone(),
        }
    }

    /// Puts the status into the stored object; against other writers it tries again.
    async fn write(&mut self, status: &Value) -> bool {
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let object = match self.services.store.get(&self.key).await {
                Ok(Some(object))
                    if object.value.pointer("/metadata/uid").and_then(Value::as_str) == Some(&self.uid) =>
                {
                    object
                }
                Ok(_) => {
                    self.object_gone = true;
                    self.lifecycle.request_stop(Timestamp::now());
                    return false;
                }
                Err(error) => {
                    tracing::error!(pod = %self.key, %error, "the pod cannot be read from the store");
                    return false;
                }
            };
            let mut value = object.value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.insert("status".to_owned(), status.clone());
            }
            self.annotate_timeline(&mut value);
            match self.services.store.update(&self.key, Some(object.revision), value).await {
                Ok(stored) => {
                    self.report.revision = stored.revision;
                    return true;
                }
                // One that was deleted in this moment is seen to be gone above.
                Err(StoreError::Conflict { .. } | StoreError::NotFound(_)) => {}
                Err(error) => {
                    tracing::error!(pod = %self.key, %error, "the pod's status cannot be stored");
                    return false;
                }
            }
        }
        tracing::error!(pod = %self.key, "the pod's status lost against other writers too often");
        false
    }

    fn annotate_timeline(&self, value: &mut Value) {
        let phases = self.timeline.phases();
        let Ok(text) = serde_json::to_string(&phases) else { return };
        let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(TIMELINE_ANNOTATION.to_owned(), text.into());
        }
    }

    /// Removes the object of a pod that is deleted; false when it must be tried again.
    pub(super) async fn delete_object(&mut self) -> bool {
        match self.services.store.get(&self.key).await {
            Ok(Some(object)) if object.value.pointer("/metadata/uid").and_then(Value::as_str) == Some(&self.uid) => {
                if object
                    .value
                    .pointer("/metadata/finalizers")
                    .and_then(Value::as_array)
                    .is_some_and(|held| !held.is_empty())
                {
                    // Whoever holds it changes it when he is done, and then the worker comes here again.
                    return false;
                }
                match self.services.store.delete(&self.key, Some(object.revision)).await {
                    Ok(_) | Err(StoreError::NotFound(_)) => true,
                    Err(error) => {
                        tracing::warn!(pod = %self.key, %error, "a deleted pod cannot be removed from the store yet");
                        false
                    }
                }
            }
            Ok(_) => true,
            Err(error) => {
                tracing::error!(pod = %self.key, %error, "the pod cannot be read from the store");
                false
            }
        }
    }
}
