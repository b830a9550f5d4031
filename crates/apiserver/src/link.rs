//! The API server's view of the node: what only the node can answer.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::StatusCode;
use sampan_streaming::{PortConnector, RemoteStreams};

use crate::body::Body;
use crate::error::ApiError;

/// Which pod is meant; the uid tells it from an older one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What of a container's log is wanted. The container is always named: the server has filled in the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The container.
    pub container: String,
    /// Go on as lines are written.
    pub follow: bool,
    /// Of the container's instance before this one.
    pub previous: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines of the last so many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines after this time.
    pub since_time: Option<jiff::Timestamp>,
    /// A timestamp before each line.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// `All`, `Stdout` or `Stderr`; None is all.
    pub stream: Option<String>,
}

/// A command to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The container; the server has filled in the default.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether the client wants output.
    pub stdout: bool,
    /// Whether the client wants error output.
    pub stderr: bool,
    /// On a terminal.
    pub tty: bool,
}

/// A container's own process to attach to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// The container; the server has filled in the default.
    pub container: Option<String>,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether the client wants output.
    pub stdout: bool,
    /// Whether the client wants error output.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
}

/// Bytes of a log, as they are to be sent.
pub type LogStream = BoxStream<'static, io::Result<Bytes>>;

/// Why the node refuses.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct NodeLinkError {
    /// The HTTP status for the client.
    pub status: StatusCode,
    /// The reason of the Status object: `BadRequest`, `NotFound`, `InternalError` …
    pub reason: &'static str,
    /// One line for a person.
    pub message: String,
}

impl From<NodeLinkError> for ApiError {
    fn from(error: NodeLinkError) -> Self {
        Self::new(error.status, error.reason, error.message)
    }
}

/// What the API server asks the node, in process.
///
/// All methods may be called concurrently. The server has checked that the pod exists, is bound, and has the named
/// container. A returned future may be dropped when the client goes away; nothing may be left behind then.
#[async_trait]
pub trait NodeLink: Send + Sync + 'static {
    /// The log of a container.
    async fn logs(&self, pod: &PodRef, options: LogOptions) -> Result<LogStream, NodeLinkError>;

    /// Runs a command in a running container.
    async fn exec(&self, pod: &PodRef, options: ExecOptions) -> Result<RemoteStreams, NodeLinkError>;

    /// Attaches to a container's own process.
    async fn attach(&self, pod: &PodRef, options: AttachOptions) -> Result<RemoteStreams, NodeLinkError>;

    /// What makes connections to the pod's own loopback.
    async fn port_forward(&self, pod: &PodRef) -> Result<Arc<dyn PortConnector>, NodeLinkError>;

    /// The node's own endpoints; the path is what stood after `…/proxy`, beginning with `/`.
    async fn proxy(&self, request: http::Request<Body>) -> http::Response<Body>;
}
