//! Changes of objects that exist: replacement and patches, of the object or of its status.

use std::sync::Arc;

use sampan_store::{Key, Object, StoreError};
use serde_json::Value;

use super::{Core, WriteOptions, Written, key, metadata_text, refuse, request, unstored};
use crate::admission::Operation;
use crate::defaults::fill_required;
use crate::error::{ApiError, Fault};
use crate::limits::CONFLICT_RETRIES_MAX;
use crate::resources::Resource;
use crate::validate::validate;

/// Which half of an object a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status, where the kind has one.
    Main,
    /// The status, and the labels and annotations with it, so that a node writes both at once.
    Status,
    /// A pod's `ephemeralContainers`, which only grow.
    EphemeralContainers,
    /// What a pod's containers may use.
    Resize,
    /// A pod's node.
    Binding,
}

impl Part {
    /// As admission hears of it.
    const fn subresource(self) -> Option<&'static str> {
        match self {
            Self::Main => None,
            Self::Status => Some("status"),
            Self::EphemeralContainers => Some("ephemeralcontainers"),
            Self::Resize => Some("resize"),
            Self::Binding => Some("binding"),
        }
    }
}

/// Only the server sets these: an update keeps what is stored.
const KEPT_METADATA: [&str; 8] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
];

impl Core {
    /// Stores what `change` makes of the current object. A lost race is run again, unless the new object names a
    /// resource version of its own.
    pub(crate) async fn modify(
        &self,
        resource: &Resource,
        part: Part,
        (namespace, name): (Option<&str>, &str),
        options: &WriteOptions,
        change: impl Fn(&Value) -> Result<Value, ApiError> + Send,
    ) -> Result<Written, ApiError> {
        let key = key(resource, namespace, name);
        let mut attempts = 0;
        loop {
            let current = self.get(resource, namespace, name).await?;
            let mut value = change(&current.value)?;
            let version = metadata_text(&value, "resourceVersion");
            let pinned = !version.is_empty();
            if pinned && version != metadata_text(&current.value, "resourceVersion") {
                return Err(lost(resource, name));
            }
            let warnings = self.decode(resource, &mut value, options)?;
            self.prepare_update(resource, part, &current.value, &mut value)?;
            if value == current.value {
                return Ok(Written { object: current, warnings });
            }
            attempts += 1;
            match self.store_changed(resource, part, &key, &current, value, options).await {
                // The version came from `current` unless the client sent it; patches start from `current` each time.
                Err(error) if error.is_conflict() && attempts < CONFLICT_RETRIES_MAX => {}
                Err(error) => return Err(error),
                Ok(object) => return Ok(Written { object, warnings }),
            }
        }
    }

    /// Makes `value` the complete and valid successor of `old`.
    fn prepare_update(&self, resource: &Resource, part: Part, old: &Value, value: &mut Value) -> Result<(), ApiError> {
        keep_metadata(resource, old, value)?;
        match part {
            Part::Main => {
                if resource.has_status() {
                    keep(old, value, "status");
                }
                self.fill(resource, value);
            }
            Part::EphemeralContainers => {
                keep_all_but(old, value, |next, wanted| {
                    let list = wanted["spec"]["ephemeralContainers"].take();
                    if !list.is_null() {
                        next["spec"]["ephemeralContainers"] = list;
                    }
                });
                self.fill(resource, value);
            }
            Part::Resize => {
                keep_all_but(old, value, crate::pod::take_resources);
                self.fill(resource, value);
            }
            Part::Binding => {}
            Part::Status => {
                keep_all_but_status(old, value);
                if let Some(field) = self.catalog.schemas.field(resource.object_type, "status") {
                    fill_required(&self.catalog.schemas, field.value, &mut value["status"]);
                }
                if let Some(object) = value.as_object_mut()
                    && object.get("status").is_some_and(Value::is_null)
                {
                    object.shift_remove("status");
                }
            }
        }
        refuse(resource, value, &validate(&self.catalog.schemas, resource, value))?;
        let faults = match (part, resource.kind.as_str()) {
            (Part::Main, "Pod") => crate::pod::validate_update(old, value),
            (Part::EphemeralContainers, "Pod") => crate::pod::validate_ephemeral(old, value),
            (Part::Resize, "Pod") => crate::pod::validate_resize(old, value),
            (Part::Main, "Secret" | "ConfigMap") => immutable_faults(old, value),
            _ => Vec::new(),
        };
        refuse(resource, value, &faults)?;
        if resource.kind == "Pod" && old["spec"] != value["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            value["metadata"]["generation"] = Value::from(generation + 1);
        }
        Ok(())
    }

