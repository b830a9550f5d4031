//! HTTPS through a proxy, to a host that only the proxy knows, with a CA that only `certs.d` knows.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use expect_test::expect;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use sampan_oci::platform::Platform;
use sampan_registry::config::Proxies;
use sampan_registry::{Credentials, RegistryClient, RegistryConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::server::{Reply, Server, TestImage, config};

const HOST: &str = "registry.test";

/// A certificate for [`HOST`] in a server's hands, and the PEM of the CA that vouches for it.
fn certificate() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, ca_key);
    let leaf = CertificateParams::new(vec![HOST.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(server)), ca.pem())
}

/// A proxy that takes every CONNECT to one server. The tasks end with the set.
async fn proxy(server: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            tunnels.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                assert!(head.starts_with(format!("CONNECT {HOST}:443 ").as_bytes()));
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = TcpStream::connect(server).await.unwrap();
                copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    (address, tasks)
}

async fn pull(config: RegistryConfig) -> Result<(), String> {
    let source = format!("{HOST}/app:1").parse().unwrap();
    let resolved = RegistryClient::new(config).resolve(&source, &Platform::host(), &Credentials::anonymous()).await;
    resolved.map(|_| ()).map_err(|error| sampan_kit::error_chain::ErrorChain(&error).to_string())
}

#[tokio::test]
async fn private_cas_and_proxies_are_obeyed() {
    let (acceptor, ca) = certificate();
    let image = TestImage::new(10);
    let server = Server::start_with(move |seen| image.answer(seen), Some(acceptor)).await;
    let (proxy, _tasks) = proxy(server.address).await;
    let proxies = Proxies { https: Some(format!("http://{proxy}")), ..Proxies::default() };
    let directory = tempfile::tempdir().unwrap();
    let through = || RegistryConfig {
        proxies: proxies.clone(),
        certificate_directories: vec![directory.path().to_owned()],
        ..config()
    };

    expect!["cannot fetch registry.test/app:1: the certificate of registry.test is not accepted; put its CA into /etc/docker/certs.d/registry.test/ca.crt, or configure the registry as insecure: invalid peer certificate: UnknownIssuer"]
        .assert_eq(&pull(through()).await.unwrap_err());
    pull(RegistryConfig { insecure: vec![HOST.to_owned()], ..through() }).await.unwrap();

    fs::create_dir(directory.path().join(HOST)).unwrap();
    fs::write(directory.path().join(HOST).join("ca.crt"), &ca).unwrap();
    pull(through()).await.unwrap();

    fs::write(
        directory.path().join(HOST).join("bad.crt"),
        "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let error = pull(through()).await.unwrap_err();
    assert!(error.contains("bad.crt cannot be read; correct or remove the file"), "{error}");

    // Without the proxy nobody knows the name.
    let direct = Proxies { exceptions: Some(".test".to_owned()), ..proxies.clone() };
    let error = pull(RegistryConfig { proxies: direct, ..config() }).await.unwrap_err();
    assert!(error.contains("the registry's host registry.test is unknown"), "{error}");
}

#[tokio::test]
async fn plain_http_where_https_was_meant_is_told() {
    let server = Server::start(|_| Reply::status(200)).await;
    let (proxy, _tasks) = proxy(server.address).await;
    let proxies = Proxies { https: Some(format!("http://{proxy}")), ..Proxies::default() };
    expect!["cannot fetch registry.test/app:1: registry.test does not speak HTTPS; configure the registry as insecure if it is meant to use plain HTTP"]
        .assert_eq(&pull(RegistryConfig { proxies, ..config() }).await.unwrap_err());
}
