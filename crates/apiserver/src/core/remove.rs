//! Removal: at once, or marked and left for the node (pods), the finalizers' owners, or the namespace's sweep to finish.

use std::sync::Arc;

use sampan_store::{Object, StoreError};
use serde_json::{Value, json};

use super::{Core, WriteOptions, key, metadata_text, request, rfc3339};
use crate::admission::Operation;
use crate::error::ApiError;
use crate::limits::CONFLICT_RETRIES_MAX;
use crate::resources::Resource;

/// What the object must be for the removal to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// It has this uid.
    pub uid: Option<String>,
    /// It is at this resource version.
    pub resource_version: Option<String>,
}

/// How an object is to be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds for a pod's processes to end by themselves; None is what the pod says. The node finishes the removal with 0.
    pub grace_seconds: Option<u64>,
    /// What must hold.
    pub preconditions: Preconditions,
    /// Everything but the commit.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// The node's last word on a pod: gone now, if it is still the one with that uid.
    #[must_use]
    pub fn now(uid: &str) -> Self {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        Self { grace_seconds: Some(0), preconditions, dry_run: false }
    }
}

/// What came of a removal.
#[derive(Debug)]
pub(crate) enum Removal {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It is marked, and somebody finishes the work.
    Marked(Arc<Object>),
}

impl Removal {
    pub(crate) fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Marked(object) => object,
        }
    }
}

/// What a removal does to the object at hand.
enum Step {
    Remove,
    /// The object as marked.
    Mark(Value),
    /// It is marked already and nothing gets shorter.
    Nothing,
}

impl Core {
    /// Removes an object, or marks it for removal.
    pub(crate) async fn remove(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Removal, ApiError> {
        let key = key(resource, namespace, name);
        let write = WriteOptions { dry_run: options.dry_run, ..WriteOptions::default() };
        let mut attempts = 0;
        loop {
            let current = self.get(resource, namespace, name).await?;
            check(resource, &current.value, &options.preconditions)?;
            let (mut value, gone) = match step(resource, &current.value, options)? {
                Step::Nothing => return Ok(Removal::Marked(current)),
                Step::Remove => (current.value.clone(), true),
                Step::Mark(value) => (value, false),
            };
            let request = request(Operation::Delete, resource, &key, Some(&current.value), &write);
            let result = self
                .admitted(request, &mut value, async |value| {
                    if options.dry_run {
                        return Ok(super::unstored(key.clone(), value));
                    }
                    Ok(if gone {
                        self.store.delete(&key, Some(current.revision)).await?
                    } else {
                        self.store.update(&key, Some(current.revision), value).await?
                    })
                })
                .await;
            attempts += 1;
            match result {
                Err(error) if error.is_conflict() && attempts < CONFLICT_RETRIES_MAX => {}
                Err(error) => return Err(error),
                Ok(object) => return Ok(if gone { Removal::Gone(object) } else { Removal::Marked(object) }),
            }
        }
    }

    /// Takes an emptied namespace out of the store.
    pub(crate) async fn finish_namespace(&self, namespace: &Object) -> Result<(), ApiError> {
        match self.store.delete(&namespace.key, Some(namespace.revision)).await {
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn check(resource: &Resource, value: &Value, preconditions: &Preconditions) -> Result<(), ApiError> {
    for (wanted, field, what) in
        [(&preconditions.uid, "uid", "UID"), (&preconditions.resource_version, "resourceVersion", "ResourceVersion")]
    {
        let found = metadata_text(value, field);
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            // Not a conflict to be retried: the caller means another object.
            let mut error = ApiError::conflict(&resource.qualified(), metadata_text(value, "name"), why);
            error.reason = "Conflict";
            return Err(error);
        }
    }
    Ok(())
}

fn step(resource: &Resource, value: &Value, options: &DeleteOptions) -> Result<Step, ApiError> {
    let held = value["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
    let marked = value["metadata"].get("deletionTimestamp").is_some();
    match resource.kind.as_str() {
        "Namespace" => {
            let name = metadata_text(value, "name");
            if name == "default" || name == "kube-system" {
                return Err(ApiError::forbidden("namespaces", name, "this namespace may not be deleted"));
            }
            if marked {
                return Ok(Step::Nothing);
            }
            let mut next = mark(value, 0);
            next["status"]["phase"] = json!("Terminating");
            Ok(Step::Mark(next))
        }
        "Pod" => {
            let own = value["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
            let unscheduled = value["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
            let grace = match options.grace_seconds.unwrap_or(own) {
                _ if unscheduled || crate::pod::is_finished(value) => 0,
                grace => grace,
            };
            let before = value["metadata"]["deletionGracePeriodSeconds"].as_u64();
            Ok(match (grace, held) {
                (0, false) => Step::Remove,
                _ if marked && before.is_some_and(|before| grace >= before) => Step::Nothing,
                _ => Step::Mark(mark(value, grace)),
            })
        }
        _ if held && marked => Ok(Step::Nothing),
        _ if held => Ok(Step::Mark(mark(value, 0))),
        _ => Ok(Step::Remove),
    }
}

/// The object with the time by which it should be gone.
fn mark(value: &Value, grace: u64) -> Value {
    let mut next = value.clone();
    let seconds = i64::try_from(grace).unwrap_or(i64::MAX).min(i64::from(u32::MAX));
    let now = jiff::Timestamp::now();
    let by = now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now);
    next["metadata"]["deletionTimestamp"] = json!(rfc3339(by));
    next["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
    next
}
