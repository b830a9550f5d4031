//! Kubernetes Events about pods; a repeated one raises the count of the first instead of adding another.

use std::collections::HashMap;

use jiff::Timestamp;
use sampan_store::{Key, Store};
use serde_json::{Value, json};

use crate::limits::EVENTS_FOLDED_MAX;

/// Whether a person should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Something is not.
    Warning,
}

/// Writes the events of one object.
#[derive(Debug)]
pub struct Recorder {
    store: Store,
    involved: Value,
    namespace: String,
    name: String,
    node: String,
    folded: HashMap<(String, String), Key>,
}

impl Recorder {
    /// A recorder for a pod.
    #[must_use]
    pub fn for_pod(store: Store, node: &str, namespace: &str, name: &str, uid: &str) -> Self {
        let involved = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid});
        Self {
            store,
            involved,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            folded: HashMap::new(),
        }
    }

    /// Records an event. Losing one is not worth failing for: it is logged.
    pub async fn record(&mut self, kind: Kind, reason: &str, message: &str) {
        let now = Timestamp::now();
        let same = (reason.to_owned(), message.to_owned());
        if let Some(key) = self.folded.get(&same) {
            if self.raise(key, now).await {
                return;
            }
            self.folded.remove(&same);
        }
        let Ok(suffix) = sampan_kit::id::short() else { return };
        let key = Key::namespaced("events", &self.namespace, format!("{}.{suffix}", self.name));
        let event = self.event(&key, kind, reason, message, now);
        match self.store.create(key.clone(), event).await {
            Ok(_) => {
                if self.folded.len() >= EVENTS_FOLDED_MAX {
                    self.folded.clear();
                }
                self.folded.insert(same, key);
            }
            Err(error) => tracing::warn!(pod = %self.name, reason, %error, "an event could not be recorded"),
        }
    }

    fn event(&self, key: &Key, kind: Kind, reason: &str, message: &str, now: Timestamp) -> Value {
        let time = format!("{now:.0}");
        let uid = sampan_kit::id::uuid().unwrap_or_default();
        let kind = if kind == Kind::Normal { "Normal" } else { "Warning" };
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": key.name, "namespace": self.namespace, "uid": uid, "creationTimestamp": time},
            "involvedObject": self.involved, "type": kind, "reason": reason, "message": message,
            "source": {"component": "sampan-node", "host": self.node},
            "reportingComponent": "sampan-node", "reportingInstance": self.node,
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
        })
    }

    async fn raise(&self, key: &Key, now: Timestamp) -> bool {
        let Ok(Some(event)) = self.store.get(key).await else { return false };
        let mut value = event.value.clone();
        let count = value.get("count").and_then(Value::as_u64).unwrap_or(1).saturating_add(1);
        let Some(fields) = value.as_object_mut() else { return false };
        fields.insert("count".into(), count.into());
        fields.insert("lastTimestamp".into(), format!("{now:.0}").into());
        self.store.update(key, Some(event.revision), value).await.is_ok()
    }
}
