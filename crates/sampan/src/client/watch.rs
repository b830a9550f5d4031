//! Following one pod through its changes, across restarts of the service.
//!
//! ```text
//!   Watching ──stream ends, 410──▶ Asking (GET the pod) ──▶ Watching from its revision
//!                                    │ 404 ▶ Gone
//!                                    └ service away ▶ again, for at most SERVICE_RETURN_MAX
//! ```
//!
//! Invariant: what [`PodWatch::next`] returns never goes back in time and never misses the pod's last state. A pod of
//! the same name but another uid counts as `Gone`.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;

use super::lines::Lines;
use super::{Client, ClientError, path};
use crate::limits::SERVICE_RETURN_MAX;

/// Between two attempts at a service that is away, or that ends watches at once.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What became of the pod.
#[derive(Debug)]
pub(crate) enum PodChange {
    /// Its new state.
    Now(Value),
    /// It is deleted.
    Gone,
}

/// A watch of one pod.
#[derive(Debug)]
pub(crate) struct PodWatch {
    client: Client,
    namespace: String,
    name: String,
    uid: String,
    /// The revision last seen; `None` when the pod must be asked for first.
    revision: Option<String>,
    stream: Option<Lines>,
    lost_since: Option<Instant>,
}

impl PodWatch {
    /// A watch of `pod` from the revision it carries on.
    pub(crate) fn from(client: &Client, namespace: &str, pod: &Value) -> Self {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            revision: Some(text("/metadata/resourceVersion")).filter(|revision| !revision.is_empty()),
            stream: None,
            lost_since: None,
        }
    }

    /// A watch that begins by asking for the pod.
    pub(crate) fn anew(client: &Client, namespace: &str, name: &str) -> Self {
        Self::from(client, namespace, &serde_json::json!({"metadata": {"name": name}}))
    }

    /// The next change. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<PodChange, ClientError> {
        loop {
            match self.step().await {
                Ok(Some(change)) => {
                    self.lost_since = None;
                    return Ok(change);
                }
                Ok(None) => {}
                Err(error) if error.is_transient() => {
                    self.stream = None;
                    self.revision = None;
                    let since = *self.lost_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > SERVICE_RETURN_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One move of the machine above; `None` when it brought no change.
    async fn step(&mut self) -> Result<Option<PodChange>, ClientError> {
        if let Some(stream) = &mut self.stream {
            return match stream.next().await? {
                Some(event) => Ok(self.event(event)),
                None => {
                    self.stream = None;
                    tokio::time::sleep(RETRY_PAUSE).await;
                    Ok(None)
                }
            };
        }
        if let Some(revision) = self.revision.clone() {
            let query = path::query([
                ("watch", "true".to_owned()),
                ("fieldSelector", format!("metadata.name={}", self.name)),
                ("resourceVersion", revision),
            ]);
            let address = format!("{}{query}", path::pods(Some(&self.namespace)));
            match self.client.stream(Method::GET, &address, None).await {
                Ok(body) => self.stream = Some(Lines::new(body)),
                Err(error) if error.status() == Some(http::StatusCode::GONE) => self.revision = None,
                Err(error) => return Err(error),
            }
            return Ok(None);
        }
        match self.client.get(&path::pod(&self.namespace, &self.name)).await {
            Ok(pod) => Ok(Some(self.seen(pod))),
            Err(error) if error.is_not_found() => Ok(Some(PodChange::Gone)),
            Err(error) => Err(error),
        }
    }

    fn event(&mut self, mut event: Value) -> Option<PodChange> {
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        match event.get("type").and_then(Value::as_str) {
            Some("ADDED" | "MODIFIED") => Some(self.seen(object)),
            Some("DELETED") => Some(PodChange::Gone),
            Some("BOOKMARK") => {
                self.remember(&object);
                None
            }
            // An ERROR event, usually 410: the history is compacted.
            _ => {
                self.stream = None;
                self.revision = None;
                None
            }
        }
    }

    fn seen(&mut self, pod: Value) -> PodChange {
        self.remember(&pod);
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        if self.uid.is_empty() || uid == self.uid { PodChange::Now(pod) } else { PodChange::Gone }
    }

    fn remember(&mut self, object: &Value) {
        if let Some(revision) = object.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
            self.revision = Some(revision.to_owned());
        }
    }
}
