//! From a challenge and a login to an `Authorization` header, and the cache of such grants.
//!
//! Sources: the distribution project's token and OAuth2 specifications. Grants are kept per registry, repository and login, so
//! that one tenant's token never serves another. Requests that meet a 401 at once wait for one exchange instead of each making
//! its own. Invariant: a password goes to a token service over plain HTTP only if the registry itself speaks plain HTTP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Url};
use serde::Deserialize;

use crate::body;
use crate::challenge::Challenge;
use crate::credentials::{CredentialsError, Login};
use crate::error::{Detail, FetchError, Site};
use crate::limits;
use crate::transport::{Base, Transport, lock};

/// What a grant is for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct GrantKey {
    /// `host:port` of the registry's API.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) login: Option<Login>,
    /// Whether it is for writing, too.
    pub(crate) writes: bool,
}

/// A header value that a registry accepts, until it ends.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) header: HeaderValue,
    ends: Option<Instant>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

#[derive(Default)]
pub(crate) struct Grants {
    slots: Mutex<HashMap<GrantKey, Slot>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Grants {
    fn slot(&self, key: &GrantKey) -> Slot {
        let mut slots = lock(&self.slots);
        if slots.len() >= limits::GRANTS_MAX && !slots.contains_key(key) {
            slots.clear();
        }
        Arc::clone(slots.entry(key.clone()).or_default())
    }

    /// The grant at hand, if any.
    pub(crate) async fn current(&self, key: &GrantKey) -> Option<Grant> {
        let slot = self.slot(key);
        let mut grant = slot.lock().await;
        if grant.as_ref().is_some_and(|grant| grant.ends.is_some_and(|ends| ends <= Instant::now())) {
            *grant = None;
        }
        grant.clone()
    }

    /// A grant that answers `challenge`, other than `refused`, which was tried and not accepted.
    pub(crate) async fn renew(
        &self,
        transport: &Transport,
        site: &Arc<Site>,
        base: &Base,
        key: &GrantKey,
        challenge: Challenge,
        refused: Option<&Grant>,
    ) -> Result<Grant, FetchError> {
        let slot = self.slot(key);
        let mut kept = slot.lock().await;
        if let Some(newer) = kept.as_ref().filter(|kept| refused.is_none_or(|refused| refused.header != kept.header)) {
            return Ok(newer.clone());
        }
        let exchange = Exchange { transport, site, base, key };
        let grant = exchange.run(challenge).await?;
        *kept = Some(grant.clone());
        Ok(grant)
    }
}

/// One answer to one challenge.
struct Exchange<'a> {
    transport: &'a Transport,
    site: &'a Arc<Site>,
    base: &'a Base,
    key: &'a GrantKey,
}

impl Exchange<'_> {
    async fn run(&self, challenge: Challenge) -> Result<Grant, FetchError> {
        let (realm, service, scope) = match (challenge, &self.key.login) {
            (_, Some(Login::RegistryToken(token))) => return self.grant(&format!("Bearer {token}"), None),
            (Challenge::Basic, Some(Login::Password { username, password })) => {
                return self.grant(&basic(username, password), None);
            }
            (Challenge::Basic, None) => {
                return Err(FetchError::LoginNeeded { site: Arc::clone(self.site), detail: Detail::default() });
            }
            (Challenge::Basic, Some(Login::IdentityToken(_))) => {
                return Err(FetchError::UnknownChallenge { site: Arc::clone(self.site) });
            }
            (Challenge::Bearer { realm, service, scope }, _) => (realm, service, scope),
        };
        let fail = |reason| FetchError::TokenService { site: Arc::clone(self.site), realm: realm.clone(), reason };
        let url = Url::parse(&realm).or_else(|_| self.base.url.join(&realm));
        let url = url.map_err(|_unparsable| fail("has an address that cannot be read"))?;
        if !matches!(url.scheme(), "http" | "https") || (url.scheme() == "http" && self.base.url.scheme() == "https") {
            return Err(fail("does not use HTTPS, so no login is sent to it"));
        }
        let actions = if self.key.writes { "pull,push" } else { "pull" };
        let scope = scope.unwrap_or_else(|| format!("repository:{}:{actions}", self.key.repository));
        let request = self.request(url, service.as_deref(), &scope)?;
        let answer = self.ask(request, &fail).await?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| fail("gives no token"))?;
        let life = answer.expires_in.map_or(limits::TOKEN_LIFE_DEFAULT, Duration::from_secs);
        let ends = Instant::now().checked_add(life.saturating_sub(limits::TOKEN_LIFE_MARGIN));
        self.grant(&format!("Bearer {token}"), ends)
    }

    /// A GET with the password, or nothing, in its header; a POST for identity tokens.
    fn request(&self, mut url: Url, service: Option<&str>, scope: &str) -> Result<Request, FetchError> {
        let service = service.map(|service| ("service", service));
        // Several scopes come in one parameter, separated by spaces, and go in several.
        let scopes = scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope));
        if let Some(Login::IdentityToken(token)) = &self.key.login {
            let fixed = [("grant_type", "refresh_token"), ("client_id", "sampan"), ("refresh_token", token)];
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut().extend_pairs(fixed).extend_pairs(service).append_pair("scope", scope);
            let mut request = Request::new(Method::POST, url);
            *request.body_mut() = form.query().map(|form| form.to_owned().into());
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            return Ok(request);
        }
        url.query_pairs_mut().extend_pairs(service).extend_pairs(scopes);
        let Some(Login::Password { username, password }) = &self.key.login else {
            return Ok(Request::new(Method::GET, url));
        };
        url.query_pairs_mut().append_pair("account", username);
        let mut request = Request::new(Method::GET, url);
        request.headers_mut().insert(AUTHORIZATION, self.grant(&basic(username, password), None)?.header);
        Ok(request)
    }

    async fn ask(
        &self,
        request: Request,
        fail: &impl Fn(&'static str) -> FetchError,
    ) -> Result<TokenAnswer, FetchError> {
        let verification = self.transport.verification(self.base, request.url());
        let response = self.transport.send(self.site, verification, request).await?;
        let status = response.status();
        if status.is_success() {
            let bytes = body::collect(self.site, response, limits::TOKEN_BODY_BYTES_MAX, "a token request").await?;
            return serde_json::from_slice(&bytes).map_err(|_unparsable| fail("gives an answer that cannot be read"));
        }
        match (status.as_u16(), &self.key.login) {
            (400 | 401 | 403, Some(_)) => {
                Err(FetchError::LoginRejected { site: Arc::clone(self.site), detail: body::detail(response).await })
            }
            (401 | 403, None) => {
                Err(FetchError::LoginNeeded { site: Arc::clone(self.site), detail: body::detail(response).await })
            }
            (429, _) => Err(body::rate_limited(self.site, &response)),
            (500.., _) => Err(FetchError::Unavailable {
                site: Arc::clone(self.site),
                status: status.as_u16(),
                detail: Detail(Some("from its token service".to_owned())),
            }),
            _ => Err(fail("answers with an unexpected status")),
        }
    }

    fn grant(&self, header: &str, ends: Option<Instant>) -> Result<Grant, FetchError> {
        let unprintable = || FetchError::Credentials {
            image: self.site.image.clone(),
            source: Box::new(CredentialsError::Unprintable),
        };
        let mut header = HeaderValue::from_str(header).map_err(|_unprintable| unprintable())?;
        header.set_sensitive(true);
        Ok(Grant { header, ends })
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}
