//! An HTTP server whose every answer a test decides, and an image for it to serve.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Descriptor;
use sampan_oci::reference::ImageSource;
use sampan_registry::config::TransferConfig;
use sampan_registry::{RegistryClient, RegistryConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A request as a handler sees it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The range asked for.
    pub(crate) fn range(&self) -> Option<Range<usize>> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..last.parse::<usize>().ok()? + 1)
    }
}

/// How a body goes on after its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Proper,
    /// The connection breaks.
    Breaks,
    /// Nothing more comes.
    Stalls,
    /// A byte now and then comes.
    Crawls,
}

pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    pieces: Vec<Bytes>,
    ending: Ending,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), pieces: Vec::new(), ending: Ending::Proper }
    }

    pub(crate) fn ok(body: impl Into<Bytes>) -> Self {
        Self::status(200).body(body)
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.pieces = vec![body.into()];
        self
    }

    pub(crate) fn pieces(mut self, pieces: Vec<Bytes>) -> Self {
        self.pieces = pieces;
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    fn into_response(self) -> Response<BoxBody<Bytes, std::io::Error>> {
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let frames = self.pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
        let ending = self.ending;
        let end = stream::unfold((), move |()| async move {
            let frame = match ending {
                Ending::Proper => return None,
                Ending::Breaks => {
                    // While the body waits, what it has given so far is sent.
                    tokio::task::yield_now().await;
                    Err(std::io::Error::other("broken on purpose"))
                }
                Ending::Stalls => std::future::pending().await,
                Ending::Crawls => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(Frame::data(Bytes::from_static(b"x")))
                }
            };
            Some((frame, ()))
        });
        use futures_util::StreamExt;
        let body = StreamBody::new(stream::iter(frames).chain(end));
        response.body(BodyExt::boxed(body)).unwrap()
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// Serves until it is dropped, and remembers what it was asked.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(handler, None).await
    }

    pub(crate) async fn start_with(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, log, tls) = (Arc::clone(&handler), Arc::clone(&log), tls.clone());
                connections.spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(TokioIo::new(stream), handler, log).await;
                            }
                        }
                        None => serve(TokioIo::new(stream), handler, log).await,
                    }
                });
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How often a path with this part was asked for.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }

    pub(crate) fn source(&self, name: &str) -> ImageSource {
        format!("{}/{name}", self.address).parse().unwrap()
    }
}

async fn serve<I>(io: I, handler: Arc<Handler>, log: Arc<Mutex<Vec<Seen>>>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let seen = Seen {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                headers: parts.headers,
                body,
            };
            log.lock().unwrap().push(seen.clone());
            Ok::<_, Infallible>(handler(&seen).into_response())
        }
    });
    // A client that hangs up is part of many tests.
    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await.ok();
}

/// Patience of milliseconds and parts of 64 KiB, so that little data makes many parts.
pub(crate) fn config() -> RegistryConfig {
    let transfer = TransferConfig {
        part_bytes: 64 << 10,
        idle_timeout: Duration::from_millis(300),
        pause_first: Duration::from_millis(1),
        pause_longest: Duration::from_millis(2),
        ..TransferConfig::default()
    };
    RegistryConfig { transfer, ..RegistryConfig::default() }
}

pub(crate) fn client() -> RegistryClient {
    RegistryClient::new(config())
}

/// An image of one layer whose bytes are not a real tar: nothing here looks inside.
pub(crate) struct TestImage {
    pub(crate) layer: Bytes,
    pub(crate) config: Bytes,
    pub(crate) manifest: Bytes,
}

impl TestImage {
    pub(crate) fn new(layer_bytes: usize) -> Self {
        let layer = noise(layer_bytes);
        let config = serde_json::json!({
            "os": "linux", "architecture": "", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]},
        });
        let config = Bytes::from(serde_json::to_vec(&config).unwrap());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": sampan_oci::media_type::OCI_MANIFEST,
            "config": descriptor(&config, sampan_oci::media_type::OCI_CONFIG),
            "layers": [descriptor(&layer, "application/vnd.oci.image.layer.v1.tar")],
        });
        Self { layer, config, manifest: Bytes::from(serde_json::to_vec(&manifest).unwrap()) }
    }

    pub(crate) fn layer_descriptor(&self) -> Descriptor {
        descriptor(&self.layer, "application/vnd.oci.image.layer.v1.tar")
    }

    /// What a good registry answers.
    pub(crate) fn answer(&self, seen: &Seen) -> Reply {
        if seen.path == "/v2/" {
            return Reply::status(200);
        }
        if seen.path.contains("/manifests/") {
            let reply = if seen.method == Method::HEAD { Reply::status(200) } else { Reply::ok(self.manifest.clone()) };
            return reply
                .header("content-type", sampan_oci::media_type::OCI_MANIFEST)
                .header("docker-content-digest", Digest::of(&self.manifest));
        }
        match [&self.layer, &self.config].into_iter().find(|blob| seen.path.ends_with(&Digest::of(blob).hex())) {
            Some(blob) => ranged(blob, seen),
            None => Reply::status(404).body(r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository unknown"}]}"#),
        }
    }
}

/// A blob, or the part of it that was asked for.
pub(crate) fn ranged(blob: &Bytes, seen: &Seen) -> Reply {
    match seen.range() {
        Some(range) => {
            let piece = blob.slice(range.clone());
            let described = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.len());
            Reply::status(206).header("content-length", piece.len()).header("content-range", described).body(piece)
        }
        None => Reply::ok(blob.clone()).header("content-length", blob.len()),
    }
}

pub(crate) fn descriptor(bytes: &[u8], media_type: &str) -> Descriptor {
    let (media_type, digest, size) = (media_type.to_owned(), Digest::of(bytes), bytes.len() as u64);
    Descriptor { media_type, digest, size, annotations: Default::default(), platform: None }
}

/// Bytes that repeat nowhere near.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) async fn read_all(reader: &mut sampan_registry::BlobReader) -> Result<Vec<u8>, sampan_registry::FetchError> {
    let mut whole = Vec::new();
    while let Some(chunk) = reader.next().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

/// An error and its causes, as a user meets them, without the port that changes from run to run.
pub(crate) fn line(error: &sampan_registry::FetchError, server: &Server) -> String {
    sampan_kit::error_chain::ErrorChain(error).to_string().replace(&server.address.to_string(), "HOST")
}
