//! The listeners: a root-only Unix socket, and TLS on loopback.
//!
//! Who may talk: on the socket, processes of root or of the service's own user (the kernel tells who); over TLS, holders of
//! a client certificate of our own authority or of the bearer token. Health checks need neither.

mod pki;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use sampan_store::Store;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::body::Body;
use crate::catalog::CatalogError;
use crate::error::ApiError;
use crate::handle::ApiHandle;
use crate::http::Front;
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_STREAMS_MAX, CONNECTIONS_MAX, HANDSHAKE_DEADLINE, HEAD_BYTES_MAX, IDLE_DEADLINE,
    SHUTDOWN_GRACE,
};
use crate::link::NodeLink;
use crate::server::tls::Authenticator;

/// Where to listen.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The Unix socket; its directory exists.
    pub socket: PathBuf,
    /// TLS; None for the socket alone.
    pub tls: Option<TlsConfig>,
}

/// Where to listen with TLS, and where what belongs to it is kept.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The address; port 0 takes any.
    pub address: SocketAddr,
    /// Keys, certificates and token; made when missing, 0700.
    pub pki_dir: PathBuf,
    /// The kubeconfig to write, 0600.
    pub kubeconfig: PathBuf,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The embedded data is damaged.
    #[error("the API's embedded data cannot be read")]
    Catalog(#[from] CatalogError),
    /// Another service answers on the socket.
    #[error("another service listens on {0}; stop it, or choose another --run-dir")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; is another service using the port?")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate cannot be made or kept.
    #[error("cannot prepare the certificates in {path}")]
    Pki {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The first namespaces cannot be stored.
    #[error("cannot store the first namespaces")]
    Namespaces(#[source] ApiError),
}

/// The API server.
#[derive(Debug)]
pub struct ApiServer;

/// The places to answer at, taken. Whoever connects waits until they are served; dropping it gives them back.
#[derive(Debug)]
pub struct Listening {
    socket: UnixListener,
    file: SocketFile,
    tls: Option<(TcpListener, SocketAddr, TlsConfig)>,
}

/// A running server. Dropping it leaves it running, without its socket's file; [`Running::stop`] ends it.
#[derive(Debug)]
pub struct Running {
    api: ApiHandle,
    file: SocketFile,
    tls_address: Option<SocketAddr>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Takes the places to answer at. A service does so before it makes anything else: they may be somebody else's.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn listen(config: ServerConfig) -> Result<Listening, StartError> {
        let tls = match config.tls {
            None => None,
            Some(tls) => {
                let fail = |source| StartError::Address { address: tls.address, source };
                let listener = TcpListener::bind(tls.address).await.map_err(fail)?;
                let address = listener.local_addr().map_err(fail)?;
                Some((listener, address, tls))
            }
        };
        let socket = listen_on_socket(&config.socket).await?;
        Ok(Listening { socket, file: SocketFile(config.socket), tls })
    }

    /// Serves the API of a store. See [`ApiServer::serve`] when the node itself needs the handle.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn start(
        listening: Listening,
        store: Store,
        node: Arc<dyn NodeLink>,
        admission: Arc<dyn Admission>,
    ) -> Result<Running, StartError> {
        Self::serve(listening, ApiHandle::new(store, admission)?, node).await
    }

    /// Serves an API that others may already be using from inside.
    ///
    /// # Errors
    /// [`StartError`]; nothing listens then.
    pub async fn serve(listening: Listening, api: ApiHandle, node: Arc<dyn NodeLink>) -> Result<Running, StartError> {
        crate::housekeeping::first_namespaces(&api).await.map_err(StartError::Namespaces)?;
        let Listening { socket, file, tls } = listening;
        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let server = Server {
            front: Arc::new(Front::new(api.clone(), node, stopping.clone())),
            stopping: stopping.clone(),
            tasks: tasks.clone(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        let tls_address = tls.as_ref().map(|(_, address, _)| *address);
        if let Some((listener, address, config)) = tls {
            let authenticator = Authenticator::prepare(&config, address)?;
            tasks.spawn(server.clone().accept_tls(listener, authenticator));
        }
        tasks.spawn(server.accept_socket(socket));
        crate::housekeeping::start(&api, &stopping, &tasks);
        tasks.close();
        Ok(Running { api, file, tls_address, stopping, tasks })
    }
}

impl Running {
    /// The API from inside.
    #[must_use]
    pub fn handle(&self) -> &ApiHandle {
        &self.api
    }

    /// Where TLS is listened on, if it is.
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Stops listening, ends watches and streams, gives requests under way a few seconds, removes the socket.
    pub async fn stop(self) {
        self.stopping.cancel();
        if tokio::time::timeout(SHUTDOWN_GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.tasks.len(), "requests were cut off at shutdown");
        }
        drop(self.file);
    }
}

/// A socket's name, removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, socket = %self.0.display(), "cannot remove the socket");
        }
    }
}

