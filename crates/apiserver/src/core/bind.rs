//! Binding a pod to a node.

use std::sync::Arc;

use sampan_store::Object;
use serde_json::{Value, json};

use super::{Core, Part, WriteOptions, key, metadata_text, now};
use crate::error::ApiError;

impl Core {
    /// Sets the node of a pod that has none yet.
    pub(crate) async fn bind(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        uid: &str,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let pods = self.resource("pods")?;
        let current = self.get(pods, Some(namespace), name).await?;
        if !uid.is_empty() && uid != metadata_text(&current.value, "uid") {
            return Err(ApiError::conflict("pods/binding", name, format!("the pod has another uid than {uid}")));
        }
        if node.is_empty() {
            return Err(ApiError::bad_request("target.name: the name of a node is required"));
        }
        if current.value["metadata"].get("deletionTimestamp").is_some() {
            return Err(ApiError::conflict(
                "pods/binding",
                name,
                format!("pod {name} is being deleted, cannot be assigned to a host"),
            ));
        }
        if let Some(bound) = current.value["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
            return Err(ApiError::conflict(
                "pods/binding",
                name,
                format!("pod {name} is already assigned to node {bound:?}"),
            ));
        }
        let mut value = current.value.clone();
        value["spec"]["nodeName"] = json!(node);
        let mut conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": Value::Null, "lastTransitionTime": now()}));
        value["status"]["conditions"] = Value::Array(conditions);
        // Admission sees it as a binding, and holds whoever binds to what there is room for.
        self.store_changed(pods, Part::Binding, &key(pods, Some(namespace), name), &current, value, options).await
    }
}
