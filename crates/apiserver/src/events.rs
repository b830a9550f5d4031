//! Events: recorded from inside, counted instead of repeated, forgotten after an hour.

use serde_json::{Value, json};

use crate::core::{Core, DeleteOptions, FieldValidation, Part, WriteOptions, metadata_text, now};
use crate::error::ApiError;
use crate::limits::{EVENT_LIFETIME, EVENTS_MAX};

/// Something to tell people about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// The kind of the object it is about: `Pod`.
    pub kind: String,
    /// Its namespace; events about objects outside namespaces go to `default`.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// A part of it: `spec.containers{main}`.
    pub field_path: Option<String>,
    /// Something went wrong.
    pub warning: bool,
    /// One word in CamelCase: `Pulled`, `BackOff`.
    pub reason: String,
    /// One line for a person.
    pub message: String,
    /// Who says so: `sampan-node`.
    pub component: String,
    /// On which node, if on one.
    pub host: Option<String>,
}

impl EventRecord {
    /// An event about an object as it came from the API.
    #[must_use]
    pub fn about(object: &Value, component: &str, reason: &str, message: impl Into<String>) -> Self {
        let text = |field| metadata_text(object, field).to_owned();
        Self {
            kind: object["kind"].as_str().unwrap_or_default().to_owned(),
            namespace: Some(text("namespace")).filter(|namespace| !namespace.is_empty()),
            name: text("name"),
            uid: text("uid"),
            field_path: None,
            warning: false,
            reason: reason.to_owned(),
            message: message.into(),
            component: component.to_owned(),
            host: None,
        }
    }

    /// The same as a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.warning = true;
        self
    }

    /// The same about one container.
    #[must_use]
    pub fn container(mut self, name: &str) -> Self {
        self.field_path = Some(format!("spec.containers{{{name}}}"));
        self
    }

    /// The same from a node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.host = Some(node.to_owned());
        self
    }

    /// The same event has the same name, so that it is found again and counted.
    fn object_name(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [
            &self.uid,
            &self.reason,
            &self.message,
            &self.component,
            self.field_path.as_ref().unwrap_or(&String::new()),
        ] {
            hasher.update(part.as_bytes());
            hasher.update(&[0]);
        }
        let digest = hasher.finalize().to_hex();
        let name: String = self.name.chars().take(200).collect();
        format!("{name}.{}", digest.get(..16).unwrap_or_default())
    }

    fn to_object(&self, name: &str, namespace: &str) -> Value {
        let mut involved = json!({"kind": self.kind, "name": self.name, "uid": self.uid, "apiVersion": "v1"});
        for (field, value) in [("namespace", &self.namespace), ("fieldPath", &self.field_path)] {
            if let Some(value) = value {
                involved[field] = json!(value);
            }
        }
        let mut source = json!({"component": self.component});
        if let Some(host) = &self.host {
            source["host"] = json!(host);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": if self.warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "message": self.message,
            "source": source,
            "reportingComponent": self.component,
            "reportingInstance": self.host.as_deref().unwrap_or_default(),
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        })
    }
}

const TRUSTED: WriteOptions = WriteOptions { dry_run: false, validation: FieldValidation::Ignore };

impl Core {
    pub(crate) async fn record_event(&self, event: &EventRecord) -> Result<(), ApiError> {
        let events = self.resource("events")?;
        let namespace = event.namespace.as_deref().unwrap_or("default");
        let name = event.object_name();
        let again = |current: &Value| {
            let mut next = current.clone();
            next["count"] = json!(current["count"].as_i64().unwrap_or(0).saturating_add(1).min(i64::from(i32::MAX)));
            next["lastTimestamp"] = json!(now());
            Ok(next)
        };
        match self.modify(events, Part::Main, (Some(namespace), &name), &TRUSTED, again).await {
            Err(error) if error.is_not_found() => {
                self.create(events, Some(namespace), event.to_object(&name, namespace), &TRUSTED).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Forgets events that are too old or too many.
    pub(crate) async fn sweep_events(&self) -> Result<usize, ApiError> {
        let events = self.resource("events")?;
        let (mut all, _) = self.store.list(&events.store_name(), None).await?;
        all.sort_by_key(|event| last_seen(&event.value));
        let oldest = jiff::Timestamp::now().as_second() - i64::try_from(EVENT_LIFETIME.as_secs()).unwrap_or(i64::MAX);
        let excess = all.len().saturating_sub(EVENTS_MAX);
        let mut removed = 0;
        for (index, event) in all.iter().enumerate() {
            if index >= excess && last_seen(&event.value) >= oldest {
                break;
            }
            let key = &event.key;
            match self.remove(events, key.namespace.as_deref(), &key.name, &DeleteOptions::default()).await {
                Ok(_) => removed += 1,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

/// When an event last happened, in seconds since 1970.
fn last_seen(event: &Value) -> i64 {
    [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ]
    .into_iter()
    .find_map(|time| time.as_str()?.parse::<jiff::Timestamp>().ok())
    .map_or(0, jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admission::AdmitAll;
    use crate::handle::ApiHandle;

    #[tokio::test]
    async fn the_same_event_is_counted_and_an_old_one_forgotten() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let store = sampan_store::Store::open(&directory.path().join("store.db"))?;
        let api = ApiHandle::new(store, Arc::new(AdmitAll))?;
        crate::housekeeping::first_namespaces(&api).await?;
        let node = json!({"kind": "Node", "metadata": {"name": "n", "uid": "u"}});
        let event = EventRecord::about(&node, "test", "Full", "the disk is full").warning();
        for _ in 0..3 {
            api.record_event(&event).await?;
        }
        api.record_event(&EventRecord { message: "the disk is fuller".to_owned(), ..event.clone() }).await?;
        let (events, _) = api.list("events", Some("default")).await?;
        let mut counts: Vec<_> = events.iter().map(|one| one.value["count"].as_i64()).collect();
        counts.sort();
        assert_eq!(counts, [Some(1), Some(3)]);
        assert_eq!(api.core.sweep_events().await?, 0);
        let old = events.iter().find(|one| one.value["count"] == 3).ok_or("no event")?;
        let patch = crate::patch::Patch::Merge(json!({"lastTimestamp": "2020-01-01T00:00:00Z"}));
        api.patch("events", Some("default"), &old.key.name, &patch).await?;
        assert_eq!(api.core.sweep_events().await?, 1);
        assert_eq!(api.list("events", None).await?.0.len(), 1);
        Ok(())
    }
}
