//! What the node answers: logs, exec, attach, and its own endpoints behind the proxy.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sampan_store::Object;
use sampan_streaming::{ForwardHandshake, Handshake, RemoteStreams};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use crate::body::{Body, BodyError, empty};
use crate::core::metadata_text;
use crate::error::ApiError;
use crate::http::Front;
use crate::http::query::Query;
use crate::http::route::Target;
use crate::link::{AttachOptions, ExecOptions, LogOptions, PodRef};
use crate::pod::{container_names, has_container};

impl Front {
    /// `pods/log`.
    pub(crate) async fn log(&self, target: &Target<'_>, query: &Query) -> Result<Response<Body>, ApiError> {
        let pod = self.bound_pod(target).await?;
        let since_time = match query.text("sinceTime") {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|error| ApiError::bad_request(format!("sinceTime: {text:?} is not a time: {error}")))?,
            ),
        };
        let options = LogOptions {
            container: container(&pod.value, query)?,
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            tail_lines: query.number("tailLines")?,
            since_seconds: query.number("sinceSeconds")?,
            since_time,
            timestamps: query.flag("timestamps")?,
            limit_bytes: query.number("limitBytes")?,
            stream: Some(query.text("stream").to_owned()).filter(|stream| !stream.is_empty()),
        };
        let permit = self.stream_permit()?;
        let stream = self.node.logs(&pod_ref(&pod.value), options).await?;
        let frames = stream.map_err(|error| -> BodyError { error.into() }).map_ok(move |bytes| {
            // Held as long as the stream lives.
            let _permit = &permit;
            Frame::data(bytes)
        });
        let stopping = self.stopping.clone();
        let frames = futures_util::StreamExt::take_until(frames, async move { stopping.cancelled_owned().await });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    /// `pods/exec` and `pods/attach`: what is wrong is told before the connection changes protocols.
    pub(crate) async fn stream(
        &self,
        mut request: Request<Incoming>,
        target: &Target<'_>,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        let permit = self.stream_permit()?;
        let pod = self.bound_pod(target).await?;
        let container = container(&pod.value, query)?;
        let handshake =
            Handshake::agree(request.headers()).map_err(|error| ApiError::bad_request(error.to_string()))?;
        let upgrade = hyper::upgrade::on(&mut request);
        let streams = self.open(target, query, &pod.value, container).await?;
        let response = handshake.response();
        self.carry(upgrade, permit, move |connection| handshake.serve(connection, streams));
        Ok(response.map(|()| empty()))
    }

    /// `pods/portforward`: connections of the client's, carried to ports inside the pod.
    pub(crate) async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target<'_>,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        let permit = self.stream_permit()?;
        let pod = self.bound_pod(target).await?;
        let ports = ports(query)?;
        let handshake =
            ForwardHandshake::agree(request.headers()).map_err(|error| ApiError::bad_request(error.to_string()))?;
        let upgrade = hyper::upgrade::on(&mut request);
        let connector = self.node.port_forward(&pod_ref(&pod.value)).await?;
        let response = handshake.response();
        self.carry(
            upgrade,
            permit,
            move |connection| async move { handshake.serve(connection, &ports, connector).await },
        );
        Ok(response.map(|()| empty()))
    }

    /// A place among the streams that may be open.
    fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_all_taken| ApiError::too_many_requests("too many streams are open, try again later"))
    }

    /// Serves a connection once it has changed protocols, until its end or the server's.
    fn carry<F: Future<Output = ()> + Send>(
        &self,
        upgrade: OnUpgrade,
        permit: OwnedSemaphorePermit,
        serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
    ) {
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let connection = match upgrade.await {
                Ok(connection) => TokioIo::new(connection),
                Err(error) => {
                    tracing::debug!(%error, "a client went away before its stream began");
                    return;
                }
            };
            tokio::select! {
                () = serve(connection) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    async fn open(
        &self,
        target: &Target<'_>,
        query: &Query,
        pod: &Value,
        container: String,
    ) -> Result<RemoteStreams, ApiError> {
        let (stdin, stdout, stderr, tty) =
            (query.flag("stdin")?, query.flag("stdout")?, query.flag("stderr")?, query.flag("tty")?);
        if !(stdin || stdout || stderr) {
            return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        let stderr = stderr && !tty;
        let container = Some(container);
        let pod = pod_ref(pod);
        if target.subresource.as_deref() == Some("attach") {
            return Ok(self.node.attach(&pod, AttachOptions { container, stdin, stdout, stderr, tty }).await?);
        }
        let command = query.all("command");
        if command.iter().all(String::is_empty) {
            return Err(ApiError::bad_request("you must specify a command for exec"));
        }
        Ok(self.node.exec(&pod, ExecOptions { container, command, stdin, stdout, stderr, tty }).await?)
    }

    /// `nodes/NAME/proxy/…`.
    pub(crate) async fn proxy(
        &self,
        request: Request<Incoming>,
        target: &Target<'_>,
    ) -> Result<Response<Body>, ApiError> {
        let name = target.name.as_deref().unwrap_or_default();
        self.api.core.get(target.resource, None, name).await?;
        let (mut parts, body) = request.into_parts();
        let path = match parts.uri.query() {
            Some(query) => format!("{}?{query}", target.rest),
            None => target.rest.clone(),
        };
        parts.uri =
            path.parse::<Uri>().map_err(|error| ApiError::bad_request(format!("invalid path {path:?}: {error}")))?;
        // The node trusts the server, not the server's clients: their secrets stay here.
        parts.headers.remove(http::header::AUTHORIZATION);
        let body = body.map_err(|error| -> BodyError { error.into() }).boxed_unsync();
        Ok(self.node.proxy(Request::from_parts(parts, body)).await)
    }

    /// The pod of a request, if it is on a node.
    async fn bound_pod(&self, target: &Target<'_>) -> Result<Arc<Object>, ApiError> {
        let name = target.name.as_deref().unwrap_or_default();
        let pod = self.api.core.get(target.resource, target.namespace.as_deref(), name).await?;
        if pod.value["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        Ok(pod)
    }
}

/// The ports that a request names: `ports=80&ports=443`, or `ports=80,443`. Most clients name none.
fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let all = query.all("ports");
    let texts = all.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty());
    let number = |text: &str| {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| ApiError::bad_request(format!("ports: {text:?} is not a port from 1 to 65535")))
    };
    texts.map(number).collect()
}

fn pod_ref(pod: &Value) -> PodRef {
    let text = |field| metadata_text(pod, field).to_owned();
    PodRef { namespace: text("namespace"), name: text("name"), uid: text("uid") }
}

/// The container that a request names, or the only one.
fn container(pod: &Value, query: &Query) -> Result<String, ApiError> {
    let name = metadata_text(pod, "name");
    match query.text("container") {
        "" => match container_names(pod).as_slice() {
            [only] => Ok((*only).to_owned()),
            all => {
                let why =
                    format!("a container name must be specified for pod {name}, choose one of: [{}]", all.join(" "));
                Err(ApiError::new(StatusCode::BAD_REQUEST, "BadRequest", why))
            }
        },
        container if has_container(pod, container) => Ok(container.to_owned()),
        container => Err(ApiError::bad_request(format!("container {container} is not valid for pod {name}"))),
    }
}
