//! One HTTP request to one host: connections, TLS, proxies, and what a failure means.
//!
//! HTTP clients are made per host on first use, because the CAs that are trusted and whether proxies apply depend on the host.
//! They share one set of system roots, read once. Redirects are not followed here: the caller must decide where credentials go.

use std::collections::HashMap;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Method, NoProxy, Proxy, Request, Response, Url};
use sampan_oci::reference::DOCKER_HUB;

use crate::config::RegistryConfig;
use crate::error::{FetchError, Site};
use crate::tls::{self, Verification};

type Cause = Box<dyn Error + Send + Sync>;

/// HTTP clients by host, and what is known about hosts.
pub(crate) struct Transport {
    config: Arc<RegistryConfig>,
    clients: Mutex<HashMap<(String, Verification), Client>>,
    /// Whether a host that may speak either was found to speak plain HTTP.
    schemes: Mutex<HashMap<String, Base>>,
}

/// Where a registry's API is, and whether the certificate found there must be good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// `https://registry-1.docker.io/`
    pub(crate) url: Url,
    pub(crate) verification: Verification,
}

impl Transport {
    pub(crate) fn new(config: Arc<RegistryConfig>) -> Self {
        Self { config, clients: Mutex::default(), schemes: Mutex::default() }
    }

    /// Finds out how `registry` (as references name it) is to be reached.
    pub(crate) async fn base(&self, site: &Arc<Site>, registry: &str) -> Result<Base, FetchError> {
        let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
        let make = |scheme, verification| {
            let url = Url::parse(&format!("{scheme}://{host}/"));
            let url =
                url.map_err(|error| FetchError::HostConfiguration { site: Arc::clone(site), source: error.into() })?;
            Ok(Base { url, verification })
        };
        let secure = make("https", Verification::Full)?;
        let is_local = is_loopback(&secure.url);
        if !is_local && !self.config.insecure.iter().any(|insecure| insecure == registry) {
            return Ok(secure);
        }
        if let Some(base) = lock(&self.schemes).get(registry) {
            return Ok(base.clone());
        }
        // Nothing secret is sent before the scheme is known. Locally plain HTTP is the rule; elsewhere encryption without
        // proof of identity is still better than none.
        let (plain, unverified) = (make("http", Verification::None)?, make("https", Verification::None)?);
        let (first, second) = if is_local { (plain, unverified) } else { (unverified, plain) };
        let base = match self.ping(site, &first).await {
            Ok(()) => first,
            Err(error) if matches!(error, FetchError::UnknownHost { .. } | FetchError::Refused { .. }) && is_local => {
                return Err(error);
            }
            Err(error) => match self.ping(site, &second).await {
                Ok(()) => second,
                Err(_) => return Err(error),
            },
        };
        lock(&self.schemes).insert(registry.to_owned(), base.clone());
        Ok(base)
    }

    /// Whether something that may be a registry answers at `base`. Go's servers answer 400 to plain HTTP on a TLS port.
    async fn ping(&self, site: &Arc<Site>, base: &Base) -> Result<(), FetchError> {
        let url = base
            .url
            .join("v2/")
            .map_err(|error| FetchError::HostConfiguration { site: Arc::clone(site), source: error.into() })?;
        let response = self.send(site, base.verification, Request::new(Method::GET, url)).await?;
        match response.status().as_u16() {
            400 => Err(FetchError::Malformed { site: Arc::clone(site), what: "a refusal of its own protocol" }),
            _ => Ok(()),
        }
    }

    /// How strictly the server behind `url` is checked, when a registry's answer led there.
    pub(crate) fn verification(&self, base: &Base, url: &Url) -> Verification {
        let host = authority(url);
        if host == authority(&base.url) {
            return base.verification;
        }
        let trusted = is_loopback(url) || self.config.insecure.contains(&host);
        if trusted { Verification::None } else { Verification::Full }
    }

