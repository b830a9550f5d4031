//! A service in the test's own process: the part of the API that the client uses, with instances that are scripts.
//!
//! What an instance does is decided by its image and arguments (see [`play`]); nothing runs. The shapes are those of
//! Kubernetes, so that the client cannot tell the difference; the real service is met by the end-to-end tests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A running fake; it ends with the process of the test.
pub(crate) struct Service {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that streams wake.
    changed: watch::Sender<u64>,
    signals: broadcast::Sender<String>,
    stdin: broadcast::Sender<Option<Bytes>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    pods: BTreeMap<String, Value>,
    events: Vec<Value>,
    /// What each pod wrote: whether to stderr, and what.
    logs: BTreeMap<String, Vec<(bool, Bytes)>>,
    /// Every request, as `METHOD path?query`.
    requests: Vec<String>,
    bodies: Vec<Value>,
    uploads: Vec<Vec<u8>>,
    /// Streams that are to break off after so many more pieces.
    breaks: Option<usize>,
}

impl Service {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("sampan.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::channel(0).0,
            signals: broadcast::channel(16).0,
            stdin: broadcast::channel(1024).0,
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let shared = Arc::clone(&serving);
                    let service = service_fn(move |request| {
                        let shared = Arc::clone(&shared);
                        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    tokio::spawn(async move { connection.await.ok() });
                }
            });
        });
        Self { directory, shared }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sampan.sock")
    }

    /// Requests so far that contain `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.shared.lock().requests.iter().filter(|request| request.contains(part)).cloned().collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.shared.lock().pods.keys().cloned().collect()
    }

    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.shared.lock().bodies.clone()
    }

    pub(crate) fn uploads(&self) -> Vec<Vec<u8>> {
        self.shared.lock().uploads.clone()
    }

    /// Puts a pod there that nobody created.
    pub(crate) fn put(&self, pod: Value) {
        self.shared.put(pod, "ADDED");
    }

    /// Streams break off in the middle after so many more pieces.
    pub(crate) fn break_streams_after(&self, pieces: usize) {
        self.shared.lock().breaks = Some(pieces);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn put(&self, mut pod: Value, kind: &str) -> Value {
        let mut state = self.lock();
        state.revision += 1;
        pod["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        state.events.push(json!({"type": kind, "object": pod}));
        if kind == "DELETED" {
            state.pods.remove(&name);
        } else {
            state.pods.insert(name, pod.clone());
        }
        drop(state);
        self.change();
        pod
    }

    fn status(&self, name: &str, phase: &str, container_state: Value) {
        let Some(mut pod) = self.lock().pods.get(name).cloned() else { return };
        pod["status"] = json!({"phase": phase, "containerStatuses": [{"name": "main", "restartCount": 0, "state": container_state}]});
        self.put(pod, "MODIFIED");
    }

    fn write(&self, name: &str, stderr: bool, text: &str) {
        self.lock().logs.entry(name.to_owned()).or_default().push((stderr, Bytes::from(text.to_owned())));
        self.change();
    }

    fn is_over(&self, name: &str) -> bool {
        let state = self.lock();
        let phase = state.pods.get(name).and_then(|pod| pod["status"]["phase"].as_str());
        !matches!(phase, Some("Pending" | "Running"))
    }

    /// Whether a stream may send its next piece.
    fn may_send(&self) -> bool {
        let mut state = self.lock();
        match &mut state.breaks {
            None => true,
            Some(0) => {
                state.breaks = None;
                false
            }
            Some(pieces) => {
                *pieces -= 1;
                true
            }
        }
    }
}

fn running(shared: &Shared, name: &str) {
    shared.status(name, "Running", json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
}

fn ended(shared: &Shared, name: &str, code: i64, reason: &str, message: &str) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    shared.status(name, phase, json!({"terminated": {"exitCode": code, "reason": reason, "message": message}}));
}

/// What an instance does, by its image and first argument.
async fn play(shared: Arc<Shared>, pod: Value) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    let container = &pod["spec"]["containers"][0];
    let (mut signals, mut stdin) = (shared.signals.subscribe(), shared.stdin.subscribe());
    let waiting = |reason: &str, message: &str| {
        shared.status(name, "Pending", json!({"waiting": {"reason": reason, "message": message}}));
    };
    match container["image"].as_str().unwrap() {
        "missing" => return waiting("ErrImagePull", "missing: no such image in the registry; check its name"),
        "never" => return waiting("ContainerCreating", ""),
        "unstartable" => {
            return ended(&shared, name, 127, "StartError", "nope: command not found; check the command");
        }
        _ => waiting("ContainerCreating", ""),
    }
    running(&shared, name);
    match container["args"][0].as_str().unwrap_or_default() {
        "print" => {
            shared.write(name, false, "to stdout\n");
            shared.write(name, true, "to stderr\n");
            ended(&shared, name, 3, "Error", "");
        }
        "large" => {
            for _ in 0..100 {
                shared.write(name, false, &"0123456789abcdef".repeat(1000));
            }
            ended(&shared, name, 0, "Completed", "");
        }
        "oom" => ended(&shared, name, 137, "OOMKilled", ""),
        "cat" => {
            while let Ok(Some(bytes)) = stdin.recv().await {
                shared.write(name, false, std::str::from_utf8(&bytes).unwrap());
            }
            ended(&shared, name, 0, "Completed", "");
        }
        "trap" => {
            shared.write(name, false, "ready\n");
            let signal = signals.recv().await.unwrap();
            shared.write(name, false, &format!("got {signal}\n"));
            ended(&shared, name, 42, "Error", "");
        }
        _ => {}
    }
}

