//! Where the scheduler and its like look at a change before it is stored.

use async_trait::async_trait;
use serde_json::Value;

use crate::error::ApiError;

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It is replaced or patched.
    Update,
    /// It is removed, or marked for graceful removal.
    Delete,
}

/// One change that waits for admission.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The plural: `pods`.
    pub resource: &'a str,
    /// `status`, `binding` …
    pub subresource: Option<&'a str>,
    /// None outside namespaces.
    pub namespace: Option<&'a str>,
    /// The object's name; already generated.
    pub name: &'a str,
    /// The object before the change; None for a creation.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// Called inside create, update and delete, before the store's commit.
///
/// For every `admit` that returned Ok there is exactly one `settled` with the same request, also when the commit failed
/// or nothing was to be stored. An update that loses a race is admitted again with the newer object.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Accepts the change, may alter the object (bind a pod to a node), or refuses. The object is complete: defaults are
    /// set, and it is valid. For a removal it is the object as it would be stored, or its last state.
    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), ApiError>;

    /// Told whether the admitted change was stored, so that a reservation can be released.
    async fn settled(&self, request: &AdmissionRequest<'_>, committed: bool);
}

/// Admits everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmitAll;

#[async_trait]
impl Admission for AdmitAll {
    async fn admit(&self, _: &AdmissionRequest<'_>, _: &mut Value) -> Result<(), ApiError> {
        Ok(())
    }

    async fn settled(&self, _: &AdmissionRequest<'_>, _: bool) {}
}
