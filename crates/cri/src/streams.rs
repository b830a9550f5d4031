//! The streaming server: where clients come with the addresses that `Exec`, `Attach` and `PortForward` gave them.
//!
//! It listens on the loopback address only; a kubelet sits on the same machine and passes its own clients on. What is
//! wrong is told before the connection changes protocols.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use sampan_streaming::{ForwardHandshake, Handshake, HandshakeError};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::error::CallError;
use crate::limits::{ACCEPT_PAUSE, STREAMS_MAX};
use crate::tickets::{Ticket, Tickets};

/// The server's shared half: gives addresses out.
#[derive(Debug)]
pub(crate) struct Streams {
    address: SocketAddr,
    tickets: Tickets,
}

impl Streams {
    /// Listens on a free port of the loopback address.
    pub(crate) async fn listen() -> std::io::Result<(Arc<Self>, TcpListener)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok((Arc::new(Self { address, tickets: Tickets::default() }), listener))
    }

    /// Where the client of a stream is to go.
    pub(crate) fn url(&self, ticket: Ticket) -> Result<String, CallError> {
        let kind = match &ticket {
            Ticket::Exec(_) => "exec",
            Ticket::Attach(_) => "attach",
            Ticket::PortForward(_) => "portforward",
        };
        let name = self.tickets.issue(ticket, Instant::now())?;
        Ok(format!("http://{}/{kind}/{name}", self.address))
    }
}

type Answer = Response<Full<Bytes>>;

/// A stream that is agreed upon, before its connection has changed over.
enum Agreed {
    Command(Handshake, sampan_streaming::RemoteStreams),
    Ports(ForwardHandshake, Vec<u16>, Arc<dyn sampan_streaming::PortConnector>),
}

/// Serves clients until it is told to stop; streams that are open then are cut.
pub(crate) async fn serve(listener: TcpListener, streams: Arc<Streams>, engine: Arc<Engine>, stop: CancellationToken) {
    let (tracker, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(STREAMS_MAX)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let connection = match accepted {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "a client of a stream cannot be accepted");
                // Out of descriptors, most likely: without a pause this would spin.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A full house answers nobody; the kubelet tells its client and tries no more.
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (streams, engine, stop, inner) = (Arc::clone(&streams), Arc::clone(&engine), stop.clone(), tracker.clone());
        tracker.spawn(async move {
            let permit = Arc::new(permit);
            let service = hyper::service::service_fn(|request| {
                let (streams, engine) = (Arc::clone(&streams), Arc::clone(&engine));
                let (stop, inner, permit) = (stop.clone(), inner.clone(), Arc::clone(&permit));
                async move {
                    let answer = open(request, &streams, &engine, stop, &inner, permit).await;
                    Ok::<_, Infallible>(answer.unwrap_or_else(|(status, why)| {
                        let mut response = Response::new(Full::new(Bytes::from(why)));
                        *response.status_mut() = status;
                        response
                    }))
                }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            let connection = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service);
            tokio::select! {
                ended = connection.with_upgrades() => if let Err(error) = ended {
                    tracing::debug!(%error, "a client of a stream went away");
                },
                () = stop.cancelled() => {}
            }
        });
    }
    tracker.close();
    tracker.wait().await;
}

async fn open(
    mut request: Request<Incoming>,
    streams: &Streams,
    engine: &Arc<Engine>,
    stop: CancellationToken,
    tracker: &TaskTracker,
    permit: Arc<tokio::sync::OwnedSemaphorePermit>,
) -> Result<Answer, (StatusCode, String)> {
    let unknown = || (StatusCode::NOT_FOUND, "this address is not known, was used before, or is too old".to_owned());
    let refuse = |error: HandshakeError| (StatusCode::BAD_REQUEST, error.to_string());
    let (kind, name) = match request.uri().path().split('/').collect::<Vec<_>>()[..] {
        ["", kind, name] => (kind.to_owned(), name.to_owned()),
        _ => return Err(unknown()),
    };
    // A client whose protocol is not spoken here may come again with another.
    let (response, agreed) = if kind == "portforward" {
        let handshake = ForwardHandshake::agree(request.headers()).map_err(refuse)?;
        let Some(Ticket::PortForward(wanted)) = streams.tickets.take(&name, Instant::now()) else {
            return Err(unknown());
        };
        let connector = engine.port_connector(&wanted.pod_sandbox_id).map_err(failed)?;
        let ports = wanted.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
        (handshake.response(), Agreed::Ports(handshake, ports, connector))
    } else {
        let handshake = Handshake::agree(request.headers()).map_err(refuse)?;
        let opened = match streams.tickets.take(&name, Instant::now()) {
            Some(Ticket::Exec(wanted)) if kind == "exec" => engine.exec(wanted).await,
            Some(Ticket::Attach(wanted)) if kind == "attach" => engine.attach(wanted).await,
            _ => return Err(unknown()),
        };
        let opened = opened.map_err(failed)?;
        (handshake.response(), Agreed::Command(handshake, opened))
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tracker.spawn(async move {
        let _permit = permit;
        let connection = match upgrade.await {
            Ok(connection) => TokioIo::new(connection),
            Err(error) => {
                tracing::debug!(%error, "a client went away before its stream began");
                return;
            }
        };
        let serving = async {
            match agreed {
                Agreed::Command(handshake, streams) => handshake.serve(connection, streams).await,
                Agreed::Ports(handshake, ports, connector) => handshake.serve(connection, &ports, connector).await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(response.map(|()| Full::default()))
}

fn failed(error: CallError) -> (StatusCode, String) {
    let status = match &error {
        CallError::NotFound { .. } => StatusCode::NOT_FOUND,
        CallError::NotNow(_) => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, tonic::Status::from(error).message().to_owned())
}
