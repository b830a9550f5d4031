//! A client of the interface: the generated one over one HTTP/2 connection to a Unix socket.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sampan_cri::proto::v1::image_service_client::ImageServiceClient;
use sampan_cri::proto::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::codegen::Service;

/// One connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.send_request(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(body.map_err(std::io::Error::other)))) })
    }
}

pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Connection>,
    pub(crate) images: ImageServiceClient<Connection>,
}

pub(crate) async fn connect(socket: &Path) -> Result<Client> {
    let stream = UnixStream::connect(socket).await.context("connect to the service")?;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (connection, origin) = (Connection(sender), http::Uri::from_static("http://localhost"));
    Ok(Client {
        runtime: RuntimeServiceClient::with_origin(connection.clone(), origin.clone()),
        images: ImageServiceClient::with_origin(connection, origin),
    })
}