fn reply(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

fn refusal(status: StatusCode, reason: &str, message: &str) -> Response<Body> {
    reply(status, &json!({"kind": "Status", "status": "Failure", "reason": reason, "message": message}))
}

fn stream(pieces: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Response<Body> {
    Response::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync())
}

fn pieces(pieces: Vec<Bytes>) -> Response<Body> {
    stream(futures_util::stream::iter(pieces.into_iter().map(Ok)))
}

async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    shared.lock().requests.push(format!("{method} {path}?{query}"));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if request.headers().contains_key(header::UPGRADE) {
        return upgrade(shared, &mut request, &parts, &query);
    }
    if let ["api", "v1", "nodes", "here", "proxy", endpoint @ ..] = parts.as_slice() {
        return node(shared, request, endpoint, &query).await;
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if body.is_object() {
        shared.lock().bodies.push(body.clone());
    }
    match (&method, parts.as_slice()) {
        (&Method::GET, ["version"]) => reply(StatusCode::OK, &json!({"gitVersion": "v1.34.0+sampan"})),
        (&Method::GET, ["api", "v1"]) => reply(
            StatusCode::OK,
            &json!({"resources": [{"name": "pods", "kind": "Pod", "namespaced": true}, {"name": "pods/log", "kind": "Pod"}]}),
        ),
        (&Method::GET, ["api", "v1", "nodes"]) => {
            reply(StatusCode::OK, &json!({"items": [{"metadata": {"name": "here"}}]}))
        }
        (&Method::POST, ["api", "v1", "namespaces", namespace, "pods"]) => create(shared, namespace, body),
        (&Method::GET, ["api", "v1", "namespaces", _, "pods"]) if query.contains("watch=true") => {
            follow(shared, &query)
        }
        (&Method::GET, ["api", "v1", "namespaces", _, "pods"]) => {
            let items: Vec<Value> = shared.lock().pods.values().cloned().collect();
            reply(StatusCode::OK, &json!({"kind": "PodList", "items": items}))
        }
        (&Method::GET, ["api", "v1", "namespaces", _, "pods", name, "log"]) => log(shared, name, &query),
        (_, ["api", "v1", "namespaces", _, "pods", name]) => one(shared, &method, name, &body),
        _ => refusal(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource"),
    }
}

fn create(shared: &Arc<Shared>, namespace: &str, mut pod: Value) -> Response<Body> {
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    if shared.lock().pods.contains_key(&name) {
        return refusal(StatusCode::CONFLICT, "AlreadyExists", &format!("pods \"{name}\" already exists"));
    }
    pod["metadata"]["namespace"] = json!(namespace);
    pod["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    pod["spec"]["nodeName"] = json!("here");
    pod["status"] = json!({"phase": "Pending"});
    let pod = shared.put(pod, "ADDED");
    tokio::spawn(play(Arc::clone(shared), pod.clone()));
    reply(StatusCode::CREATED, &pod)
}

fn one(shared: &Arc<Shared>, method: &Method, name: &str, body: &Value) -> Response<Body> {
    let Some(mut pod) = shared.lock().pods.get(name).cloned() else {
        return refusal(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" not found"));
    };
    match *method {
        Method::GET => reply(StatusCode::OK, &pod),
        Method::PATCH => {
            if body.pointer("/metadata/annotations/sampan.dev~1stop").is_some() {
                ended(shared, name, 143, "Error", "");
            }
            pod = shared.lock().pods.get(name).cloned().unwrap();
            reply(StatusCode::OK, &pod)
        }
        Method::DELETE => {
            shared.put(pod.clone(), "DELETED");
            reply(StatusCode::OK, &pod)
        }
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "no"),
    }
}

fn follow(shared: &Arc<Shared>, query: &str) -> Response<Body> {
    let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let after: u64 = field("resourceVersion").unwrap().parse().unwrap();
    let name = field("fieldSelector").unwrap().strip_prefix("metadata.name%3D").unwrap().to_owned();
    let start = (Arc::clone(shared), shared.changed.subscribe(), 0_usize);
    stream(futures_util::stream::unfold(start, move |(shared, mut changed, mut index)| {
        let name = name.clone();
        async move {
            loop {
                changed.borrow_and_update();
                let event = shared.lock().events.get(index).cloned();
                let Some(event) = event else {
                    changed.changed().await.ok()?;
                    continue;
                };
                index += 1;
                let metadata = &event["object"]["metadata"];
                let revision: u64 = metadata["resourceVersion"].as_str().unwrap().parse().unwrap();
                if revision > after && metadata["name"] == *name {
                    let piece = if shared.may_send() {
                        Ok(Bytes::from(format!("{event}\n")))
                    } else {
                        Err(std::io::Error::other("broken on purpose"))
                    };
                    return Some((piece, (shared, changed, index)));
                }
            }
        }
    }))
}

fn log(shared: &Arc<Shared>, name: &str, query: &str) -> Response<Body> {
    if !shared.lock().pods.contains_key(name) {
        return refusal(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" not found"));
    }
    let follow = query.contains("follow=true");
    let wanted = [("stream=Stdout", false), ("stream=Stderr", true)].into_iter().find(|(part, _)| query.contains(part));
    let start = (Arc::clone(shared), shared.changed.subscribe(), 0_usize);
    let name = name.to_owned();
    stream(futures_util::stream::unfold(start, move |(shared, mut changed, mut index)| {
        let name = name.clone();
        async move {
            loop {
                changed.borrow_and_update();
                let entry = shared.lock().logs.get(&name).and_then(|log| log.get(index).cloned());
                match entry {
                    None if !follow || shared.is_over(&name) => return None,
                    None => changed.changed().await.ok()?,
                    Some((stderr, bytes)) => {
                        index += 1;
                        if wanted.is_none_or(|(_, wanted)| wanted == stderr) {
                            let broken = std::io::Error::other("broken on purpose");
                            let piece = if shared.may_send() { Ok(bytes) } else { Err(broken) };
                            return Some((piece, (shared, changed, index)));
                        }
                    }
                }
            }
        }
    }))
}

