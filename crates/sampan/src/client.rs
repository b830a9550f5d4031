//! The client of the service's Kubernetes-shaped HTTP API, over its Unix socket and nothing else.
//!
//! Each request opens a connection of its own: on a Unix socket that costs some tens of microseconds and spares a pool
//! and its failure modes. Unary requests have a deadline; streams end when the service ends them.
//!
//! Invariants: an answer is never read beyond [`crate::limits`]; every error says whether the service is absent, went
//! away in the middle, or refused, because commands act differently on each.

pub(crate) mod channels;
pub(crate) mod error;
pub(crate) mod forward;
pub(crate) mod lines;
pub(crate) mod path;
pub(crate) mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::limits;
pub(crate) use error::ClientError;

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The media type of an object in a create request.
pub(crate) const JSON: &str = "application/json";
/// RFC 7386.
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";
/// Kubernetes' own patch, which merges lists by key.
pub(crate) const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

/// Where the service listens.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the service at this socket; nothing is opened yet.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for an object or a list.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, None).await
    }

    /// Sends an object, or a patch of one, and returns the service's answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        content: Option<(&str, &Value)>,
    ) -> Result<Value, ClientError> {
        let exchange = async {
            let response = self.send(request(method, path, content)?).await?;
            let body = read(response.into_body(), limits::RESPONSE_BYTES_MAX).await?;
            if body.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(&body).map_err(|error| ClientError::Unexpected(error.to_string()))
        };
        timeout(limits::REQUEST_TIMEOUT, exchange).await.unwrap_or(Err(ClientError::Silent))
    }

    /// Opens a stream; the answer's head has come, its body is still arriving.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &str,
        content: Option<(&str, &Value)>,
    ) -> Result<Incoming, ClientError> {
        Ok(self.send(request(method, path, content)?).await?.into_body())
    }

    /// Sends a request of any shape; an answer that is not a success becomes an error.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(ClientError::lost)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = timeout(limits::REQUEST_TIMEOUT, read(response.into_body(), limits::ERROR_BYTES_MAX)).await;
        Err(ClientError::refused(status, &body.map_or_else(|_| Bytes::new(), Result::unwrap_or_default)))
    }

    /// Whether something listens at the socket.
    pub(crate) async fn answers(&self) -> Result<(), ClientError> {
        self.connect().await.map(drop)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ClientError> {
        let began = Instant::now();
        let stream = loop {
            match timeout(limits::CONNECT_TIMEOUT, UnixStream::connect(&self.socket)).await {
                Ok(Ok(stream)) => break stream,
                Ok(Err(error))
                    if error.kind() == io::ErrorKind::ConnectionRefused
                        && began.elapsed() < limits::CONNECT_RETRY_MAX =>
                {
                    tokio::time::sleep(limits::CONNECT_RETRY_MAX / 20).await;
                }
                Ok(Err(error)) => return Err(ClientError::Absent { socket: self.socket.clone(), source: error }),
                Err(_) => return Err(ClientError::Silent),
            }
        };
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::lost)?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

fn request(method: Method, path: &str, content: Option<(&str, &Value)>) -> Result<Request<Body>, ClientError> {
    let builder = head(method, path);
    match content {
        Some((media_type, value)) => {
            builder.header(header::CONTENT_TYPE, media_type).body(whole(Bytes::from(value.to_string())))
        }
        None => builder.body(whole(Bytes::new())),
    }
    .map_err(|error| ClientError::Unexpected(error.to_string()))
}

/// The head that every request has.
pub(crate) fn head(method: Method, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "sampan")
        .header(header::USER_AGENT, concat!("sampan/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, JSON)
}

/// A body whose bytes are all there.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn read(body: Incoming, bytes_max: usize) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, bytes_max).collect().await;
    collected.map(|collected| collected.to_bytes()).map_err(|error| ClientError::Lost(error.to_string()))
}
