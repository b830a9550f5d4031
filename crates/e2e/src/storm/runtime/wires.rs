//! Two clients that are told everything twice if need be: they ask again over a new connection until somebody answers.
//!
//! A request whose connection broke before its answer is noted as such; whether it was done nobody can tell, so the same is asked
//! again, as a kubelet does.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Response, Status};

use super::flights::{Flight, Flights};
use super::proto::v1::runtime_service_client::RuntimeServiceClient;

/// How long a service may be away, and how long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// What a request does: only those that change something make a kill count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Change(&'static str),
    Look(&'static str),
}

impl Request {
    const fn name(self) -> &'static str {
        match self {
            Self::Change(name) | Self::Look(name) => name,
        }
    }

    fn begin(self, flights: &Flights) -> Option<Flight> {
        match self {
            Self::Change(name) => Some(flights.begin(name)),
            Self::Look(_) => None,
        }
    }
}

/// A connection to a socket that somebody will listen on again.
async fn connected(socket: &Path) -> Result<UnixStream> {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if began.elapsed() > PATIENCE => return Err(error).context("nobody serves any more"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A gRPC connection.
#[derive(Debug, Clone)]
pub(super) struct Channel(http2::SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Always: a connection that is closed is told by the request itself, with its cause.
    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.send_request(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(body.map_err(std::io::Error::other)))) })
    }
}

pub(super) type Client = RuntimeServiceClient<Channel>;

/// The container runtime interface.
#[derive(Debug)]
pub(super) struct CriWire {
    socket: PathBuf,
    flights: Flights,
    client: Option<Client>,
}

/// An answer, and whether the question was put before to one who died over it.
#[derive(Debug)]
pub(super) struct Told<T> {
    pub(super) answer: T,
    pub(super) repeated: bool,
}

impl CriWire {
    pub(super) fn new(socket: PathBuf, flights: Flights) -> Self {
        Self { socket, flights, client: None }
    }

    async fn client(&mut self) -> Result<Option<Client>> {
        if self.client.is_none() {
            let stream = connected(&self.socket).await?;
            // The daemon may die between its two answers.
            let builder = http2::Builder::new(TokioExecutor::new());
            let Ok((sender, connection)) = builder.handshake(TokioIo::new(stream)).await else { return Ok(None) };
            tokio::spawn(connection);
            let origin = http::Uri::from_static("http://localhost");
            self.client = Some(RuntimeServiceClient::with_origin(Channel(sender), origin));
        }
        Ok(self.client.clone())
    }

    /// Asks until it is answered, by whatever daemon.
    pub(super) async fn ask<T, Answer: Future<Output = Result<Response<T>, Status>>>(
        &mut self,
        what: Request,
        ask: impl Fn(Client) -> Answer,
    ) -> Result<Told<Result<T, Status>>> {
        let (began, mut repeated) = (Instant::now(), false);
        loop {
            ensure!(began.elapsed() < PATIENCE, "{} is not answered", what.name());
            let Some(client) = self.client().await? else { continue };
            let flight = what.begin(&self.flights);
            let answered = tokio::time::timeout(PATIENCE, ask(client)).await;
            match answered.with_context(|| format!("{} hangs", what.name()))? {
                // What was not said by a daemon has a cause on our side.
                Err(status) if std::error::Error::source(&status).is_some() => {
                    flight.into_iter().for_each(Flight::broken);
                    self.client = None;
                    repeated = true;
                }
                answer => return Ok(Told { answer: answer.map(Response::into_inner), repeated }),
            }
        }
    }
}

/// The Kubernetes API.
#[derive(Debug)]
pub(super) struct ApiWire {
    socket: PathBuf,
    flights: Flights,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

/// What the API said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Said {
    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("an answer that is no JSON")
    }
}

impl ApiWire {
    pub(super) fn new(socket: PathBuf, flights: Flights) -> Self {
        Self { socket, flights, sender: None }
    }

    /// Asks until it is answered, by whatever daemon.
    pub(super) async fn ask(
        &mut self,
        what: Request,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Told<Said>> {
        let (began, mut repeated) = (Instant::now(), false);
        loop {
            ensure!(began.elapsed() < PATIENCE, "{} is not answered", what.name());
            let bytes = body.map(Value::to_string).unwrap_or_default();
            let request = http::Request::builder()
                .method(method.clone())
                .uri(path)
                .header("host", "localhost")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(bytes)))?;
            let Some(mut sender) = self.sender().await? else { continue };
            if sender.ready().await.is_err() {
                continue;
            }
            let flight = what.begin(&self.flights);
            let answered = tokio::time::timeout(PATIENCE, async {
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                Ok::<_, hyper::Error>(Said { status, body: answer.into_body().collect().await?.to_bytes() })
            });
            match answered.await.with_context(|| format!("{} hangs", what.name()))? {
                Ok(answer) => {
                    self.sender = Some(sender);
                    return Ok(Told { answer, repeated });
                }
                Err(_) => {
                    flight.into_iter().for_each(Flight::broken);
                    repeated = true;
                }
            }
        }
    }

    async fn sender(&mut self) -> Result<Option<http1::SendRequest<Full<Bytes>>>> {
        if let Some(sender) = self.sender.take().filter(|sender| !sender.is_closed()) {
            return Ok(Some(sender));
        }
        let stream = connected(&self.socket).await?;
        let Ok((sender, connection)) = http1::handshake(TokioIo::new(stream)).await else { return Ok(None) };
        tokio::spawn(connection);
        Ok(Some(sender))
    }
}
