//! New objects.

use sampan_store::StoreError;
use serde_json::{Value, json};

use super::{Core, WriteOptions, Written, key, metadata_text, now, refuse, request, unstored};
use crate::admission::Operation;
use crate::error::ApiError;
use crate::limits::NAME_RETRIES_MAX;
use crate::resources::Resource;
use crate::validate::validate;

/// Only the server sets these; what a client sends is dropped.
const SERVER_METADATA: [&str; 8] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
];

impl Core {
    /// Stores a new object.
    pub(crate) async fn create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let warnings = self.decode(resource, &mut value, options)?;
        self.settle_namespace(resource, namespace, &mut value).await?;
        self.fill(resource, &mut value);
        set_server_fields(resource, &mut value)?;

        let generated = metadata_text(&value, "name").is_empty() && !metadata_text(&value, "generateName").is_empty();
        let mut attempts = 0;
        loop {
            let mut candidate = value.clone();
            if generated {
                candidate["metadata"]["name"] = Value::String(generate_name(metadata_text(&value, "generateName"))?);
                if resource.kind == "Namespace" {
                    self.fill(resource, &mut candidate);
                }
            }
            refuse(resource, &candidate, &validate(&self.catalog.schemas, resource, &candidate))?;
            if resource.kind == "Pod" {
                refuse(resource, &candidate, &crate::pod::validate_new(&candidate))?;
                self.check_security(resource, namespace, &candidate).await?;
                candidate["status"] = crate::pod::first_status(&candidate);
            }
            let result = self.store_new(resource, namespace, candidate, options).await;
            attempts += 1;
            match result {
                Err(error) if generated && error.reason == "AlreadyExists" && attempts < NAME_RETRIES_MAX => {}
                Err(error) => return Err(error),
                Ok(object) => return Ok(Written { object, warnings }),
            }
        }
    }

    /// Refuses a pod that asks for more than its namespace allows.
    pub(super) async fn check_security(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        pod: &Value,
    ) -> Result<(), ApiError> {
        let Some(namespace) = namespace else { return Ok(()) };
        let namespace = self.get(self.resource("namespaces")?, None, namespace).await?;
        match crate::pod::Level::of(&namespace.value).violations(pod) {
            Some(why) => Err(ApiError::forbidden(&resource.qualified(), metadata_text(pod, "name"), why)),
            None => Ok(()),
        }
    }

    async fn store_new(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<std::sync::Arc<sampan_store::Object>, ApiError> {
        let key = key(resource, namespace, metadata_text(&value, "name"));
        let _turn = self.turns.take(&key).await;
        if self.store.get(&key).await?.is_some() {
            return Err(ApiError::already_exists(&resource.qualified(), &key.name));
        }
        let request = request(Operation::Create, resource, &key, None, options);
        self.admitted(request, &mut value, async |value| {
            if options.dry_run {
                return Ok(unstored(key.clone(), value));
            }
            self.store.create(key.clone(), value).await.map_err(|error| match error {
                StoreError::AlreadyExists(_) => ApiError::already_exists(&resource.qualified(), &key.name),
                other => other.into(),
            })
        })
        .await
    }

    /// The object's namespace is the request's, exists, and is not on its way out.
    async fn settle_namespace(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        value: &mut Value,
    ) -> Result<(), ApiError> {
        let Some(namespace) = namespace.filter(|_| resource.namespaced) else {
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.shift_remove("namespace");
            }
            return Ok(());
        };
        let own = metadata_text(value, "namespace");
        if !own.is_empty() && own != namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {own:?} and {namespace:?}"
            )));
        }
        value["metadata"]["namespace"] = Value::String(namespace.to_owned());
        let found = self.get(self.resource("namespaces")?, None, namespace).await?;
        if found.value["metadata"].get("deletionTimestamp").is_some() {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(ApiError::forbidden(&resource.qualified(), metadata_text(value, "name"), why));
        }
        Ok(())
    }
}

fn set_server_fields(resource: &Resource, value: &mut Value) -> Result<(), ApiError> {
    let uid =
        sampan_kit::id::uuid().map_err(|error| ApiError::internal(format!("no random bytes for a uid: {error}")))?;
    let metadata = &mut value["metadata"];
    if let Some(metadata) = metadata.as_object_mut() {
        for field in SERVER_METADATA {
            metadata.shift_remove(field);
        }
    }
    metadata["uid"] = Value::String(uid);
    metadata["creationTimestamp"] = Value::String(now());
    match resource.kind.as_str() {
        "Pod" => {
            metadata["generation"] = json!(1);
            value["status"] = Value::Null;
        }
        "Namespace" => value["status"] = json!({"phase": "Active"}),
        _ => {}
    }
    if let Some(object) = value.as_object_mut()
        && object.get("status").is_some_and(Value::is_null)
    {
        object.shift_remove("status");
    }
    Ok(())
}

/// A prefix and five letters and digits from which no words are made.
fn generate_name(prefix: &str) -> Result<String, ApiError> {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    const PREFIX_MAX: usize = 58;
    let random =
        sampan_kit::id::short().map_err(|error| ApiError::internal(format!("no random bytes for a name: {error}")))?;
    let mut bits = u64::from_str_radix(&random, 16).unwrap_or_default();
    let mut name: String = prefix.chars().take(PREFIX_MAX).collect();
    for _ in 0..5 {
        name.push(char::from(LETTERS[usize::try_from(bits % 27).unwrap_or_default()]));
        bits /= 27;
    }
    Ok(name)
}
