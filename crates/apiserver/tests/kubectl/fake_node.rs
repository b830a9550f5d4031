//! A node without containers: bound pods run at once, logs are made up, exec runs on this machine.

use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use sampan_apiserver::{
    Admission, AdmissionRequest, ApiError, ApiHandle, AttachOptions, Body, DeleteOptions, EventRecord, ExecOptions,
    LogOptions, LogStream, NodeLink, NodeLinkError, Operation, PodRef, RemoteExit, RemoteStreams,
};
use sampan_streaming::{ByteStream, PortConnector};
use serde_json::{Value, json};

pub(crate) const NODE: &str = "node-1";

/// Binds every new pod to the node.
pub(crate) struct BindAll;

#[async_trait]
impl Admission for BindAll {
    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), ApiError> {
        if request.resource == "pods" && request.operation == Operation::Create {
            object["spec"]["nodeName"] = json!(NODE);
        }
        Ok(())
    }

    async fn settled(&self, _: &AdmissionRequest<'_>, _: bool) {}
}

pub(crate) struct FakeNode;

/// Connects to ports of this machine.
struct ThisMachine;

#[async_trait]
impl PortConnector for ThisMachine {
    async fn connect(&self, port: u16) -> Result<Box<dyn ByteStream>, String> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        stream.map(|stream| Box::new(stream) as _).map_err(|error| error.to_string())
    }
}

/// Plays the node: what is bound runs, `true` succeeds, what is marked goes.
pub(crate) async fn play(api: ApiHandle) -> Result<(), ApiError> {
    let node = json!({"metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}});
    api.create("nodes", None, node).await?;
    let conditions = json!([{"type": "Ready", "status": "True", "reason": "NodeReady", "message": "ready"}]);
    api.patch_status("nodes", None, NODE, json!({"status": {"conditions": conditions}})).await?;
    let (_, revision) = api.list("pods", None).await?;
    let mut watch = api.watch("pods", None, revision)?;
    while let Ok(change) = watch.next().await {
        let pod = &change.object.value;
        let (namespace, name) = (change.object.key.namespace.as_deref(), change.object.key.name.as_str());
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let result = if change.kind == sampan_apiserver::Change::Deleted {
            Ok(())
        } else if pod["metadata"]["deletionTimestamp"].is_string() {
            api.delete("pods", namespace, name, &DeleteOptions::now(uid)).await.map(drop)
        } else if pod["status"]["phase"] == "Pending" {
            api.record_event(
                &EventRecord::about(pod, "fake-node", "Started", "Started container").container("main").on(NODE),
            )
            .await?;
            api.patch_status("pods", namespace, name, started(pod)).await.map(drop)
        } else {
            Ok(())
        };
        match result {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn started(pod: &Value) -> Value {
    let finished = pod["spec"]["containers"][0]["command"][0] == "true";
    let time = "2026-01-01T00:00:00Z";
    let statuses: Vec<Value> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| {
            let state = if finished {
                json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": time, "finishedAt": time}})
            } else {
                json!({"running": {"startedAt": time}})
            };
            json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": !finished, "restartCount": 0, "started": !finished, "state": state})
        })
        .collect();
    let ready = if finished { "False" } else { "True" };
    json!({
        "metadata": {"uid": pod["metadata"]["uid"]},
        "status": {
            "phase": if finished { "Succeeded" } else { "Running" },
            "podIP": "10.88.0.2",
            "startTime": time,
            "conditions": [{"type": "Ready", "status": ready}, {"type": "Initialized", "status": "True"}],
            "containerStatuses": statuses,
        },
    })
}

#[async_trait]
impl NodeLink for FakeNode {
    async fn logs(&self, pod: &PodRef, options: LogOptions) -> Result<LogStream, NodeLinkError> {
        let text = format!("hello from {}/{} tail {:?}\n", pod.name, options.container, options.tail_lines);
        Ok(Box::pin(futures_util::stream::iter([Ok(Bytes::from(text))])))
    }

    async fn exec(&self, _: &PodRef, options: ExecOptions) -> Result<RemoteStreams, NodeLinkError> {
        let mut parts = options.command.iter();
        let program = parts.next().cloned().unwrap_or_default();
        let mut command = tokio::process::Command::new(&program);
        command.args(parts).stdin(if options.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let spawned = command.spawn().map(Arc::new);
        let mut child = match spawned.map(Arc::into_inner) {
            Ok(Some(child)) => child,
            Ok(None) | Err(_) => {
                let why = format!("command not found: {program}");
                return Err(NodeLinkError {
                    status: http::StatusCode::BAD_REQUEST,
                    reason: "BadRequest",
                    message: why,
                });
            }
        };
        Ok(RemoteStreams {
            stdin: child.stdin.take().map(|pipe| Box::new(pipe) as _),
            stdout: child.stdout.take().map(|pipe| Box::new(pipe) as _),
            stderr: child.stderr.take().map(|pipe| Box::new(pipe) as _),
            resize: None,
            exit: async move {
                match child.wait().await {
                    Ok(status) => RemoteExit::Code(status.code().unwrap_or(128)),
                    Err(error) => RemoteExit::Failed(error.to_string()),
                }
            }
            .boxed(),
        })
    }

    async fn attach(&self, pod: &PodRef, options: AttachOptions) -> Result<RemoteStreams, NodeLinkError> {
        let command = vec!["sh".to_owned(), "-c".to_owned(), "echo attached; cat".to_owned()];
        let AttachOptions { container, stdin, stdout, stderr, tty } = options;
        self.exec(pod, ExecOptions { container, command, stdin, stdout, stderr, tty }).await
    }

    async fn port_forward(&self, _: &PodRef) -> Result<Arc<dyn PortConnector>, NodeLinkError> {
        Ok(Arc::new(ThisMachine))
    }

    async fn proxy(&self, request: http::Request<Body>) -> http::Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let text = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&bytes));
        http::Response::new(sampan_apiserver::body::full(text))
    }
}