/// Binds beside the final name and renames, so that the socket is never there with wider permissions.
async fn listen_on_socket(path: &Path) -> Result<UnixListener, StartError> {
    let fail = |source| StartError::Socket { path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(StartError::InUse(path.to_owned()));
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(fail)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    std::fs::rename(&fresh, path).map_err(fail)?;
    Ok(listener)
}

/// What every connection shares.
#[derive(Clone)]
struct Server {
    front: Arc<Front>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    connections: Arc<Semaphore>,
}

impl Server {
    async fn accept_socket(self, listener: UnixListener) {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let Some((permit, accepted)) = self.next(listener.accept()).await else { return };
            let Some((connection, _)) = accepted else { continue };
            match connection.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == own => {
                    let server = self.clone();
                    self.tasks.spawn(async move {
                        let _permit = permit;
                        server.serve(connection, None).await;
                    });
                }
                Ok(peer) => tracing::warn!(uid = peer.uid(), "refused a connection of another user"),
                Err(error) => tracing::warn!(%error, "cannot tell who connects"),
            }
        }
    }

    async fn accept_tls(self, listener: TcpListener, authenticator: Authenticator) {
        let authenticator = Arc::new(authenticator);
        loop {
            let Some((permit, accepted)) = self.next(listener.accept()).await else { return };
            let Some((connection, _)) = accepted else { continue };
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let server = self.clone();
            let authenticator = Arc::clone(&authenticator);
            self.tasks.spawn(async move {
                let _permit = permit;
                let handshake = authenticator.accept(connection);
                let handshake = tokio::select! {
                    result = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake) => result,
                    () = server.stopping.cancelled() => return,
                };
                match handshake {
                    Ok(Ok((connection, certified))) => {
                        let token = (!certified).then_some(authenticator);
                        server.serve(connection, token).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            });
        }
    }

    /// The next connection once there is room for it. None when the server stops; the inner None when accepting failed.
    async fn next<T>(
        &self,
        accept: impl Future<Output = std::io::Result<T>>,
    ) -> Option<(tokio::sync::OwnedSemaphorePermit, Option<T>)> {
        let room = async {
            let permit = Arc::clone(&self.connections).acquire_owned().await.ok()?;
            match accept.await {
                Ok(accepted) => Some((permit, Some(accepted))),
                Err(error) => {
                    // Out of descriptors, most likely: without a pause this would spin.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    Some((permit, None))
                }
            }
        };
        tokio::select! {
            next = room => next,
            () = self.stopping.cancelled() => None,
        }
    }

    /// Serves one connection; with `token`, each request must carry it.
    async fn serve<C>(&self, connection: C, token: Option<Arc<Authenticator>>)
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let front = Arc::clone(&self.front);
        let service = service_fn(move |request: Request<Incoming>| {
            let front = Arc::clone(&front);
            let allowed = token.as_ref().is_none_or(|token| token.admits(request.uri().path(), request.headers()));
            async move {
                Ok::<Response<Body>, Infallible>(if allowed {
                    front.answer(request).await
                } else {
                    Front::refuse(&request)
                })
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE).half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(CONNECTION_STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(connection), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended with an error");
        }
    }
}
