//! The one error that clients see: a Kubernetes `Status` object.

use http::StatusCode;
use sampan_kit::error_chain::ErrorChain;
use sampan_store::StoreError;
use serde_json::{Value, json};

/// A refusal with its HTTP status, machine-readable reason and one line for a person.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The `reason` of the Status object: `NotFound`, `Invalid` …
    pub reason: &'static str,
    /// What, why, and where there is one the way out.
    pub message: String,
    /// The `details` of the Status object.
    pub details: Option<Value>,
}

/// One field's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported`, `FieldValueForbidden` …
    pub reason: &'static str,
    /// `spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it, as Kubernetes words it: `Invalid value: "x": …`.
    pub message: String,
}

impl Fault {
    /// A value that is not allowed.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl std::fmt::Display) -> Self {
        let shown: String = value.to_string().chars().take(256).collect();
        Self { reason: "FieldValueInvalid", field: field.into(), message: format!("Invalid value: {shown}: {why}") }
    }

    /// A value of the wrong JSON type.
    pub fn kind(field: impl Into<String>, value: &Value, why: impl std::fmt::Display) -> Self {
        Self { reason: "FieldValueTypeInvalid", ..Self::invalid(field, value, why) }
    }

    /// A missing value.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// A value outside the list of those allowed.
    pub fn unsupported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let list = allowed.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ");
        let shown: String = value.to_string().chars().take(256).collect();
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {shown}: supported values: {list}"),
        }
    }

    /// A field that may not be there, or may not be changed.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }

    /// A value that another one already has.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self { reason: "FieldValueDuplicate", field: field.into(), message: format!("Duplicate value: {value}") }
    }
}

impl ApiError {
    /// An error of any status.
    pub fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), details: None }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403: understood and refused.
    pub fn forbidden(resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("{resource} \"{name}\" is forbidden: {why}");
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(resource, name)
    }

    /// 404 for a path that names nothing served.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// 404 for an object.
    #[must_use]
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{resource} \"{name}\" not found")).about(resource, name)
    }

    /// 409: the name is taken.
    #[must_use]
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
            .about(resource, name)
    }

    /// 409: somebody else was faster, or a precondition does not hold.
    pub fn conflict(resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(resource, name)
    }

    /// 410: a watch or list from a revision that is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 415: a body in a format that is not spoken here.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 422: every fault of an object, named by field.
    #[must_use]
    pub fn invalid(kind: &str, name: &str, faults: &[Fault]) -> Self {
        let list = faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect::<Vec<_>>();
        let list = if list.len() == 1 { list.concat() } else { format!("[{}]", list.join(", ")) };
        let causes = faults
            .iter()
            .map(|fault| json!({"reason": fault.reason, "message": fault.message, "field": fault.field}))
            .collect::<Vec<_>>();
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            reason: "Invalid",
            message: format!("{kind} \"{name}\" is invalid: {list}"),
            details: Some(json!({"name": name, "kind": kind, "causes": causes})),
        }
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        error.details = Some(json!({"retryAfterSeconds": 1}));
        error
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// Names the object in the details.
    #[must_use]
    pub fn about(mut self, resource: &str, name: &str) -> Self {
        self.details = Some(json!({"name": name, "kind": resource}));
        self
    }

    /// The `Status` object.
    #[must_use]
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.status.as_u16(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    /// Whether the object was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Whether somebody else changed the object in between.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::AlreadyExists(key) => Self::already_exists(&key.resource, &key.name),
            StoreError::NotFound(key) => Self::not_found(&key.resource, &key.name),
            StoreError::Conflict { key, .. } => Self::conflict(
                &key.resource,
                &key.name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            StoreError::Gone { .. } => Self::expired(format!("too old resource version: {error}")),
            StoreError::Future { .. } => {
                let mut timeout =
                    Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Too large resource version: {error}"));
                timeout.details = Some(json!({
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                }));
                timeout
            }
            StoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
            }
            StoreError::Closed => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the service is shutting down")
            }
            _ => Self::internal(ErrorChain(&error).to_string()),
        }
    }
}
