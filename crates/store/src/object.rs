//! Keys, objects and changes: what goes in and out of the store.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::error::StoreError;

/// Names one object. `resource` is the plural, with its group before it where it has one: `pods`, `apps/deployments`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `pods`, `apps/deployments`.
    pub resource: String,
    /// None for kinds that live outside namespaces.
    pub namespace: Option<String>,
    /// The object's own name.
    pub name: String,
}

impl Key {
    /// A key of an object in a namespace.
    pub fn namespaced(resource: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { resource: resource.into(), namespace: Some(namespace.into()), name: name.into() }
    }

    /// A key of an object outside namespaces.
    pub fn cluster(resource: impl Into<String>, name: impl Into<String>) -> Self {
        Self { resource: resource.into(), namespace: None, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.resource, self.name),
            None => write!(f, "{} {}", self.resource, self.name),
        }
    }
}

/// One object at one revision; shared, never changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// The revision of its last change.
    pub revision: u64,
    /// The object, with `metadata.resourceVersion` = `revision`.
    pub value: Value,
}

impl Object {
    /// From the stored form.
    pub(crate) fn parse(key: Key, revision: u64, bytes: &[u8]) -> Result<Self, StoreError> {
        match serde_json::from_slice(bytes) {
            Err(source) => Err(StoreError::Damaged { key, source }),
            Ok(mut value) => {
                stamp(&mut value, revision);
                Ok(Self { key, revision, value })
            }
        }
    }
}

/// What a change did to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It came to be.
    Added,
    /// It was replaced.
    Modified,
    /// It is gone; the event carries its last state, at the revision of the removal.
    Deleted,
}

/// One change as a watcher sees it.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub kind: Change,
    /// The object after the change (before it, for a removal).
    pub object: Arc<Object>,
    /// The object before the change. None for additions, and where the history no longer holds it.
    pub previous: Option<Arc<Object>>,
}

/// Writes `revision` into `metadata.resourceVersion`.
pub(crate) fn stamp(value: &mut Value, revision: u64) {
    let Some(object) = value.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
    }
}
