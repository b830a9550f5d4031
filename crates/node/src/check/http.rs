//! One HTTP request as a probe or a hook: any certificate will do, and redirects are followed on the same host only.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Answer, authority, unreachable};
use crate::limits::{ANSWER_BYTES_MAX, REDIRECTS_MAX};

/// As the kubelet calls itself; servers know it.
pub(super) const AGENT: &str = "kube-probe/1.34";

/// What to ask, and whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpCall {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct HttpAnswer {
    status: StatusCode,
    location: Option<String>,
}

/// Good is whatever is from 200 to 399.
pub(super) async fn probe(call: &HttpCall) -> Result<Answer, String> {
    let mut call = call.clone();
    for _ in 0..=REDIRECTS_MAX {
        let answer = match fetch(&call).await {
            Ok(answer) => answer,
            Err(why) => return Ok(Answer::Bad(why)),
        };
        let status = answer.status.as_u16();
        if !(200..400).contains(&status) {
            return Ok(Answer::Bad(format!("HTTP probe failed with statuscode: {status}")));
        }
        match answer.location.as_deref().filter(|_| answer.status.is_redirection()).and_then(|to| redirected(&call, to))
        {
            Some(next) => call = next,
            None => return Ok(Answer::Good),
        }
    }
    Ok(Answer::Bad(format!("stopped after {REDIRECTS_MAX} redirects")))
}

/// The next request of a redirect to the same host; one to elsewhere is an answer like any other.
fn redirected(call: &HttpCall, to: &str) -> Option<HttpCall> {
    let to: Uri = to.parse().ok()?;
    let path = to.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    match (to.scheme_str(), to.host()) {
        (None, None) => Some(HttpCall { path, ..call.clone() }),
        (scheme, Some(host)) if host.trim_matches(['[', ']']) == call.host => {
            let tls = scheme.map_or(call.tls, |scheme| scheme == "https");
            let port = to.port_u16().unwrap_or(if tls { 443 } else { 80 });
            Some(HttpCall { tls, port, path, ..call.clone() })
        }
        _ => None,
    }
}

/// One request; its answer, or why there is none.
pub(super) async fn fetch(call: &HttpCall) -> Result<HttpAnswer, String> {
    let stream = TcpStream::connect((call.host.as_str(), call.port)).await;
    let stream =
        stream.map_err(|error| format!("Get {:?}: {}", url(call), unreachable(&call.host, call.port, &error)))?;
    let lost = |error: String| format!("Get {:?}: {error}", url(call));
    if call.tls {
        let name = ServerName::try_from(call.host.clone()).map_err(|error| lost(error.to_string()))?;
        let connector = TlsConnector::from(tls().map_err(lost)?);
        let stream = connector.connect(name, stream).await.map_err(|error| lost(error.to_string()))?;
        exchange(TokioIo::new(stream), call).await.map_err(lost)
    } else {
        exchange(TokioIo::new(stream), call).await.map_err(lost)
    }
}

fn url(call: &HttpCall) -> String {
    format!("{}://{}{}", if call.tls { "https" } else { "http" }, authority(&call.host, call.port), call.path)
}

async fn exchange<C>(connection: C, call: &HttpCall) -> Result<HttpAnswer, String>
where
    C: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let text = |error: hyper::Error| sampan_kit::error_chain::ErrorChain(&error).to_string();
    let request = request(call)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(connection).await.map_err(text)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Read, so that the server does not see its client hang up; no further than it may.
        drop(Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await);
        Ok(HttpAnswer { status, location })
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    let mut is_open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _closed = &mut connection, if is_open => is_open = false,
        }
    }
}

fn request(call: &HttpCall) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = call.path.parse().map_err(|error| format!("path {:?}: {error}", call.path))?;
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| format!("header {text:?}: {error}"));
    let headers = request.headers_mut();
    headers.insert(HOST, value(&authority(&call.host, call.port))?);
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    for (index, (name, text)) in call.headers.iter().enumerate() {
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|error| format!("header {name:?}: {error}"))?;
        // The first of a name takes the default's place, further ones add to it.
        let is_first = !call.headers.iter().take(index).any(|(earlier, _)| earlier.eq_ignore_ascii_case(name));
        if is_first {
            headers.insert(parsed, value(text)?);
        } else {
            headers.append(parsed, value(text)?);
        }
    }
    Ok(request)
}

/// TLS that believes every certificate: probes go to a pod of this very node, and the kubelet asks for none either.
fn tls() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes))).with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
