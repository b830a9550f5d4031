//! Answers.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::body::{Body, full};
use crate::error::ApiError;
use crate::http::negotiate::{Format, Shape};
use crate::http::table;
use crate::resources::Resource;

/// An answer of any serializable document.
pub(crate) fn document(
    status: StatusCode,
    format: Format,
    pretty: bool,
    document: &impl Serialize,
) -> Result<Response<Body>, ApiError> {
    let failed = |error: String| ApiError::internal(format!("cannot encode the answer: {error}"));
    let (media, mut bytes) = match format {
        Format::Json if pretty => {
            ("application/json", serde_json::to_vec_pretty(document).map_err(|error| failed(error.to_string()))?)
        }
        Format::Json => ("application/json", serde_json::to_vec(document).map_err(|error| failed(error.to_string()))?),
        Format::Yaml => (
            "application/yaml",
            serde_saphyr::to_string(document).map_err(|error| failed(error.to_string()))?.into_bytes(),
        ),
    };
    if bytes.last() != Some(&b'\n') {
        bytes.push(b'\n');
    }
    Ok(with_type(status, media, bytes))
}

/// An answer of bytes.
pub(crate) fn with_type(status: StatusCode, media: &'static str, bytes: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// One object in the wanted shape.
pub(crate) fn object(
    resource: &Resource,
    status: StatusCode,
    (format, shape): (Format, Shape),
    pretty: bool,
    value: &Value,
) -> Result<Response<Body>, ApiError> {
    match shape {
        Shape::Object => document(status, format, pretty, value),
        Shape::Metadata => document(status, format, pretty, &table::metadata_only(value)),
        Shape::Table => {
            let version = value["metadata"]["resourceVersion"].clone();
            let rows = [value];
            let list = table::table(
                resource,
                json!({"resourceVersion": version}),
                rows.into_iter(),
                table::Include::Metadata,
                true,
            );
            document(status, format, pretty, &list)
        }
    }
}

/// A refusal.
pub(crate) fn error(error: &ApiError, format: Format) -> Response<Body> {
    let status = error.to_status();
    let mut response = document(error.status, format, false, &status)
        .unwrap_or_else(|_| with_type(error.status, "application/json", status.to_string()));
    if let Some(seconds) = error.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64()) {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Adds `Warning` headers (RFC 7234, section 5.5), which kubectl prints.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).take(256).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}