async fn node(shared: &Arc<Shared>, request: Request<Incoming>, endpoint: &[&str], query: &str) -> Response<Body> {
    let method = request.method().clone();
    match (&method, endpoint) {
        (&Method::POST, ["signal", ..]) => {
            shared.signals.send(query.strip_prefix("signal=").unwrap().to_owned()).ok();
            reply(StatusCode::OK, &json!({}))
        }
        (&Method::GET, ["images"]) => {
            reply(StatusCode::OK, &json!({"images": [{"id": "sha256:1", "references": ["x:1"]}]}))
        }
        (&Method::DELETE, ["images"]) if query.contains("used") => {
            refusal(StatusCode::CONFLICT, "Conflict", "used: web runs from it; remove web first")
        }
        (&Method::DELETE, ["images"]) => reply(StatusCode::OK, &json!({"removed": ["x:1"], "freedBytes": 2048})),
        (&Method::POST, ["images", "pull"]) => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let mut lines = vec![
                json!({"layer": "sha256:aaaaaaaaaaaaaaaa", "state": "downloading", "bytes": 1, "totalBytes": 9}),
                json!({"layer": "sha256:aaaaaaaaaaaaaaaa", "state": "done", "bytes": 9, "totalBytes": 9}),
            ];
            lines.push(match body["reference"].as_str() {
                Some("missing") => json!({"error": "missing: no such image in the registry; check its name"}),
                _ => json!({"done": {"id": "sha256:1", "digest": "sha256:2", "reference": "docker.io/library/x:1"}}),
            });
            // Pieces need not end where lines do.
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            pieces(text.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect())
        }
        (&Method::GET, ["host-check"]) => reply(
            StatusCode::OK,
            &json!({"checks": [{"name": "erofs", "ok": false, "need": "required", "found": "none", "remedy": "modprobe erofs"}]}),
        ),
        (&Method::GET, ["cp", ..]) => match query {
            "path=%2Fsrv" => pieces(vec![directory_entry()]),
            _ => refusal(StatusCode::NOT_FOUND, "NotFound", "no such file"),
        },
        (&Method::PUT, ["cp", ..]) => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            shared.lock().uploads.push(body.to_vec());
            reply(StatusCode::OK, &json!({}))
        }
        _ => refusal(StatusCode::NOT_FOUND, "NotFound", "no such endpoint"),
    }
}

