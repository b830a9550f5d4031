//! What the API server asks of the node: logs, execs, attaches, and the node's own endpoints.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use http::StatusCode;
use jiff::Timestamp;
use sampan_apiserver::{
    AttachOptions, Body, ExecOptions, LogOptions, LogStream, NodeLink, NodeLinkError, PodRef, RemoteExit, RemoteStreams,
};
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::pod::{Pod, log_path};
use sampan_runtime::remote::{Followed, PodPorts};
use sampan_sandbox::SandboxError;
use sampan_streaming::PortConnector;
use tokio::sync::watch;

use crate::limits::TAKE_UP_MAX;
use crate::logs::{self, Query, Reader, Stream};
use crate::node::Node;
use crate::worker::{ContainerView, View};

/// Refuses with a status, its reason and one line.
pub(crate) fn refuse(status: StatusCode, reason: &'static str, message: impl Into<String>) -> NodeLinkError {
    NodeLinkError { status, reason, message: message.into() }
}

fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> NodeLinkError {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("{what}: {}", ErrorChain(error)))
}

pub(crate) fn sandbox_refusal(error: &SandboxError) -> NodeLinkError {
    match error {
        SandboxError::NoSuchContainer { .. } | SandboxError::AgentGone => {
            refuse(StatusCode::BAD_REQUEST, "BadRequest", ErrorChain(error).to_string())
        }
        SandboxError::NoSuchPath { .. } => refuse(StatusCode::NOT_FOUND, "NotFound", error.to_string()),
        _ => internal("the sandbox cannot do it", error),
    }
}

impl Node {
    /// What is known of a pod. It is not known until a worker has taken it up, for which this waits: a pod has just been
    /// made, or the service has been started again.
    pub(crate) async fn view(&self, pod: &PodRef) -> Result<watch::Receiver<View>, NodeLinkError> {
        let missing = || {
            let message = format!("pod {}/{} is not on this node yet; try again", pod.namespace, pod.name);
            refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
        };
        let taken_up = async {
            let mut view = self.worker_to_come(&pod.uid).await?.view;
            if view.wait_for(|view| !view.containers.is_empty()).await.is_err() {
                tracing::trace!(pod = pod.name, "its worker ended at once");
            }
            Some(view)
        };
        tokio::time::timeout(TAKE_UP_MAX, taken_up).await.ok().flatten().ok_or_else(missing)
    }

    /// The live pod, with the named container running.
    pub(crate) async fn running(&self, pod: &PodRef, container: &str) -> Result<Arc<Pod>, NodeLinkError> {
        let view = self.view(pod).await?;
        let view = view.borrow();
        let is_running = view.containers.get(container).is_some_and(|container| container.running);
        view.pod.clone().filter(|_| is_running).ok_or_else(|| {
            let message = format!("container {container} of pod {}/{} is not running", pod.namespace, pod.name);
            refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
        })
    }

    /// The run whose log is wanted. A follower waits for the first one to begin.
    async fn attempt(
        &self,
        pod: &PodRef,
        options: &LogOptions,
        view: &mut watch::Receiver<View>,
    ) -> Result<u32, NodeLinkError> {
        let name = &options.container;
        let look = |view: &View| view.containers.get(name).copied().unwrap_or_default();
        let mut container = look(&view.borrow());
        if options.follow && !options.previous && !container.started && !container.over {
            let began = view.wait_for(|view| look(view).started || look(view).over).await;
            container = began.map(|view| look(&view)).unwrap_or_default();
        }
        let ContainerView { attempt, started, .. } = container;
        if options.previous {
            let missing = || {
                let message = format!("previous terminated container {name:?} in pod {:?} not found", pod.name);
                refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
            };
            return attempt.checked_sub(1).ok_or_else(missing);
        }
        if !started {
            let message = format!("container {name:?} in pod {:?} is waiting to start or never ran", pod.name);
            return Err(refuse(StatusCode::BAD_REQUEST, "BadRequest", message));
        }
        Ok(attempt)
    }
}

