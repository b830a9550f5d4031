//! The node's own endpoints behind `/api/v1/nodes/NODE/proxy/`: what Kubernetes has no resource for.
//!
//! | request | answer |
//! |---|---|
//! | `GET images`, `DELETE images?reference=R`, `POST images/pull` | the image store; a pull streams JSON lines |
//! | `GET images/archive?file=F` | what the images in a file of `docker save` are called |
//! | `image…`, `image-keys` | images in depth: [`image_index`] |
//! | `GET host-check` | what this machine offers and lacks |
//! | `GET stats/summary` | the kubelet's Summary |
//! | `GET` and `PUT cp/NAMESPACE/POD/CONTAINER?path=P` | a tar stream out of and into a container |
//! | `POST signal/NAMESPACE/POD/CONTAINER?signal=TERM` | a signal for a container's own process |
//! | `GET metrics` | Prometheus text |

mod copy;
mod image_index;
mod images;
mod stats;

use std::collections::HashMap;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use sampan_apiserver::{Body, NodeLinkError, PodRef};
use sampan_runtime::container::signal_number;
use sampan_store::Key;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::limits::REQUEST_BYTES_MAX;
use crate::link::{refuse, sandbox_refusal};
use crate::node::Node;
use image_index::ImageWork;

type Answer = Result<Response<Body>, NodeLinkError>;

impl Node {
    pub(crate) async fn serve_endpoint(&self, request: Request<Body>) -> Response<Body> {
        self.route(request).await.unwrap_or_else(|error| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": error.message, "reason": error.reason, "code": error.status.as_u16(),
            });
            json_response(error.status, &status)
        })
    }

    async fn route(&self, request: Request<Body>) -> Answer {
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let query = query_of(&request);
        match (request.method(), parts.as_slice()) {
            (&Method::GET, ["images"]) => self.list_images().await,
            (&Method::DELETE, ["images"]) => self.remove_image(&wanted(&query, "reference")?).await,
            (&Method::GET, ["images", "archive"]) => self.archive_names(&wanted(&query, "file")?).await,
            (&Method::POST, ["images", "pull"]) => self.pull_image(request).await,
            (&Method::GET, ["image"]) => {
                let with_touches = query.get("touches").is_some_and(|value| value == "true");
                self.image_details(&wanted(&query, "reference")?, with_touches).await
            }
            (&Method::POST, ["image", "index"]) => self.image_work(ImageWork::Index, request).await,
            (&Method::POST, ["image", "prefetch"]) => self.image_work(ImageWork::Prefetch, request).await,
            (&Method::POST, ["image", "push-index"]) => self.image_work(ImageWork::PushIndex, request).await,
            (&Method::POST, ["image", "verify"]) => self.image_work(ImageWork::Verify, request).await,
            (&Method::POST, ["image", "pack"]) => self.image_work(ImageWork::Pack, request).await,
            (&Method::POST, ["image", "gc"]) => self.trim_images(request).await,
            (&Method::GET, ["image-keys"]) => self.list_image_keys().await,
            (&Method::POST, ["image-keys"]) => self.add_image_key(request).await,
            (&Method::DELETE, ["image-keys"]) => self.remove_image_key(wanted(&query, "name")?).await,
            (&Method::GET, ["host-check"]) => {
                let checks = tokio::task::spawn_blocking(sampan_runtime::host_check::run).await;
                let failed = |_panic| refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the check broke off");
                Ok(json_response(StatusCode::OK, &json!({"checks": checks.map_err(failed)?})))
            }
            (&Method::GET, ["stats", "summary"]) => Ok(json_response(StatusCode::OK, &self.stats_summary().await)),
            (&Method::GET, ["metrics"]) => Ok(text_response(self.metrics().await)),
            (&Method::GET, ["cp", namespace, pod, container]) => {
                let pod = self.pod_ref(namespace, pod).await?;
                self.copy_out(&pod, container, &wanted(&query, "path")?).await
            }
            (&Method::PUT, ["cp", namespace, pod, container]) => {
                let pod = self.pod_ref(namespace, pod).await?;
                let path = wanted(&query, "path")?;
                self.copy_in(&pod, container, &path, request.into_body()).await
            }
            (&Method::POST, ["signal", namespace, pod, container]) => {
                let pod = self.pod_ref(namespace, pod).await?;
                self.send_signal(&pod, container, &wanted(&query, "signal")?).await
            }
            _ => Err(refuse(StatusCode::NOT_FOUND, "NotFound", format!("the node has no endpoint {path:?}"))),
        }
    }

    async fn send_signal(&self, pod: &PodRef, container: &str, name: &str) -> Answer {
        let invalid = || {
            let message = format!("{name:?} is not a signal; write a name such as TERM, or a number from 1 to 64");
            refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
        };
        let number = signal_number(name).ok_or_else(invalid)?;
        let live = self.running(pod, container).await?;
        live.sandbox().signal(container, number).await.map_err(|error| sandbox_refusal(&error))?;
        Ok(json_response(StatusCode::OK, &json!({})))
    }

    async fn pod_ref(&self, namespace: &str, name: &str) -> Result<PodRef, NodeLinkError> {
        let missing = || refuse(StatusCode::NOT_FOUND, "NotFound", format!("pods {name:?} not found"));
        let object = self.services.store.get(&Key::namespaced("pods", namespace, name)).await;
        let object = object.ok().flatten().ok_or_else(missing)?;
        let uid = object.value.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid })
    }
}

fn query_of(request: &Request<Body>) -> HashMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn wanted(query: &HashMap<String, String>, name: &str) -> Result<String, NodeLinkError> {
    let missing = || refuse(StatusCode::BAD_REQUEST, "BadRequest", format!("the query lacks {name}"));
    query.get(name).filter(|value| !value.is_empty()).cloned().ok_or_else(missing)
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    response(status, "application/json", sampan_apiserver::body::full(value.to_string()))
}

/// A small JSON body.
async fn read_json<T: DeserializeOwned>(request: Request<Body>) -> Result<T, NodeLinkError> {
    let bad = |message: String| refuse(StatusCode::BAD_REQUEST, "BadRequest", message);
    let mut stream = request.into_body();
    let mut body = Vec::new();
    while let Some(frame) = stream.frame().await {
        let frame = frame.map_err(|error| bad(format!("the request cannot be read: {error}")))?;
        body.extend_from_slice(&frame.into_data().unwrap_or_default());
        if body.len() > REQUEST_BYTES_MAX {
            return Err(bad(format!("the request is longer than {REQUEST_BYTES_MAX} bytes")));
        }
    }
    serde_json::from_slice(&body).map_err(|error| bad(format!("the request is not valid: {error}")))
}

/// Lines of JSON as they come; who goes away ends only the listening.
fn lines_response(lines: mpsc::Receiver<String>) -> Response<Body> {
    let frames = futures_util::stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((Ok(Frame::data(Bytes::from(line))), lines))
    });
    response(StatusCode::OK, "application/x-ndjson", StreamBody::new(frames).boxed_unsync())
}

fn text_response(text: String) -> Response<Body> {
    response(StatusCode::OK, "text/plain; version=0.0.4", sampan_apiserver::body::full(text))
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
