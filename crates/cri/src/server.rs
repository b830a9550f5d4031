//! The server: a Unix socket with gRPC, the streaming server beside it, and what joins both to this machine.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sampan_image::ImageStore;
use sampan_runtime::{Recovered, Runtime};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::server::NamedService as _;

use crate::engine::{Engine, Parts};
use crate::error::CallError;
use crate::limits::{ACCEPT_PAUSE, CALLS_A_CLIENT_MAX, CLIENTS_MAX, MESSAGE_BYTES_MAX};
use crate::proto::v1;
use crate::proto::v1::image_service_server::ImageServiceServer;
use crate::proto::v1::runtime_service_server::RuntimeServiceServer;
use crate::service::Service;
use crate::streams::{self, Streams};
use crate::table::{Table, TableError};

/// Why the interface cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The socket cannot be made.
    #[error("cannot listen on {}; is its folder there, and nobody else's?", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The streaming server has no port.
    #[error("cannot listen for exec, attach and port-forward on the loopback address")]
    Streams(#[source] io::Error),
    /// The table cannot be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// What was running cannot be taken up.
    #[error("pods of the last run cannot be taken up: {0}")]
    Recovery(String),
}

/// How the kubelet is to name control groups. Both kinds of names are understood in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// As paths.
    #[default]
    Cgroupfs,
    /// As slices of systemd.
    Systemd,
}

/// Where the interface is served.
#[derive(Debug, Clone)]
pub struct CriConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The service's data folder.
    pub data_dir: PathBuf,
    /// What `RuntimeConfig` answers.
    pub driver: CgroupDriver,
    /// References whose images are told to be pinned: the kubelet does not remove them.
    pub pinned_images: Vec<String>,
}

/// The running server.
#[derive(Debug)]
pub struct CriServer {
    stop: CancellationToken,
    tracker: TaskTracker,
    socket: PathBuf,
}

impl CriServer {
    /// Takes up the pods of the last run, then serves. `recovered` is what [`Runtime::recover`] found.
    pub async fn start(
        config: CriConfig,
        runtime: Arc<Runtime>,
        recovered: &Recovered,
        images: ImageStore,
    ) -> Result<Self, CriError> {
        let table = Table::open(&config.data_dir.join("cri.db"))?;
        let (streams, stream_listener) = Streams::listen().await.map_err(CriError::Streams)?;
        let engine = Engine::new(Parts {
            runtime,
            images,
            table,
            streams: Arc::clone(&streams),
            data_dir: config.data_dir.clone(),
            pinned: config.pinned_images.iter().map(|reference| normal(reference)).collect(),
        });
        let taken_up = engine.recover(recovered.ready.clone()).await;
        taken_up.map_err(|error: CallError| CriError::Recovery(tonic::Status::from(error).message().to_owned()))?;
        let listener =
            listen(&config.socket).map_err(|source| CriError::Socket { path: config.socket.clone(), source })?;
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let driver = match config.driver {
            CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        };
        let service = Service { engine: Arc::clone(&engine), driver };
        tracker.spawn(streams::serve(stream_listener, streams, engine, stop.clone()));
        tracker.spawn(serve(listener, service, stop.clone(), tracker.clone()));
        Ok(Self { stop, tracker, socket: config.socket })
    }

    /// Cuts clients off and stops. Pods go on.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the socket of the container runtime interface was gone already");
        }
    }
}

/// A reference in full, as the image store writes it.
fn normal(reference: &str) -> String {
    let parsed = reference.parse::<sampan_oci::reference::ImageSource>();
    parsed.map_or_else(|_error| reference.to_owned(), |source| source.to_string())
}

/// Whoever may connect may do everything on this machine: root alone.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, service: Service, stop: CancellationToken, tracker: TaskTracker) {
    let permits = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let permit = Arc::clone(&permits).acquire_owned();
        let accepted = tokio::select! {
            accepted = async { (permit.await, listener.accept().await) } => accepted,
            () = stop.cancelled() => return,
        };
        let (Ok(permit), accepted) = accepted else { return };
        match accepted {
            Ok((connection, _)) => {
                let (service, stop) = (service.clone(), stop.clone());
                tracker.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = converse(connection, service) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client of the container runtime interface cannot be accepted");
                // Out of descriptors, most likely: without a pause this would spin.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(connection: UnixStream, service: Service) {
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let images = ImageServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let dispatch = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (mut runtime, mut images) = (runtime.clone(), images.clone());
        async move {
            let path = request.uri().path();
            let is_for = |name: &str| {
                path.strip_prefix('/')
                    .and_then(|path| path.strip_prefix(name))
                    .is_some_and(|rest| rest.starts_with('/'))
            };
            let answer: Response<Body> = if is_for(RuntimeServiceServer::<Service>::NAME) {
                runtime.call(request).await.unwrap_or_else(|never: Infallible| match never {})
            } else if is_for(ImageServiceServer::<Service>::NAME) {
                images.call(request).await.unwrap_or_else(|never: Infallible| match never {})
            } else {
                tonic::Status::unimplemented(
                    "this socket serves runtime.v1 of the Kubernetes container runtime interface",
                )
                .into_http()
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.timer(TokioTimer::new()).max_concurrent_streams(CALLS_A_CLIENT_MAX);
    if let Err(error) = server.serve_connection(TokioIo::new(connection), dispatch).await {
        tracing::debug!(%error, "a client of the container runtime interface went away");
    }
}