#[async_trait]
impl NodeLink for Node {
    async fn logs(&self, pod: &PodRef, options: LogOptions) -> Result<LogStream, NodeLinkError> {
        let mut view = self.view(pod).await?;
        let attempt = self.attempt(pod, &options, &mut view).await?;
        let path = log_path(&self.services.runtime.log_folder(&pod.uid), &options.container, attempt);
        let ago = options.since_seconds.map(|seconds| Timestamp::now() - Duration::from_secs(seconds));
        let query = Query {
            stream: match options.stream.as_deref() {
                Some("Stdout") => Stream::Stdout,
                Some("Stderr") => Stream::Stderr,
                _ => Stream::All,
            },
            since: options.since_time.or(ago),
            tail_lines: options.tail_lines,
            timestamps: options.timestamps,
            limit_bytes: options.limit_bytes,
        };
        let follow = options.follow.then(|| logs::Followed {
            changes: Arc::clone(&self.services.log_changes),
            view,
            container: options.container.clone(),
            attempt,
        });
        let reader = match Reader::open(&path, query, follow).await {
            Ok(reader) => reader,
            // A run that failed before its program began has no log.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(futures_util::stream::empty().boxed()),
            Err(error) => return Err(internal("the log cannot be read", &error)),
        };
        let chunks = futures_util::stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|bytes| (bytes, reader)))
        });
        Ok(chunks.boxed())
    }

    async fn exec(&self, pod: &PodRef, options: ExecOptions) -> Result<RemoteStreams, NodeLinkError> {
        let container = options.container.unwrap_or_default();
        let live = self.running(pod, &container).await?;
        let ExecOptions { command, stdin, stdout, stderr, tty, .. } = options;
        let followed = Followed { stdin, stdout, stderr, tty };
        live.exec_remote(&container, command, followed).await.map_err(|error| sandbox_refusal(&error))
    }

    async fn attach(&self, pod: &PodRef, options: AttachOptions) -> Result<RemoteStreams, NodeLinkError> {
        let container = options.container.unwrap_or_default();
        let mut view = self.view(pod).await?;
        let started = |view: &View| view.containers.get(&container).is_some_and(|c| c.running || c.over || c.started);
        if view.wait_for(started).await.is_err() {
            return Err(refuse(StatusCode::BAD_REQUEST, "BadRequest", "the pod ended before it could be attached to"));
        }
        let live = self.running(pod, &container).await?;
        let attempt = view.borrow().containers.get(&container).map_or(0, |container| container.attempt);
        let sandbox = live.sandbox();
        let (stdin, stdout, stderr) = if options.stdin {
            let attached = sandbox.attach(&container).map_err(|error| sandbox_refusal(&error)).await?;
            (Some(attached.stdin), attached.stdout, attached.stderr)
        } else {
            let (stdout, stderr) = sandbox.listen(&container).map_err(|error| sandbox_refusal(&error)).await?;
            (None, stdout, stderr)
        };
        let name = container.clone();
        let exit = async move {
            let is_over =
                |view: &View| view.containers.get(&name).is_none_or(|now| now.attempt != attempt || !now.running);
            if view.wait_for(is_over).await.is_err() {
                tracing::trace!("the pod's worker ended while a client was attached");
            }
            RemoteExit::Code(0)
        };
        Ok(RemoteStreams {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: options.stdout.then(|| Box::new(stdout) as _),
            stderr: (options.stderr && !options.tty).then(|| Box::new(stderr) as _),
            resize: options.tty.then(|| live.terminal_sizes(&container)),
            exit: exit.boxed(),
        })
    }

    async fn port_forward(&self, pod: &PodRef) -> Result<Arc<dyn PortConnector>, NodeLinkError> {
        let view = self.view(pod).await?;
        let ports = view.borrow().pod.as_ref().map(PodPorts::of);
        let stopped = || {
            let message = format!("pod {}/{} is not running", pod.namespace, pod.name);
            refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
        };
        Ok(Arc::new(ports.ok_or_else(stopped)?))
    }

    async fn proxy(&self, request: http::Request<Body>) -> http::Response<Body> {
        self.serve_endpoint(request).await
    }
}
