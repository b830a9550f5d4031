//! TLS on loopback, and who is let in.

use std::sync::Arc;

use http::HeaderMap;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::server::pki::Pki;
use crate::server::{StartError, TlsConfig};

/// Terminates TLS and knows whom to believe.
pub(super) struct Authenticator {
    acceptor: TlsAcceptor,
    /// Of the bearer token; comparing hashes takes the same time whatever was sent.
    token: blake3::Hash,
}

/// Paths that anybody may ask for.
const OPEN_PATHS: [&str; 3] = ["/healthz", "/livez", "/readyz"];

impl Authenticator {
    /// Reads or makes keys and certificates, and writes the kubeconfig for `address`.
    pub(super) fn prepare(config: &TlsConfig, address: std::net::SocketAddr) -> Result<Self, StartError> {
        let pki = Pki::open(config, address)?;
        let fail = |source: rustls::Error| StartError::Pki { path: config.pki_dir.clone(), source: source.into() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pki.authority.clone()).map_err(fail)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|source| StartError::Pki { path: config.pki_dir.clone(), source: source.into() })?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(fail)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![pki.server.certificate, pki.authority], PrivateKeyDer::Pkcs8(pki.server.key))
            .map_err(fail)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(tls)), token: blake3::hash(pki.token.as_bytes()) })
    }

    /// The connection inside TLS, and whether its peer has shown a certificate of ours.
    pub(super) async fn accept(&self, connection: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, bool)> {
        let connection = self.acceptor.accept(connection).await?;
        let certified = connection.get_ref().1.peer_certificates().is_some_and(|certificates| !certificates.is_empty());
        Ok((connection, certified))
    }

    /// Whether a request without a certificate may pass.
    pub(super) fn admits(&self, path: &str, headers: &HeaderMap) -> bool {
        let open = OPEN_PATHS.contains(&path.trim_end_matches('/'));
        open || headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .is_some_and(|(scheme, token)| {
                scheme.eq_ignore_ascii_case("bearer") && blake3::hash(token.trim().as_bytes()) == self.token
            })
    }
}
