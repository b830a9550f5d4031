//! Kubernetes Events about pods, as the kubelet tells them: a repeated one raises the count of the first, many of a kind
//! become one, and a pod that never stops talking is heard only now and then.
//!
//! Writing is a task of its own behind a bounded queue, so that no pod waits for its own story. Source of the rules:
//! `k8s.io/client-go/tools/record/events_cache.go`.

mod correlation;

use jiff::Timestamp;
use sampan_store::{Key, Store};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::limits::EVENTS_QUEUED_MAX;
use correlation::{Correlator, Judged};

/// Whether a person should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Something is not.
    Warning,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether a person should look.
    pub kind: Kind,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// One line.
    pub message: String,
    /// The container that it is about, by its place in the spec: `spec.containers{main}`.
    pub field: Option<String>,
}

/// Writes the events of one object.
#[derive(Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    pod: String,
}

impl Recorder {
    /// A recorder for a pod. Its task ends when the recorder is dropped and everything is written.
    #[must_use]
    pub fn for_pod(store: Store, node: &str, namespace: &str, name: &str, uid: &str) -> Self {
        let (queue, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let writer = Writer {
            store,
            involved: json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid}),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            correlator: Correlator::new(Timestamp::now()),
        };
        tokio::spawn(writer.run(events));
        Self { queue, pod: name.to_owned() }
    }

    /// Records an event. Losing one is not worth waiting for: it is logged.
    pub fn record(&self, event: Event) {
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(pod = self.pod, %error, "an event could not be recorded");
        }
    }
}

/// An event that is not stored yet.
struct Fresh {
    key: String,
    event: Event,
    message: String,
    count: u64,
}

struct Writer {
    store: Store,
    involved: Value,
    namespace: String,
    name: String,
    node: String,
    correlator: Correlator,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, EVENTS_QUEUED_MAX).await > 0 {
            let now = Timestamp::now();
            let mut fresh: Vec<Fresh> = Vec::new();
            for event in batch.drain(..) {
                match self.correlator.judge(&event, now) {
                    Judged::Dropped => {}
                    Judged::Again(key, message) if fresh.iter().any(|one| one.key == key) => {
                        // Not stored yet: it is stored with the higher count.
                        for one in fresh.iter_mut().filter(|one| one.key == key) {
                            one.count += 1;
                            one.message.clone_from(&message);
                        }
                    }
                    Judged::Again(key, message) if self.raise(&key, &message, now).await => {}
                    Judged::Again(key, message) | Judged::New(key, message) => {
                        fresh.push(Fresh { key, event, message, count: 1 });
                    }
                }
            }
            // Together they are one commit.
            futures_util::future::join_all(fresh.iter().map(|fresh| self.create(fresh, now))).await;
        }
    }

    async fn create(&self, fresh: &Fresh, now: Timestamp) {
        let Fresh { key, event, message, count } = fresh;
        let key = Key::namespaced("events", &self.namespace, format!("{}.{key}", self.name));
        let time = format!("{now:.0}");
        let mut involved = self.involved.clone();
        if let (Some(field), Some(involved)) = (&event.field, involved.as_object_mut()) {
            involved.insert("fieldPath".to_owned(), field.as_str().into());
        }
        let value = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {
                "name": key.name, "namespace": self.namespace, "creationTimestamp": time,
                "uid": sampan_kit::id::uuid().unwrap_or_default(),
            },
            "involvedObject": involved, "reason": event.reason, "message": message,
            "type": if event.kind == Kind::Normal { "Normal" } else { "Warning" },
            "source": {"component": "sampan-node", "host": self.node},
            "reportingComponent": "sampan-node", "reportingInstance": self.node,
            "firstTimestamp": time, "lastTimestamp": time, "count": count,
        });
        if let Err(error) = self.store.create(key, value).await {
            tracing::warn!(pod = %self.name, reason = event.reason, %error, "an event could not be recorded");
        }
    }

    /// Counts one more of an event; false when it is no longer there.
    async fn raise(&self, name: &str, message: &str, now: Timestamp) -> bool {
        let key = Key::namespaced("events", &self.namespace, format!("{}.{name}", self.name));
        let Ok(Some(event)) = self.store.get(&key).await else { return false };
        let mut value = event.value.clone();
        let count = value.get("count").and_then(Value::as_u64).unwrap_or(1).saturating_add(1);
        let Some(fields) = value.as_object_mut() else { return false };
        fields.insert("count".into(), count.into());
        fields.insert("message".into(), message.into());
        fields.insert("lastTimestamp".into(), format!("{now:.0}").into());
        self.store.update(&key, Some(event.revision), value).await.is_ok()
    }
}
