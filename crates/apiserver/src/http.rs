//! HTTP on top of the API: routes, formats, verbs, watches, streams.
//!
//! One function answers every request. What changes something runs in a task of its own, so that a client that hangs up in
//! the middle cannot leave a reservation of the scheduler behind.

mod discovery;
mod list;
mod negotiate;
mod objects;
mod plain;
pub(crate) mod query;
mod respond;
mod route;
mod streams;
mod table;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;

use crate::body::Body;
use crate::error::ApiError;
use crate::handle::ApiHandle;
use crate::http::negotiate::Format;
use crate::http::query::Query;
use crate::http::route::{Route, Target, route};
use crate::limits::{REQUEST_DEADLINE, STREAMS_MAX, WATCHES_MAX};
use crate::link::NodeLink;
use crate::metrics::{Metrics, RequestLabels};

/// What all requests share.
pub(crate) struct Front {
    pub(crate) api: ApiHandle,
    pub(crate) node: Arc<dyn NodeLink>,
    pub(crate) metrics: Metrics,
    pub(crate) watches: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    /// Closed when the server stops: watches and streams end.
    pub(crate) stopping: tokio_util::sync::CancellationToken,
}

impl Front {
    pub(crate) fn new(api: ApiHandle, node: Arc<dyn NodeLink>, stopping: tokio_util::sync::CancellationToken) -> Self {
        Self {
            api,
            node,
            metrics: Metrics::new(),
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            stopping,
        }
    }

    /// Answers a request whose sender is known. Never fails: errors become Status objects.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let format = Format::of_errors(request.headers());
        let mut labels = RequestLabels { verb: "other", resource: String::new(), code: 0 };
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let result = Arc::clone(&self).dispatch(request, &mut labels).await;
        let response = result.unwrap_or_else(|error| {
            if error.status.is_server_error() {
                tracing::warn!(%method, path, error = %error.message, "request failed");
            }
            respond::error(&error, format)
        });
        labels.code = response.status().as_u16();
        self.metrics.observe(labels, started.elapsed());
        response
    }

    /// The answer to somebody who may not ask.
    pub(crate) fn refuse(request: &Request<Incoming>) -> Response<Body> {
        respond::error(&ApiError::unauthorized(), Format::of_errors(request.headers()))
    }

    async fn dispatch(
        self: Arc<Self>,
        request: Request<Incoming>,
        labels: &mut RequestLabels,
    ) -> Result<Response<Body>, ApiError> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let path = request.uri().path().to_owned();
        let api = self.api.clone();
        match route(&api.core.catalog, &path) {
            Route::Unknown => Err(ApiError::no_such_path()),
            Route::Plain(path) => self.plain(&path, &query, &request).await,
            Route::Discovery(wanted) => discovery::answer(&api.core.catalog, &wanted, request.headers()),
            Route::Resource(target) => {
                labels.resource = match &target.subresource {
                    Some(subresource) => format!("{}/{subresource}", target.resource.qualified()),
                    None => target.resource.qualified(),
                };
                labels.verb = verb(request.method(), &target, &query)?;
                self.resource(request, &target, &query).await
            }
        }
    }

    async fn resource(
        self: Arc<Self>,
        request: Request<Incoming>,
        target: &Target<'_>,
        query: &Query,
    ) -> Result<Response<Body>, ApiError> {
        match (target.subresource.as_deref(), request.method()) {
            (Some("exec" | "attach"), &Method::GET | &Method::POST) => {
                return self.stream(request, target, query).await;
            }
            (Some("portforward"), &Method::GET | &Method::POST) => {
                return self.forward(request, target, query).await;
            }
            (Some("log"), &Method::GET) => return self.log(target, query).await,
            (Some("proxy"), _) => return self.proxy(request, target).await,
            (None, &Method::GET) if target.name.is_none() && query.flag("watch")? => {
                return self.watch(target, query, request.headers());
            }
            _ => {}
        }
        let answer = async {
            match *request.method() {
                Method::GET => self.read(target, query, request.headers()).await,
                _ => objects::change(&self.api, target, query, request).await,
            }
        };
        tokio::time::timeout(REQUEST_DEADLINE, answer).await.unwrap_or_else(|_| {
            let why = format!("the request did not complete within {} s", REQUEST_DEADLINE.as_secs());
            Err(ApiError::new(http::StatusCode::GATEWAY_TIMEOUT, "Timeout", why))
        })
    }
}

/// The Kubernetes verb of a request; refuses methods that the target does not have.
fn verb(method: &Method, target: &Target<'_>, query: &Query) -> Result<&'static str, ApiError> {
    let verb = match (method, target.name.is_some()) {
        (&Method::GET, false) if query.flag("watch")? => "watch",
        (&Method::GET, false) => "list",
        (&Method::GET, true)
            if matches!(target.subresource.as_deref(), Some("exec" | "attach" | "portforward" | "proxy")) =>
        {
            "connect"
        }
        (&Method::GET, true) => "get",
        (&Method::POST, false) => "create",
        (&Method::POST, true) if target.subresource.is_some() => "create",
        (&Method::PUT, true) => "update",
        (&Method::PATCH, true) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "",
    };
    let known = match target.subresource.as_deref().and_then(|name| target.resource.subresource(name)) {
        None => !verb.is_empty(),
        Some(_) if verb == "connect" => true,
        Some(subresource) => subresource.verbs.iter().any(|one| one == verb),
    };
    if known {
        return Ok(verb);
    }
    let status = http::StatusCode::METHOD_NOT_ALLOWED;
    Err(ApiError::new(status, "MethodNotAllowed", "the server does not allow this method on the requested resource"))
}
