//! Forwarded ports: a client's connections, carried to ports inside a pod.
//!
//! Three dialects: SPDY/3.1 with a pair of streams for each connection (`kubectl port-forward`), the same SPDY inside
//! WebSocket messages (newer clients), and WebSocket channels, two for each port that was asked for (the Python client).

use async_trait::async_trait;
use http::{HeaderMap, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use std::sync::Arc;

use crate::handshake::{HandshakeError, Offer, no_subprotocol, switch_to_spdy, switch_to_websocket};
use crate::limits::FORWARD_PORTS_MAX;
use crate::{spdy, websocket};

const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";

/// A connection to a port in a pod.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What makes connections inside a pod. Called once for each connection of a client, from many tasks at once; dropping
/// the future gives up.
#[async_trait]
pub trait PortConnector: Send + Sync {
    /// Connects to a port of the pod's loopback address; the error is one line for the client.
    async fn connect(&self, port: u16) -> Result<Box<dyn ByteStream>, String>;
}

/// An agreed dialect, before the connection changes over to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardHandshake(Agreed);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Agreed {
    Spdy,
    Tunnel { accept: String },
    Channels { accept: String },
}

impl ForwardHandshake {
    /// Agrees on a dialect with the client that sent these headers.
    ///
    /// # Errors
    /// When the client offers nothing that is spoken here.
    pub fn agree(headers: &HeaderMap) -> Result<Self, HandshakeError> {
        match Offer::read(headers)? {
            // The first clients did not say which.
            Offer::Spdy { protocols } if protocols.is_empty() || protocols.contains(&SPDY_PROTOCOL) => {
                Ok(Self(Agreed::Spdy))
            }
            Offer::Spdy { protocols } => Err(no_subprotocol(&protocols, &[SPDY_PROTOCOL])),
            Offer::WebSocket { accept, subprotocols } if subprotocols.contains(&TUNNEL) => {
                Ok(Self(Agreed::Tunnel { accept }))
            }
            Offer::WebSocket { accept, subprotocols } if subprotocols.contains(&CHANNELS) => {
                Ok(Self(Agreed::Channels { accept }))
            }
            Offer::WebSocket { subprotocols, .. } => Err(no_subprotocol(&subprotocols, &[TUNNEL, CHANNELS])),
        }
    }

    /// The answer that changes protocols; its body is empty.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        match &self.0 {
            Agreed::Spdy => switch_to_spdy(SPDY_PROTOCOL),
            Agreed::Tunnel { accept } => switch_to_websocket(accept, TUNNEL),
            Agreed::Channels { accept } => switch_to_websocket(accept, CHANNELS),
        }
    }

    /// Serves the upgraded connection until either side ends it. `ports` are those that the request named: only they may
    /// be forwarded, unless there are none; channels need them, in their order.
    pub async fn serve<C>(self, connection: C, ports: &[u16], connector: Arc<dyn PortConnector>)
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let ports = ports.get(..FORWARD_PORTS_MAX).unwrap_or(ports);
        match self.0 {
            Agreed::Spdy => spdy::forward::serve(connection, ports, connector).await,
            Agreed::Tunnel { .. } => websocket::forward::tunnel(connection, ports, connector).await,
            Agreed::Channels { .. } => websocket::forward::channels(connection, ports, connector).await,
        }
    }
}
