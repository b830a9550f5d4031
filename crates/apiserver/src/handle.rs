//! The API from inside: what controllers and node use instead of HTTP, over the same code.

use std::sync::Arc;

use sampan_store::{Object, Store, Watch};
use serde_json::Value;

use crate::admission::Admission;
use crate::catalog::CatalogError;
use crate::core::{Core, DeleteOptions, FieldValidation, Part, Preconditions, WriteOptions};
use crate::error::ApiError;
use crate::events::EventRecord;
use crate::patch::Patch;
use crate::schema::{Schemas, TypeId};

/// A cheap handle to the API. `resource` is the plural: `pods`; `namespace` is None for kinds outside namespaces.
///
/// Changes run to their end even when the future that asked for them is dropped.
#[derive(Clone)]
pub struct ApiHandle {
    pub(crate) core: Arc<Core>,
}

impl std::fmt::Debug for ApiHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiHandle").finish_non_exhaustive()
    }
}

/// Unknown fields from inside are a fault of ours, so they are refused.
const STRICT: WriteOptions = WriteOptions { dry_run: false, validation: FieldValidation::Strict };

impl ApiHandle {
    /// The API over a store. Needs no network: [`crate::ApiServer`] serves it.
    ///
    /// # Errors
    /// When the embedded schemas are damaged.
    pub fn new(store: Store, admission: Arc<dyn Admission>) -> Result<Self, CatalogError> {
        Ok(Self { core: Arc::new(Core::new(store, admission)?) })
    }

    /// Creates an object; defaults, validation and admission are those of every client.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, `NotFound` for a missing namespace, or what admission says.
    pub async fn create(
        &self,
        resource: &str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Arc<Object>, ApiError> {
        let (core, resource, namespace) = (Arc::clone(&self.core), resource.to_owned(), namespace.map(str::to_owned));
        to_the_end(async move {
            let resource = core.resource(&resource)?;
            Ok(core.create(resource, namespace.as_deref(), object, &STRICT).await?.object)
        })
        .await
    }

    /// Reads an object.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Arc<Object>, ApiError> {
        self.core.get(self.core.resource(resource)?, namespace, name).await
    }

    /// All objects (of a namespace) and the revision to watch from.
    ///
    /// # Errors
    /// When the resource is not served.
    pub async fn list(&self, resource: &str, namespace: Option<&str>) -> Result<(Vec<Arc<Object>>, u64), ApiError> {
        let resource = self.core.resource(resource)?;
        Ok(self.core.store.list(&resource.store_name(), namespace).await?)
    }

    /// Every change after a revision, and then as they happen.
    ///
    /// # Errors
    /// `Expired` (410) when the history is no longer kept: list again.
    pub fn watch(&self, resource: &str, namespace: Option<&str>, after_revision: u64) -> Result<Watch, ApiError> {
        let resource = self.core.resource(resource)?;
        Ok(self.core.store.watch(&resource.store_name(), namespace, after_revision)?)
    }

    /// Replaces an object, all but its status; with `metadata.resourceVersion` set only if it is still at that version.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, or what admission says.
    pub async fn update(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        object: Value,
    ) -> Result<Arc<Object>, ApiError> {
        self.replace(resource, Part::Main, namespace, name, object).await
    }

    /// Replaces an object's status (and labels and annotations); with `metadata.resourceVersion` as [`ApiHandle::update`].
    ///
    /// # Errors
    /// As [`ApiHandle::update`].
    pub async fn update_status(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        object: Value,
    ) -> Result<Arc<Object>, ApiError> {
        self.replace(resource, Part::Status, namespace, name, object).await
    }

    /// Patches an object, all but its status.
    ///
    /// # Errors
    /// As [`ApiHandle::update`].
    pub async fn patch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<Arc<Object>, ApiError> {
        self.apply(resource, Part::Main, namespace, name, patch).await
    }

    /// JSON-merges `patch` into an object's status, labels and annotations:
    /// `{"metadata": {"annotations": {…}}, "status": {…}}`. One write; lists are replaced whole.
    ///
    /// # Errors
    /// As [`ApiHandle::update`]. Put `metadata.uid` into the patch so that it cannot hit a younger object of that name.
    pub async fn patch_status(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> Result<Arc<Object>, ApiError> {
        self.apply(resource, Part::Status, namespace, name, &Patch::Merge(patch)).await
    }

    /// Removes an object; a pod that runs is marked and left to the node, which finishes with [`DeleteOptions::now`].
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when a precondition does not hold.
    pub async fn delete(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let (core, resource, namespace) = (Arc::clone(&self.core), resource.to_owned(), namespace.map(str::to_owned));
        let (name, options) = (name.to_owned(), options.clone());
        to_the_end(async move {
            let resource = core.resource(&resource)?;
            let removal = core.remove(resource, namespace.as_deref(), &name, &options).await?;
            Ok(Arc::clone(removal.object()))
        })
        .await
    }

    /// Binds a pod to a node, as the `binding` subresource does.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is bound already or being deleted.
    pub async fn bind(&self, namespace: &str, pod: &str, node: &str) -> Result<Arc<Object>, ApiError> {
        let (core, namespace, pod, node) =
            (Arc::clone(&self.core), namespace.to_owned(), pod.to_owned(), node.to_owned());
        to_the_end(async move { core.bind(&namespace, &pod, &node, "", &STRICT).await }).await
    }

    /// Records an Event; the same one again only counts up.
    ///
    /// # Errors
    /// Those of the store. Events are for people: callers log the error and go on.
    pub async fn record_event(&self, event: &EventRecord) -> Result<(), ApiError> {
        self.core.record_event(event).await
    }

    /// The store behind it, for the newest revision and the like.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.core.store
    }

    async fn replace(
        &self,
        resource: &str,
        part: Part,
        namespace: Option<&str>,
        name: &str,
        object: Value,
    ) -> Result<Arc<Object>, ApiError> {
        self.modify(resource, part, namespace, name, move |_, _, _| Ok(object.clone())).await
    }

    async fn apply(
        &self,
        resource: &str,
        part: Part,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<Arc<Object>, ApiError> {
        let patch = patch.clone();
        self.modify(resource, part, namespace, name, move |schemas, id, current| patch.apply(schemas, id, current))
            .await
    }

    async fn modify(
        &self,
        resource: &str,
        part: Part,
        namespace: Option<&str>,
        name: &str,
        change: impl Fn(&Schemas, TypeId, &Value) -> Result<Value, ApiError> + Send + Sync + 'static,
    ) -> Result<Arc<Object>, ApiError> {
        let (core, resource, namespace) = (Arc::clone(&self.core), resource.to_owned(), namespace.map(str::to_owned));
        let name = name.to_owned();
        to_the_end(async move {
            let resource = core.resource(&resource)?;
            let change = |current: &Value| change(&core.catalog.schemas, resource.object_type, current);
            Ok(core.modify(resource, part, (namespace.as_deref(), &name), &STRICT, change).await?.object)
        })
        .await
    }
}

/// Runs a change in a task of its own: whoever asked may be dropped, but admission must hear how it ended.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let task = tokio::spawn(change);
    task.await.unwrap_or_else(|error| Err(ApiError::internal(format!("the change ended unexpectedly: {error}"))))
}

impl Preconditions {
    /// Only the object of this uid.
    #[must_use]
    pub fn uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), resource_version: None }
    }
}