    /// Forgets how `registry` is reached, after it could not be.
    pub(crate) fn forget(&self, registry: &str) {
        lock(&self.schemes).remove(registry);
    }

    /// Sends one request and waits for the headers of the answer, whatever its status.
    pub(crate) async fn send(
        &self,
        site: &Arc<Site>,
        verification: Verification,
        request: Request,
    ) -> Result<Response, FetchError> {
        let client = self.client(site, verification, request.url()).await?;
        client.execute(request).await.map_err(|error| classify(site, error))
    }

    async fn client(&self, site: &Arc<Site>, verification: Verification, url: &Url) -> Result<Client, FetchError> {
        let key = (authority(url), verification);
        if let Some(client) = lock(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let (config, url) = (Arc::clone(&self.config), url.clone());
        // Reading CA files blocks.
        let built = tokio::task::spawn_blocking(move || build(&config, verification, &url)).await;
        let built = built.unwrap_or_else(|error| Err(error.into()));
        let client = built.map_err(|source| FetchError::HostConfiguration { site: Arc::clone(site), source })?;
        let mut clients = lock(&self.clients);
        // Hosts come from redirects too, which a hostile registry chooses.
        if clients.len() >= crate::limits::CLIENTS_MAX {
            clients.clear();
        }
        Ok(clients.entry(key).or_insert(client).clone())
    }
}

fn build(config: &RegistryConfig, verification: Verification, url: &Url) -> Result<Client, Cause> {
    let mut builder = Client::builder()
        .user_agent(concat!("sampan/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(config.transfer.connect_timeout)
        .read_timeout(config.transfer.idle_timeout)
        .http1_only()
        .no_proxy()
        .dns_resolver(Arc::new(SystemNames))
        .use_preconfigured_tls(tls::client_config(&config.certificate_directories, &authority(url), verification)?);
    if !is_loopback(url) {
        let exceptions = || config.proxies.exceptions.as_deref().and_then(NoProxy::from_string);
        if let Some(proxy) = &config.proxies.http {
            builder = builder.proxy(Proxy::http(proxy)?.no_proxy(exceptions()));
        }
        if let Some(proxy) = &config.proxies.https {
            builder = builder.proxy(Proxy::https(proxy)?.no_proxy(exceptions()));
        }
    }
    Ok(builder.build()?)
}

/// `host:port`, without the port if it is the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The system's resolver, with a failure that can be told from others; `localhost` needs no resolver.
struct SystemNames;

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
struct NameError(#[source] std::io::Error);

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            if name.as_str() == "localhost" {
                let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                return Ok(Box::new(both.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs);
            }
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(NameError)?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// What a failed exchange means. The causes are typed, but lie at varying depths of the chain.
pub(crate) fn classify(site: &Arc<Site>, error: reqwest::Error) -> FetchError {
    let site = Arc::clone(site);
    let error = error.without_url();
    if let Some(NameError(source)) = find::<NameError>(&error) {
        return FetchError::UnknownHost { site, source: std::io::Error::new(source.kind(), source.to_string()) };
    }
    if let Some(cause) = find::<rustls::Error>(&error) {
        return match cause {
            rustls::Error::InvalidMessage(_) if error.is_connect() => FetchError::PlainHttp { site },
            cause => FetchError::Tls { site, source: Box::new(cause.clone()) },
        };
    }
    let refused =
        find::<std::io::Error>(&error).is_some_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused);
    if error.is_timeout() && !error.is_connect() {
        return FetchError::Stalled { site };
    }
    match error.is_connect() {
        true if refused => FetchError::Refused { site },
        true => FetchError::Unreachable { site, source: innermost(error) },
        false => FetchError::Interrupted { site, source: innermost(error) },
    }
}

/// The first cause of type `T`, looking into what I/O errors wrap.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|wrapped| find::<T>(wrapped)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The last cause's words: the layers above it only say that a request failed.
fn innermost(error: reqwest::Error) -> Cause {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = cause.to_string();
        next = cause.source();
    }
    words.into()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is kept under these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
