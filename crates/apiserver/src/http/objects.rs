//! Changes over HTTP: create, update, patch, delete.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::body::Body;
use crate::core::{DeleteOptions, FieldValidation, Part, Preconditions, Removal, WriteOptions, Written, metadata_text};
use crate::error::ApiError;
use crate::handle::ApiHandle;
use crate::http::negotiate::{Format, Shape, negotiate};
use crate::http::query::Query;
use crate::http::respond;
use crate::http::route::Target;
use crate::limits::{NESTING_MAX, REQUEST_BYTES_DISCARDED, REQUEST_BYTES_MAX};
use crate::patch::Patch;
use crate::resources::Resource;
use crate::selector::Selector;

/// A change, read completely, that owns all it needs: it is carried out in a task of its own.
struct Change {
    api: ApiHandle,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
    method: Method,
    query: Query,
    body: Bytes,
    media: String,
    wanted: (Format, Shape),
}

/// Reads the request and carries it out to its end, even if the client hangs up.
pub(crate) async fn change(
    api: &ApiHandle,
    target: &Target<'_>,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let wanted = negotiate(request.headers())?;
    let media =
        request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let method = request.method().clone();
    let body = read_body(request.into_body()).await?;
    let change = Change {
        api: api.clone(),
        resource: target.resource.store_name(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        subresource: target.subresource.clone(),
        method,
        query: query.clone(),
        body,
        media,
        wanted,
    };
    let task = tokio::spawn(async move { change.carry_out().await });
    task.await.unwrap_or_else(|error| Err(ApiError::internal(format!("the request ended unexpectedly: {error}"))))
}

/// A whole body. Of one that is too large some more is read and thrown away, so that its sender lives to see why.
async fn read_body(mut body: Incoming) -> Result<Bytes, ApiError> {
    let mut kept = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(format!("cannot read the request's body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= REQUEST_BYTES_MAX {
            kept.extend_from_slice(&data);
        } else if length > REQUEST_BYTES_DISCARDED {
            break;
        }
    }
    if length <= REQUEST_BYTES_MAX {
        return Ok(kept.freeze());
    }
    let why = format!("Request entity too large: limit is {REQUEST_BYTES_MAX}");
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", why))
}

impl Change {
    async fn carry_out(&self) -> Result<Response<Body>, ApiError> {
        let resource = self.api.core.resource(&self.resource)?;
        let name = self.name.as_deref();
        let part = match self.subresource.as_deref() {
            Some("status") => Part::Status,
            Some("ephemeralcontainers") => Part::EphemeralContainers,
            Some("resize") => Part::Resize,
            _ => Part::Main,
        };
        match (&self.method, name, self.subresource.as_deref()) {
            (&Method::POST, None, None) => self.create(resource).await,
            (&Method::POST, Some(name), Some("binding")) => self.bind(name).await,
            (&Method::PUT, Some(name), None | Some("status" | "ephemeralcontainers" | "resize")) => {
                let value = self.object(&resource.schema)?;
                let options = self.write_options()?;
                let place = (self.namespace.as_deref(), name);
                let written = self.api.core.modify(resource, part, place, &options, |_| Ok(value.clone())).await?;
                self.written(resource, StatusCode::OK, &written)
            }
            (&Method::PATCH, Some(name), None | Some("status" | "ephemeralcontainers" | "resize")) => {
                self.patch(resource, part, name).await
            }
            (&Method::DELETE, Some(name), None) => {
                let options = self.delete_options()?;
                let removal = self.api.core.remove(resource, self.namespace.as_deref(), name, &options).await?;
                self.removed(resource, &removal)
            }
            (&Method::DELETE, None, None) => self.delete_collection(resource).await,
            _ => Err(ApiError::no_such_path()),
        }
    }

    async fn create(&self, resource: &Resource) -> Result<Response<Body>, ApiError> {
        let value = self.object(&resource.schema)?;
        let namespace = self.namespace.as_deref();
        if resource.namespaced && namespace.is_none() {
            return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
        }
        let written = self.api.core.create(resource, namespace, value, &self.write_options()?).await?;
        self.written(resource, StatusCode::CREATED, &written)
    }

    async fn bind(&self, name: &str) -> Result<Response<Body>, ApiError> {
        let binding = self.object("io.k8s.api.core.v1.Binding")?;
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        let namespace = self.namespace.as_deref().unwrap_or_default();
        self.api.core.bind(namespace, name, node, metadata_text(&binding, "uid"), &self.write_options()?).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        respond::document(StatusCode::CREATED, self.wanted.0, false, &status)
    }

    async fn patch(&self, resource: &Resource, part: Part, name: &str) -> Result<Response<Body>, ApiError> {
        let media = self.media.split(';').next().unwrap_or_default().trim();
        let body = || json_value(&self.body);
        let patch = match media {
            "application/merge-patch+json" => Patch::Merge(body()?),
            "application/strategic-merge-patch+json" => Patch::StrategicMerge(body()?),
            "application/json-patch+json" => Patch::Json(body()?),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
                return Err(ApiError::unsupported_media_type(
                    "server-side apply is not served; leave out --server-side, client-side apply works",
                ));
            }
            other => {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format {other:?} - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
                )));
            }
        };
        let schemas = &self.api.core.catalog.schemas;
        let options = self.write_options()?;
        let place = (self.namespace.as_deref(), name);
        let change = |current: &Value| patch.apply(schemas, resource.object_type, current);
        let written = self.api.core.modify(resource, part, place, &options, change).await?;
        self.written(resource, StatusCode::OK, &written)
    }

    async fn delete_collection(&self, resource: &Resource) -> Result<Response<Body>, ApiError> {
        let options = self.delete_options()?;
        let query = &self.query;
        let selector = Selector::parse(resource, query.text("labelSelector"), query.text("fieldSelector"))?;
        let (objects, revision) = self.api.core.store.list(&resource.store_name(), self.namespace.as_deref()).await?;
        let mut items = Vec::new();
        for object in objects.iter().filter(|object| selector.matches(&object.value)) {
            let key = &object.key;
            match self.api.core.remove(resource, key.namespace.as_deref(), &key.name, &options).await {
                Ok(removal) => items.push(removal.object().value.clone()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let list = json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
            "items": items,
        });
        respond::document(StatusCode::OK, self.wanted.0, false, &list)
    }

    fn written(&self, resource: &Resource, status: StatusCode, written: &Written) -> Result<Response<Body>, ApiError> {
        let pretty = self.query.flag("pretty")?;
        let mut response = respond::object(resource, status, self.wanted, pretty, &written.object.value)?;
        respond::warn(&mut response, &written.warnings);
        Ok(response)
    }

    /// Pods and what goes on existing for a while are answered as they are; what is gone, as a Status.
    fn removed(&self, resource: &Resource, removal: &Removal) -> Result<Response<Body>, ApiError> {
        let value = &removal.object().value;
        if resource.kind == "Pod" || matches!(removal, Removal::Marked(_)) {
            return respond::object(resource, StatusCode::OK, self.wanted, false, value);
        }
        let details =
            json!({"name": metadata_text(value, "name"), "kind": resource.plural, "uid": metadata_text(value, "uid")});
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        respond::document(StatusCode::OK, self.wanted.0, false, &status)
    }

    /// The object in the body; `schema` names its type for the one format that cannot be read without.
    fn object(&self, schema: &str) -> Result<Value, ApiError> {
        let value = match self.media.split(';').next().unwrap_or_default().trim() {
            "application/yaml" | "application/x-yaml" | "text/yaml" => yaml_value(&self.body)?,
            "" | "application/json" | "*/*" | "text/plain" | "application/x-www-form-urlencoded" => {
                json_value(&self.body)?
            }
            "application/vnd.kubernetes.protobuf" => {
                let decoded = self.api.core.catalog.messages.decode(schema, &self.body);
                decoded.map_err(|why| {
                    ApiError::bad_request(format!("the body of the request is not protobuf of a {schema}: {why}"))
                })?
            }
            other => {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format {other:?} - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
                )));
            }
        };
        if value.is_object() {
            Ok(value)
        } else {
            Err(ApiError::bad_request("the body of the request is not an object"))
        }
    }

    fn write_options(&self) -> Result<WriteOptions, ApiError> {
        let validation = match self.query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: {other:?} is none of Ignore, Warn, Strict"
                )));
            }
        };
        Ok(WriteOptions { dry_run: dry_run(&self.query.all("dryRun"))?, validation })
    }

    /// From the query and the body, which clients use as they please.
    fn delete_options(&self) -> Result<DeleteOptions, ApiError> {
        let body = if self.body.is_empty() {
            Value::Null
        } else {
            self.object("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")?
        };
        let mut runs = self.query.all("dryRun");
        runs.extend(body["dryRun"].as_array().into_iter().flatten().filter_map(|run| run.as_str().map(str::to_owned)));
        let grace = match &body["gracePeriodSeconds"] {
            Value::Null => self.query.number("gracePeriodSeconds")?,
            value => Some(value.as_u64().ok_or_else(|| {
                ApiError::bad_request(format!("gracePeriodSeconds: {value} is not a whole number of seconds"))
            })?),
        };
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        let preconditions =
            Preconditions { uid: precondition("uid"), resource_version: precondition("resourceVersion") };
        Ok(DeleteOptions { grace_seconds: grace, preconditions, dry_run: dry_run(&runs)? })
    }
}

