//! What every request ends in, from the network or from inside: the one place that knows how objects are kept.
//!
//! `create.rs`, `update.rs` and `remove.rs` change objects; each goes decode → default → validate → admit → commit.
//! The handlers of `http` and the [`crate::ApiHandle`] of controllers and node are two thin fronts of the same code.

mod bind;
mod create;
mod remove;
mod update;

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use sampan_store::{Key, Object, Store};
use serde_json::{Map, Value};

use crate::admission::{Admission, AdmissionRequest, Operation};
use crate::catalog::{Catalog, CatalogError};
use crate::decode::decode;
use crate::defaults::fill;
use crate::error::{ApiError, Fault};
use crate::limits::{self, WARNINGS_MAX};
use crate::resources::Resource;

pub(crate) use remove::Removal;
pub use remove::{DeleteOptions, Preconditions};
pub(crate) use update::Part;

/// Store, scheduler and embedded data behind all requests.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) catalog: Catalog,
    turns: Turns,
}

/// Creations of the same name take turns, from the look whether it is free to the word to admission: otherwise the one
/// that comes too late would have its reservation released, which by then is the other's.
#[derive(Default)]
struct Turns([tokio::sync::Mutex<()>; limits::CREATION_LANES]);

impl Turns {
    async fn take(&self, key: &Key) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let mut hasher = std::hash::DefaultHasher::new();
        key.hash(&mut hasher);
        let lanes = u64::try_from(self.0.len()).unwrap_or(1);
        let lane = usize::try_from(hasher.finish() % lanes).unwrap_or_default();
        Some(self.0.get(lane)?.lock().await)
    }
}

/// What happens to fields that no schema knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    /// Dropped in silence.
    Ignore,
    /// Dropped with a warning. The real server's default.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// How a change is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
}

/// What came of a change.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) object: Arc<Object>,
    pub(crate) warnings: Vec<String>,
}

impl Core {
    pub(crate) fn new(store: Store, admission: Arc<dyn Admission>) -> Result<Self, CatalogError> {
        Ok(Self { store, admission, catalog: Catalog::load()?, turns: Turns::default() })
    }

    pub(crate) fn resource(&self, name: &str) -> Result<&Resource, ApiError> {
        self.catalog.stored(name).ok_or_else(ApiError::no_such_path)
    }

    pub(crate) async fn get(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Arc<Object>, ApiError> {
        let key = key(resource, namespace, name);
        self.store.get(&key).await?.ok_or_else(|| ApiError::not_found(&resource.qualified(), name))
    }

    /// Checks type and fields of what a client sent; returns the warnings.
    fn decode(&self, resource: &Resource, value: &mut Value, options: &WriteOptions) -> Result<Vec<String>, ApiError> {
        let object = value.as_object_mut().ok_or_else(|| ApiError::bad_request("the body is not an object"))?;
        stamp_type(resource, object)?;
        let findings = decode(&self.catalog.schemas, resource.object_type, value);
        let handled = format!("{0} in version \"{1}\" cannot be handled as a {0}", resource.kind, resource.version);
        if !findings.wrong.is_empty() {
            return Err(ApiError::bad_request(format!("{handled}: {}", findings.wrong.join(", "))));
        }
        let unknown = findings.unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect::<Vec<_>>();
        match options.validation {
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Strict if !unknown.is_empty() => {
                Err(ApiError::bad_request(format!("{handled}: strict decoding error: {}", unknown.join(", "))))
            }
            FieldValidation::Strict | FieldValidation::Warn => Ok(unknown.into_iter().take(WARNINGS_MAX).collect()),
        }
    }

    /// Fills in the defaults of everything but the status.
    fn fill(&self, resource: &Resource, value: &mut Value) {
        let status = value.as_object_mut().and_then(|object| object.shift_remove("status"));
        fill(&self.catalog.schemas, resource.object_type, value);
        crate::defaults::fill_dependent(&resource.kind, value);
        if let (Some(status), Some(object)) = (status, value.as_object_mut()) {
            object.insert("status".to_owned(), status);
        }
    }

    /// Admits a change and runs its commit; tells admission how it ended. Both fronts run changes in tasks of their own,
    /// because a future dropped between the two would leave a reservation behind.
    async fn admitted<F, T>(
        &self,
        request: AdmissionRequest<'_>,
        value: &mut Value,
        commit: impl FnOnce(Value) -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        self.admission.admit(&request, value).await?;
        let result = commit(value.take()).await;
        self.admission.settled(&request, result.is_ok() && !request.dry_run).await;
        result
    }
}

/// The store's key of an object.
pub(crate) fn key(resource: &Resource, namespace: Option<&str>, name: &str) -> Key {
    Key {
        resource: resource.store_name(),
        namespace: if resource.namespaced { namespace.map(str::to_owned) } else { None },
        name: name.to_owned(),
    }
}

/// An object that was not stored, for answers to dry runs.
fn unstored(key: Key, value: Value) -> Arc<Object> {
    Arc::new(Object { key, revision: 0, value })
}

fn stamp_type(resource: &Resource, object: &mut Map<String, Value>) -> Result<(), ApiError> {
    for (field, expected) in [("kind", resource.kind.clone()), ("apiVersion", resource.api_version())] {
        match object.get(field) {
            None | Some(Value::Null) => drop(object.insert(field.to_owned(), Value::String(expected))),
            Some(Value::String(found)) if *found == expected => {}
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({found}) does not match the expected {field} ({expected})"
                )));
            }
        }
    }
    Ok(())
}

/// The text of a field of `metadata`, empty when it is not there.
pub(crate) fn metadata_text<'a>(value: &'a Value, field: &str) -> &'a str {
    value["metadata"][field].as_str().unwrap_or_default()
}

/// The time now as Kubernetes writes it: whole seconds, UTC.
pub(crate) fn now() -> String {
    rfc3339(jiff::Timestamp::now())
}

pub(crate) fn rfc3339(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Refuses an object with faults.
fn refuse(resource: &Resource, value: &Value, faults: &[Fault]) -> Result<(), ApiError> {
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(&resource.kind, metadata_text(value, "name"), faults))
    }
}

/// The words of an operation for admission.
fn request<'a>(
    operation: Operation,
    resource: &'a Resource,
    key: &'a Key,
    old: Option<&'a Value>,
    options: &WriteOptions,
) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation,
        resource: &resource.plural,
        subresource: None,
        namespace: key.namespace.as_deref(),
        name: &key.name,
        old,
        dry_run: options.dry_run,
    }
}