    pub(super) async fn store_changed(
        &self,
        resource: &Resource,
        part: Part,
        key: &Key,
        current: &Arc<Object>,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let mut request = request(Operation::Update, resource, key, Some(&current.value), options);
        request.subresource = part.subresource();
        if part == Part::EphemeralContainers {
            self.check_security(resource, key.namespace.as_deref(), &value).await?;
        }
        self.admitted(request, &mut value, async |value| {
            if options.dry_run {
                return Ok(unstored(key.clone(), value));
            }
            let result = if is_released(&value) {
                // The last finalizer of a deleted object is gone: so is the object.
                self.store.delete(key, Some(current.revision)).await
            } else {
                self.store.update(key, Some(current.revision), value).await
            };
            result.map_err(|error| match error {
                StoreError::Conflict { .. } => lost(resource, &key.name),
                other => other.into(),
            })
        })
        .await
    }
}

fn lost(resource: &Resource, name: &str) -> ApiError {
    ApiError::conflict(
        &resource.qualified(),
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )
}

/// Marked as deleted, its grace over, and nobody holds it any more.
fn is_released(value: &Value) -> bool {
    let metadata = &value["metadata"];
    metadata.get("deletionTimestamp").is_some()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        && value["kind"] != "Namespace"
}

fn keep(old: &Value, value: &mut Value, field: &str) {
    let Some(object) = value.as_object_mut() else { return };
    match old.get(field) {
        Some(old) => drop(object.insert(field.to_owned(), old.clone())),
        None => drop(object.shift_remove(field)),
    }
}

fn keep_metadata(resource: &Resource, old: &Value, value: &mut Value) -> Result<(), ApiError> {
    let name = metadata_text(old, "name");
    for (field, what) in [("name", "name"), ("namespace", "namespace")] {
        let (before, after) = (metadata_text(old, field), metadata_text(value, field));
        if !after.is_empty() && before != after {
            return Err(ApiError::bad_request(format!(
                "the {what} of the object ({after}) does not match the {what} on the URL ({before})"
            )));
        }
    }
    let (before, after) = (metadata_text(old, "uid"), metadata_text(value, "uid"));
    if !after.is_empty() && before != after {
        let why = format!("Precondition failed: UID in precondition: {after}, UID in object meta: {before}");
        return Err(ApiError::conflict(&resource.qualified(), name, why));
    }
    if !value["metadata"].is_object() {
        value["metadata"] = Value::Object(serde_json::Map::new());
    }
    if let (Some(metadata), Some(before)) = (value["metadata"].as_object_mut(), old["metadata"].as_object()) {
        for field in KEPT_METADATA {
            match before.get(field) {
                Some(old) => drop(metadata.insert(field.to_owned(), old.clone())),
                None => drop(metadata.shift_remove(field)),
            }
        }
        metadata.shift_remove("managedFields");
        metadata.shift_remove("selfLink");
        if let Some(version) = before.get("resourceVersion") {
            metadata.insert("resourceVersion".to_owned(), version.clone());
        }
    }
    Ok(())
}

/// Everything stays but what `take` takes over of what is wanted.
fn keep_all_but(old: &Value, value: &mut Value, take: impl FnOnce(&mut Value, &mut Value)) {
    let mut next = old.clone();
    take(&mut next, value);
    if let Some(version) = value["metadata"].get("resourceVersion") {
        next["metadata"]["resourceVersion"] = version.clone();
    }
    *value = next;
}

/// For a change of the status: everything stays but status, labels and annotations.
fn keep_all_but_status(old: &Value, value: &mut Value) {
    let mut next = old.clone();
    for field in ["labels", "annotations"] {
        if let Some(metadata) = next["metadata"].as_object_mut() {
            match value["metadata"].get(field) {
                Some(new) => drop(metadata.insert(field.to_owned(), new.clone())),
                None => drop(metadata.shift_remove(field)),
            }
        }
    }
    keep(value, &mut next, "status");
    *value = next;
}

fn immutable_faults(old: &Value, new: &Value) -> Vec<Fault> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for field in ["data", "binaryData", "immutable"] {
        if old.get(field) != new.get(field) {
            faults.push(Fault::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
    faults
}