fn dry_run(values: &[String]) -> Result<bool, ApiError> {
    match values.iter().find(|value| !value.is_empty() && *value != "All") {
        Some(other) => {
            Err(ApiError::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
        }
        None => Ok(values.iter().any(|value| value == "All")),
    }
}

/// serde_json ends at 128 levels by itself, before the stack does.
fn json_value(body: &[u8]) -> Result<Value, ApiError> {
    let value = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body of the request is not JSON: {error}")))?;
    bounded(value)
}

fn yaml_value(body: &[u8]) -> Result<Value, ApiError> {
    let text =
        std::str::from_utf8(body).map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    let value = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.to_string().lines().next().unwrap_or_default().to_owned();
        ApiError::bad_request(format!("the body of the request is not YAML: {line}"))
    })?;
    bounded(value)
}

fn bounded(value: Value) -> Result<Value, ApiError> {
    fn depth_left(value: &Value, left: usize) -> bool {
        left > 0
            && match value {
                Value::Object(map) => map.values().all(|value| depth_left(value, left - 1)),
                Value::Array(list) => list.iter().all(|value| depth_left(value, left - 1)),
                _ => true,
            }
    }
    if depth_left(&value, NESTING_MAX) {
        Ok(value)
    } else {
        Err(ApiError::bad_request(format!("the body is nested deeper than {NESTING_MAX} levels")))
    }
}