/// A tar archive of one directory, `srv/`.
fn directory_entry() -> Bytes {
    let mut block = vec![0_u8; 512 * 3];
    let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"srv/");
    put(100, b"0000755");
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, b"00000000000");
    put(136, b"00000000001");
    put(148, b"        ");
    put(156, b"5");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::from(block)
}

fn upgrade(shared: &Arc<Shared>, request: &mut Request<Incoming>, parts: &[&str], query: &str) -> Response<Body> {
    let name = parts.get(5).copied().unwrap_or_default().to_owned();
    if !shared.lock().pods.contains_key(&name) {
        return refusal(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{name}\" not found"));
    }
    assert_eq!(request.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    let accept = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    let upgraded = hyper::upgrade::on(request);
    let (shared, query) = (Arc::clone(shared), query.to_owned());
    let exec = parts.last() == Some(&"exec");
    tokio::spawn(async move {
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded.await.unwrap()), Role::Server, None).await;
        if exec { run_exec(socket, &query).await } else { run_attach(&shared, &name, socket, &query).await }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
        .body(Full::default().map_err(|never| match never {}).boxed_unsync())
        .unwrap()
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn send(socket: &mut Socket, channel: u8, bytes: &[u8]) {
    let message = [&[channel], bytes].concat();
    socket.send(Message::Binary(message.into())).await.ok();
}

async fn run_exec(mut socket: Socket, query: &str) {
    let code = match query {
        query if query.contains("command=cat") => {
            while let Some(Ok(Message::Binary(message))) = socket.next().await {
                match message.split_first() {
                    Some((0, bytes)) => send(&mut socket, 1, bytes).await,
                    Some((255, [0])) => break,
                    _ => {}
                }
            }
            0
        }
        query if query.contains("command=fail") => {
            send(&mut socket, 2, b"to stderr\n").await;
            7
        }
        _ => {
            let status = json!({"status": "Failure", "reason": "InternalError", "message": "no such command"});
            send(&mut socket, 3, status.to_string().as_bytes()).await;
            socket.close(None).await.ok();
            return;
        }
    };
    let status = match code {
        0 => json!({"status": "Success"}),
        code => json!({"status": "Failure", "reason": "NonZeroExitCode",
                       "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
    };
    send(&mut socket, 3, status.to_string().as_bytes()).await;
    socket.close(None).await.ok();
}

/// Passes input on to the instance; a terminal's shows every byte and every size that it gets, until `q`.
async fn run_attach(shared: &Shared, name: &str, mut socket: Socket, query: &str) {
    let tty = query.contains("tty=true");
    if tty {
        send(&mut socket, 1, b"prompt> ").await;
    }
    while let Some(Ok(Message::Binary(message))) = socket.next().await {
        match message.split_first() {
            Some((0, bytes)) if tty => {
                send(&mut socket, 1, format!("<{}>", bytes.escape_ascii()).as_bytes()).await;
                if bytes.contains(&b'q') {
                    ended(shared, name, 9, "Error", "");
                    break;
                }
            }
            Some((0, bytes)) => drop(shared.stdin.send(Some(Bytes::copy_from_slice(bytes)))),
            Some((4, size)) => send(&mut socket, 1, size).await,
            Some((255, [0])) => drop(shared.stdin.send(None)),
            _ => {}
        }
    }
    socket.close(None).await.ok();
}
