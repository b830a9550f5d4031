//! How a connection becomes a stream: which protocol a client offers, and our answer to it.

use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::streams::RemoteStreams;
use crate::{spdy, websocket};

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const SUBPROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// The newest that SPDY clients speak; v5 is for WebSocket only.
const SPDY_PROTOCOL: &str = "v4.channel.k8s.io";

/// In order of preference.
const SUBPROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// Why a request cannot become a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It does not ask for an upgrade that is spoken here.
    #[error("unable to upgrade: the request offers neither WebSocket nor SPDY/3.1")]
    NoUpgrade,
    /// None of its subprotocols is spoken here.
    #[error("unable to upgrade: none of the subprotocols {offered:?} is served, only {served}")]
    NoSubprotocol {
        /// What the client offered.
        offered: String,
        /// What it might have offered.
        served: String,
    },
    /// A WebSocket header is missing or wrong.
    #[error("unable to upgrade: the WebSocket handshake lacks a key or has another version than 13")]
    BadWebSocket,
}

/// An agreed protocol, before the connection changes over to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake(Agreed);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Agreed {
    WebSocket { accept: String, subprotocol: &'static str },
    Spdy,
}

pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// What a client offered under a header, of which nothing is served.
pub(crate) fn no_subprotocol(offered: &[&str], served: &[&str]) -> HandshakeError {
    HandshakeError::NoSubprotocol { offered: offered.join(", ").chars().take(128).collect(), served: served.join(", ") }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Offer<'a> {
    /// With the answer to its key, and the subprotocols that it offers.
    WebSocket { accept: String, subprotocols: Vec<&'a str> },
    /// With the stream protocols that it offers.
    Spdy { protocols: Vec<&'a str> },
}

impl<'a> Offer<'a> {
    pub(crate) fn read(headers: &'a HeaderMap) -> Result<Self, HandshakeError> {
        let asks_for = |protocol: &str| tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case(protocol));
        if !wants_upgrade(headers) {
            return Err(HandshakeError::NoUpgrade);
        }
        if asks_for("websocket") {
            let key = headers.get(&KEY).filter(|_| headers.get(&VERSION).is_some_and(|version| version == "13"));
            let key = key.ok_or(HandshakeError::BadWebSocket)?;
            let subprotocols = tokens(headers, &SUBPROTOCOL).collect();
            return Ok(Self::WebSocket { accept: derive_accept_key(key.as_bytes()), subprotocols });
        }
        if asks_for("SPDY/3.1") {
            return Ok(Self::Spdy { protocols: tokens(headers, &STREAM_PROTOCOL).collect() });
        }
        Err(HandshakeError::NoUpgrade)
    }
}

/// The answer that changes over to WebSocket.
pub(crate) fn switch_to_websocket(accept: &str, subprotocol: &'static str) -> Response<()> {
    let mut response = switch_to("websocket");
    response.headers_mut().insert(SUBPROTOCOL, HeaderValue::from_static(subprotocol));
    if let Ok(accept) = HeaderValue::from_str(accept) {
        response.headers_mut().insert(ACCEPT, accept);
    }
    response
}

/// The answer that changes over to SPDY.
pub(crate) fn switch_to_spdy(protocol: &'static str) -> Response<()> {
    let mut response = switch_to("SPDY/3.1");
    response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

fn switch_to(protocol: &'static str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Whether a request asks for any upgrade at all.
#[must_use]
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

impl Handshake {
    /// Agrees on a protocol with the client that sent these headers.
    ///
    /// # Errors
    /// When the client offers nothing that is spoken here.
    pub fn agree(headers: &HeaderMap) -> Result<Self, HandshakeError> {
        match Offer::read(headers)? {
            Offer::WebSocket { accept, subprotocols } => {
                let subprotocol = SUBPROTOCOLS.into_iter().find(|known| subprotocols.contains(known));
                let subprotocol = subprotocol.ok_or_else(|| no_subprotocol(&subprotocols, &SUBPROTOCOLS))?;
                Ok(Self(Agreed::WebSocket { accept, subprotocol }))
            }
            Offer::Spdy { protocols } if protocols.contains(&SPDY_PROTOCOL) => Ok(Self(Agreed::Spdy)),
            Offer::Spdy { protocols } => Err(no_subprotocol(&protocols, &[SPDY_PROTOCOL])),
        }
    }

    /// The answer that changes protocols; its body is empty.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        match &self.0 {
            Agreed::WebSocket { accept, subprotocol } => switch_to_websocket(accept, subprotocol),
            Agreed::Spdy => switch_to_spdy(SPDY_PROTOCOL),
        }
    }

    /// Serves the session on the upgraded connection until either side ends it.
    pub async fn serve<C>(self, connection: C, streams: RemoteStreams)
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self.0 {
            Agreed::WebSocket { .. } => websocket::serve(connection, streams).await,
            Agreed::Spdy => spdy::serve(connection, streams).await,
        }
    }
}
