//! What is not an object: health, version, metrics, the OpenAPI documents.

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use crate::body::Body;
use crate::catalog::OPENAPI_CORE;
use crate::error::ApiError;
use crate::http::Front;
use crate::http::negotiate::Format;
use crate::http::query::Query;
use crate::http::respond;

/// The Kubernetes whose API this is.
const KUBERNETES_VERSION: &str = "v1.34.4";

impl Front {
    pub(crate) async fn plain(
        &self,
        path: &str,
        _query: &Query,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let why = "the server does not allow this method on the requested resource";
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", why));
        }
        match path {
            "/healthz" | "/livez" | "/readyz" | "/healthz/ping" | "/livez/ping" | "/readyz/ping" => {
                // The store answers reads from memory; that it does is what readiness means here.
                self.api.core.store.list("namespaces", None).await?;
                Ok(respond::with_type(StatusCode::OK, "text/plain; charset=utf-8", "ok"))
            }
            "/version" => respond::document(StatusCode::OK, Format::Json, true, &version()),
            "/metrics" => {
                let text = self.metrics.encode(&self.api.core.store)?;
                Ok(respond::with_type(
                    StatusCode::OK,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    text,
                ))
            }
            "/openapi/v3" => {
                let hash = blake3::hash(OPENAPI_CORE).to_hex();
                let url = format!("/openapi/v3/api/v1?hash={}", hash.get(..32).unwrap_or_default());
                let index = json!({"paths": {"api/v1": {"serverRelativeURL": url}}});
                respond::document(StatusCode::OK, Format::Json, false, &index)
            }
            "/openapi/v2" => Ok(respond::with_type(StatusCode::OK, OPENAPI_V2_MEDIA, openapi_v2())),
            "/openapi/v3/api/v1" => Ok(respond::with_type(StatusCode::OK, "application/json", OPENAPI_CORE)),
            _ => Err(ApiError::no_such_path()),
        }
    }
}

const OPENAPI_V2_MEDIA: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// kubectl 1.28 will not create or apply anything before it has read an OpenAPI v2 document, in protobuf, though it then
/// checks against version 3. So there is one that says what it is and describes nothing: `Document { swagger: "2.0",
/// info: { title, version } }` of gnostic's openapiv2.
fn openapi_v2() -> Vec<u8> {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        // One byte of length is enough for our few words.
        let length = u8::try_from(bytes.len()).unwrap_or(0) & 0x7f;
        [&[number << 3 | 2, length], bytes].concat()
    }
    let info = [field(1, b"Kubernetes"), field(2, KUBERNETES_VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info)].concat()
}

fn version() -> serde_json::Value {
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(),
        "minor": numbers.next(),
        "gitVersion": format!("{KUBERNETES_VERSION}+sampan-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}
